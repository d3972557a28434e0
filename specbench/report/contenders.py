"""The closed forms, fitted to a run: what each draft gives and costs at every gamma up to the largest measured.

Acceptance comes from the headline pass of the prompts that the caller names, times from the phase pass: so throughput,
which only the headline pass knows, is free to judge what follows.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd

from specbench.analysis import acceptance, closed_forms, throughput
from specbench.analysis.acceptance import Floats
from specbench.analysis.contest import Contender
from specbench.records.schema import PHASES
from specbench.report.cells import BASELINE, TWIN, Results, places_without
from specbench.report.phases import phase_times

NO_DRAFT = "autoregressive"
"""The contender that drafts nothing."""


@dataclass(frozen=True)
class Fit:
    """One draft of a cell.

    Attributes:
        contender: What it gives and costs.
        verify_s: Gamma -> seconds of the target's forward; a part of the contender's ``rest_s``.
        arms: Gamma -> the arm that was measured there.
        draft: Draft model or heads; None for a method without weights.
        lossless: Whether its text is the target's own.
        simulated: Whether it was never meant to be.
    """

    contender: Contender
    verify_s: Mapping[int, float]
    arms: Mapping[int, str]
    draft: str | None
    lossless: bool
    simulated: bool

    @property
    def is_fair(self) -> bool:
        """Whether it may be called fastest."""
        return self.lossless and not self.simulated


@dataclass(frozen=True)
class CellFit:
    """The drafts of one cell, and decoding without one.

    Attributes:
        title: The cell.
        target: The target model.
        place: All that it shares with cells of other batch sizes.
        batch_size: Its batch size.
        autoregressive: What drafts nothing: gamma 0.
        single_s: The target's forward over one token a row.
        fits: Its drafts.
        left_out: Arm -> why it is not among them.
    """

    title: str
    target: str
    place: str
    batch_size: int
    autoregressive: Contender
    single_s: float
    fits: tuple[Fit, ...]
    left_out: Mapping[str, str]

    @property
    def in_contest(self) -> tuple[Fit, ...]:
        """The drafts that may win: those whose text is the target's own, or all where there are none."""
        return tuple(fit for fit in self.fits if fit.is_fair) or self.fits


@dataclass(frozen=True)
class _Parts:
    """Seconds of a step, by what a draft changes of it."""

    draft_s: float
    verify_s: float
    overhead_s: float

    @property
    def step_s(self) -> float:
        return self.draft_s + self.verify_s + self.overhead_s


def fitted_cells(results: Results, blocks_of: Callable[[pd.DataFrame], Collection[int]]) -> list[CellFit]:
    """Every cell whose autoregressive arm has phase times, cells in their order.

    Args:
        results: The run.
        blocks_of: Which batches of prompts acceptance is taken from, given the rows of a cell's autoregressive arm.
    """
    phases = phase_times(results).set_index(["title", "arm"])
    cells = {
        title: arms for title, arms in results.timed.items() if BASELINE in arms and (title, BASELINE) in phases.index
    }
    if not cells:
        return []
    places = places_without(pd.concat([arms[BASELINE].iloc[:1] for arms in cells.values()]), "batch_size")
    return [
        _Cell(title, arms, phases.loc[title], blocks_of(arms[BASELINE])).fit(str(place))
        for (title, arms), place in zip(cells.items(), places, strict=True)
    ]


