"""Forward times as a terminal shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from specbench.analysis.choosing import Choosing
from specbench.analysis.roofline import over_memory_roof
from specbench.report.tables import number, significant, titled
from specbench.report.words import counted

NOTE = (
    "milliseconds of one forward: the median over rounds of a burst each, and below it its 95 % interval. roof: the "
    "forward of fewest tokens over the time that reading weights, keys and values takes at the best pace of this "
    "table; what is far above 1 waits for launches and the host."
)
"""What the columns mean."""

CHOICES_NOTE = (
    "draw: to draw a draft token from logits, and what it was drawn from where the rule asks for that. accept: the "
    "accept phase of a step behind so many tokens; 1 is a step without a draft."
)
"""What the columns of the choices mean."""

_QUERIES_OF_A_TABLE = 4
"""More columns of times than this do not fit into a terminal."""


def shape_table(rows: pd.DataFrame) -> Table:
    """What the models of some rows of ``latencies`` really are, one line each."""
    shown = _named("models")
    for heading in ("layers", "width", "heads", "feed-forward", "parameters", "MB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows.drop_duplicates(["model", "weights_sha"]).to_dict("records"):
        counts = (row[name] for name in ("layers", "hidden", "heads", "feed_forward", "parameters"))
        shown.add_row(
            Text(str(row["model"])), *(number(count, 0) for count in counts), number(row["weight_bytes"] / 1e6, 1)
        )
    return shown


def time_tables(rows: pd.DataFrame) -> Iterator[Table]:
    """One line for a model, mode, batch size and context, one column for a query length; as many tables as they need.

    Args:
        rows: Of the table ``latencies``, all of one setting.
    """
    queries = sorted(map(int, rows["query_tokens"].unique()))
    rows = rows.assign(over_roof=over_memory_roof(rows))
    for start in range(0, len(queries), _QUERIES_OF_A_TABLE):
        yield _times(rows, queries[start : start + _QUERIES_OF_A_TABLE])


def _times(rows: pd.DataFrame, queries: list[int]) -> Table:
    shown = _named(_setting(rows.iloc[0]))
    shown.add_column("mode")
    for heading in ("batch", "context", *(counted(tokens, "token") for tokens in queries), "roof"):
        shown.add_column(heading, justify="right", no_wrap=True)
    by = ["model", "mode", "batch_size", "context_tokens"]
    for (model, *place), own in rows.sort_values("query_tokens", kind="stable").groupby(by, sort=False):
        cells = {int(row["query_tokens"]): _cell(row) for row in own.to_dict("records")}
        roof = number(own["over_roof"].iloc[0], 1)
        shown.add_row(Text(str(model)), *map(str, place), *(cells.get(tokens, "") for tokens in queries), roof)
    return shown


def choice_tables(rows: pd.DataFrame) -> Iterator[Table]:
    """One line for a model, mode and batch size, as many tables as there are ways of choosing; none without rows.

    Args:
        rows: Of the table ``choosing``, all of one setting.
    """
    by = ["temperature", "rule", "proposal", "top_k", "top_p"]
    for _, own in rows.groupby(by, sort=False, dropna=False):
        queries = sorted(map(int, own.loc[own["kind"] == "accept", "query_tokens"].unique()))
        for start in range(0, len(queries), _QUERIES_OF_A_TABLE):
            yield _choices(own, queries[start : start + _QUERIES_OF_A_TABLE])


def _choices(rows: pd.DataFrame, queries: list[int]) -> Table:
    shown = _named(f"choosing tokens, {_way(rows.iloc[0])}")
    shown.add_column("mode")
    for heading in ("batch", "draw", *(f"accept {tokens}" for tokens in queries)):
        shown.add_column(heading, justify="right", no_wrap=True)
    places = [("draw", 1), *(("accept", tokens) for tokens in queries)]
    for (model, *place), own in rows.groupby(["model", "mode", "batch_size"], sort=False):
        cells = {(row["kind"], int(row["query_tokens"])): _cell(row, "choice") for row in own.to_dict("records")}
        shown.add_row(Text(str(model)), *map(str, place), *(cells.get(at, "") for at in places))
    return shown


def _way(row: pd.Series) -> str:
    """How a row's tokens are chosen."""
    top_k, top_p = (None if pd.isna(row[name]) else row[name] for name in ("top_k", "top_p"))
    return Choosing(row["temperature"], row["rule"], row["proposal"], top_k and int(top_k), top_p).words


def _named(title: str) -> Table:
    """A table whose first column is the model."""
    shown = titled(title)
    shown.add_column("model", overflow="fold", min_width=10)
    return shown


def _setting(row: Mapping[Any, Any]) -> str:
    threads, burst = counted(int(row["threads"]), "thread"), counted(int(row["burst"]), "forward")
    return f"{row['device']}, {row['dtype']}, {threads}, {row['attention']}, bursts of {burst}"


def _cell(row: Mapping[Any, Any], timed: str = "forward") -> str:
    if row["status"] != "ok":
        return str(row["status"])
    middle, low, high = (significant(1000 * row[f"{timed}{end}_s"]) for end in ("", "_low", "_high"))
    return middle if pd.isna(row[f"{timed}_low_s"]) else f"{middle}\n{low} to {high}"


def failures(rows: pd.DataFrame) -> Iterator[str]:
    """A line for every model and reason why some of its points have no time."""
    for (model, status), own in rows[rows["status"] != "ok"].groupby(["model", "status"], sort=False):
        for reason, points in own.groupby("reason", sort=False):
            yield f"{model}: {counted(len(points), 'point')} {status}: {reason}"
