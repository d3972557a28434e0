"""Forward times from a table: looked up, interpolated between measured points, and fitted against a model's numbers.

A table speaks of one setting: one device, data type, number of threads, attention backend and burst. Rows of two are
never mixed, and a table of another setting than the one asked for is refused. Beside forwards it holds what choosing
tokens takes, as far as that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import quantile_test

from specbench.analysis.choosing import ChoosingTable
from specbench.analysis.intervals import LEVEL
from specbench.analysis.points import OutsideError, Points, latest, of_one_setting, reasons
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
    """Forward times of one setting, and beside them what choosing tokens takes.

    Args:
        rows: Rows of ``latencies``, from one run or several.
        chosen: Rows of ``choosing``; those of other settings are not looked at. None where there are none, as in
            tables of old.
        setting: What the device, the data type, ... must be; what is left out may be anything, but only one thing.

    Attributes:
        rows: The rows that were measured; of a point that was measured with several versions, the latest run's.
        choosing: What choosing tokens takes; None where nothing is known of it.

    Raises:
        ResultsError: The table is of another setting, or of several; the message names the column and both values.
    """

    def __init__(self, rows: pd.DataFrame, chosen: pd.DataFrame | None = None, **setting: Any) -> None:
        if unknown := setting.keys() - set(SETTING):
            raise ValueError(f"no column of a table's setting: {', '.join(sorted(unknown))}")
        for column in SETTING:
            rows = of_one_setting(rows, column, setting.get(column))
        self._all = latest(rows, ["model", "mode", *AXES])
        self.rows = self._all[self._all["status"] == "ok"]
        self._chosen = chosen
        self.choosing = self._choosing()
        self._points: dict[tuple[str, str], Points] = {}

    def of(self, **setting: Any) -> LatencyTable:
        """The same table, of a setting that is named.

        Raises:
            ResultsError: It is of another one.
        """
        return LatencyTable(self._all, self._chosen, **setting)

    @property
    def models(self) -> list[str]:
        """The models with a measured time, in the order of the table."""
        return list(dict.fromkeys(self.rows["model"]))

    def forward_s(
        self, model: str, query_tokens: int = 1, batch_size: int = 1, context_tokens: int = 128, *, mode: str = "eager"
    ) -> float:
        """Seconds of one forward.

        Error: as of `Points`; linear in tokens, rows and context between those that were measured.

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
        try:
            return self._measured(model, mode).seconds((query_tokens, batch_size, context_tokens))
        except OutsideError as error:
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
        return self._measured(model, mode).uncertainty((query_tokens, batch_size, context_tokens))

    def _choosing(self) -> ChoosingTable | None:
        """What was measured in the setting of the forwards."""
        rows, forwards = self._chosen, self._all
        if rows is None or rows.empty or forwards.empty:
            return None
        for column in SETTING:
            rows = rows[rows[column] == forwards[column].iloc[0]]
        return None if rows.empty else ChoosingTable(rows)

    def _measured(self, model: str, mode: str) -> Points:
        """The points of a model; a report asks for the same ones many times."""
        if (model, mode) not in self._points:
            self._points[model, mode] = Points.of(self._of(model, mode), AXES, "forward")
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
        return reasons(
            self._all[(self._all["model"] == model) & (self._all["mode"] == mode) & (self._all["status"] != "ok")]
        )


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
