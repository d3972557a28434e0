"""Why an arm is as fast as it is, and what would have to change: sentences from phases, positions and closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from specbench.analysis.selection import choose
from specbench.records.schema import PHASES
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.limits import reached
from specbench.report.metrics import Frames
from specbench.report.resolution import NO_INTERVAL, NOT_RESOLVED, RESOLVED
from specbench.report.words import Row, batches, milliseconds, ordinal, share, times

MOST_ARMS = 4
"""Arms that are gone into in one cell: the best, and those that lose."""

_LOW_OCCUPANCY = 0.9
_CLOSE = 0.01
"""On the log scale; nearer to break-even than this needs no advice, however quiet the machine is."""

_FEWEST_TO_CHOOSE = 2
"""Batches in each half, below which no best setting is chosen: one batch would choose by itself."""

_ENOUGH_STEPS = 20
"""Steps behind an acceptance that is named in a sentence."""


def time_of_a_step(row: Row) -> str:
    """How long a step takes, for how many tokens, and which phases take the time."""
    total = sum(row[f"{phase}_ms"] for phase in PHASES)
    shares = [(phase, row[f"{phase}_ms"] / total) for phase in PHASES]
    parts = ", ".join(f"{share(part)} {phase}" for phase, part in shares if part >= 0.005)
    return f"A step of {row['arm']} takes {milliseconds(total)} for {row['block_efficiency']:.2f} tokens: {parts}."


def why(frames: Frames, ranked: list[Row]) -> Iterator[str]:
    """Where the time of the best arm goes and what it accepts, and why others lose.

    Args:
        frames: What is known of the run.
        ranked: The lossless arms of one cell, from fast to slow; at least one.
    """
    best, losers = ranked[0], [row for row in ranked[1:] if _is_slower(row) and _runs_as_it_is(row)]
    yield from (_reason(frames, best), _positions(frames, best), _idle(best))
    yield from _reached(frames, best)
    yield from (_loss(frames, row) for row in losers[-MOST_ARMS:])


def _is_slower(row: Row) -> bool:
    return bool(row["speedup_core"] < 1 and row["resolution"] != NOT_RESOLVED)


def _runs_as_it_is(row: Row) -> bool:
    """Whether its draft was not slowed on purpose."""
    return bool(pd.isna(row["draft_latency_ms"]))


def _cost(frames: Frames, row: Row) -> Row | None:
    found = frames.costs[(frames.costs["title"] == row["title"]) & (frames.costs["arm"] == row["arm"])]
    return None if found.empty else found.iloc[0].to_dict()


def _reason(frames: Frames, row: Row) -> str:
    cost = _cost(frames, row)
    if cost is None:
        if pd.isna(row["block_efficiency"]) or pd.isna(row["step_s"]):
            return ""
        step = milliseconds(1000 * row["step_s"])
        return (
            f"A step of {row['arm']} takes {step} for {row['block_efficiency']:.2f} tokens; its phases were not timed."
        )
    return f"{time_of_a_step(row)[:-1]}; {_verification(row, cost)}."


def _verification(row: Row, cost: Row) -> str:
    verified = "" if pd.isna(row["nodes_per_step"]) else f" of {1 + round(row['nodes_per_step'], 1):g} tokens"
    return f"verification{verified} takes {cost['verify_ratio']:.2f} times a one-token forward"


def _positions(frames: Frames, row: Row) -> str:
    own = frames.positions[(frames.positions["title"] == row["title"]) & (frames.positions["arm"] == row["arm"])]
    if own.empty or own["alpha"].isna().all():
        return ""
    own = own[own["alpha"].notna()]
    first, sure = own.iloc[0], own[own["reached"] >= _ENOUGH_STEPS]
    last = first if sure.empty else sure.iloc[-1]
    opening = f"Its first draft token is accepted in {share(first['alpha'])} of the steps that draft one"
    if last["position"] == first["position"]:
        return f"{opening}."
    position = ordinal(int(last["position"]))
    return f"{opening}, the {position} in {share(last['alpha'])} of those that accepted all before it."


def _reached(frames: Frames, best: Row) -> Iterator[str]:
    """How much of the machine's limit the baseline and the best arm reach."""
    cell = frames.summary[frames.summary["title"] == best["title"]]
    yield from (reached(row) for row in cell[cell["arm"].isin([BASELINE, best["arm"]])].to_dict("records"))


