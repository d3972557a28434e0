"""How sure a ratio of two rates is: a jackknife over units and processes, and the noise floor of the machine.

A unit is what was drawn independently: for a method against a baseline, a batch of prompts (all its repeats
together, since they share the prompts). Processes are a further level, crossed with the units: every process
runs every batch with every arm. `estimand` says in words what an interval speaks of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Floats = npt.NDArray[np.float64]

MIN_UNITS = 4
"""Fewest units with an interval; below, the t quantile is so wide that the number would mislead."""

MIN_PROCESSES = 3
"""Fewest processes from whose spread the variation from run to run is judged; below, it is left out."""

LEVEL = 0.95
"""Of every interval here: the share of such intervals that hold the true value."""


@dataclass(frozen=True)
class Totals:
    """Seconds and tokens of one arm: ``[units]``, or ``[units, processes]`` with 0 where nothing was measured."""

    seconds: Floats
    tokens: Floats


@dataclass(frozen=True)
class Interval:
    """A two-sided 95 % interval of a ratio, and the numbers of units and processes that it rests on."""

    low: float
    high: float
    units: int
    processes: int = 1

    @property
    def half_width(self) -> float:
        """Half the width of the interval of the log ratio; .01 is about 1 %."""
        return math.log(self.high / self.low) / 2

    @property
    def estimand(self) -> str:
        """What the interval speaks of."""
        return estimand(self.processes)


def estimand(processes: int) -> str:
    """What a 95 % interval from so many processes speaks of, in words."""
    if processes >= MIN_PROCESSES:
        return f"prompts like these, on this machine, from run to run ({processes} processes)"
    counted = "one process" if processes == 1 else f"{processes} processes"
    return f"prompts like these, on this machine; {counted}: excludes run-to-run variation"


def ratio(baseline: Totals, method: Totals) -> float:
    """Seconds a token of the baseline over seconds a token of the method: above 1, the method is faster.

    Source: the ratio of totals, as in Kalibera & Jones, Rigorous Benchmarking in Reasonable Time (ISMM 2013).
    """
    return math.exp(_log_ratio(_stack(baseline, method).sum(axis=(1, 2))))


def jackknife_interval(baseline: Totals, method: Totals) -> Interval | None:
    """95 % interval of `ratio`, from leaving out one unit after the other; None below four units.

    The entries of both must be of the same units in the same order: a pair shares its prompts, so what is
    hard in them cancels. The spread of the log ratio is taken, with a t quantile of units - 1 degrees of
    freedom.

    From three processes on, processes are left out one after the other as well. Units and processes are
    crossed, so their variances add; the sum has Satterthwaite's degrees of freedom, and the interval is never
    narrower than that of either level alone.

    Error: of 95 % intervals 93.5 to 96.5 % cover the true ratio from 4 units up, where a two-level bootstrap
    covers 83 to 99 %. With processes 93 to 96 % where one of the levels varies, and up to 99 % where neither
    varies more than its noise, which the sum counts twice.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), eq. 11.5; for the sum over crossed
    levels, Owen & Eckles, Bootstrapping data arrays of arbitrary order (2012), and Satterthwaite, An
    approximate distribution of estimates of variance components (1946).
    """
    stacked = _stack(baseline, method)
    _, units, processes = stacked.shape
    if units < MIN_UNITS:
        return None
    levels = [_left_out(stacked.sum(axis=2))]
    if processes >= MIN_PROCESSES:
        levels.append(_left_out(stacked.sum(axis=1)))
    centre = float(_log_ratio(stacked.sum(axis=(1, 2))))
    reach = _widest_reach(levels)
    return Interval(math.exp(centre - reach), math.exp(centre + reach), units, processes)


@dataclass(frozen=True)
class _Level:
    """Variance of an estimate as one level shows it, and the degrees of freedom that this rests on."""

    variance: float
    freedom: float

    @property
    def reach(self) -> float:
        """Half-width of the 95 % interval from this level alone."""
        return float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * math.sqrt(self.variance)


def _widest_reach(levels: Sequence[_Level]) -> float:
    """Half-width from crossed levels: of the widest alone, or of their sum with Satterthwaite's freedom."""
    total = sum(level.variance for level in levels)
    shares = sum(level.variance**2 / level.freedom for level in levels)
    summed = [_Level(total, total**2 / shares)] if shares > 0 else []
    return float(np.max([level.reach for level in (*levels, *summed)]))  # NaN where any of them is


def noise_floor(first: Totals, second: Totals) -> float | None:
    """Half-width of the 95 % interval of the twins' log ratio: what the same work measured twice differs by.

    A dimensionless distance on the log scale: .01 means that differences below about 1 % are not resolved.
    None below four units. The twins do the same work, so here a unit is one pair of timed batches, repeats
    apart.

    Source: the A/A test; Kohavi et al., Controlled experiments on the web: survey and practical guide (2009).
    """
    interval = jackknife_interval(first, second)
    return None if interval is None else interval.half_width


def _left_out(stacked: Floats) -> _Level:
    """``[4, n]`` -> the jackknife's variance of the log ratio, each of the n entries left out in turn."""
    count = stacked.shape[1]
    estimates = _log_ratio(stacked.sum(axis=1, keepdims=True) - stacked)
    return _Level((count - 1) / count * float(((estimates - estimates.mean()) ** 2).sum()), count - 1)


def _stack(baseline: Totals, method: Totals) -> Floats:
    """All totals as ``[4, units, processes]``."""
    stacked = np.array([baseline.seconds, baseline.tokens, method.seconds, method.tokens], dtype=np.float64)
    return stacked.reshape(*stacked.shape[:2], -1)


def _log_ratio(sums: Floats) -> Floats:
    """``[4, ...]`` -> ``[...]``: NaN where no decode step was timed on one side, e.g. all rows ended at once."""
    logs = np.log(np.where(sums > 0, sums, np.nan))
    return logs[0] - logs[1] - logs[2] + logs[3]
