"""The points of a study of latencies: forwards, and what choosing tokens takes behind them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch

from specbench.analysis.choosing import Choosing, Kind
from specbench.config import LatencySection, MachineSettings
from specbench.grid import Plan, is_traceable

Mode = Literal["eager", "compiled", "graphs", "graphs, compiled"]
MODES: tuple[Mode, ...] = ("eager", "compiled", "graphs", "graphs, compiled")
"""How work runs, in the words of the column `requests.execution`."""


@dataclass(frozen=True, order=True)
class Point:
    """One combination: a forward.

    Attributes:
        query_tokens: Tokens of each row that the forward reads, in a line.
        batch_size: Rows.
        context_tokens: Keys and values of each row before them.
        mode: As it is, by ``torch.compile``, masks and all, or replayed as a CUDA graph of either.
    """

    table: ClassVar[str] = "latencies"

    query_tokens: int
    batch_size: int
    context_tokens: int
    mode: Mode = "eager"

    @property
    def length(self) -> int:
        """Tokens of a row after the forward."""
        return self.context_tokens + self.query_tokens

    @property
    def is_compiled(self) -> bool:
        """Whether what is timed went through ``torch.compile``."""
        return "compiled" in self.mode

    @property
    def is_captured(self) -> bool:
        """Whether it is replayed as a graph."""
        return "graphs" in self.mode

    @property
    def columns(self) -> Mapping[str, Any]:
        """What its row says of it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Choice(Point):
    """A choice of tokens behind a forward; the forward is not timed, and is eager or a graph of that.

    Attributes:
        kind: ``draw`` behind a draft's forward, ``accept`` behind a verification.
        how: How tokens are chosen.
    """

    table: ClassVar[str] = "choosing"

    kind: Kind
    how: Choosing

    @property
    def forward(self) -> Point:
        """What runs before it: caches and queues are then as a step leaves them."""
        mode: Mode = "graphs" if self.is_captured else "eager"
        return Point(self.query_tokens, self.batch_size, self.context_tokens, mode)

    @property
    def columns(self) -> Mapping[str, Any]:
        """What its row says of it."""
        own = asdict(self)
        return own | own.pop("how")


def choosings(plan: Plan) -> tuple[Choosing, ...]:
    """The ways of choosing tokens that an experiment's latencies hold: those of the arms that can be composed."""
    if plan.studies.traces is None:
        return ()
    found = [
        Choosing.of(decode.temperature, decode.rule_name, proposal, decode.top_k or None, _unless_all(decode.top_p))
        for decode, chains in ((cell.decode, cell.chains) for cell in plan.cells)
        for _, proposal in chains
        if is_traceable(decode)
    ]
    return tuple(dict.fromkeys(found))


def _unless_all(top_p: float) -> float | None:
    return None if top_p == 1 else top_p


def modes_of(section: LatencySection, machine: MachineSettings, device: torch.device) -> tuple[Mode, ...]:
    """How an experiment's forwards run: as was asked for, else eager, which every machine has, and as its arms do.

    Arms with compiled pieces have no such times.
    """
    if section.modes is not None:
        return section.modes
    own = machine.execution(device.type)
    return tuple(mode for mode in MODES if mode in {"eager", own})
