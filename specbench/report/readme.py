"""The README's figure and table, filled from a run, so that nobody copies a number by hand.

A README marks where they stand::

    <!-- report: figure -->
    <!-- /report: figure -->
    <!-- report: table -->
    <!-- /report: table -->

What stands there is kept beside the figure as JSON, so that a test can compare the two without the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbench.errors import ResultsError
from specbench.records.store import write_atomically
from specbench.report.build import Report
from specbench.report.cells import BASELINE, TWIN
from specbench.report.page import facts
from specbench.report.tables import COLUMNS
from specbench.report.words import share

HEADINGS = ("arm", "speed-up", "95 % interval", "tok/step", "accepted", "text")
"""Columns of the table; those of `specbench.report.tables.COLUMNS`."""

_FOLDER = "experiments"


def fill(readme: Path, report: Report) -> list[Path]:
    """Put the speed-up figure and the table of a report's first cell into a README.

    Returns:
        The files that were written: the figure, its numbers, and the README.

    Raises:
        ResultsError: The README cannot be read, or has no place for them.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{readme}: cannot be read: {error.strerror}") from error
    numbers = numbers_of(report)
    filled = filled_text(text, numbers, str(readme))
    figure = report.results.folder / "figures" / "speedup.png"
    if not figure.exists():
        raise ResultsError(
            f"{report.results.folder}: no arm finished beside the baseline, so there is nothing to show."
        )
    stem = readme.parent / _FOLDER / report.results.experiment
    stem.parent.mkdir(exist_ok=True)
    written = {
        stem.with_suffix(".png"): figure.read_bytes(),
        stem.with_suffix(".json"): (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode(),
        readme: filled.encode(),
    }
    for path, content in written.items():
        write_atomically(path, content)
    return [*written]


def numbers_of(report: Report) -> dict[str, Any]:
    """What a README shows of a report: its setting, and the first cell's rows as text."""
    summary, results = report.frames.summary, report.results
    first = summary[summary["title"] == summary["title"].iloc[0]]
    shown = [column for column in COLUMNS if column.heading in HEADINGS]
    looping = first.loc[first["arm"] == BASELINE, "repeat_ngram_share"]
    return {
        "experiment": results.experiment,
        "facts": facts(results),
        "cell": str(first["title"].iloc[0]),
        "repeat_ngram_share": float(looping.iloc[0]) if looping.notna().any() else None,
        "rows": [
            {column.heading: column.text(row) for column in shown}
            for row in first.to_dict("records")
            if row["arm"] != BASELINE
        ],
    }


def filled_text(text: str, numbers: Mapping[str, Any], name: str = "README.md") -> str:
    """A README with the figure and the table of these numbers in their places.

    Raises:
        ResultsError: A place is missing, or stands there twice.
    """
    for part, content in (("figure", figure_text(numbers)), ("table", table_text(numbers))):
        start, end = f"<!-- report: {part} -->", f"<!-- /report: {part} -->"
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (opened and closed) or start in after or end in after:
            raise ResultsError(f"{name}: needs one place for the {part}, between {start} and {end}.")
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def figure_text(numbers: Mapping[str, Any]) -> str:
    """The figure, and below it what was run where."""
    name = numbers["experiment"]
    alt = f"Speed-up of each method over autoregressive decoding in {name}, with intervals and single batches"
    return f"![{alt}]({_FOLDER}/{name}.png)\n\n`{name}`: {numbers['facts']}"


def table_text(numbers: Mapping[str, Any]) -> str:
    """The table of the first cell, the A/A twin among the arms, and how much of the text repeats."""
    lines = [f"| {numbers['cell']} | {' | '.join(HEADINGS[1:])} |", "|---" * len(HEADINGS) + "|"]
    for row in numbers["rows"]:
        arm = "autoregressive, a second time" if row["arm"] == TWIN else f"`{row['arm']}`"
        lines.append("| " + " | ".join([arm, *(row[heading] for heading in HEADINGS[1:])]) + " |")
    if numbers["repeat_ngram_share"] is not None:
        lines += ["", f"{share(numbers['repeat_ngram_share'])} of the 4-grams in the target's texts occurred before."]
    return "\n".join(lines)
