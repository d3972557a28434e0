"""Numbers that papers print, to be drawn beside those that are measured here.

Source: Cheng et al., Recurrent Drafter for Fast Speculative Decoding in Large Language Models, arXiv 2403.09919 v5:
tables 1, 3 and 4 and figure 6. What a table does not say is None here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import pandas as pd

from specbench.report.cells import Results

_PAPER, _SOURCE = "Cheng et al. (2024)", "arXiv 2403.09919 v5"
_H100 = "NVIDIA H100"
_MT_BENCH = "MT-bench"


@dataclass(frozen=True)
class Published:
    """One published point.

    Attributes:
        beside: What an experiment calls the table that it stands in.
        paper: Who has published it, and when.
        source: Where the paper is found.
        table: Where in the paper.
        hardware: What it was measured on; None where the table does not say.
        model: The target.
        dataset: The prompts; None where the table does not say.
        method: By its registered name, where it has one here.
        label: What the paper tells it apart by, if not by a number; an arm of that label is its counterpart.
        batch_size: Rows.
        width: Beams.
        length: Tokens of a beam, the root included.
        distilled: Whether the drafter has learned from the target.
        speedup: Over the paper's own autoregressive decoding.
        tokens_per_step: The target's own token included.
        tokens_per_s: Of one request.
        saved_low: Least share of tokens that the prefix tree saves, the root counted in every beam.
        saved_high: Largest such share.
        status: ``ok``, or why there is no number.
    """

    beside: str
    paper: str
    source: str
    table: str
    hardware: str | None
    model: str
    dataset: str | None
    method: str
    label: str | None = None
    batch_size: int | None = None
    width: int | None = None
    length: int | None = None
    distilled: bool | None = None
    speedup: float | None = None
    tokens_per_step: float | None = None
    tokens_per_s: float | None = None
    saved_low: float | None = None
    saved_high: float | None = None
    status: str = "ok"


_SIZES = ("Vicuna 7B", "Vicuna 13B", "Vicuna 33B")

# Method -> speed-up and tokens per step on MT-bench for each size, then on Alpaca.
_TABLE_1: dict[str, tuple[tuple[float, float], ...]] = {
    "medusa": ((2.39, 2.55), (2.40, 2.61), (2.51, 2.53), (2.19, 2.42), (2.26, 2.45), (2.31, 2.31)),
    "eagle": ((2.69, 3.96), (2.74, 4.00), (2.80, 3.71), (2.43, 3.61), (2.49, 3.62), (2.59, 3.29)),
    "redrafter": ((2.80, 4.20), (2.80, 4.21), (2.61, 3.87), (2.69, 4.06), (2.78, 4.02), (2.43, 3.61)),
}

# Batch size -> tokens per second of one request at each beam width; None is out of memory.
_WIDTHS_3 = (1, 2, 4, 8, 16, 32, 64)
_TABLE_3: dict[int, tuple[float | None, ...]] = {
    1: (62.55, 73.32, 80.47, 88.31, 100.16, 104.51, 110.64),
    2: (58.56, 70.25, 75.77, 86.64, 99.45, 107.52, 111.42),
    4: (57.51, 67.42, 74.77, 81.95, 97.13, 99.11, 85.23),
    8: (53.14, 60.48, 69.49, 81.14, 83.44, 73.41, 54.19),
    10: (53.61, 58.79, 66.29, 71.55, 73.57, 65.31, 44.23),
    20: (45.16, 49.05, 57.35, 53.87, 48.76, 35.66, 23.28),
    40: (32.69, 33.59, 36.68, 34.33, 26.43, 19.15, 12.09),
    80: (18.94, 20.45, 19.65, None, None, None, None),
}

# Beam width -> speed-up and tokens per step, first not distilled, then distilled.
_TABLE_4: dict[int, tuple[tuple[float, float], tuple[float, float]]] = {
    1: ((1.47, 2.21), (1.54, 2.35)),
    2: ((1.52, 2.31), (1.60, 2.50)),
    4: ((1.54, 2.48), (1.72, 2.73)),
    16: ((1.80, 2.87), (1.92, 3.09)),
    64: ((1.99, 3.30), (2.18, 3.58)),
}

_WIDTHS_6 = (5, 70)
_SAVED_6 = (0.30, 0.60)


def _table_1() -> Iterator[Published]:
    places = [(model, dataset) for dataset in (_MT_BENCH, "Alpaca") for model in _SIZES]
    for method, values in _TABLE_1.items():
        for (model, dataset), (speedup, tokens) in zip(places, values, strict=True):
            yield Published(
                "redrafter-table-1", _PAPER, _SOURCE, "table 1", _H100, model, dataset, method,
                speedup=speedup, tokens_per_step=tokens,
            )  # fmt: skip


def _table_3() -> Iterator[Published]:
    for batch_size, rates in _TABLE_3.items():
        for width, rate in zip(_WIDTHS_3, rates, strict=True):
            yield Published(
                "redrafter-table-3", _PAPER, _SOURCE, "table 3", _H100, "Vicuna 7B", _MT_BENCH, "redrafter",
                batch_size=batch_size, width=width, tokens_per_s=rate, status="oom" if rate is None else "ok",
            )  # fmt: skip


def _table_4() -> Iterator[Published]:
    for width, both in _TABLE_4.items():
        for distilled, (speedup, tokens) in zip((False, True), both, strict=True):
            yield Published(
                "redrafter-table-4", _PAPER, _SOURCE, "table 4", None, "Vicuna 7B", None, "redrafter",
                label="distilled" if distilled else "not distilled", batch_size=1, width=width, distilled=distilled,
                speedup=speedup, tokens_per_step=tokens,
            )  # fmt: skip


def _figure_6() -> Iterator[Published]:
    for width in _WIDTHS_6:
        yield Published(
            "redrafter-figure-6", _PAPER, _SOURCE, "figure 6", None, "Vicuna 7B", _MT_BENCH, "redrafter",
            width=width, length=5, saved_low=_SAVED_6[0], saved_high=_SAVED_6[1],
        )  # fmt: skip


PUBLISHED: tuple[Published, ...] = (*_table_1(), *_table_3(), *_table_4(), *_figure_6())
"""Every published point that is known here."""


def frame(names: tuple[str, ...] | None = None) -> pd.DataFrame:
    """The published points as a tidy frame, one row a point: all of them, or those of the named tables."""
    rows = [vars(point) for point in PUBLISHED if names is None or point.beside in names]
    return pd.DataFrame(rows, columns=[field.name for field in fields(Published)])


def beside(results: Results) -> pd.DataFrame:
    """The published points that the experiment has set itself beside; empty where it names none."""
    named = [entry.get("beside") or () for entry in results.experiments]
    return frame(tuple(name for names in named for name in ([names] if isinstance(names, str) else names)))


def origin(rows: pd.DataFrame) -> str:
    """Where some points come from, in words: paper, table, target and hardware."""
    first, models = rows.iloc[0], rows["model"].unique()
    model = str(models[0]) if len(models) == 1 else str(models[0]).partition(" ")[0]
    hardware = f" on {first['hardware']}" if pd.notna(first["hardware"]) else ", hardware not stated"
    return f"{first['paper']}, {first['table']}: {model}{hardware}"