class _Cell:
    """One cell on its way to a fit."""

    def __init__(
        self, title: str, arms: Mapping[str, pd.DataFrame], phases: pd.DataFrame, blocks: Collection[int]
    ) -> None:
        self.title, self.arms, self.blocks = title, arms, blocks
        self.phases = phases[phases[[f"{phase}_ms" for phase in PHASES]].notna().all(axis=1)]
        baseline = arms[BASELINE]
        self.batch_size = int(baseline["batch_size"].iloc[0])
        self.row_tokens = max(1, round(float(acceptance.decode_tokens(acceptance.measured(baseline)).mean())))
        # Timing the phases slows every step, and the machine's mood changes: one factor for all arms takes both out.
        steps = {arm: throughput.step_s(rows) for arm, rows in arms.items() if arm in self.phases.index}
        self.stretch = statistics.geometric_mean(
            step_s / self.timed(arm).step_s for arm, step_s in steps.items() if step_s
        )
        self.baseline = self.parts_of_baseline()

    def fit(self, place: str) -> CellFit:
        baseline = self.baseline
        left_out = {arm: why for arm, rows in self.arms.items() if (why := self.why_left_out(arm, rows))}
        groups = self.groups([arm for arm in self.arms if arm not in {BASELINE, TWIN, *left_out}])
        verify_s = self.verify_of_chains([arm for is_chain, group in groups for arm in group if is_chain])
        return CellFit(
            title=self.title,
            target=str(self.arms[BASELINE]["target"].iloc[0]),
            place=place,
            batch_size=self.batch_size,
            autoregressive=Contender(NO_DRAFT, {0: 1.0}, {0: 0.0}, {0: baseline.step_s}, {0: 1.0}),
            single_s=baseline.verify_s,
            fits=tuple(self.fit_group(group, verify_s if is_chain else None) for is_chain, group in groups),
            left_out={arm: why for arm, why in left_out.items() if arm not in {BASELINE, TWIN}},
        )

    def parts_of_baseline(self) -> _Parts:
        """Of both twins, which do the same work."""
        twins = [self.parts(arm) for arm in (BASELINE, TWIN) if arm in self.phases.index]
        return _Parts(*map(statistics.fmean, zip(*map(astuple, twins), strict=True)))

    def timed(self, arm: str) -> _Parts:
        """As the phase pass has it."""
        row = self.phases.loc[arm]
        seconds = {phase: float(row[f"{phase}_ms"]) / 1000 for phase in PHASES}
        draft_s, verify_s = seconds.pop("draft"), seconds.pop("verify")
        return _Parts(draft_s, verify_s, math.fsum(seconds.values()))

    def parts(self, arm: str) -> _Parts:
        """At the pace of the headline pass."""
        return _Parts(*(self.stretch * seconds for seconds in astuple(self.timed(arm))))

    def why_left_out(self, arm: str, rows: pd.DataFrame) -> str | None:
        if not len(acceptance.accepted_lengths(rows)):
            return "no step of it was recorded"
        if arm not in self.phases.index:
            return "its phases were not timed"
        if rows["latency_mode"].iloc[0] != "measured":
            return "its draft latency is not its own"
        return None

    def groups(self, names: Iterable[str]) -> list[tuple[bool, list[str]]]:
        """Arms that differ in nothing but their gamma, and whether they are chains."""
        found: dict[tuple[bool, str, str], list[str]] = {}
        for arm in names:
            first = self.arms[arm].iloc[0]
            options = json.loads(first["options"])
            is_chain = options.pop("gamma", None) is not None and acceptance.chain_depth(self.arms[arm]) is not None
            alike = json.dumps(options, sort_keys=True) if is_chain else arm
            found.setdefault((is_chain, str(first["method"]), alike), []).append(arm)
        return [(is_chain, group) for (is_chain, _, _), group in found.items()]

    def verify_of_chains(self, arms: Iterable[str]) -> dict[int, float]:
        """Gamma -> seconds to verify, which is the target's matter and no draft's; 0 is its autoregressive forward."""
        found = {0: [self.baseline.verify_s]}
        for arm in arms:
            found.setdefault(self.gamma(arm), []).append(self.parts(arm).verify_s)
        return {gamma: float(np.mean(seconds)) for gamma, seconds in found.items()}

    def gamma(self, arm: str) -> int:
        """Draft tokens of a step; 1 for what is no chain of one length."""
        return acceptance.chain_depth(self.arms[arm]) or 1

    def fit_group(self, group: Sequence[str], verify_s: Mapping[int, float] | None) -> Fit:
        """A draft from its arms: a chain where verify times by gamma are given, else the one shape that it has."""
        rows = pd.concat([self.arms[arm] for arm in group]) if len(group) > 1 else self.arms[group[0]]
        chosen = _with_steps(rows[rows["block"].isin(self.blocks)], rows)
        arms = {1: group[0]} if verify_s is None else {self.gamma(arm): arm for arm in group}
        contender, verify_s = self.shape(chosen, group[0]) if verify_s is None else self.chain(chosen, arms, verify_s)
        first = rows.iloc[0]
        return Fit(
            contender=contender,
            verify_s=verify_s,
            arms=arms,
            draft=None if pd.isna(first["draft"]) else str(first["draft"]),
            lossless=bool(rows["lossless"].all()),
            simulated=bool(rows["simulated_acceptance"].any()),
        )

    def chain(
        self, rows: pd.DataFrame, arms: Mapping[int, str], verify_s: Mapping[int, float]
    ) -> tuple[Contender, dict[int, float]]:
        """At every gamma up to the largest; between those that were run, acceptance by position and times on lines."""
        largest = max(arms)
        gammas = range(1, largest + 1)
        alphas = np.nan_to_num(acceptance.alpha(rows))  # behind a position that kept nothing, nothing was reached
        survival = np.concatenate([[1.0], np.cumprod(alphas[:largest])])
        shares = {gamma: np.append(-np.diff(survival[: gamma + 1]), survival[gamma]) for gamma in gammas}
        own_shares = {gamma: acceptance.accepted_lengths(rows[rows["arm"] == arm]) for gamma, arm in arms.items()}
        shares |= {gamma: found for gamma, found in own_shares.items() if len(found)}
        parts = {gamma: self.parts(arm) for gamma, arm in arms.items()}
        draft_s = _between({0: 0.0} | {gamma: own.draft_s for gamma, own in parts.items()}, gammas)
        verify_s = _between(verify_s, gammas)
        overhead_s = _between({gamma: own.overhead_s for gamma, own in parts.items()}, gammas)
        rest_s = {gamma: verify_s[gamma] + overhead_s[gamma] for gamma in gammas}
        name = " ".join(word for word in arms[min(arms)].split(" ") if not word.startswith("gamma="))
        return self.contender(name, shares, draft_s, rest_s), verify_s

    def shape(self, rows: pd.DataFrame, arm: str) -> tuple[Contender, dict[int, float]]:
        """As it was measured: a tree, or drafts of changing length."""
        own = self.parts(arm)
        rest_s = {1: own.verify_s + own.overhead_s}
        shares = {1: acceptance.accepted_lengths(rows)}
        return self.contender(arm, shares, {1: own.draft_s}, rest_s, is_chain=False), {1: own.verify_s}

    def contender(
        self,
        name: str,
        shares: Mapping[int, Floats],
        draft_s: Mapping[int, float],
        rest_s: Mapping[int, float],
        *,
        is_chain: bool = True,
    ) -> Contender:
        tokens = {gamma: 1 + float(np.arange(len(share)) @ share) for gamma, share in shares.items()}
        kept = {gamma: self.kept(shares[gamma], tokens[gamma]) for gamma in shares}
        return Contender(name, tokens, draft_s, rest_s, kept, is_chain)

    def kept(self, shares: Floats, tokens: float) -> float:
        """Share of the emitted tokens that stand in texts of this cell's length.

        A batch is timed until its first row ends, so only that row's last step is cut.
        """
        emitted = tokens * closed_forms.expected_steps(shares.tolist(), self.row_tokens)
        return 1 - (emitted - self.row_tokens) / (emitted * self.batch_size)


def _with_steps(chosen: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The chosen rows as they were in full batches; where none of those took a step, the next wider choice that has."""
    choices = (throughput.while_full(chosen), throughput.while_full(rows), rows)
    return next((own for own in choices if len(acceptance.accepted_lengths(own))), rows)


def _between(known: Mapping[int, float], gammas: Iterable[int]) -> dict[int, float]:
    """Values between the known ones, on straight lines."""
    at = sorted(known)
    return {gamma: float(np.interp(gamma, at, [known[place] for place in at])) for gamma in gammas}
