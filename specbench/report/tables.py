"""Tables: the same columns, in the terminal, in Markdown, in HTML and as CSV.

What is shown to people is rounded and says its unit in the heading; CSV holds every column of a frame in
full.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from specbench.report.cells import BASELINE, TWIN
from specbench.report.resolution import NOT_RESOLVED, RESOLVED
from specbench.report.words import arm_words

Row = Mapping[Any, Any]
_NO_MARKS: Mapping[str, str] = {}
NOT_COMPARED = "not compared"
MISSING, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Shown:
    """A column as people see it: its heading, what it means, its text, and the value that it sorts by."""

    heading: str
    meaning: str
    text: Callable[[Row], str]
    value: Callable[[Row], Any]


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """A number with so many decimals, or a dash where there is none: never a 0 that was not measured."""
    return MISSING if _absent(value) else f"{value:,.{digits}f}{unit}"


def significant(value: Any) -> str:
    """A number with about three significant digits, or a dash."""
    if _absent(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def percent(value: Any, digits: int = 0) -> str:
    """A fraction as a percentage, or a dash."""
    return MISSING if _absent(value) else f"{100 * value:.{digits}f} %"


def speedup_text(row: Row) -> str:
    """Speed-up with a times sign; the baseline is 1 by definition."""
    return f"1{TIMES}" if row["arm"] == BASELINE else number(row["speedup_core"], 2, TIMES)


def interval_text(row: Row) -> str:
    """The 95 % interval, or why there is none, and whether the difference is resolved."""
    if row["arm"] == BASELINE or _absent(row["speedup_core"]):
        return MISSING
    if row["arm"] == TWIN:
        return "A/A pair"
    if _absent(row["low"]):
        floor = f", {NOT_RESOLVED}" if row["resolution"] == NOT_RESOLVED else ""
        return f"none: {int(row['units'])} of 4 batches{floor}"
    note = "" if row["resolution"] == RESOLVED else f" ({row['resolution']})"
    return f"{row['low']:.2f} to {row['high']:.2f}{note}"


def output_text(row: Row) -> str:
    """What is known of the text: the target's own, near ties, wrong, or not the target's by design."""
    if row["simulated"]:
        return "simulated"
    if not row["lossless"]:
        return "lossy"
    if row["arm"] == BASELINE:
        return "reference"
    checked = row["equal"] + row["near_tie"] + row["wrong"]
    if not checked:
        return NOT_COMPARED
    if row["equal"] == checked:
        return f"equal {checked} of {checked}"
    counts = {"WRONG": row["wrong"], "near-tie": row["near_tie"], "equal": row["equal"]}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def _absent(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _plain(name: str, text: Callable[[Any], str]) -> dict[str, Callable[[Row], Any]]:
    return {"text": lambda row: text(row[name]), "value": lambda row: row[name]}


def _any_text(value: Any) -> str:
    if _absent(value) or isinstance(value, str):
        return MISSING if _absent(value) else value
    return f"{value:,}" if float(value).is_integer() else significant(value)


def _ms(name: str) -> dict[str, Callable[[Row], Any]]:
    def value(row: Row) -> Any:
        return None if _absent(row[name]) else 1000 * row[name]

    return {"text": lambda row: significant(value(row)), "value": value}


COLUMNS: tuple[Shown, ...] = (
    Shown("arm", "method with its options", **_plain("arm", str)),
    Shown(
        "speed-up",
        "seconds per decoded token of the core's autoregressive arm over those of this arm",
        speedup_text,
        lambda row: row["speedup_core"],
    ),
    Shown("95 % interval", "of the speed-up; jackknife over batches of prompts", interval_text,
          lambda row: row["low"]),
    Shown("tok/s", "decode tokens per second that one request sees",
          **_plain("decode_tokens_per_s", significant)),
    Shown("tok/step", "block efficiency: tokens per decode step, the target's own included",
          **_plain("block_efficiency", number)),
    Shown("accepted", "acceptance rate: accepted over drafted tokens along one path",
          **_plain("acceptance_rate", percent)),
    Shown("step ms", "mean milliseconds of a decode step", **_ms("step_s")),
    Shown("of limit", "the least time that this machine allows for such a step, over the step's",
          **_plain("step_of_limit", percent)),
    Shown("TTFT ms", "mean milliseconds to the first token", **_ms("ttft_s")),
    Shown("text", "against the target's own text", output_text, output_text),
    Shown("status", "failed requests by reason", **_plain("status", str)),
)  # fmt: skip
"""Columns of the overview."""

MORE_COLUMNS: tuple[Shown, ...] = (
    Shown("arm", "method with its options", arm_words, lambda row: row["arm"]),
    Shown("vs fastest AR", "speed-up over the fastest autoregressive path of the warm-up", **_plain("speedup", number)),
    Shown("end to end", "speed-up with prefill", **_plain("speedup_e2e", number)),
    Shown("e2e tok/s", "output tokens per second with prefill", **_plain("e2e_tokens_per_s", significant)),
    Shown("batch tok/s", "decode tokens per second of the whole batch until its last row ends",
          **_plain("batch_tokens_per_s", significant)),
    Shown("full-batch tok/s", "decode tokens per second of the whole batch until its first row ends",
          **_plain("full_batch_tokens_per_s", significant)),
    Shown("full-batch speed-up", "speed-up until the first row of each batch ends",
          **_plain("full_batch_speedup", number)),
    Shown("occupancy", "share of slot-time in which a row still decoded", **_plain("occupancy", percent)),
    Shown("TPOT ms", "mean milliseconds per output token after the first", **_ms("tpot_s")),
    Shown("uncut tok/step", "block efficiency with the last step of each row whole",
          **_plain("block_efficiency_uncut", number)),
    Shown("nodes/step", "draft nodes verified per step", **_plain("nodes_per_step", number)),
    Shown("limit ms", "least milliseconds that this machine allows for such a step: weights, keys and values, products",
          **_plain("step_limit_ms", significant)),
    Shown("draft limit ms", "the same of the draft alone", **_plain("draft_limit_ms", significant)),
    Shown("verify limit ms", "the same of the target's forward alone", **_plain("verify_limit_ms", significant)),
    Shown("verify of limit", "that limit over the time of the target's forward, from the phase pass",
          **_plain("verify_of_limit", percent)),
    Shown("syncs/step", "times the host waited for the device per step", **_plain("syncs_per_step", number)),
    Shown("asked ms", "draft latency that was asked for", **_plain("draft_latency_ms", significant)),
    Shown("baseline tok", "decode tokens of the baseline in the speed-up",
          **_plain("baseline_tokens", significant)),
    Shown("own tok", "decode tokens of this arm in the speed-up", **_plain("method_tokens", significant)),
    Shown("repeats", "share of 4-grams that occurred before in the text",
          **_plain("repeat_ngram_share", percent)),
    Shown("looping", "texts of which more than half repeats", **_plain("looping", _any_text)),
    Shown("phase pass", "how much longer a token took while phases were timed",
          **_plain("phase_pass_slowdown", lambda value: percent(value, 1))),
)  # fmt: skip
"""Columns of the details."""


# Columns that hold words, and the width beyond which these may wrap.
_WORDY = {"arm": 30, "95 % interval": 12, "text": 20}
# What a narrow terminal goes without, the first one first; the page has them all.
_SPARED = ("TTFT ms", "accepted", "of limit", "step ms")
# Between two columns, as the box below draws them.
_GAP = 3


def titled(title: str) -> Table:
    """A table for a terminal, without a column yet."""
    return Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )


def terminal(summary: pd.DataFrame, width: int = 120) -> list[Table]:
    """One rich table per cell; a narrow terminal is spared columns that the page has as well."""
    columns = [_OUTCOME if column.heading == "text" else column for column in _known(COLUMNS, summary)]
    shown = _fitting([column for column in columns if column.heading != "status"], summary.to_dict("records"), width)
    tables = []
    for title, cell in summary.groupby("title", sort=False):
        table = titled(str(title))
        for column, least in shown.items():
            left = column.heading in {"arm", "text"}
            # Words may wrap, numbers may not; the arm's name is what a reader looks for.
            table.add_column(
                column.heading,
                justify="left" if left else "right",
                overflow="fold",
                no_wrap=column.heading not in _WORDY,
                min_width=least,
            )
        for row in cell.to_dict("records"):
            style = "dim" if row["arm"] in {BASELINE, TWIN} else None
            table.add_row(*(Text(column.text(row)) for column in shown), style=style)
        tables.append(table)
    return tables


def _outcome_text(row: Row) -> str:
    """What is known of the text, and what failed: one column where room is dear."""
    if row["status"] == "ok":
        return output_text(row)
    known = output_text(row)
    return str(row["status"]) if known == NOT_COMPARED else f"{known}; {row['status']}"


_OUTCOME = Shown("text", "against the target's own text, and failed requests", _outcome_text, _outcome_text)


def _fitting(columns: Sequence[Shown], rows: Sequence[Row], width: int) -> dict[Shown, int]:
    """As many columns as stand beside one another, each with the width that it needs."""
    needed = {column: _least_width(column, rows) for column in columns}
    for heading in _SPARED:
        if sum(needed.values()) + _GAP * len(needed) > width:
            needed = {column: least for column, least in needed.items() if column.heading != heading}
    return needed


def _least_width(column: Shown, rows: Sequence[Row]) -> int:
    is_wordy = column.heading in _WORDY
    heading = column.heading.split() if is_wordy else [column.heading]
    longest = max(len(words) for words in (*heading, *(column.text(row) for row in rows)))
    return min(longest, _WORDY[column.heading]) if is_wordy else longest


def markdown(summary: pd.DataFrame, columns: tuple[Shown, ...] = COLUMNS) -> str:
    """One Markdown table per cell, each under its title."""
    parts, columns = [], _known(columns, summary)
    for title, cell in summary.groupby("title", sort=False):
        lines = [f"### {title}\n", _line(column.heading for column in columns), _line("---" for _ in columns)]
        texts = ([column.text(row).replace("|", "\\|") for column in columns] for row in cell.to_dict("records"))
        lines += map(_line, texts)
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _needed(columns: tuple[Shown, ...], summary: pd.DataFrame) -> tuple[Shown, ...]:
    """The columns without the status, if nothing failed, and without limits, if none is known."""
    columns = _known(columns, summary)
    return tuple(column for column in columns if column.heading != "status" or (summary["status"] != "ok").any())


def _known(columns: tuple[Shown, ...], summary: pd.DataFrame) -> tuple[Shown, ...]:
    """The columns without those of limits, if none is known."""
    is_known = summary["step_of_limit"].notna().any()
    return tuple(column for column in columns if is_known or "limit" not in column.heading)


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def as_html(summary: pd.DataFrame, columns: tuple[Shown, ...] = COLUMNS, marks: Mapping[str, str] = _NO_MARKS) -> str:
    """One sortable HTML table over all cells; each entry carries the value that it sorts by.

    Args:
        summary: One row per cell and arm.
        columns: What is shown of it.
        marks: Arm -> the HTML of its mark, which stands before its name.
    """
    many = len(summary["title"].unique()) > 1
    cell = Shown("cell", "what the compared arms share", **_plain("title", str))
    shown = _needed((cell, *columns) if many else columns, summary)
    return _html_table(summary.to_dict("records"), shown, marks)


def plain_html(frame: pd.DataFrame, marks: Mapping[str, str] = _NO_MARKS) -> str:
    """Any tidy frame as a sortable HTML table: its own column names, numbers with three digits."""
    columns = [
        Shown({"title": "cell"}.get(name, name), "", **_plain(name, _any_text))
        for name in map(str, frame.columns)
        if not frame[name].isna().all()
    ]
    return _html_table(frame.to_dict("records"), columns, marks)


def _html_table(rows: Sequence[Row], columns: Sequence[Shown], marks: Mapping[str, str]) -> str:
    head = "".join(_html_head(column, rows) for column in columns)
    body = "".join(_html_row(row, columns, marks) for row in rows)
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _html_head(column: Shown, rows: Sequence[Row]) -> str:
    meaning = f' title="{html.escape(column.meaning)}"' if column.meaning else ""
    return f'<th scope="col"{_kind(column, rows)}{meaning}><button>{html.escape(column.heading)}</button></th>'


def _html_row(row: Row, columns: Sequence[Shown], marks: Mapping[str, str]) -> str:
    cells = []
    for column in columns:
        value = column.value(row)
        key = "" if _absent(value) else html.escape(str(value), quote=True)
        mark = marks.get(str(row.get("arm")), "") if column.heading == "arm" else ""
        cells.append(f'<td{_kind(column, [row])} data-key="{key}">{mark}{html.escape(column.text(row))}</td>')
    quiet = ' class="quiet"' if row.get("arm") in {BASELINE, TWIN} else ""
    return f"<tr{quiet}>{''.join(cells)}</tr>"


def _kind(column: Shown, rows: Sequence[Row]) -> str:
    """Numbers stand at the right, their heading too."""
    if column.heading in {"arm", "cell"}:
        return f' class="{column.heading}"'
    return "" if any(isinstance(column.value(row), str) for row in rows) else ' class="number"'


def csv(frame: pd.DataFrame) -> str:
    """Every column in full precision; an empty field where there is no value."""
    return str(frame.to_csv(index=False))
