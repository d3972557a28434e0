"""Forward times from a table: looked up, interpolated between measured points, and fitted against a model's numbers.

A table speaks of one setting: one device, data type, number of threads, attention backend and burst. Rows of two are
never mixed, and a table of another setting than the one asked for is refused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import quantile_test

from specbench.analysis.intervals import LEVEL
from specbench.errors import ResultsError, did_you_mean

SETTING = ("device", "dtype", "threads", "attention", "burst")
"""The columns that must be the same in all rows that are compared."""

AXES = ("query_tokens", "batch_size", "context_tokens")
"""The columns between whose values times are interpolated."""

CONSTANT = "constant"
"""The name of a fit's intercept."""


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the median of independent samples; None below six, of which no two enclose it so surely.

    Error: none of a model's: the number of samples below the true median is binomial whatever their distribution, so
    two of the ordered samples enclose it with at least this probability.

    Source: Conover, Practical Nonparametric Statistics (1999), section 3.2, as ``scipy.stats.quantile_test`` has it.
    """
    interval = quantile_test(np.asarray(samples, dtype=np.float64), p=0.5).confidence_interval(LEVEL)
    return None if math.isnan(interval.low) or math.isnan(interval.high) else (interval.low, interval.high)


class LatencyTable:
    """Forward times of one setting.

    Args:
        rows: Rows of ``latencies``, from one run or several.
        setting: What the device, the data type, ... must be; what is left out may be anything, but only one thing.

    Attributes:
        rows: The rows that were measured; of a point that was measured with several versions, the latest run's.

    Raises:
        ResultsError: The table is of another setting, or of several; the message names the column and both values.
    """

    def __init__(self, rows: pd.DataFrame, **setting: Any) -> None:
        if unknown := setting.keys() - set(SETTING):
            raise ValueError(f"no column of a table's setting: {', '.join(sorted(unknown))}")
        for column in SETTING:
            rows = _of_one_setting(rows, column, setting.get(column))
        latest_last = rows.sort_values("run_id", kind="stable")
        self._all = latest_last.drop_duplicates(["model", "mode", *AXES], keep="last", ignore_index=True)
        self.rows = self._all[self._all["status"] == "ok"]
        self._points: dict[tuple[str, str], dict[tuple[int, ...], Mapping[Any, Any]]] = {}

    @property
    def models(self) -> list[str]:
        """The models with a measured time, in the order of the table."""
        return list(dict.fromkeys(self.rows["model"]))

    def forward_s(
        self, model: str, query_tokens: int = 1, batch_size: int = 1, context_tokens: int = 128, *, mode: str = "eager"
    ) -> float:
        """Seconds of one forward.

        Error: between measured points the time is taken to be linear in tokens, rows and context, one after the
        other: exact where weights or keys and values are read at a constant rate, and blind to a step between two
        points, as tiles of matrix kernels make. Nothing is said beyond the outermost points.

        Args:
            model: As the table names it.
            query_tokens: Tokens of each row that the forward reads.
            batch_size: Rows.
            context_tokens: Keys and values of each row before them.
            mode: How the forward runs.

        Raises:
            ResultsError: The model or mode was not measured, or under this name two models were, or the point lies
                outside of what was measured; the message names the range.
        """
        points = {at: float(row["forward_s"]) for at, row in self._measured(model, mode).items()}
        try:
            return _between(points, (query_tokens, batch_size, context_tokens))
        except _OutsideError as error:
            raise ResultsError(f"{model}, {mode}: {error}{self._failures(model, mode)}") from None

    def uncertainty(
        self, model: str, query_tokens: int = 1, batch_size: int = 1, context_tokens: int = 128, *, mode: str = "eager"
    ) -> float:
        """Half the 95 % interval of a forward as a share of its time: of the least certain measured point around it.

        NaN where one of those has no interval.

        Args:
            model: As in `forward_s`, and so the others.
            query_tokens: Tokens of each row.
            batch_size: Rows.
            context_tokens: Keys and values before them.
            mode: How the forward runs.

        Raises:
            ResultsError: As `forward_s` does.
        """
        around = self._measured(model, mode)
        for axis, wanted in enumerate((query_tokens, batch_size, context_tokens)):
            known = [at[axis] for at in around]
            sides = {
                max((value for value in known if value <= wanted), default=None),
                min((value for value in known if value >= wanted), default=None),
            }
            around = {at: values for at, values in around.items() if at[axis] in sides}
        shares = [(row["forward_high_s"] - row["forward_low_s"]) / row["forward_s"] / 2 for row in around.values()]
        return float(np.max(shares)) if shares else math.nan

    def _measured(self, model: str, mode: str) -> dict[tuple[int, ...], Mapping[Any, Any]]:
        """The rows of a model by their point; a report asks for the same ones many times."""
        if (model, mode) not in self._points:
            rows = self._of(model, mode).to_dict("records")
            self._points[model, mode] = {tuple(int(row[axis]) for axis in AXES): row for row in rows}
        return self._points[model, mode]

    def select(self, **values: Any) -> pd.DataFrame:
        """The measured rows with these values in these columns: what a fit is made of."""
        rows = self.rows
        for column, value in values.items():
            rows = rows[rows[column] == value]
        return rows

    def _of(self, model: str, mode: str) -> pd.DataFrame:
        of_model = self._all[self._all["model"] == model]
        if of_model.empty:
            known = dict.fromkeys(self._all["model"])
            raise ResultsError(f"no latency of {model!r} in this table. {did_you_mean(model, known)}")
        sizes = of_model["parameters"].unique()
        if len(sizes) > 1:
            words = f"one has {sizes[0]:,} parameters, another {sizes[1]:,}"
            raise ResultsError(f"several models are called {model} in this table: {words}")
        rows = self.select(model=model, mode=mode)
        if rows.empty:
            raise ResultsError(f"no latency of {model} in mode {mode!r} in this table{self._failures(model, mode)}")
        return rows

    def _failures(self, model: str, mode: str) -> str:
        """Why some points of a model have no time, as the tail of a message."""
        failed = self._all[(self._all["model"] == model) & (self._all["mode"] == mode) & (self._all["status"] != "ok")]
        reasons = [f"{row['status']}: {row['reason']}" for row in failed.to_dict("records")]
        return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


def _of_one_setting(rows: pd.DataFrame, column: str, wanted: Any) -> pd.DataFrame:
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


class _OutsideError(Exception):
    """A point beyond the outermost ones that were measured."""


def _between(points: Mapping[tuple[int, ...], float], at: tuple[int, ...]) -> float:
    """Piecewise linear along the first axis, of what is piecewise linear along the others."""
    if not at:
        return points[()]
    axis, wanted = AXES[-len(at)], at[0]
    slices = {
        value: {key[1:]: points[key] for key in keys} for value, keys in groupby(sorted(points), key=lambda key: key[0])
    }
    values = list(slices)
    if wanted in slices:
        return _between(slices[wanted], at[1:])
    if not values[0] < wanted < values[-1]:
        measured = f"{values[0]} alone" if len(values) == 1 else f"{values[0]} to {values[-1]}"
        raise _OutsideError(f"{axis} {wanted} lies outside of what was measured, {measured}")
    index = bisect_left(values, wanted)
    low, high = values[index - 1], values[index]
    share = (wanted - low) / (high - low)
    return (1 - share) * _between(slices[low], at[1:]) + share * _between(slices[high], at[1:])


@dataclass(frozen=True)
class Coefficient:
    """Seconds that one more unit of a term costs, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LinearFit:
    """A forward's time as a sum of terms.

    Attributes:
        coefficients: Of every term, and of the `CONSTANT`, in seconds.
        r_squared: Share of the variance of the times that the terms explain.
        worst: The largest error of a point, as a share of its time.
        points: Rows that it rests on.
    """

    coefficients: Mapping[str, Coefficient]
    r_squared: float
    worst: float
    points: int

    def forward_s(self, **values: float) -> float:
        """Seconds of a forward of these values, one for every term."""
        terms = {**values, CONSTANT: 1.0}
        return sum(terms[name] * coefficient.value for name, coefficient in self.coefficients.items())


