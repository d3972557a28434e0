"""A decision as a terminal shows it: a sentence, what was predicted and measured, and what would have to change."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from specbench.analysis.selection import Choice
from specbench.report.cells import BASELINE
from specbench.report.contenders import NO_DRAFT
from specbench.report.decisions import Change, Decision, Forecast
from specbench.report.resolution import NOT_RESOLVED, RESOLVED, resolution
from specbench.report.tables import MISSING, TIMES, number, percent, significant, titled
from specbench.report.words import batches, bounds_of, text_note, times

_NEVER = "never"

NEEDS = (
    "draft ms: one draft forward; of trees and changing lengths the whole draft phase. needs: what would make the "
    "draft exactly as fast, at the gamma that is best by then. (a): acceptance of a draft token, were it the same "
    "everywhere. MBSU: speed-up if a forward took only as long as reading its weights. target: forward of one token a "
    "row over that of gamma + 1."
)
"""What the columns of `change_table` mean."""

LEGEND = (
    "predicted: tokens per second of the batch, from tokens a step and the phase pass's draft, verify, accept, update "
    "and host; times between measured gammas lie on straight lines. measured: headline pass, while all rows of a batch "
    "decode, with its 95 % interval. Both are of the half of the prompts that did not choose. A speed-up in brackets "
    "is predicted.",
    NEEDS,
)
"""What the columns mean."""


def sentence(found: Decision) -> str:
    """What to do, in one sentence."""
    if found.changed:
        return f"{found.changed[0].upper()}{found.changed[1:]}: {_expected(found)}."
    if found.choice is None:
        said = _expected(found)
        return f"{said[0].upper()}{said[1:]}; there are too few batches of prompts to choose on some of them."
    return _chosen(found, found.choice)


def _expected(found: Decision) -> str:
    if found.best == NO_DRAFT:
        closest = max(found.changes, key=lambda change: change.predicted_speedup)
        return f"do not draft: the best draft, {_at(closest)}, is predicted to reach {times(closest.predicted_speedup)}"
    best = next(change for change in found.changes if change.is_best)
    return f"take {_at(best)}, predicted to reach {times(found.predicted_speedup)} the speed of autoregressive decoding"


def _chosen(found: Decision, choice: Choice) -> str:
    if choice.arm == BASELINE:
        return f"Do not draft here: {_closest(found)}."
    row = next(forecast for forecast in found.forecasts if forecast.arm == choice.arm)
    arm, verdict = f"{choice.arm}{text_note(vars(row))}", resolution(choice.speedup, found.noise_floor)
    if choice.speedup.ratio is None:
        return f"{arm} was chosen on {batches(len(choice.chosen_on))}, and did not finish on the others."
    speed = f"{times(choice.speedup.ratio)} the speed of autoregressive decoding ({bounds_of(choice.speedup)})"
    reported = f"chosen on {batches(len(choice.chosen_on))} and reported on the other {len(choice.reported_on)}"
    if verdict == RESOLVED and choice.speedup.ratio > 1:
        return f"Take {arm}: {speed}; {reported}."
    if verdict == NOT_RESOLVED:
        return f"Nothing is resolved to beat autoregressive decoding: {arm} shows {speed}; {reported}."
    return f"{arm} was fastest where it was chosen, and shows {speed} elsewhere; {reported}."


def _closest(found: Decision) -> str:
    closest = max(found.changes, key=lambda change: change.predicted_speedup)
    return (
        f"no draft was faster than autoregressive decoding where that was to be chosen; {_at(closest)} is predicted to "
        f"reach {times(closest.predicted_speedup)}"
    )


def _at(change: Change) -> str:
    return change.contender if change.gamma is None else f"{change.contender} at gamma {change.gamma}"


def remarks(found: Decision) -> list[str]:
    """What else must be known before the sentence is followed."""
    said = []
    if found.choice and not found.choice.stable:
        said.append(f"The other half would choose {found.choice.best_elsewhere or 'nothing'}.")
    best = next((change for change in found.changes if change.is_best), None)
    if best and best.gamma is not None:
        run = {row.gamma for row in found.forecasts if row.contender == best.contender and row.arm}
        if best.gamma not in run and not found.changed:
            said.append(
                f"Of {best.contender}, gamma {best.gamma} is predicted to be best, with "
                f"{times(best.predicted_speedup)}; it was not run."
            )
        if best.gamma == found.largest_gamma:
            said.append(f"Gamma {best.gamma} is the largest that was run of it; a larger one may be faster.")
    said += [f"Left out: {arm}, since {why}." for arm, why in found.left_out.items()]
    return said


def forecast_table(found: Decision) -> Table:
    """Predicted beside measured, the fastest first; a gamma that was not run only where it is its draft's best."""
    best = {(change.contender, change.gamma) for change in found.changes}
    rows = [row for row in found.forecasts if row.arm or (row.contender, row.gamma) in best]
    table = _table("predicted and measured", "arm")
    for heading in ("tok/step", "step ms", "predicted", "measured tok/s", "off by", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -row.predicted_tokens_per_s):
        table.add_row(*map(Text, _forecast_cells(row)), style=None if row.arm or found.changed else "dim")
    return table


def _forecast_cells(row: Forecast) -> list[str]:
    name = row.arm or (row.contender if row.gamma is None else f"{row.contender} gamma={row.gamma}")
    return [
        f"{name}{text_note(vars(row))}",
        number(row.tokens),
        significant(row.step_ms),
        significant(row.predicted_tokens_per_s),
        _ranged(row),
        percent(row.error, 1),
        number(row.measured_speedup, 2, TIMES)
        if row.measured_speedup
        else f"({number(row.predicted_speedup, 2, TIMES)})",
    ]


def _ranged(row: Forecast) -> str:
    measured = significant(row.measured_tokens_per_s)
    return measured if row.low is None else f"{measured} ({significant(row.low)} to {significant(row.high)})"


def change_table(found: Decision) -> Table:
    """What each draft would need, the best first."""
    rivals = {change.is_best: change.rival for change in found.changes}
    title = [f"to be as fast as {rivals[False]}"] if False in rivals else []
    title += [f"for the best to be as slow as {rivals[True]}"] if True in rivals else []
    table = _table(f"what would have to change, {'; '.join(title)}", "draft")
    for heading in ("gamma", "speed-up", "draft ms", "needs", "tok/step (a)", "needs", "MBSU", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in sorted(found.changes, key=lambda change: (not change.is_best, -change.predicted_speedup)):
        table.add_row(*map(Text, _change_cells(change)), style="bold" if change.is_best else None)
    return table


def _change_cells(change: Change) -> list[str]:
    return [
        change.contender,
        MISSING if change.gamma is None else str(change.gamma),
        number(change.predicted_speedup, 2, TIMES),
        significant(change.draft_ms),
        _needs(change.tie_draft_ms, significant, change.tie_draft_gamma),
        f"{number(change.tokens)}{_alpha(change.alpha)}",
        _needs(change.tie_tokens, number, change.tie_tokens_gamma, _alpha(change.tie_alpha)),
        number(change.memory_bound_speedup),
        number(change.target_efficiency),
    ]


def _alpha(value: float | None) -> str:
    return "" if value is None else f" ({value:.2f})"


def _needs(value: float | None, show: Any, gamma: int | None, more: str = "") -> str:
    if value is None:
        return _NEVER
    return f"{show(value)}{more}" + ("" if gamma is None else f" at {gamma}")


def _table(title: str, first: str) -> Table:
    table = titled(title)
    table.collapse_padding = True
    table.add_column(first, overflow="fold", min_width=14)
    return table
