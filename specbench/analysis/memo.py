"""Remember what was made of the last few frames: a report asks for the same tables of an arm many times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import pandas as pd

T = TypeVar("T")

_KEPT = 64
"""Frames per function: more than a cell has arms."""


def of_frame(function: Callable[[pd.DataFrame], T]) -> Callable[[pd.DataFrame], T]:
    """Call a function once for the same frame object.

    Frames are compared by identity, so neither a frame nor what is returned may be changed in place afterwards;
    nothing here does.
    """
    recent: deque[tuple[pd.DataFrame, Any]] = deque(maxlen=_KEPT)

    @wraps(function)
    def remembering(rows: pd.DataFrame) -> T:
        for known, value in recent:
            if known is rows:
                return value
        value = function(rows)
        recent.append((rows, value))
        return value

    return remembering