def _idle(row: Row) -> str:
    if pd.isna(row["occupancy"]) or row["occupancy"] >= _LOW_OCCUPANCY or pd.isna(row["full_batch_speedup"]):
        return ""
    return (
        f"Its rows end at different steps, so slots work for {share(row['occupancy'])} of the time: while a batch is "
        f"full it runs at {times(row['full_batch_speedup'])}, over whole batches at {times(row['speedup_core'])}."
    )


def _loss(frames: Frames, row: Row) -> str:
    measured = times(row["speedup_core"]) + (", no interval" if row["resolution"] == NO_INTERVAL else "")
    opening = f"{row['arm']} {'loses' if row['resolution'] == RESOLVED else 'was slower here'} ({measured})"
    cost = _cost(frames, row)
    if cost is None:
        return f"{opening}; its phases were not timed."
    if cost["composed_speedup"] >= 1 and pd.notna(row["occupancy"]) and row["occupancy"] < 1:
        return (
            f"{opening} although its steps pay for themselves: its rows end at different steps, so slots work for "
            f"{share(row['occupancy'])} of the time."
        )
    drafting = f"drafting takes {share(cost['draft_share'])} of its step, " if cost["draft_share"] >= 0.01 else ""
    return (
        f"{opening}: {drafting}{_verification(row, cost)}, and {row['block_efficiency']:.2f} tokens a step do not pay "
        "for that."
    )


# --- what would have to change


def change(results: Results, frames: Frames, ranked: list[Row]) -> Iterator[str]:
    """Break-even points of the best arm and of those that lose, and the best setting of every method.

    Args:
        results: The rows, for the choice of a setting on one half of them.
        frames: What is known of the run.
        ranked: The lossless arms of one cell, from fast to slow; at least one.
    """
    timed = [row for row in ranked if _runs_as_it_is(row) and _cost(frames, row) is not None]
    shown = [*timed[:1], *[row for row in timed[1:] if row["speedup_core"] < 1][: MOST_ARMS - 1]]
    yield from (_break_even(row, cost) for row in shown if (cost := _cost(frames, row)) is not None)
    title = str(ranked[0]["title"])
    sweeps = _gammas(frames, title) | _settings(frames, title, ranked)
    yield from (_best(results.timed[title], what, values) for what, values in sweeps.items())
    if not sweeps:
        yield from (_predicted_gamma(frames, row) for row in shown[:1])


def _break_even(row: Row, cost: Row) -> str:
    """What one request sees is compared here, since only that is step time over tokens."""
    floor = 0.0 if pd.isna(row["noise_floor"]) else float(row["noise_floor"])
    needed = f"{cost['break_even_tokens']:.2f} tokens a step, and emits {cost['tokens']:.2f}"
    if abs(math.log(cost["composed_speedup"])) <= max(floor, _CLOSE):
        return f"{row['arm']} is within the noise of break-even, as a request sees it: it needs {needed}."
    if cost["composed_speedup"] > 1:
        return f"{row['arm']} stays ahead until {_limits(cost)}."
    return f"{row['arm']} would break even with {_wishes(cost)}."


def _limits(cost: Row) -> str:
    drafted = _draft_words(cost)
    draft = (
        f" or {drafted[0]} takes {milliseconds(drafted[2])} (it takes {milliseconds(drafted[1])})" if drafted else ""
    )
    return f"its steps emit fewer than {cost['break_even_tokens']:.2f} tokens (now {cost['tokens']:.2f}){draft}"


