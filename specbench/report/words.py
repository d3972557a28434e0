"""Sentences made from the numbers: what was found, where the time goes, and what a reader must beware of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from specbench.records.schema import PHASES
from specbench.report.metrics import (
    BASELINE,
    NOT_RESOLVED,
    RESOLVED,
    TWIN,
    Frames,
    Results,
    head_to_head,
    missing_blocks,
    notes_of,
    resolution,
)

LOOPING = 0.5
"""Share of repeated 4-grams above which text is mostly loops, which flatter every drafter."""

Row = Mapping[Any, Any]


def findings(results: Results, frames: Frames) -> list[tuple[str, list[str]]]:
    """Per cell its title and two to four sentences: the fastest arm, the next, the text, the time."""
    return [(str(title), _cell_findings(results, cell)) for title, cell in frames.summary.groupby("title", sort=False)]


def _cell_findings(results: Results, cell: pd.DataFrame) -> list[str]:
    rows = [row for row in cell.to_dict("records") if row["arm"] not in {BASELINE, TWIN}]
    rows = [row for row in rows if pd.notna(row["speedup_core"])]
    ranked = [row for row in rows if _is_fair(row)]
    if not ranked:
        return ["No lossless method finished a batch here, so there is nothing to rank."]
    best = ranked[0]
    sentences = [_fastest(best)]
    if len(ranked) > 1 and best["speedup_core"] > 1:
        sentences.append(_next(results, best, ranked[1]))
    sentences += [_text(best)] if best["speedup_core"] > 1 else []
    sentences += [_time(best)] if pd.notna(best["draft_ms"]) else []
    unfair = [row for row in rows if not _is_fair(row) and row["speedup_core"] > best["speedup_core"]]
    sentences += [f"{row['arm']} shows {_times(row['speedup_core'])} but {_why_unfair(row)}." for row in unfair]
    return sentences


def _is_fair(row: Row) -> bool:
    """Whether an arm may be called fastest: its text is the target's own."""
    return bool(row["lossless"]) and not row["simulated"] and not row["wrong"]


def _why_unfair(row: Row) -> str:
    if row["simulated"]:
        return "its acceptance is simulated, so its text is not the target's"
    if row["wrong"]:
        return "its text is wrong"
    return "it is lossy: its text is not the target's own"


def _fastest(row: Row) -> str:
    if row["speedup_core"] <= 1:
        return (
            f"No method is faster than autoregressive decoding; {row['arm']} comes closest with "
            f"{_times(row['speedup_core'])}{_interval(row)}."
        )
    return (
        f"{row['arm']} is fastest: {_times(row['speedup_core'])} the speed of autoregressive "
        f"decoding{_interval(row)}; {_resolved(row)}."
    )


def _interval(row: Row) -> str:
    if pd.isna(row["low"]):
        return f" (no interval: {int(row['units'])} batches of prompts, at least 4 are needed)"
    return f" (95 % interval {row['low']:.2f} to {row['high']:.2f}, {int(row['units'])} batches of prompts)"


def _resolved(row: Row) -> str:
    floor = row["noise_floor"]
    words = "" if pd.isna(floor) else f" (A/A noise floor {100 * math.expm1(floor):.1f} %)"
    if row["resolution"] == RESOLVED:
        return f"the difference is resolved{words}"
    if row["resolution"] == NOT_RESOLVED:
        return f"the difference is not resolved{words}"
    return f"whether other prompts would show it is open{words}"


def _next(results: Results, best: Row, second: Row) -> str:
    """The runner-up, compared with the best on the very same batches."""
    found = head_to_head(results, best["title"], (second["arm"], best["arm"]))
    if found.ratio is None:
        return f"Next is {second['arm']} with {_times(second['speedup_core'])}."
    floor = None if pd.isna(best["noise_floor"]) else float(best["noise_floor"])
    verdict = resolution(found, floor)
    bounds = f", 95 % interval {found.interval.low:.2f} to {found.interval.high:.2f}" if found.interval else ""
    return (
        f"Next is {second['arm']} with {_times(second['speedup_core'])}; against it the fastest is "
        f"{_times(found.ratio)} as fast ({verdict}{bounds})."
    )


def _text(row: Row) -> str:
    checked = row["equal"] + row["near_tie"] + row["wrong"]
    if not checked:
        return "The fastest arm's text was not compared with the target's own token by token."
    if row["equal"] == checked:
        return f"The fastest arm's text is the target's own in all {checked} requests."
    return (
        f"The fastest arm's text is the target's own in {row['equal']} of {checked} requests; the other "
        f"{row['near_tie']} differ from a near tie on, which rounding decides."
    )


