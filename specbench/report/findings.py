"""Answers to the four questions that a user comes with, in sentences made from the numbers.

A sentence is only written where there is a number for it, and says no more than the interval and the noise floor
allow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from specbench.report import claims, lessons, reasons
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.metrics import Frames, head_to_head
from specbench.report.published import origin
from specbench.report.resolution import NO_INTERVAL, NOT_RESOLVED, RESOLVED, resolution
from specbench.report.words import Row, bounds, bounds_of, counted, listed, times

QUESTIONS = (
    "Which method is fastest, by how much, and is the text still the target's own?",
    "Why?",
    "What would have to change?",
    "Does the claim hold here?",
)

_MOST_CELLS = 3
"""Cells that the summary goes through one by one; of more it counts, and takes the first and the last as examples."""


_NOTHING = "No lossless method finished a batch here, so there is nothing to rank."
_SIMULATED = (
    "Acceptance is simulated for every method here, so none is called fastest: speeds tell what steps cost, not what "
    "drafts are worth."
)


@dataclass(frozen=True)
class Answer:
    """One of the `QUESTIONS` with the sentences that answer it."""

    question: str
    sentences: list[str]


def answers(results: Results, frames: Frames) -> list[Answer]:
    """The four answers; one that the data cannot give says so. Then what a study of drafts teaches, if this is one."""
    taught = [Answer(lessons.QUESTION, found)] if (found := lessons.lessons(frames)) else []
    if frames.summary.empty:
        return taught
    cells = _cells(frames)
    examples = list(cells) if len(cells) <= _MOST_CELLS else [next(iter(cells)), list(cells)[-1]]
    ranked = {title: best for title in examples if (best := _ranked(cells[title]))}
    why = [line for title in examples for line in _placed(title, cells, _why(frames, cells[title]))]
    change = [
        line for title, best in ranked.items() for line in _placed(title, cells, reasons.change(results, frames, best))
    ]
    nothing = ["Nothing was drafted and finished here, so there is nothing to say."]
    return [
        Answer(QUESTIONS[0], [*_which(results, frames, cells)]),
        Answer(QUESTIONS[1], why or nothing),
        Answer(QUESTIONS[2], change or nothing),
        Answer(QUESTIONS[3], [*_claim(results, frames)]),
        *taught,
    ]


def findings(results: Results, frames: Frames) -> list[tuple[str, list[str]]]:
    """Per cell its title and a few sentences: the fastest arm, the next, the text, the time."""
    return [(title, [*_in_cell(results, frames, cell)]) for title, cell in _cells(frames).items()]


def _cells(frames: Frames) -> dict[str, list[Row]]:
    """Title -> the arms of a cell from fast to slow, without the A/A pair and what did not finish."""
    cells: dict[str, list[Row]] = {str(title): [] for title in frames.summary["title"].unique()}
    for row in frames.summary.to_dict("records"):
        if row["arm"] not in {BASELINE, TWIN} and pd.notna(row["speedup_core"]):
            cells[row["title"]].append(row)
    return cells


def _is_fair(row: Row) -> bool:
    """Whether an arm may be called fastest: its text is the target's own."""
    return bool(row["lossless"]) and not row["simulated"] and not row["wrong"]


def _ranked(rows: list[Row]) -> list[Row]:
    return [row for row in rows if _is_fair(row)]


def _gains(row: Row) -> bool:
    return bool(row["speedup_core"] > 1 and row["resolution"] == RESOLVED)


# --- which is fastest


def _which(results: Results, frames: Frames, cells: dict[str, list[Row]]) -> Iterator[str]:
    if len(cells) > _MOST_CELLS:
        yield from _counted_winners(cells)
    else:
        for title, rows in cells.items():
            yield from _placed(title, cells, _ranking(results, rows))
    yield _texts(frames.summary)


def _placed(title: str, cells: dict[str, list[Row]], sentences: Iterable[str]) -> Iterator[str]:
    """The sentences about one cell; where there are several cells, as one paragraph that says which."""
    said = [sentence for sentence in sentences if sentence]
    if len(cells) > 1:
        said = [f"At {title}: {' '.join(said)}"] if said else []
    yield from said


