"""Throughput of a cell that was never run, put together from a trace, a latency table and an autoregressive arm.

The trace says how many steps a batch takes and how long their drafts are; the table how long a forward takes, how long
a draft token takes to be drawn, and how much longer a draft takes to be accepted than none; what else a step costs is
what the autoregressive arm of the same machine takes beyond its own forward. Nothing is fitted on the cell in question.

Source: Yan et al., Decoding Speculative Decoding (arXiv 2402.01528), whose public code replays acceptance and leaves
the latencies to be composed with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from specbench.analysis.choosing import Choosing, Kind
from specbench.analysis.intervals import Interval, Totals, jackknife_interval
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.replay import BatchReplay, Replay
from specbench.errors import ResultsError

LATENCY_MODE = "composed"
"""What stands in ``latency_mode`` of what is made here."""

_CATCH_UP = 2
"""Tokens that the first draft forward of a step reads: the root, and the last accepted token before it."""


@dataclass(frozen=True)
class Estimate:
    """A number and half the width of its 95 % interval, in its own unit; None where no interval is known."""

    value: float
    half_width: float | None

    @classmethod
    def of_interval(cls, value: float, interval: Interval | None) -> Estimate:
        """A ratio, whose interval is that of its logarithm."""
        return cls(value, None if interval is None else value * interval.half_width)

    @property
    def relative(self) -> float:
        """Half-width as a share of the value; NaN where it is not known."""
        return math.nan if self.half_width is None else self.half_width / self.value

    def times(self, factor: float) -> Estimate:
        """So many of it."""
        return Estimate(factor * self.value, None if self.half_width is None else abs(factor) * self.half_width)


def independent(parts: Sequence[Estimate], signs: Sequence[int] | None = None) -> Estimate:
    """Sum of numbers whose errors have nothing to do with one another: half-widths add as squares do."""
    value = math.fsum(sign * part.value for sign, part in zip(signs or [1] * len(parts), parts, strict=True))
    widths = [part.half_width for part in parts if part.half_width is not None]
    return Estimate(value, math.hypot(*widths) if len(widths) == len(parts) else None)


def together(parts: Sequence[Estimate]) -> Estimate:
    """Sum of numbers that may all be wrong in the same direction: half-widths add."""
    widths = [part.half_width for part in parts if part.half_width is not None]
    return Estimate(math.fsum(part.value for part in parts), math.fsum(widths) if len(widths) == len(parts) else None)


@dataclass(frozen=True)
class Setting:
    """Where the times of a cell come from.

    Attributes:
        table: Forward times of this machine, and what choosing tokens takes.
        target: Its name in the table.
        draft: Likewise.
        batch_size: Rows.
        context_tokens: Keys and values of a row in the middle of a run.
        autoregressive_s: A step of the autoregressive arm, at the same batch size.
        how: How tokens are chosen.
        mode: How forwards run.
        pace: What the table's times are multiplied by: above 1 where the machine was slower in the run.
    """

    table: LatencyTable
    target: str
    draft: str
    batch_size: int
    context_tokens: int
    autoregressive_s: Estimate
    how: Choosing
    mode: str = "eager"
    pace: float = 1.0

    def forward(self, model: str, query_tokens: int) -> Estimate:
        """Seconds of a forward.

        Raises:
            ResultsError: The table does not reach that far.
        """
        at = (query_tokens, self.batch_size, self.context_tokens)
        seconds = self.table.forward_s(model, *at, mode=self.mode)
        return self._estimate(seconds, self.table.uncertainty(model, *at, mode=self.mode))

    def draw(self) -> Estimate:
        """Seconds in which the draft's logits become its next token.

        Raises:
            ResultsError: The table does not say.
        """
        return self._choice("draw", self.draft, 1)

    def accept(self, query_tokens: int) -> Estimate:
        """Seconds of the accept phase behind a verification of so many tokens.

        Raises:
            ResultsError: The table does not say, or does not reach that far.
        """
        return self._choice("accept", self.target, query_tokens)

    def _choice(self, kind: Kind, model: str, query_tokens: int) -> Estimate:
        if self.table.choosing is None:
            raise ResultsError("this table holds forwards alone, and no time of choosing tokens")
        at = (query_tokens, self.batch_size, self.how)
        return self._estimate(*self.table.choosing.choice_s(kind, model, *at, mode=self.mode))

    def _estimate(self, seconds: float, share: float) -> Estimate:
        value = self.pace * seconds
        return Estimate(value, None if math.isnan(share) else value * share)

    def host(self) -> Estimate:
        """What an autoregressive step takes beyond its forward; may be negative where the table was slower."""
        return independent([self.autoregressive_s, self.forward(self.target, 1)], signs=[1, -1])


@dataclass(frozen=True)
class Composed:
    """What a cell would do.

    Attributes:
        label: The stop rule.
        gamma: Draft tokens of a step, at most.
        batch_size: Rows.
        tokens_per_step: Tokens of the whole batch per step of it, until its last row ends.
        draft_s: The draft phase of a step.
        verify_s: The target's forward.
        host_s: All else.
        lacks: What the table does not say, so that steps come out too short; None where all is in it.
        draft_latency_ms: Of a draft forward, where it was asked for instead of the table's.
        latency_mode: Always `LATENCY_MODE`.
    """

    label: str
    gamma: int
    batch_size: int
    tokens_per_step: Estimate
    draft_s: Estimate
    verify_s: Estimate
    host_s: Estimate
    lacks: str | None = None
    draft_latency_ms: float | None = None
    latency_mode: str = LATENCY_MODE

    @property
    def step_s(self) -> Estimate:
        """A step."""
        return independent([self.draft_s, self.verify_s, self.host_s])

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the whole batch, until its last row ends."""
        return self.tokens_per_step.value / self.step_s.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `tokens_per_s`, from those of the acceptance and of all latencies; None if one has none.

        Source: propagation of independent errors on the log scale.
        """
        reach = math.hypot(self.tokens_per_step.relative, self.step_s.relative)
        if math.isnan(reach):
            return None
        return self.tokens_per_s * math.exp(-reach), self.tokens_per_s * math.exp(reach)


def compose(replayed: Replay, setting: Setting, draft_latency_ms: float | None = None) -> Composed:
    """Throughput of the cell that a replay and a setting stand for.

    Error: the table's forwards run in bursts of one model, those of a step in turn with the other's. What a method
    does between its forwards beside drawing, like asking whether a draft shall go on, is in no part. Where the table
    holds forwards alone a step comes out too short by the draws of its draft, and by what accepting a draft takes more
    than accepting none; ``lacks`` says so.

    Args:
        replayed: The trace, walked through with the method's gamma or stop rule.
        setting: Where times come from.
        draft_latency_ms: Milliseconds of every draft forward, instead of the table's; also below what it takes.

    Raises:
        ResultsError: The trace has no step, or the table does not reach as far as the cell does.
    """
    batches = _full(replayed.batches(setting.batch_size), setting.batch_size)
    steps = np.array([batch.steps for batch in batches])
    tokens = np.array([float(batch.tokens) for batch in batches])
    if not steps.sum():
        raise ResultsError(f"{replayed.label}: no text of the trace has a step, so nothing can be composed of it")
    widths = np.sum([batch.steps_by_width for batch in batches], axis=0) / steps.sum()
    shares = {width: float(share) for width, share in enumerate(widths) if share > 0}
    interval = jackknife_interval(Totals(tokens, tokens), Totals(steps, tokens))
    chosen = _chosen(shares, setting)
    return Composed(
        label=replayed.label,
        gamma=replayed.gamma,
        batch_size=setting.batch_size,
        tokens_per_step=Estimate.of_interval(float(tokens.sum() / steps.sum()), interval),
        draft_s=together([_forwards(shares, setting, draft_latency_ms), chosen.draws_s]),
        verify_s=together([setting.forward(setting.target, width + 1).times(share) for width, share in shares.items()]),
        host_s=independent([setting.host(), chosen.accept_s]),
        lacks=chosen.lacks,
        draft_latency_ms=draft_latency_ms,
    )


def _forwards(shares: Mapping[int, float], setting: Setting, latency_ms: float | None) -> Estimate:
    """The forwards of a mean draft phase: for w tokens, one that catches up and w - 1 that follow it."""
    drafting = math.fsum(share for width, share in shares.items() if width)
    following = math.fsum(share * (width - 1) for width, share in shares.items() if width)
    if latency_ms is not None:
        return Estimate((drafting + following) * latency_ms / 1000, 0.0)
    counts = {_CATCH_UP: drafting, 1: following}
    return together(
        [setting.forward(setting.draft, tokens).times(count) for tokens, count in counts.items() if count > 0]
    )


class _Chosen(NamedTuple):
    """What choosing tokens adds to a step.

    Attributes:
        draws_s: To the draft phase: a draw for each of its tokens.
        accept_s: To all else: what the accept phase takes beyond that of a step without a draft, which is part of the
            autoregressive arm's.
        lacks: Why nothing is known of either; None where both are.
    """

    draws_s: Estimate
    accept_s: Estimate
    lacks: str | None = None


def _chosen(shares: Mapping[int, float], setting: Setting) -> _Chosen:
    drafting = {width: share for width, share in shares.items() if width}
    nothing = Estimate(0.0, 0.0)
    if not drafting:
        return _Chosen(nothing, nothing)
    try:
        draws = setting.draw().times(math.fsum(width * share for width, share in drafting.items()))
        accepts = [setting.accept(width + 1).times(share) for width, share in drafting.items()]
        without = setting.accept(1).times(-math.fsum(drafting.values()))
    except ResultsError as error:
        return _Chosen(nothing, nothing, str(error))
    return _Chosen(draws, together([*accepts, without]))


def _full(batches: Sequence[BatchReplay], size: int) -> Sequence[BatchReplay]:
    """Without a last partial batch, whose speed is another batch size's; with it if there is no other."""
    return [batch for batch in batches if len(batch.prompts) == size] or batches
