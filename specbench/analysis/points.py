"""Measured points of one setting: chosen from a table, looked up, and interpolated between."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from specbench.errors import ResultsError

At = tuple[int, ...]
"""A place among the points: a number for each axis."""


class OutsideError(Exception):
    """A place beyond the outermost points that were measured."""


class Time(NamedTuple):
    """Seconds, and the ends of their 95 % interval; NaN where there is none."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Points:
    """Times at some places.

    Error: between measured points the time is taken to be linear along one axis after the other: exact where weights or
    keys and values are read at a constant rate, and blind to a step between two points, as tiles of matrix kernels
    make. Nothing is said beyond the outermost points.

    Attributes:
        axes: Names of the axes.
        times: What was measured, by place.
    """

    axes: tuple[str, ...]
    times: Mapping[At, Time]

    @classmethod
    def of(cls, rows: pd.DataFrame, axes: tuple[str, ...], column: str) -> Points:
        """The points of some rows, whose times stand in ``{column}_s``, ``{column}_low_s`` and ``{column}_high_s``."""
        names = [f"{column}{end}_s" for end in ("", "_low", "_high")]
        places = rows[list(axes)].astype(int).itertuples(index=False, name=None)
        times = rows[names].astype(float).itertuples(index=False, name=None)
        return cls(axes, {at: Time(*own) for at, own in zip(places, times, strict=True)})

    def seconds(self, at: At) -> float:
        """The time at a place.

        Raises:
            OutsideError: It lies outside of what was measured; the message names the axis and its range.
        """
        return self._between({place: time.seconds for place, time in self.times.items()}, at)

    def uncertainty(self, at: At) -> float:
        """Half the 95 % interval as a share of the time: of the least certain measured point around a place.

        NaN where one of those has no interval.
        """
        around = self.times
        for axis, wanted in enumerate(at):
            known = [place[axis] for place in around]
            sides = {
                max((value for value in known if value <= wanted), default=None),
                min((value for value in known if value >= wanted), default=None),
            }
            around = {place: time for place, time in around.items() if place[axis] in sides}
        shares = [(time.high - time.low) / time.seconds / 2 for time in around.values()]
        return float(np.max(shares)) if shares else math.nan

    def _between(self, points: Mapping[At, float], at: At) -> float:
        """Piecewise linear along the first axis, of what is piecewise linear along the others."""
        if not at:
            return points[()]
        axis, wanted = self.axes[-len(at)], at[0]
        slices = {
            value: {key[1:]: points[key] for key in keys}
            for value, keys in groupby(sorted(points), key=lambda key: key[0])
        }
        values = list(slices)
        if wanted in slices:
            return self._between(slices[wanted], at[1:])
        if not values[0] < wanted < values[-1]:
            measured = f"{values[0]} alone" if len(values) == 1 else f"{values[0]} to {values[-1]}"
            raise OutsideError(f"{axis} {wanted} lies outside of what was measured, {measured}")
        index = bisect_left(values, wanted)
        low, high = values[index - 1], values[index]
        share = (wanted - low) / (high - low)
        return (1 - share) * self._between(slices[low], at[1:]) + share * self._between(slices[high], at[1:])


def latest(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Of rows that are alike in ``by``, being measured with several versions, those of the latest run."""
    return rows.sort_values("run_id", kind="stable").drop_duplicates(by, keep="last", ignore_index=True)


def of_one_setting(rows: pd.DataFrame, column: str, wanted: Any) -> pd.DataFrame:
    """The rows with the value that is wanted in a column; where any is, all of them, if they agree.

    Raises:
        ResultsError: They have other values, or several; the message names the column and both values.
    """
    found = list(dict.fromkeys(rows[column].tolist()))
    if wanted is None:
        if len(found) > 1:
            raise ResultsError(
                f"latencies of several settings cannot be mixed: {column} is {found[0]!r} in some rows and "
                f"{found[1]!r} in others; say which"
            )
        return rows
    if found and wanted not in found:
        there = ", ".join(map(repr, found))
        raise ResultsError(f"a latency table of another setting: {column} is {there}, and {wanted!r} is asked for")
    return rows[rows[column] == wanted]


def reasons(failed: pd.DataFrame) -> str:
    """Why some points have no time, as the tail of a message; empty where all have one."""
    found = [f"{row['status']}: {row['reason']}" for row in failed.to_dict("records")]
    return f" ({'; '.join(dict.fromkeys(found))})" if found else ""
