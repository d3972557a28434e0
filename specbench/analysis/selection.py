"""The best of several arms, chosen on one half of the prompts and reported on the other.

Whatever is best on the prompts that chose it looks better there than it is, since its luck was chosen too.
Prompts that had no say in the choice give the speed-up without that luck.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from specbench.analysis.speedup import Speedup, speedup

Comparison = Callable[[pd.DataFrame, pd.DataFrame], Speedup]
"""How much faster the second arm's rows are than the first's."""


@dataclass(frozen=True)
class Choice:
    """An arm that was chosen on some batches of prompts, and what it did on the others.

    Attributes:
        arm: The arm that was fastest on the first half.
        chosen_on: Batches (``block``) of the first half.
        reported_on: Batches of the second half; the two share none.
        speedup: Of the arm on the second half: the figure to report.
        speedup_where_chosen: Of the arm on the first half, flattered by the choice.
        best_elsewhere: The arm that the second half would have chosen; None where nothing finished there.
    """

    arm: str
    chosen_on: tuple[int, ...]
    reported_on: tuple[int, ...]
    speedup: Speedup
    speedup_where_chosen: Speedup
    best_elsewhere: str | None

    @property
    def stable(self) -> bool:
        """Whether both halves choose the same arm."""
        return self.arm == self.best_elsewhere

    @property
    def explanation(self) -> str:
        """How the figure came about, in a sentence."""
        agreement = (
            "the other half would choose the same"
            if self.stable
            else f"the other half would choose {self.best_elsewhere or 'nothing'}"
        )
        return (
            f"{self.arm} was chosen on batches {_listed(self.chosen_on)} and is reported on batches "
            f"{_listed(self.reported_on)}; {agreement}."
        )


def halves(units: Iterable[int], seed: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two halves of the units, each spread over the whole run.

    Neighbours are parted by a coin: of each two units in their order one goes to either half, so that neither
    drift nor the order of the prompts lies between the halves. An odd one out joins the second half, which has
    the figure to report.
    """
    ordered = sorted(units)
    coin = random.Random(f"halves {seed}")
    first: list[int] = []
    for left, right in zip(ordered[::2], ordered[1::2], strict=False):
        first.append(coin.choice((left, right)))
    return tuple(first), tuple(unit for unit in ordered if unit not in first)


def choose(
    baseline: pd.DataFrame, candidates: Mapping[str, pd.DataFrame], seed: int = 0, compare: Comparison = speedup
) -> Choice | None:
    """The fastest of the candidates on one half of the batches, and its speed-up on the other half.

    None where fewer than two batches were run, or no candidate finished one of the first half.

    Args:
        baseline: Rows of the arm that counts as 1; one cell, one pass.
        candidates: Rows of each arm by its name, of the same cell and pass.
        seed: Of the split.
        compare: What fast means.

    Raises:
        ResultsError: Two arms must not be compared; the message names the column in which they differ.
    """
    first, second = halves(baseline["block"].unique().tolist(), seed)
    on_first, on_second = (_speedups(baseline, candidates, half, compare) for half in (first, second))
    best = _fastest(on_first)
    if best is None:
        return None
    return Choice(best, first, second, on_second[best], on_first[best], _fastest(on_second))


def _speedups(
    baseline: pd.DataFrame, candidates: Mapping[str, pd.DataFrame], half: tuple[int, ...], compare: Comparison
) -> dict[str, Speedup]:
    own = baseline[baseline["block"].isin(half)]
    return {arm: compare(own, rows[rows["block"].isin(half)]) for arm, rows in candidates.items()}


def _fastest(found: Mapping[str, Speedup]) -> str | None:
    ratios = {arm: speed.ratio for arm, speed in found.items() if speed.ratio is not None}
    return max(ratios, key=lambda arm: ratios[arm]) if ratios else None


def _listed(units: tuple[int, ...]) -> str:
    return ", ".join(map(str, units))
