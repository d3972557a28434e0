"""Which draft and gamma to take, and what would have to change for another to win.

The arm is chosen on one half of the prompts, and everything here is said of the other half: acceptance and throughput
are those of its headline pass. Step times are those of the phase pass, so what is predicted and what is measured share
their prompts and no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis import closed_forms, contest
from specbench.analysis.contest import Contender
from specbench.analysis.selection import Choice, choose, halves
from specbench.analysis.speedup import full_batch_rate, full_batch_speedup, twin_noise_floor
from specbench.errors import ConfigError, ResultsError, did_you_mean
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.contenders import NO_DRAFT, CellFit, Fit, fitted_cells


@dataclass(frozen=True)
class WhatIf:
    """What is asked instead of what was run.

    Attributes:
        batch_size: Rows of a batch; between measured ones, times lie on straight lines. None takes every cell as it is.
        draft_latency_ms: Draft -> milliseconds of each of its forwards; None as the draft means all of them.
    """

    batch_size: int | None = None
    draft_latency_ms: Mapping[str | None, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """A draft at one gamma: what the closed forms predict, beside what was measured.

    Attributes:
        title: The cell.
        contender: The draft.
        gamma: Draft tokens of a step; None for a draft that is no chain of one length.
        arm: The arm that ran it; None where this gamma was not measured.
        tokens: Tokens that a step emits.
        step_ms: Milliseconds of a step.
        predicted_tokens_per_s: Of the whole batch while all rows decode.
        predicted_speedup: Over autoregressive decoding.
        measured_tokens_per_s: Of the headline pass, on the same prompts.
        low: Lower end of its 95 % interval.
        high: Upper end.
        error: Predicted over measured tokens per second, less 1.
        measured_speedup: Over the core's autoregressive arm, on the same prompts.
        speedup_low: Lower end of its 95 % interval.
        speedup_high: Upper end.
        lossless: Whether the text is the target's own.
        simulated: Whether it was never meant to be.
    """

    title: str
    contender: str
    gamma: int | None
    arm: str | None
    tokens: float
    step_ms: float
    predicted_tokens_per_s: float
    predicted_speedup: float
    measured_tokens_per_s: float | None
    low: float | None
    high: float | None
    error: float | None
    measured_speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    lossless: bool
    simulated: bool


@dataclass(frozen=True)
class Change:
    """What one draft would need to be as fast as another; for the best draft, what it may lose.

    Attributes:
        title: The cell.
        contender: The draft.
        rival: Against whom: the best draft; for that one the next best, which may be to draft nothing.
        is_best: Whether this is the best draft.
        gamma: Its best gamma; None for a draft that is no chain.
        tokens: Tokens that a step emits there.
        alpha: The chance that a draft token is accepted, were it the same everywhere.
        draft_ms: A draft forward; the draft phase of a draft that is no chain.
        predicted_speedup: Over autoregressive decoding.
        lead: Its predicted throughput over the rival's, less 1.
        tie_draft_ms: The draft forward at which the two are equally fast; None if even one for nothing would not do.
        tie_draft_gamma: Its best gamma then.
        tie_tokens: Tokens of a step at which they are; None if even full acceptance would not do.
        tie_tokens_gamma: Its best gamma then.
        tie_alpha: The acceptance that gives them.
        required_tokens: Tokens that a step of today's best gamma would have to emit, possible or not.
        pays_draft_ms: The draft forward at which it is as fast as autoregressive decoding; None if there is none.
        pays_tokens: Tokens of a step at which it is; None if there are none.
        pays_alpha: The acceptance that gives them.
        memory_bound_speedup: Were a forward's time that of reading its weights; None where sizes are not known.
        target_efficiency: Forward of one token a row over that of gamma + 1.
    """

    title: str
    contender: str
    rival: str
    is_best: bool
    gamma: int | None
    tokens: float
    alpha: float | None
    draft_ms: float
    predicted_speedup: float
    lead: float
    tie_draft_ms: float | None
    tie_draft_gamma: int | None
    tie_tokens: float | None
    tie_tokens_gamma: int | None
    tie_alpha: float | None
    required_tokens: float
    pays_draft_ms: float | None
    pays_tokens: float | None
    pays_alpha: float | None
    memory_bound_speedup: float | None
    target_efficiency: float


@dataclass(frozen=True)
class Decision:
    """The answer for one cell.

    Attributes:
        title: The cell.
        batch_size: Its batch size, or the one that was asked about.
        changed: What is not as it was run, in words; empty where all is.
        choice: The arm chosen on one half of the prompts and reported on the other; None where nothing was measured
            like this, or on one batch of prompts only.
        noise_floor: Of the cell, on the log scale.
        best: The draft to take; `contenders.NO_DRAFT` where none pays.
        best_gamma: Its best gamma by the closed forms; None for none, and for a draft that is no chain.
        largest_gamma: The largest that is known of it.
        predicted_speedup: Of the best there, over autoregressive decoding.
        forecasts: One a draft and gamma.
        changes: One a draft.
        left_out: Arm -> why nothing is predicted of it.
    """

    title: str
    batch_size: int
    changed: str
    choice: Choice | None
    noise_floor: float | None
    best: str
    best_gamma: int | None
    largest_gamma: int | None
    predicted_speedup: float
    forecasts: tuple[Forecast, ...]
    changes: tuple[Change, ...]
    left_out: Mapping[str, str]


def decisions(results: Results, what_if: WhatIf = WhatIf()) -> list[Decision]:
    """One a cell, in their order; with a batch size asked about, one for all cells that differ in it alone.

    Raises:
        ResultsError: No arm has phase times, a batch size lies outside those measured, or rows must not be compared.
        ConfigError: A draft is asked about that the run does not have.
    """
    cells = [cell for cell in fitted_cells(results, _reported_blocks) if cell.fits]
    if not cells:
        raise ResultsError(
            f"{results.folder}: no arm with phase times; measure.phase_blocks says in how many blocks to take them"
        )
    if what_if.batch_size is not None:
        cells = [_at_batch(group, what_if.batch_size) for group in _by_place(cells)]
    _check_drafts(what_if, cells)
    sizes = _sizes(results)
    return [
        _Case(
            _with_latencies(cell, what_if), results.timed.get(cell.title, {}), sizes, _in_words(cell, what_if)
        ).decide()
        for cell in cells
    ]


@dataclass(frozen=True)
class GivenDraft:
    """A draft that was never run.

    Attributes:
        name: The draft.
        alpha: Chance that a draft token is accepted, the same at every position.
        forward_s: Seconds of a draft forward.
    """

    name: str
    alpha: float
    forward_s: float


_LARGEST_GAMMA = 64
"""Of a draft by its numbers none beyond is looked at: one that costs nothing has no best gamma."""


def decide_by_numbers(
    drafts: Sequence[GivenDraft], target_s: float, *, verify_slope: float = 0.0, overhead: float = 0.0
) -> Decision:
    """The answer where nothing was run.

    Args:
        drafts: At least one.
        target_s: Seconds of an autoregressive step.
        verify_slope: What each draft token adds to a verification, in autoregressive steps.
        overhead: Accept, update and host beyond those of an autoregressive step, in autoregressive steps.
    """
    verify_s = {gamma: target_s * (1 + verify_slope * gamma) for gamma in range(1, _LARGEST_GAMMA + 1)}
    rest_s = {gamma: seconds + target_s * overhead for gamma, seconds in verify_s.items()}
    contenders = [Contender.of_numbers(draft.name, draft.alpha, draft.forward_s, rest_s) for draft in drafts]
    cell = CellFit(
        title="",
        target="",
        place="",
        batch_size=1,
        autoregressive=Contender(NO_DRAFT, {0: 1.0}, {0: 0.0}, {0: target_s}, {}),
        single_s=target_s,
        fits=tuple(Fit(own, verify_s, arms={}, draft=None, lossless=True, simulated=False) for own in contenders),
        left_out={},
    )
    return _Case(cell, arms={}, sizes={}, changed="by the numbers given").decide()


def forecast_frame(found: Iterable[Decision]) -> pd.DataFrame:
    """Predicted against measured: one row per cell, draft and gamma; see `Forecast` for the columns."""
    return _frame(Forecast, (forecast for decision in found for forecast in decision.forecasts))


def change_frame(found: Iterable[Decision]) -> pd.DataFrame:
    """What each draft would need: one row per cell and draft; see `Change` for the columns."""
    return _frame(Change, (change for decision in found for change in decision.changes))


def _frame(kind: type[Forecast | Change], entries: Iterable[Forecast | Change]) -> pd.DataFrame:
    return pd.DataFrame([asdict(entry) for entry in entries], columns=[column.name for column in fields(kind)])


def _reported_blocks(baseline: pd.DataFrame) -> Collection[int]:
    """The half of the batches that chooses nothing; the only batch where there is one."""
    return halves(baseline["block"].unique().tolist())[1]


class _Case:
    """One cell on its way to a decision."""

    def __init__(
        self, cell: CellFit, arms: Mapping[str, pd.DataFrame], sizes: Mapping[str, float], changed: str
    ) -> None:
        self.cell, self.arms, self.sizes, self.changed = cell, arms, sizes, changed
        self.choice = None if changed else self.chosen()
        self.best = self.best_contender()

    def decide(self) -> Decision:
        cell, best = self.cell, self.best
        is_gamma = best.is_chain and best.best_gamma > 0
        return Decision(
            title=cell.title,
            batch_size=cell.batch_size,
            changed=self.changed,
            choice=self.choice,
            noise_floor=self.noise_floor(),
            best=best.name,
            best_gamma=best.best_gamma if is_gamma else None,
            largest_gamma=best.gammas[-1] if is_gamma else None,
            predicted_speedup=self.speedup(best),
            forecasts=tuple(self.forecast(fit, gamma) for fit in cell.fits for gamma in fit.contender.gammas),
            changes=tuple(self.change(fit) for fit in cell.in_contest),
            left_out=cell.left_out,
        )

    def chosen(self) -> Choice | None:
        """The fastest arm of one half of the prompts, none drafted being one of them."""
        candidates = {arm: self.arms[arm] for fit in self.cell.in_contest for arm in fit.arms.values()}
        baseline = self.arms[BASELINE]
        return choose(baseline, {BASELINE: baseline} | candidates, compare=full_batch_speedup)

    def best_contender(self) -> Contender:
        """That of the chosen arm; where none was, the one that is predicted to be fastest."""
        arm = self.choice.arm if self.choice else None
        for fit in self.cell.in_contest:
            if arm in fit.arms.values():
                return fit.contender
        if arm == BASELINE:
            return self.cell.autoregressive
        return min(self.contenders(), key=lambda contender: contender.best_s_per_token)

    def contenders(self) -> list[Contender]:
        return [self.cell.autoregressive, *(fit.contender for fit in self.cell.in_contest)]

    def speedup(self, contender: Contender) -> float:
        return self.cell.autoregressive.best_s_per_token / contender.best_s_per_token

    def noise_floor(self) -> float | None:
        if self.changed or TWIN not in self.arms:
            return None
        return twin_noise_floor(self.arms[BASELINE], self.arms[TWIN])

    def forecast(self, fit: Fit, gamma: int) -> Forecast:
        contender, arm = fit.contender, fit.arms.get(gamma)
        s_per_token = contender.s_per_token(gamma)
        predicted = self.cell.batch_size / s_per_token
        found = self.measured(arm) if arm else dict.fromkeys(_MEASURED)
        rate = found["measured_tokens_per_s"]
        return Forecast(
            title=self.cell.title,
            contender=contender.name,
            gamma=gamma if contender.is_chain else None,
            arm=arm,
            tokens=contender.tokens[gamma],
            step_ms=1000 * contender.step_s(gamma),
            predicted_tokens_per_s=predicted,
            predicted_speedup=self.cell.autoregressive.best_s_per_token / s_per_token,
            error=None if rate is None else predicted / rate - 1,
            lossless=fit.lossless,
            simulated=fit.simulated,
            **found,
        )

    def measured(self, arm: str) -> dict[str, Any]:
        """Throughput and speed-up on the half that chooses nothing."""
        blocks = _reported_blocks(self.arms[BASELINE])
        baseline, own = (rows[rows["block"].isin(blocks)] for rows in (self.arms[BASELINE], self.arms[arm]))
        rate, speed = full_batch_rate(own), full_batch_speedup(baseline, own)
        values = (rate.ratio, *_ends(rate.interval), speed.ratio, *_ends(speed.interval))
        return dict(zip(_MEASURED, values, strict=True))

    def change(self, fit: Fit) -> Change:
        own = fit.contender
        is_best = own.name == self.best.name
        rival = self.next_best(own) if is_best else self.best
        gamma, rival_s, plain_s = own.best_gamma, rival.best_s_per_token, self.cell.autoregressive.best_s_per_token
        latency, tokens = contest.latency_tie(own, rival_s), contest.acceptance_tie(own, rival_s)
        pays_latency, pays_tokens = contest.latency_tie(own, plain_s), contest.acceptance_tie(own, plain_s)
        ratio = self.size_ratio(fit)
        return Change(
            title=self.cell.title,
            contender=own.name,
            rival=rival.name,
            is_best=is_best,
            gamma=gamma if own.is_chain else None,
            tokens=own.tokens[gamma],
            alpha=own.alpha(gamma),
            draft_ms=1000 * own.forward_s(gamma),
            predicted_speedup=self.speedup(own),
            lead=rival_s / own.best_s_per_token - 1,
            tie_draft_ms=1000 * latency.value if latency else None,
            tie_draft_gamma=latency.gamma if latency and own.is_chain else None,
            tie_tokens=tokens.value if tokens else None,
            tie_tokens_gamma=tokens.gamma if tokens and own.is_chain else None,
            tie_alpha=tokens.alpha if tokens else None,
            required_tokens=contest.needed_tokens(own, gamma, rival_s),
            pays_draft_ms=1000 * pays_latency.value if pays_latency else None,
            pays_tokens=pays_tokens.value if pays_tokens else None,
            pays_alpha=pays_tokens.alpha if pays_tokens else None,
            memory_bound_speedup=None if ratio is None else closed_forms.memory_bound_speedup(
                own.tokens[gamma], gamma, ratio
            ),
            target_efficiency=closed_forms.target_efficiency(self.cell.single_s, fit.verify_s[gamma]),
        )  # fmt: skip

    def next_best(self, own: Contender) -> Contender:
        others = (contender for contender in self.contenders() if contender.name != own.name)
        return min(others, key=lambda contender: contender.best_s_per_token)

    def size_ratio(self, fit: Fit) -> float | None:
        draft, target = self.sizes.get(str(fit.draft)), self.sizes.get(self.cell.target)
        return draft / target if draft and target else None


_MEASURED = ("measured_tokens_per_s", "low", "high", "measured_speedup", "speedup_low", "speedup_high")


def _ends(interval: Any) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)


def _sizes(results: Results) -> dict[str, float]:
    """Bytes of weights by model, as far as the run noted them."""
    return {
        name: float(model["weight_bytes"]) for notes in results.notes for name, model in notes.get("models", {}).items()
    }


# --- what if


def _by_place(cells: Sequence[CellFit]) -> list[list[CellFit]]:
    groups: dict[str, list[CellFit]] = {}
    for cell in cells:
        groups.setdefault(cell.place, []).append(cell)
    return list(groups.values())


def _at_batch(cells: Sequence[CellFit], batch_size: int) -> CellFit:
    """The cell of that batch size, or one between its neighbours."""
    cells = sorted(cells, key=lambda cell: cell.batch_size)
    sizes = [cell.batch_size for cell in cells]
    if batch_size in sizes:
        return cells[sizes.index(batch_size)]
    if not sizes[0] < batch_size < sizes[-1]:
        known = ", ".join(map(str, sizes))
        raise ResultsError(
            f"batch size {batch_size}: measured was {known}, and nothing is known beyond; add it to decode.batch_size"
        )

    def between(maps: Sequence[Mapping[int, float]]) -> dict[int, float]:
        shared = set.intersection(*(set(values) for values in maps))
        return {key: float(np.interp(batch_size, sizes, [values[key] for values in maps])) for key in sorted(shared)}

    def blend(parts: Sequence[Contender]) -> Contender:
        return replace(
            parts[0],
            tokens=between([part.tokens for part in parts]),
            draft_s=between([part.draft_s for part in parts]),
            rest_s=between([part.rest_s for part in parts]),
            kept=between([part.kept for part in parts]),
        )

    named = [{fit.contender.name: fit for fit in cell.fits} for cell in cells]
    fits = []
    for name, first in named[0].items():
        own = [known[name] for known in named if name in known]
        if len(own) == len(cells):
            contender = blend([fit.contender for fit in own])
            fits.append(replace(first, contender=contender, verify_s=between([fit.verify_s for fit in own]), arms={}))
    return replace(
        cells[0],
        title=cells[0].place,
        batch_size=batch_size,
        autoregressive=blend([cell.autoregressive for cell in cells]),
        single_s=float(np.interp(batch_size, sizes, [cell.single_s for cell in cells])),
        fits=tuple(fits),
        left_out={},
    )


def _check_drafts(what_if: WhatIf, cells: Iterable[CellFit]) -> None:
    known = sorted({name for cell in cells for fit in cell.fits for name in _names(fit)})
    for draft in what_if.draft_latency_ms:
        if draft is not None and draft not in known:
            raise ConfigError(
                f"--draft-latency-ms {draft}: no draft of that name was run. {did_you_mean(draft, known)}"
            )


def _names(fit: Fit) -> tuple[str, ...]:
    return (fit.draft,) if fit.draft else (fit.contender.name,)


def _with_latencies(cell: CellFit, what_if: WhatIf) -> CellFit:
    return replace(cell, fits=tuple(_with_latency(fit, what_if.draft_latency_ms) for fit in cell.fits))


def _with_latency(fit: Fit, latencies: Mapping[str | None, float]) -> Fit:
    """The draft with forwards of the time asked about; no arm ran like that."""
    asked = next((latencies[name] for name in (*_names(fit), None) if name in latencies), None)
    if asked is None:
        return fit
    return replace(fit, contender=fit.contender.with_forward_s(asked / 1000), arms={})


def _in_words(cell: CellFit, what_if: WhatIf) -> str:
    """What is not as it was run."""
    parts = []
    if what_if.batch_size is not None and not any(fit.arms for fit in cell.fits):
        parts.append(f"at batch size {what_if.batch_size}, between those measured")
    for draft, latency_ms in what_if.draft_latency_ms.items():
        parts.append(f"with {latency_ms:g} ms a forward of {draft or 'every draft'}")
    return ", ".join(parts)
