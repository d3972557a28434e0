"""Whether a speed-up differs from 1, in one of three words."""

from __future__ import annotations

import math

from specbench.analysis.speedup import Speedup

RESOLVED, NOT_RESOLVED, NO_INTERVAL = "resolved", "not resolved", "no interval"
"""Resolved: the interval leaves out 1 and the difference exceeds the noise floor."""


def resolution(found: Speedup, floor: float | None) -> str | None:
    """Whether a speed-up differs from 1, in one of three words; None if there is no speed-up.

    Args:
        found: The speed-up.
        floor: Noise floor of its cell on the log scale; None if unknown, and then the interval alone decides.
    """
    if found.ratio is None:
        return None
    if floor is not None and abs(math.log(found.ratio)) <= floor:
        return NOT_RESOLVED
    if found.interval is None:
        return NO_INTERVAL
    return NOT_RESOLVED if found.interval.low <= 1 <= found.interval.high else RESOLVED