def _counted_winners(cells: dict[str, list[Row]]) -> Iterator[str]:
    best = [ranked[0] for rows in cells.values() if (ranked := _ranked(rows))]
    winners = [row for row in best if _gains(row)]
    for arm, wins in Counter(row["arm"] for row in winners).most_common(reasons.MOST_ARMS):
        gains = [row["speedup_core"] for row in winners if row["arm"] == arm]
        reach = times(gains[0]) if wins == 1 else f"{min(gains):.2f} to {times(max(gains))}"
        cell = counted(len(cells), "cell")
        yield f"{arm} is fastest in {wins} of {cell}: {reach} the speed of autoregressive decoding."
    if rest := len(cells) - len(winners):
        if winners:
            yield f"In {rest} of them no method is resolved to be faster than autoregressive decoding."
        else:
            cell = counted(len(cells), "cell")
            yield f"In none of {cell} is a method resolved to be faster than autoregressive decoding."


def _why(frames: Frames, rows: list[Row]) -> Iterator[str]:
    """Where time goes; with simulated acceptance that is all there is to say of a cell."""
    if ranked := _ranked(rows):
        yield from reasons.why(frames, ranked)
    elif _all_simulated(rows):
        timed = [row for row in rows if pd.notna(row["draft_ms"])]
        yield from map(reasons.time_of_a_step, timed[: reasons.MOST_ARMS])


def _all_simulated(rows: list[Row]) -> bool:
    return bool(rows) and all(row["simulated"] for row in rows)


def _in_cell(results: Results, frames: Frames, rows: list[Row]) -> Iterator[str]:
    yield from _ranking(results, rows)
    if _all_simulated(rows):
        yield from _why(frames, rows)
    if ranked := _ranked(rows):
        best = ranked[0]
        if best["speedup_core"] > 1:
            yield _text(best)
        if pd.notna(best["draft_ms"]):
            yield reasons.time_of_a_step(best)


def _ranking(results: Results, rows: list[Row]) -> Iterator[str]:
    ranked = _ranked(rows)
    if not ranked:
        yield _SIMULATED if _all_simulated(rows) else _NOTHING
        return
    best = ranked[0]
    yield _fastest(best)
    if best["speedup_core"] > 1:
        if len(ranked) > 1:
            yield _next(results, best, ranked[1])
        yield from _other_baselines(best)
    for row in rows:
        if not _is_fair(row) and row["speedup_core"] > best["speedup_core"]:
            yield f"{row['arm']} shows {times(row['speedup_core'])} but {_why_unfair(row)}."


def _fastest(row: Row) -> str:
    found = f"{times(row['speedup_core'])} ({bounds(row['low'], row['high'], int(row['units']))})"
    floor = "" if pd.isna(row["noise_floor"]) else f"; A/A noise floor {100 * math.expm1(row['noise_floor']):.1f} %"
    if row["speedup_core"] <= 1:
        return f"No method was faster than autoregressive decoding; {row['arm']} comes closest with {found}."
    if row["resolution"] == RESOLVED:
        return (
            f"{row['arm']} is fastest: {found} the speed of autoregressive decoding; the difference is resolved{floor}."
        )
    if row["resolution"] == NO_INTERVAL:
        return f"{row['arm']} shows the highest speed-up, {found}; whether other prompts would show it is open{floor}."
    return (
        "No method is resolved to be faster than autoregressive decoding; the highest speed-up is that of "
        f"{row['arm']}, {found}{floor}."
    )


def _next(results: Results, best: Row, second: Row) -> str:
    """The runner-up, compared with the best on the very same batches."""
    found = head_to_head(results, best["title"], (second["arm"], best["arm"]))
    opening = f"Next is {second['arm']} with {times(second['speedup_core'])}"
    if found.ratio is None:
        return f"{opening}."
    verdict = resolution(found, None if pd.isna(best["noise_floor"]) else float(best["noise_floor"]))
    if verdict == NOT_RESOLVED:
        return f"{opening}; which of the two is faster is not resolved."
    return f"{opening}; against it {best['arm']} is {times(found.ratio)} as fast ({bounds_of(found)})."


def _other_baselines(best: Row) -> Iterator[str]:
    fastest = best["fastest_autoregressive"]
    if fastest and fastest != BASELINE and pd.notna(best["speedup"]):
        yield f"Against {fastest}, the fastest autoregressive path in the warm-up, it is {times(best['speedup'])}."
    if pd.notna(best["speedup_e2e"]):
        yield f"End to end, prefill included, it is {times(best['speedup_e2e'])}."


def _why_unfair(row: Row) -> str:
    if row["simulated"]:
        return "its acceptance is simulated, so its text is not the target's"
    if row["wrong"]:
        return "its text is wrong"
    return "it is lossy: its text is not the target's own"


