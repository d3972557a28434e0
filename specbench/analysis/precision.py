"""How fine a difference a measurement can show, and how many prompts and repeats a wanted precision takes.

The noise of one timed pair of batches, on the log scale, has two parts. Units (batches of prompts) differ from
one another, and only more prompts make that smaller. Repeats of one unit differ too, and more repeats help as
well. Which of the two is larger decides what to buy.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

from specbench.analysis.intervals import LEVEL, MIN_UNITS, Interval
from specbench.analysis.speedup import batch_ratios
from specbench.analysis.stability import full_batches

_MOST_UNITS = 1_000_000


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the log ratio of one timed pair of batches.

    Attributes:
        between: Between units: what the prompts differ by.
        within: Between repeats of one unit: the machine's own noise.
    """

    between: float
    within: float

    def half_width(self, units: int, repeats: int) -> float:
        """Half-width of the 95 % interval of the log ratio to expect.

        Source: the t interval of a mean of unit means.
        """
        variance = (self.between**2 + self.within**2 / repeats) / units
        return float(stdtrit(units - 1, (1 + LEVEL) / 2)) * math.sqrt(variance)

    def units_needed(self, precision: float, repeats: int) -> int:
        """Fewest units whose interval reaches ``precision`` to either side; .01 is 1 %.

        Raises:
            ValueError: A million units would not do.
        """
        candidates = range(MIN_UNITS, _MOST_UNITS)
        place = bisect_left(candidates, -math.log1p(precision), key=lambda units: -self.half_width(units, repeats))
        if place == len(candidates):
            raise ValueError(f"a precision of {precision:g} takes more than {_MOST_UNITS:,} units")
        return candidates[place]

    def repeats_needed(self, precision: float, units: int) -> int | None:
        """Fewest repeats whose interval reaches ``precision``; None where no number does, so prompts must."""
        error = math.log1p(precision) / float(stdtrit(units - 1, (1 + LEVEL) / 2))
        left_for_repeats = units * error**2 - self.between**2
        if left_for_repeats <= 0:
            return None
        return max(1, math.ceil(self.within**2 / left_for_repeats))


def noise_of(baseline: pd.DataFrame, method: pd.DataFrame) -> Noise | None:
    """Both parts of the noise, from the log ratios of the full batches that two arms share.

    None where a part cannot be told: with fewer than two units, or with no unit that was repeated.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.

    Source: one-way analysis of variance with unequal groups; Searle, Casella & McCulloch, Variance Components
    (1992), section 3.6.
    """
    logs = np.log(batch_ratios(full_batches(baseline), full_batches(method)).astype(float))
    groups = logs.groupby(level="block")
    counts = groups.size().to_numpy(np.float64)
    units, total = len(counts), counts.sum()
    if units < 2 or total <= units:
        return None
    means = groups.mean().to_numpy(np.float64)
    within = float(((logs - groups.transform("mean")) ** 2).sum()) / (total - units)
    across = float((counts * (means - logs.mean()) ** 2).sum()) / (units - 1)
    repeats = (total - (counts**2).sum() / total) / (units - 1)
    return Noise(between=math.sqrt(max(0.0, (across - within) / repeats)), within=math.sqrt(within))


def minimal_detectable_ratio(interval: Interval, power: float = 0.8) -> float:
    """Smallest true ratio above 1 whose interval would leave out 1 with this probability.

    From the width that an interval had, with as many units again; a difference below the noise floor stays
    unresolved all the same.

    Source: power of the two-sided t test by the noncentral t distribution; Cohen, Statistical Power Analysis for
    the Behavioral Sciences (1988), chapter 2.
    """
    freedom = interval.units - 1
    quantile = float(stdtrit(freedom, (1 + LEVEL) / 2))
    error = interval.half_width / quantile
    return math.exp(error * _detectable_effect(freedom, quantile, power))


def _detectable_effect(freedom: float, quantile: float, power: float) -> float:
    """The effect, in standard errors, that a t test finds with this power, in the right direction."""
    enough = quantile + 2 * float(stdtrit(freedom, (1 + power) / 2))
    return float(brentq(lambda effect: 1 - float(nctdtr(freedom, effect, quantile)) - power, 0.0, enough))
