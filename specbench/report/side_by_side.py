"""The texts of one prompt beside one another: the steps that made them, and where each leaves the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from specbench.analysis.verdicts import first_divergence
from specbench.errors import ResultsError, did_you_mean
from specbench.report.cells import BASELINE, TWIN
from specbench.report.tables import number

Decode = Callable[[Sequence[int]], str]
"""Token ids as text."""

DIVERGES = "\N{BLACK RIGHT-POINTING TRIANGLE}"
"""Stands in a text where it first leaves the reference."""

_SHADES = ("cyan", "green")


def chosen(requests: pd.DataFrame, prompt: str | None, arms: Sequence[str]) -> pd.DataFrame:
    """The rows to show: one prompt of every cell, in the first repeat of the headline pass.

    Args:
        requests: The table ``requests``.
        prompt: The prompt's id; None for the first.
        arms: Only these beside the reference; empty for all.

    Raises:
        ResultsError: No such prompt or arm.
    """
    rows = requests[(requests["pass"] == "headline") & (requests["arm"] != TWIN)]
    prompt = str(rows["prompt_id"].iloc[0]) if prompt is None else prompt
    _check_known("prompt", [prompt], rows["prompt_id"])
    _check_known("arm", arms, rows["arm"])
    rows = rows[rows["prompt_id"] == prompt]
    if arms:
        rows = rows[rows["arm"].isin([BASELINE, *arms])]
    return rows.sort_values(["process", "repeat"]).drop_duplicates(["cell", "arm"])


def _check_known(kind: str, names: Sequence[str], column: pd.Series) -> None:
    known = sorted(map(str, column.unique()))
    for name in names:
        if name not in known:
            raise ResultsError(f"no {kind} {name!r} here. {did_you_mean(name, known)}")


def tables(rows: pd.DataFrame, decode: Decode, *, coloured: bool) -> Iterator[Table]:
    """Two texts abreast, the reference first, one table a cell.

    Args:
        rows: What `chosen` gave.
        decode: Ids to text.
        coloured: Give the tokens of each step one of two shades; without colours the steps are not shown.
    """
    for cell, own in rows.groupby("cell", sort=False):
        first = own.iloc[0]
        shown = Table(
            title=Text(f"{str(cell).partition(' #')[0]}: {first['prompt_id']}, {first['prompt_tokens']} tokens"),
            title_justify="left", title_style="bold", show_header=False, expand=True, show_lines=True,
        )  # fmt: skip
        shown.add_column(ratio=1, overflow="fold")
        shown.add_column(ratio=1, overflow="fold")
        reference = next((_ids(row) for row in own.to_dict("records") if row["arm"] == BASELINE), ())
        ordered = sorted(own.to_dict("records"), key=lambda row: row["arm"] != BASELINE)
        panes = [pane(row, reference, decode, coloured=coloured) for row in ordered]
        for left, right in zip(panes[::2], [*panes[1::2], Text("")], strict=False):
            shown.add_row(left, right)
        yield shown


def pane(row: Any, reference: Sequence[int], decode: Decode, *, coloured: bool) -> Text:
    """One text under its heading."""
    found = Text.assemble((f"{row['arm']}\n", "bold"), (f"{_heading(row, reference)}\n\n", "dim"))
    if row["status"] != "ok":
        return found.append(f"{row['status']}: {row['reason']}", "red")
    ids = _ids(row)
    at = first_divergence(reference, ids) if reference and ids != tuple(reference) else None
    for index, (start, end) in enumerate(pairwise(_step_ends(row))):
        before, after = decode(ids[:start]), decode(ids[:end])
        if at is not None and start <= at < end:
            split = len(decode(ids[:at]))
            found.append(after[len(before) : split], _shade(index, coloured=coloured))
            found.append(DIVERGES, "bold red")
            found.append(after[split:], "red")
        else:
            found.append(after[len(before) :], _shade(index, coloured=coloured))
    return found


def _shade(index: int, *, coloured: bool) -> str:
    return _SHADES[index % 2] if coloured else ""


def _heading(row: Any, reference: Sequence[int]) -> str:
    if row["status"] != "ok":
        return "no text"
    steps = int(row["steps"])
    tokens = number((row["output_tokens"] - 1) / steps if steps else None)
    words = [f"{int(row['output_tokens'])} tokens, {steps} steps, {tokens} a step"]
    if row["arm"] == BASELINE:
        words.append("the reference")
    elif _ids(row) == tuple(reference):
        words.append("the same text")
    elif reference:
        words.append(f"leaves the reference at token {first_divergence(reference, _ids(row)) + 1}")
        if isinstance(row["verdict"], str):
            words.append(row["verdict"])
    return "; ".join(words)


def _step_ends(row: Any) -> list[int]:
    """Where each step's tokens end: the prefill's first, none beyond the text."""
    length = int(row["output_tokens"])
    first = row.get("prefill_tokens")
    ends = [0, 1 if first is None or pd.isna(first) else int(first)]
    for accepted in row["accepted_per_step"] if row["accepted_per_step"] is not None else ():
        ends.append(min(length, ends[-1] + int(accepted) + 1))
    return ends if ends[-1] == length else [*ends, length]


def _ids(row: Any) -> tuple[int, ...]:
    return () if row["output_ids"] is None else tuple(map(int, row["output_ids"]))
