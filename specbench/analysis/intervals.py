"""How sure a ratio of two rates is: a jackknife over units, and the noise floor of the machine itself.

A unit is what was drawn independently: for a method against a baseline, a batch of prompts (all its repeats
together, since they share the prompts). The interval speaks of prompts like these on this machine; one
process excludes the variation from run to run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

MIN_UNITS = 4
"""Fewest units with an interval; below, the t quantile is so wide that the number would mislead."""


@dataclass(frozen=True)
class Totals:
    """Seconds and tokens of one arm, one entry a unit."""

    seconds: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided 95 % interval of a ratio, and the number of units that it rests on."""

    low: float
    high: float
    units: int

    @property
    def half_width(self) -> float:
        """Half the width of the interval of the log ratio; .01 is about 1 %."""
        return math.log(self.high / self.low) / 2


def ratio(baseline: Totals, method: Totals) -> float:
    """Seconds a token of the baseline over seconds a token of the method: above 1, the method is faster.

    Source: the ratio of totals, as in Kalibera & Jones, Rigorous Benchmarking in Reasonable Time (ISMM 2013).
    """
    return math.exp(_log_ratio(_stack(baseline, method).sum(axis=1)))


def jackknife_interval(baseline: Totals, method: Totals) -> Interval | None:
    """95 % interval of `ratio`, from leaving out one unit after the other; None below four units.

    The entries of both must be of the same units in the same order: a pair shares its prompts, so what is
    hard in them cancels. The spread of the log ratio is taken, with a t quantile of units - 1 degrees of
    freedom.

    Error: of 95 % intervals 94 to 96 % cover the true ratio from 4 units up, where a two-level bootstrap
    covers 83 to 99 %.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), eq. 11.5.
    """
    stacked = _stack(baseline, method)
    units = stacked.shape[1]
    if units < MIN_UNITS:
        return None
    left_out = stacked.sum(axis=1, keepdims=True) - stacked
    estimates = np.array([_log_ratio(left_out[:, unit]) for unit in range(units)])
    error = math.sqrt((units - 1) / units * float(((estimates - estimates.mean()) ** 2).sum()))
    centre = _log_ratio(stacked.sum(axis=1))
    reach = float(stdtrit(units - 1, 0.975)) * error
    return Interval(math.exp(centre - reach), math.exp(centre + reach), units)


def noise_floor(first: Totals, second: Totals) -> float | None:
    """Half-width of the 95 % interval of the twins' log ratio: what the same work measured twice differs by.

    A dimensionless distance on the log scale: .01 means that differences below about 1 % are not resolved.
    None below four units. The twins do the same work, so here a unit is one pair of timed batches, repeats
    apart.

    Source: the A/A test; Kohavi et al., Controlled experiments on the web: survey and practical guide (2009).
    """
    interval = jackknife_interval(first, second)
    return None if interval is None else interval.half_width


def _stack(baseline: Totals, method: Totals) -> npt.NDArray[np.float64]:
    return np.array([baseline.seconds, baseline.tokens, method.seconds, method.tokens], dtype=np.float64)


def _log_ratio(sums: npt.NDArray[np.float64]) -> float:
    baseline_s, baseline_tokens, method_s, method_tokens = (float(value) for value in sums)
    if min(baseline_s, baseline_tokens, method_s, method_tokens) <= 0:
        return math.nan  # no decode step was timed on one side, e.g. every row ended with its first token
    return math.log(baseline_s / baseline_tokens) - math.log(method_s / method_tokens)
