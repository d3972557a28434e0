"""What a reader must know before using the numbers, a sentence each."""

from __future__ import annotations

import pandas as pd

from specbench.analysis import stability
from specbench.report import limits, telemetry
from specbench.report.cells import BASELINE, Results, missing_blocks
from specbench.report.metrics import LOOPING, Frames
from specbench.report.words import counted, named_some


def warnings(results: Results, frames: Frames) -> list[str]:
    """Every caution, the gravest first; empty if there is nothing."""
    summary = frames.summary
    if summary.empty:
        return [*_failed_studies(results), *_failed_forwards(frames.forwards), *_of_the_runs(results)]
    return [
        *_wrong_text(summary),
        *_looping_text(summary),
        *_failures(summary),
        *_failed_studies(results),
        *_failed_forwards(frames.forwards),
        *_incomplete(results, summary),
        *_not_the_targets(summary),
        *_mixed_capture(summary),
        *_half_empty(summary),
        *_slow_phase_pass(summary),
        *limits.warnings(summary),
        *_unstable(results),
        *_unwatched(results),
        *_one_process(results),
        *_of_the_runs(results),
    ]


def _wrong_text(summary: pd.DataFrame) -> list[str]:
    wrong = summary[summary["wrong"] > 0]
    return [
        f"WRONG TEXT: {row['arm']} ({row['title']}) changed the target's text in {counted(row['wrong'], 'request')}. "
        "Its speed means nothing until that is mended."
        for row in wrong.to_dict("records")
    ]


def _looping_text(summary: pd.DataFrame) -> list[str]:
    core = summary[summary["arm"] == BASELINE]
    mean, some = core[core["repeat_ngram_share"] > LOOPING], core[core["looping"] > 0]
    if some.empty:
        return []
    loops = "Loops are easy to draft, so speed-ups there flatter"
    if len(mean):
        worst = 100 * mean["repeat_ngram_share"].max()
        return [
            f"The target's own text loops ({_cells(mean, summary)}): up to {worst:.0f} % of its 4-grams occurred "
            f"before. {loops}; try other prompts or a temperature."
        ]
    texts, requests = int(some["looping"].sum()), int(some["requests"].sum())
    verb = "is mostly a loop" if texts == 1 else "are mostly loops"
    return [f"{texts} of {counted(requests, 'text')} of the target {verb} ({_cells(some, summary)}). {loops}."]


def _failures(summary: pd.DataFrame) -> list[str]:
    """One sentence a kind of failure; kinds differ in more than the numbers of their reason."""
    failed = summary[summary["failed"] > 0]
    reasons = failed["reason"].fillna("no reason given")
    kinds = reasons.str.replace(r"\d[\d.,]*", "#", regex=True)
    return [_failure(rows, reasons[rows.index[0]], summary) for _, rows in failed.groupby(kinds, sort=False)]


def _failure(rows: pd.DataFrame, reason: str, summary: pd.DataFrame) -> str:
    arms = named_some([str(arm) for arm in rows["arm"].unique()])
    verb = "has" if rows["failed"].sum() == 1 else "have"
    example = "" if len(rows["reason"].unique()) == 1 else "for instance, "
    return (
        f"{arms} ({_cells(rows, summary)}): {rows['failed'].sum()} of {counted(rows['requests'].sum(), 'request')} "
        f"{verb} no numbers ({_statuses(rows)}): {example}{reason.rstrip('.')}."
    )


def _failed_studies(results: Results) -> list[str]:
    failed = results.studies[results.studies["status"] != "ok"]
    return [
        f"There is no {row['kind']} of {row['subject']} ({row['status']}): {row['reason']}."
        for row in failed.to_dict("records")
    ]


