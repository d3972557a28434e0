"""Arms that an experiment names and does not run: a trace, forward times and the autoregressive arm stand for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from specbench.analysis.composition import compose
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.replay import replay
from specbench.analysis.stop_rules import stop_rule
from specbench.analysis.traces import select, wanted_by
from specbench.errors import ResultsError
from specbench.report.cells import BASELINE, Results
from specbench.report.composed import GRID_COLUMNS, grid_row, setting_of
from specbench.report.drafts import LEFT_OUT
from specbench.report.tables import significant

COLUMNS = ("title", "arm", *GRID_COLUMNS[1:])
"""One row a cell and arm; ``arm`` is its name in the experiment, the others are those of ``composed.GRID_COLUMNS``."""


def composed_arms(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the arms with ``latency_mode: composed`` would do, and those of them of which that cannot be said.

    Returns:
        Frames of `COLUMNS` and of `drafts.LEFT_OUT`.
    """
    rows: list[dict[str, object]] = []
    left_out: list[tuple[str, str, str]] = []
    for title, asked in _asked(results):
        try:
            rows.append({"arm": asked["arm"]} | _row(results, title, asked))
        except ResultsError as error:
            left_out.append((title, asked["arm"], str(error)))
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(left_out, columns=LEFT_OUT)


def _asked(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """The title of its cell and the note of every arm that is to be composed; the last run's word counts."""
    notes: dict[str, list[dict[str, Any]]] = {}
    for run in results.notes:
        notes |= run.get("composed", {})
    titles = results.requests.drop_duplicates("cell").set_index("cell")["title"]
    for cell, arms in notes.items():
        if cell in titles.index:
            yield from ((str(titles[cell]), arm) for arm in arms)


def _row(results: Results, title: str, asked: Mapping[str, Any]) -> dict[str, object]:
    arms, draft = results.timed[title], str(asked["draft"])
    # As the rows of the arm would stand in the table, had it run.
    own = {name: asked[name] for name in ("method", "draft", "draft_latency_ms")}
    would_be = arms[BASELINE].assign(**own, options=json.dumps(asked["options"]))
    trace = select(results.traces, wanted_by(would_be), of="the experiment")
    setting = setting_of(arms, trace, LatencyTable(results.latencies, results.choosing))
    replayed = replay(trace, stop_rule(asked["options"]))
    return grid_row((title, draft), replayed, compose(replayed, setting, asked["draft_latency_ms"]), setting)


def terminal(frame: pd.DataFrame) -> Table:
    """The composed arms for people."""
    table = Table(title="arms that were not run, composed", title_justify="left", box=None, padding=(0, 1))
    table.add_column("cell")
    table.add_column("arm", overflow="fold")
    for heading in ("tokens/s", "95 % interval", "tokens/step", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in frame.to_dict("records"):
        ends = (row["composed_low"], row["composed_high"])
        interval = "-" if any(map(pd.isna, ends)) else " to ".join(map(significant, ends))
        table.add_row(
            row["title"], row["arm"], significant(row["composed_tokens_per_s"]), interval,
            f"{row['tokens_per_step']:.2f}", f"{row['composed_speedup']:.2f}×",
        )  # fmt: skip
    return table
