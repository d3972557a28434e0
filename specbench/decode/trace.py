"""What happened while a batch was decoded, as plain integers, and the watch that the loop tells about it.

The watch is handed in: ``specbench.bench.timing`` has one that reads a clock, tests use ``NullWatch``. The loop itself
never learns what time it is.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

Phase = Literal["draft", "verify", "accept", "update"]
PHASES: tuple[Phase, ...] = ("draft", "verify", "accept", "update")
FinishReason = Literal["eos", "length"]

_NOTHING: AbstractContextManager[None] = nullcontext()


class Watch(Protocol):
    """Told by the loop where it is; what it does with that is its own business. It must not change a result."""

    def start(self) -> None:
        """The prompts are on the device, nothing has been computed."""

    def first_token(self) -> None:
        """The target's prefill is enqueued, and with it the first token of every row."""

    def prefilled(self) -> None:
        """The method's own prefill is enqueued as well: decoding begins."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Wraps one phase of one step."""

    def step(self) -> None:
        """All work of one step is enqueued."""

    def finish(self, steps: int) -> None:
        """The last needed token is on the host; ``steps`` steps were needed, later ones do not count."""


class NullWatch:
    """A watch that looks away: for tests, warm-up and plain generation."""

    def start(self) -> None:
        """Ignore it."""

    def first_token(self) -> None:
        """Ignore it."""

    def prefilled(self) -> None:
        """Ignore it."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Wrap nothing."""
        return _NOTHING

    def step(self) -> None:
        """Ignore it."""

    def finish(self, steps: int) -> None:
        """Ignore it."""


@dataclass
class RowTrace:
    """One request's way through the loop.

    ``output_ids`` begins with the prefill's token and is cut at the first EOS (which stays) or at the length. The
    per-step lists have one entry for every decode step in which the row was active, before that cut:
    ``len(output_ids) == prefill_tokens + sum(accepted + 1 for every step) - overshoot_tokens``. The core's prefill
    yields one token; a baseline that drafts along with its prefill has more of them by then.
    """

    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    prefill_tokens: int = 1
    accepted_per_step: list[int] = field(default_factory=list)
    drafted_depth_per_step: list[int] = field(default_factory=list)
    drafted_nodes_per_step: list[int] = field(default_factory=list)
    emitted_per_step: list[int] = field(default_factory=list)
    overshoot_tokens: int = 0

    @property
    def steps(self) -> int:
        """Decode steps that the row took part in; the prefill is none."""
        return len(self.accepted_per_step)


@dataclass
class BatchTrace:
    """One batch, from prompts to texts."""

    rows: list[RowTrace]
    syncs_per_step: list[int] = field(default_factory=list)
    captured_phases: tuple[Phase, ...] = ()
    compiled_phases: tuple[Phase, ...] = ()

    @classmethod
    def of(cls, rows: int) -> Self:
        """An empty one, for a batch of so many rows."""
        return cls([RowTrace() for _ in range(rows)])

    @property
    def steps(self) -> int:
        """Decode steps of the batch: those of its longest row."""
        return max((row.steps for row in self.rows), default=0)