def _failed_forwards(forwards: pd.DataFrame) -> list[str]:
    failed = forwards[forwards["status"] != "ok"]
    if failed.empty:
        return []
    models = named_some([str(model) for model in failed["model"].unique()])
    reason = failed["reason"].iloc[0]
    return [f"{counted(len(failed), 'forward')} could not be timed ({models}); the first, since {reason}."]


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
        verb = "is" if missing == 1 else "are"
        sentences.append(
            f"The run is not complete: {counted(missing, 'block')} {verb} missing. Start it again to fill them in."
        )
    if BASELINE not in set(summary["arm"]):
        sentences.append("There is no autoregressive arm, so no speed-up can be given.")
    if summary["partial_batches_left_out"].any():
        sentences.append("A last batch with fewer rows than the batch size is left out of speeds.")
    return sentences


def _not_the_targets(summary: pd.DataFrame) -> list[str]:
    sentences = []
    for flag, one, many in (
        (
            summary["simulated"],
            "has simulated acceptance: its speed is a what-if, its text is not the target's",
            "have simulated acceptance: their speed is a what-if, their text is not the target's",
        ),
        (
            ~summary["lossless"].astype(bool) & ~summary["simulated"].astype(bool),
            "is lossy: it may change the target's text",
            "are lossy: they may change the target's text",
        ),
    ):
        names = sorted(set(summary.loc[flag, "arm"]))
        if names:
            sentences.append(f"{named_some(names)} {one if len(names) == 1 else many}.")
    return sentences


def _mixed_capture(summary: pd.DataFrame) -> list[str]:
    mixed = summary.groupby("title", sort=False)["captured_phases"].agg(lambda values: len(set(values)) > 1)
    return [
        f"{title}: some arms ran as captured CUDA graphs and some did not; part of their difference is that."
        for title in mixed.index[mixed]
    ]


def _half_empty(summary: pd.DataFrame) -> list[str]:
    low = summary[summary["occupancy"] < 0.8]
    if low.empty:
        return []
    worst = low.loc[low["occupancy"].idxmin()]
    return [
        f"Rows of a static batch end at different steps: {worst['arm']} ({worst['title']}) keeps its slots busy for "
        f"{100 * worst['occupancy']:.0f} % of the time. Above batch size 1 compare methods by full-batch tokens/s."
    ]


def _slow_phase_pass(summary: pd.DataFrame) -> list[str]:
    slow = summary["phase_pass_slowdown"].max()
    if pd.isna(slow) or slow <= stability.SLOW_PHASE_PASS:
        return []
    return [
        f"Timing the phases slowed tokens by up to {100 * slow:.0f} %: read phase times as shares of a step, not as "
        "sums. Headline figures are not touched."
    ]


def _unstable(results: Results) -> list[str]:
    """What the run itself shows of an unstable machine; the same fault in several cells is told once."""
    # What the phase pass cost, the summary knows already.
    rows = results.requests[results.requests["pass"] == "headline"]
    found = stability.cautions(rows.assign(cell=rows["title"]))
    by_kind: dict[str, list[stability.Caution]] = {}
    for caution in found:
        by_kind.setdefault(caution.kind, []).append(caution)
    return [_together(alike) for alike in by_kind.values()]


def _unwatched(results: Results) -> list[str]:
    reason = telemetry.not_asked(results)
    if reason is None:
        return []
    return [f"The GPU was not asked what it did ({reason}): throttling or other programs on it would not show here."]


def _together(alike: list[stability.Caution]) -> str:
    first = alike[0]
    if len(alike) == 1:
        return first.sentence
    others = counted(len(alike) - 1, "other cell")
    return f"{first.cell} (and {others}): {first.seen}. {first.why} {first.remedy}"


def _one_process(results: Results) -> list[str]:
    if len(results.requests["process"].unique()) > 1:
        return []
    return ["All of it comes from one process: intervals exclude the variation from run to run (measure.processes)."]


def _of_the_runs(results: Results) -> list[str]:
    if results.runs.empty:
        return ["There is no runs.parquet: where these numbers come from is not known."]
    sentences = []
    if len(results.runs["git_sha"].unique()) > 1:
        sentences.append("The rows come from runs of different commits.")
    if results.runs["git_dirty"].fillna(value=False).astype(bool).any():
        sentences.append("The code had changes that were not committed.")
    return sentences + [str(text) for notes in results.notes for text in notes.get("warnings", [])]
