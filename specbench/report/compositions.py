"""Speed-ups put together from the parts of a step, beside the measured ones."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from specbench.analysis.prediction import Composition, compose
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.metrics import summary
from specbench.report.tables import MISSING, TIMES, number, percent, significant
from specbench.report.words import arm_words

_NEVER = "never"


def compositions(results: Results) -> list[Composition]:
    """One a cell and arm that has phase times; empty where phases were not timed."""
    cells = summary(results).groupby("title", sort=False)
    return [entry for _, cell in cells for entry in _of_cell(cell.to_dict("records"))]


def _of_cell(rows: list[dict[Any, Any]]) -> list[Composition]:
    baseline = next((row for row in rows if row["arm"] == BASELINE), None)
    if baseline is None:
        return []
    others = [row for row in rows if row["arm"] not in {BASELINE, TWIN}]
    found = [compose(row, baseline, None if pd.isna(row["gamma"]) else int(row["gamma"])) for row in others]
    return [entry for entry in found if entry is not None]


def table(title: str, entries: list[Composition]) -> Table:
    """One cell's compositions, as a terminal shows them."""
    shown = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    shown.add_column("arm", overflow="fold", min_width=16)
    for heading in (
        "composed",
        "measured",
        "off by",
        "tok/step (even)",
        "draft ms (even)",
        "alpha (even)",
        "best gamma",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        shown.add_row(arm_words(vars(entry)), *_cells(entry))
    return shown


def _cells(entry: Composition) -> list[str]:
    chain, prediction = entry.chain, entry.prediction
    draft_even = significant(entry.break_even_draft_ms) if entry.break_even_draft_ms > 0 else _NEVER
    cells = [
        number(entry.predicted, 2, TIMES),
        number(entry.measured, 2, TIMES),
        percent(entry.error, 1),
        f"{number(entry.tokens)} ({number(entry.break_even_tokens)})",
        f"{significant(entry.draft_ms)} ({draft_even})",
    ]
    if chain is None or prediction is None:
        return [*cells, MISSING, MISSING]
    even = prediction.break_even_alpha
    return [
        *cells,
        f"{number(chain.alpha)} ({_NEVER if even is None else number(even)})",
        f"{prediction.best_gamma} ({number(prediction.best_speedup, 2, TIMES)})",
    ]
