"""The scores of models on one data set, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from specbench.report.tables import MISSING, number, percent, titled
from specbench.report.words import counted

Row = Mapping[str, Any]
_SHARES = frozenset({"top1", "top5", "acc", "acc_norm", "acc_bytes"})


def score_table(rows: Sequence[Row]) -> Table:
    """One model after the other, one column a metric, each with its 95 % interval below it.

    Args:
        rows: Of the table ``scores``, all of one data set and of the same texts or questions.
    """
    shown = titled(_title(rows[0]))
    shown.add_column("model", overflow="fold", min_width=10)
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    for heading in ("parameters", *metrics):
        shown.add_column(heading, justify="right", no_wrap=True)
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["metric"]: row for row in rows if row["model"] == model}
        parameters = number(next(iter(own.values()))["parameters"] / 1e6, 1, " M")
        shown.add_row(model, parameters, *(_cell(own[metric]) if metric in own else MISSING for metric in metrics))
    return shown


def _title(row: Row) -> str:
    if row["form"] == "texts":
        return f"{row['data']}: {counted(row['items'], 'text')} in windows of {row['window_tokens']} tokens"
    shots = f", after {counted(row['shots'], 'worked example')}" if row["shots"] else ""
    return f"{row['data']}: {counted(row['items'], 'question')}{shots}; guessing gives {percent(row['chance'], 1)}"


def _cell(row: Row) -> str:
    if row["metric"] in _SHARES:
        value, low, high = (percent(row[name], 1) for name in ("value", "low", "high"))
    else:
        digits = 3 if row["metric"] == "bits_per_byte" else 2
        value, low, high = (number(row[name], digits) for name in ("value", "low", "high"))
    return value if low == MISSING else f"{value}\n{low.removesuffix(' %')} to {high}"