def _wishes(cost: Row) -> str:
    tokens = f"{cost['break_even_tokens']:.2f} tokens a step (now {cost['tokens']:.2f}"
    if pd.notna(cost["alpha"]):
        even = cost["break_even_alpha"]
        tokens += (
            f"; an alpha of {even:.2f} instead of {cost['alpha']:.2f}"
            if pd.notna(even)
            else "; no acceptance gives as many"
        )
    if cost["break_even_draft_ms"] <= 0:
        return f"{tokens}); even a draft that takes no time would not do"
    drafted = _draft_words(cost)
    return f"{tokens})" + (
        f", or with {drafted[0]} of {milliseconds(drafted[2])} (now {milliseconds(drafted[1])})" if drafted else ""
    )


def _draft_words(cost: Row) -> tuple[str, float, float] | None:
    """What is drafted, the time that it takes, and the time at which the arm breaks even."""
    if pd.notna(cost["draft_ms_per_token"]):
        return "a draft token", cost["draft_ms_per_token"], cost["break_even_draft_ms_per_token"]
    if cost["draft_ms"] >= 0.01:
        return "a draft phase", cost["draft_ms"], cost["break_even_draft_ms"]
    return None


def _gammas(frames: Frames, title: str) -> dict[str, dict[str, str]]:
    """Each sweep of gamma alone: arm -> gamma."""
    points = frames.along[(frames.along["axis"] == "gamma") & (frames.along["title"] == title)]
    return {
        f"gamma of {name}": dict(zip(line["arm"], line["label"], strict=True))
        for name, line in points.groupby("series", sort=False)
    }


def _settings(frames: Frames, title: str, ranked: list[Row]) -> dict[str, dict[str, str]]:
    """The settings of every label that has several, where they are more than one sweep of gamma: arm -> arm."""
    of_label: dict[str, dict[str, str]] = {}
    for row in ranked:
        if row["arm"] not in {BASELINE, TWIN} and _runs_as_it_is(row):
            of_label.setdefault(str(row["label"]), {})[str(row["arm"])] = str(row["arm"])
    sweeps = [values.keys() for values in _gammas(frames, title).values()]
    return {
        f"setting of {label}": arms for label, arms in of_label.items() if len(arms) > 1 and arms.keys() not in sweeps
    }


def _best(arms: Mapping[str, pd.DataFrame], what: str, values: Mapping[str, str]) -> str:
    """The best value of a sweep, chosen on one half of the batches and reported on the other."""
    choice = choose(arms[BASELINE], {arm: arms[arm] for arm in values}) if BASELINE in arms else None
    if choice is None or choice.speedup.ratio is None or len(choice.chosen_on) < _FEWEST_TO_CHOOSE:
        return f"Too few batches of prompts finished to choose a {what} on half of them."
    found = choice.speedup
    agreed = (
        "which would choose the same"
        if choice.stable
        else f"which would choose {values[choice.best_elsewhere]}"
        if choice.best_elsewhere
        else "which chooses nothing"
    )
    interval = (
        f"95 % interval {found.interval.low:.2f} to {found.interval.high:.2f}" if found.interval else "no interval"
    )
    return (
        f"The best {what} is {values[choice.arm]}: chosen on {batches(len(choice.chosen_on))}, it gives "
        f"{times(choice.speedup.ratio)} ({interval}) on the other {len(choice.reported_on)}, {agreed}."
    )


def _predicted_gamma(frames: Frames, row: Row) -> str:
    cost = _cost(frames, row)
    if cost is None or pd.isna(cost["predicted_best_gamma"]):
        return ""
    if cost["predicted_best_gamma"] == 0:
        return f"By the closed form no chain of the draft of {row['arm']} pays, whatever its gamma."
    gamma, speed = int(cost["predicted_best_gamma"]), cost["predicted_best_speedup"]
    return f"Only one gamma of {row['arm']} was run; by the closed form its best is {gamma}, for {times(speed)}."