def _time(row: Row) -> str:
    total = sum(row[f"{phase}_ms"] for phase in PHASES)
    shares = [(phase, row[f"{phase}_ms"] / total) for phase in PHASES]
    listed = ", ".join(f"{100 * share:.0f} % {phase}" for phase, share in shares if share >= 0.005)
    return f"A step of {row['arm']} takes {total:.1f} ms for {row['block_efficiency']:.2f} tokens: {listed}."


def _times(value: float) -> str:
    return f"{value:.2f} times"


def warnings(results: Results, frames: Frames) -> list[str]:
    """What a reader must know before using the numbers, one sentence each; empty if there is nothing."""
    summary = frames.summary
    return [
        *_wrong_text(summary),
        *_looping_text(summary),
        *_failures(summary),
        *_incomplete(results, summary),
        *_not_the_targets(summary),
        *_mixed_capture(summary),
        *_slow_phase_pass(summary),
        *_of_the_runs(results),
    ]


def _wrong_text(summary: pd.DataFrame) -> list[str]:
    wrong = summary[summary["wrong"] > 0]
    return [
        f"WRONG TEXT: {row['arm']} ({row['title']}) changed the target's text in {row['wrong']} requests. "
        "Its speed means nothing until that is mended."
        for row in wrong.to_dict("records")
    ]


def _looping_text(summary: pd.DataFrame) -> list[str]:
    looping = summary[(summary["arm"] == BASELINE) & (summary["repeat_ngram_share"] > LOOPING)]
    if looping.empty:
        return []
    worst = 100 * looping["repeat_ngram_share"].max()
    return [
        f"The target's own text loops ({_cells(looping, summary)}): up to {worst:.0f} % of its 4-grams "
        "occurred before. Loops are easy to draft, so speed-ups there flatter; try other prompts or a "
        "temperature."
    ]


def _failures(summary: pd.DataFrame) -> list[str]:
    failed = summary[summary["failed"] > 0]
    reasons = failed["reason"].fillna("no reason given")
    return [
        f"{arm} ({_cells(rows, summary)}): {rows['failed'].sum()} of {rows['requests'].sum()} requests "
        f"have no numbers ({_statuses(rows)}): {reason.rstrip('.')}."
        for (arm, reason), rows in failed.groupby(["arm", reasons], sort=False)
    ]


def _statuses(rows: pd.DataFrame) -> str:
    return ", ".join(sorted({part.split()[0] for text in rows["status"] for part in text.split(", ")}))


def _cells(rows: pd.DataFrame, summary: pd.DataFrame) -> str:
    """The cells of some rows, or that they are all."""
    titles = [str(title) for title in rows["title"].unique()]
    everywhere = len(titles) == len(summary["title"].unique()) and len(titles) > 1
    return "everywhere" if everywhere else "; ".join(titles)


def _incomplete(results: Results, summary: pd.DataFrame) -> list[str]:
    sentences = []
    if missing := missing_blocks(results):
        sentences.append(f"The run is not complete: {missing} blocks are missing. Start it again to fill them in.")
    if BASELINE not in set(summary["arm"]):
        sentences.append("There is no autoregressive arm, so no speed-up can be given.")
    if summary["partial_batches_left_out"].any():
        sentences.append("A last batch with fewer rows than the batch size is left out of speeds.")
    return sentences


def _not_the_targets(summary: pd.DataFrame) -> list[str]:
    sentences = []
    for flag, words in (
        (
            summary["simulated"],
            "have simulated acceptance: their speed is a what-if, their text is not the target's",
        ),
        (~summary["lossless"].astype(bool), "are lossy: they may change the target's text"),
    ):
        if names := sorted(set(summary.loc[flag, "arm"])):
            sentences.append(f"These arms {words}: {', '.join(names)}.")
    return sentences


def _mixed_capture(summary: pd.DataFrame) -> list[str]:
    mixed = summary.groupby("title", sort=False)["captured_phases"].agg(lambda values: len(set(values)) > 1)
    return [
        f"{title}: some arms ran as captured CUDA graphs and some did not; part of their difference is that."
        for title in mixed.index[mixed]
    ]


def _slow_phase_pass(summary: pd.DataFrame) -> list[str]:
    slow = summary["phase_pass_slowdown"].max()
    if pd.isna(slow) or slow <= 0.03:
        return []
    return [f"Timing the phases slowed steps by up to {100 * slow:.0f} %: read shares there, not sums."]


def _of_the_runs(results: Results) -> list[str]:
    if results.runs.empty:
        return ["There is no runs.parquet: where these numbers come from is not known."]
    sentences = []
    if len(results.runs["git_sha"].unique()) > 1:
        sentences.append("The rows come from runs of different commits.")
    if results.runs["git_dirty"].fillna(value=False).astype(bool).any():
        sentences.append("The code had changes that were not committed.")
    return sentences + [str(text) for notes in notes_of(results.runs) for text in notes.get("warnings", [])]