def _texts(summary: pd.DataFrame) -> str:
    """What is known of all texts together."""
    own = summary[summary["arm"] != BASELINE]
    equal, near, wrong = (int(own[name].sum()) for name in ("equal", "near_tie", "wrong"))
    compared = equal + near + wrong
    if not compared:
        return (
            "No text was compared with the target's own token by token; where a text is sampled only its distribution "
            "is promised, which `specbench verify` tests."
        )
    if equal == compared:
        whole = "the text that was compared is" if compared == 1 else f"all {compared:,} texts that were compared are"
        return f"Token by token, {whole} the target's own."
    parts = [f"{equal:,} of {counted(compared, 'compared text')} {'is' if equal == 1 else 'are'} the target's own"]
    parts += (
        [f"{near:,} {'differs' if near == 1 else 'differ'} from a near tie on, which rounding decides"] if near else []
    )
    parts += [f"{wrong:,} {'is' if wrong == 1 else 'are'} WRONG"] if wrong else []
    return f"Token by token, {listed(parts)}."


def _text(row: Row) -> str:
    checked = int(row["equal"] + row["near_tie"] + row["wrong"])
    if not checked:
        return "The fastest arm's text was not compared with the target's own token by token."
    if row["equal"] == checked:
        whole = "its one request" if checked == 1 else f"all {checked} requests"
        return f"The fastest arm's text is the target's own in {whole}."
    near = int(row["near_tie"])
    others = "the other differs" if near == 1 else f"the other {near} differ"
    return (
        f"The fastest arm's text is the target's own in {int(row['equal'])} of {counted(checked, 'request')}; {others} "
        "from a near tie on, which rounding decides."
    )


# --- does the claim hold


def _claim(results: Results, frames: Frames) -> Iterator[str]:
    claim = claims.claim_of(results)
    yield from _beside(frames.published)
    if claim is None:
        if frames.published.empty:
            yield "The experiment names no claim, so there is nothing published to hold these numbers against."
        return
    source = f" ({claim['source']})" if claim.get("source") else ""
    yield f"Claimed{source}: {str(claim['says']).rstrip('.')}."
    if any(notes.get("rehearsal") for notes in results.notes):
        yield "This is a rehearsal on the embedded models, so it cannot answer for the models of the experiment."
    pairs = claims.comparisons(results, frames.summary, claim)
    values = claims.published(frames.summary, claim)
    yield from _compared(pairs)
    yield from (_against_paper(value) for value in values)
    if not pairs and not values:
        yield "Nothing that it compares has finished here, so these data cannot answer."


def _beside(published: pd.DataFrame) -> Iterator[str]:
    for _, rows in published.groupby("beside", sort=False):
        yield (
            f"The figures show beside these numbers {origin(rows)} ({rows['source'].iloc[0]}). Speeds of another "
            "target on other hardware compare in their course alone."
        )


def _compared(pairs: list[claims.Comparison]) -> Iterator[str]:
    if not pairs:
        return
    counts = Counter(pair.verdict for pair in pairs)
    if len(pairs) == 1:
        yield {claims.HOLDS: "It holds here.", claims.OPPOSITE: "Here the opposite was measured."}.get(
            pairs[0].verdict, "Here it is not resolved."
        )
    else:
        parts = [f"in {counts[word]} {words}" for word, words in _VERDICTS.items() if counts[word]]
        yield f"Of {len(pairs)} pairs of arms that differ in nothing else, {listed(parts)}."
    for pair in pairs[: reasons.MOST_ARMS]:
        assert pair.found.ratio is not None  # a pair without one is no comparison
        found = f"{times(pair.found.ratio)} as fast as {pair.slower} ({bounds_of(pair.found)})"
        yield f"At {pair.title}, {pair.faster} is {found}: {pair.verdict}."
    if len(pairs) > reasons.MOST_ARMS:
        yield f"The other {counted(len(pairs) - reasons.MOST_ARMS, 'pair')} can be read from the table below."


_VERDICTS = {
    claims.HOLDS: "it holds",
    claims.OPPOSITE: "the opposite was measured",
    claims.OPEN: "it is not resolved",
}


def _against_paper(value: claims.Published) -> str:
    verdict = {None: "there is no interval to judge by", True: "the interval holds the published value"}.get(
        value.inside, "the interval leaves the published value out"
    )
    measured = (
        times(value.measured) if value.low is None else f"{value.measured:.2f} ({value.low:.2f} to {value.high:.2f})"
    )
    return f"{value.title}, {value.arm}: published {value.published:.2f}, here {measured}; {verdict}."