def fit(rows: pd.DataFrame, terms: Sequence[str]) -> LinearFit:
    """Least squares of ``forward_s`` against columns of the table, like ``layers`` and ``weight_bytes``.

    With depth and bytes as terms it says which of the two a forward's time follows: launches cost by the layer, memory
    by the byte. With ``query_tokens`` it gives what each further token adds to a verification.

    Error: the intervals are those of least squares with independent errors of one size; where latency is not linear in
    the terms they are too narrow, which ``worst`` shows.

    Args:
        rows: Rows of `LatencyTable.select`.
        terms: Columns of numbers.

    Raises:
        ResultsError: Fewer rows than two more than terms, or terms that do not vary, or only together.

    Source: ordinary least squares; Draper & Smith, Applied Regression Analysis (1998), section 5.1.
    """
    needed = len(terms) + 2
    if len(rows) < needed:
        raise ResultsError(f"a fit against {', '.join(terms)} needs {needed} measured points, got {len(rows)}")
    design = np.column_stack([np.ones(len(rows)), *(rows[name].to_numpy(np.float64) for name in terms)])
    seconds = rows["forward_s"].to_numpy(np.float64)
    scale = np.abs(design).max(axis=0)  # bytes beside layers would drown them in rounding
    scaled = design / np.where(scale > 0, scale, 1.0)
    if np.linalg.matrix_rank(scaled) < scaled.shape[1]:
        raise ResultsError(f"{', '.join(terms)}: in these rows they do not vary, or only together, so nothing follows")
    found, *_ = np.linalg.lstsq(scaled, seconds)
    residuals = seconds - scaled @ found
    freedom = len(rows) - scaled.shape[1]
    variance = float(residuals @ residuals) / freedom
    reach = stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance * np.diag(np.linalg.inv(scaled.T @ scaled)))
    coefficients = {
        name: Coefficient(float(value / unit), float((value - half) / unit), float((value + half) / unit))
        for name, value, half, unit in zip([CONSTANT, *terms], found, reach, scale, strict=True)
    }
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    return LinearFit(
        coefficients,
        r_squared=1 - float(residuals @ residuals) / spread if spread > 0 else math.nan,
        worst=float(np.abs(residuals / seconds).max()),
        points=len(rows),
    )
