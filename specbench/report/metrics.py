"""Every published number, as tidy frames made from stored rows; tables, figures and sentences only show them.

Speeds come from the headline pass and leave out a last partial batch; acceptance and text use every row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis import acceptance, throughput
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.prediction import compose
from specbench.analysis.speedup import (
    PAIR,
    Speedup,
    batch_ratios,
    full_batch_speedup,
    speedup,
    twin_noise_floor,
)
from specbench.errors import ResultsError
from specbench.records.schema import PHASES
from specbench.report import along, composed
from specbench.report import drafts as drafting
from specbench.report import forwards as forwarding
from specbench.report import skill as skills
from specbench.report.beams import beams
from specbench.report.cells import BASELINE, PLACE, TWIN, Results, full_batches, load
from specbench.report.composed_arms import composed_arms
from specbench.report.decisions import Decision, change_frame, decisions, forecast_frame
from specbench.report.latency_axis import composed_points, latency_axis
from specbench.report.limits import COLUMNS as LIMIT_COLUMNS
from specbench.report.limits import Limits
from specbench.report.phases import phase_times
from specbench.report.published import beside
from specbench.report.resolution import resolution
from specbench.report.rules import rules
from specbench.report.telemetry import telemetry

__all__ = ["BASELINE", "TWIN", "Frames", "Results", "frames", "load", "summary"]

LOOPING = 0.5
"""Share of repeated 4-grams above which a text is mostly a loop, and loops flatter every drafter."""


@dataclass(frozen=True)
class Frames:
    """Everything that is shown, tidy: one row per cell and arm, or per position, length, batch or text below that.

    From ``drafts`` on, what a run with draft models, traces, latencies or scores has beside that; empty without them.
    """

    summary: pd.DataFrame
    phases: pd.DataFrame
    positions: pd.DataFrame
    lengths: pd.DataFrame
    batches: pd.DataFrame
    along: pd.DataFrame
    costs: pd.DataFrame
    loops: pd.DataFrame
    telemetry: pd.DataFrame
    beams: pd.DataFrame
    rules: pd.DataFrame
    published: pd.DataFrame
    drafts: pd.DataFrame
    best_drafts: pd.DataFrame
    depths: pd.DataFrame
    latency_axis: pd.DataFrame
    forecasts: pd.DataFrame
    changes: pd.DataFrame
    composed: pd.DataFrame
    composed_arms: pd.DataFrame
    left_out: pd.DataFrame
    models: pd.DataFrame
    sizes: pd.DataFrame
    forwards: pd.DataFrame
    forward_lines: pd.DataFrame
    forward_slopes: pd.DataFrame
    skill: pd.DataFrame
    correlations: pd.DataFrame


def frames(results: Results) -> Frames:
    """All frames of a report.

    Raises:
        ResultsError: Rows of a cell must not be compared.
    """
    overview, of_models = summary(results), _of_models(results)
    return Frames(
        summary=overview,
        phases=phase_times(results),
        positions=positions(results),
        lengths=lengths(results),
        batches=batches(results),
        along=along.axes(results, overview),
        costs=costs(overview),
        loops=loops(results),
        telemetry=telemetry(results),
        beams=beams(results, overview),
        rules=rules(results, overview),
        published=beside(results),
        **_of_drafts(results, overview, of_models["sizes"]),
        **of_models,
    )


def _of_drafts(results: Results, overview: pd.DataFrame, sizes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is known of draft models, and what could not be composed of them with the reason."""
    found = drafting.drafts(results, overview)
    beside_measured, left_out = _composed(results)
    arms, arms_left_out = composed_arms(results)
    decided = _decided(results)
    skill = skills.skill(results, found.gammas)
    return {
        "drafts": found.gammas,
        "best_drafts": found.best,
        "depths": drafting.depths(results, found.best, sizes),
        "latency_axis": _joined(latency_axis(results), composed_points(arms)),
        "forecasts": forecast_frame(decided),
        "changes": change_frame(decided),
        "composed": beside_measured,
        "composed_arms": arms,
        "left_out": _joined(found.left_out, left_out, arms_left_out),
        "skill": skill,
        "correlations": skills.correlations(skill),
    }


def _joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Frames below one another; an empty one has no say in the types."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _composed(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Composed beside measured throughput, and the arms that have no such pair."""
    nothing = pd.DataFrame(columns=drafting.LEFT_OUT)
    if not results.traces or results.latencies.empty:
        return composed.Comparison((), {}).frame, nothing
    try:
        found = composed.compare(results, results.traces, LatencyTable(results.latencies, results.choosing))
    except ResultsError:
        return composed.Comparison((), {}).frame, nothing  # the drafts, which are composed as well, have the reason
    rows = [(title, arm, reason) for (title, arm), reason in found.left_out.items()]
    return found.frame, pd.DataFrame(rows, columns=drafting.LEFT_OUT)


def _decided(results: Results) -> list[Decision]:
    try:
        return decisions(results)
    except ResultsError:  # no phases were timed, or nothing was drafted
        return []


def _of_models(results: Results) -> dict[str, pd.DataFrame]:
    """Forward times, and what models weigh."""
    found = forwarding.forwards(results)
    lines, models = forwarding.lines(found), forwarding.shapes(found)
    return {
        "models": models,
        "sizes": forwarding.known_sizes(results, models),
        "forwards": found,
        "forward_lines": lines,
        "forward_slopes": forwarding.slopes(lines),
    }


SUMMARY = (
    "title", "cell", *PLACE, "arm", "method", "label", "options", "draft", "rule", "attention", "captured_phases",
    "compiled_phases", "latency_mode", "draft_latency_ms", "lossless", "simulated", "series", "requests", "failed",
    "status", "reason", "equal", "near_tie", "wrong", "partial_batches_left_out", "decode_tokens_per_s",
    "e2e_tokens_per_s", "batch_tokens_per_s", "full_batch_tokens_per_s", "occupancy", "ttft_s", "tpot_s", "step_s",
    "block_efficiency", "block_efficiency_uncut", "mean_accepted", "acceptance_rate", "nodes_per_step",
    "depth_per_step", "gamma", "output_tokens", "repeat_ngram_share", "looping", "speedup_core", "low", "high",
    "units", "baseline_tokens", "method_tokens", "speedup_e2e", "resolution", "noise_floor", "speedup",
    "fastest_autoregressive", "full_batch_speedup", "full_batch_low", "full_batch_high",
    *(f"{phase}_ms" for phase in PHASES), "syncs_per_step", "phase_pass_slowdown", *LIMIT_COLUMNS,
)  # fmt: skip
"""Columns of `summary`; there are no rows where a folder holds traces, latencies or scores alone."""


def summary(results: Results) -> pd.DataFrame:
    """One row per cell and arm, cells in their order, arms from fast to slow.

    Raises:
        ResultsError: Rows of a cell must not be compared.
    """
    fastest = _fastest_autoregressive(results)
    timed = phase_times(results).set_index(["title", "arm"])
    slowdowns, limits = _phase_pass_slowdowns(results), Limits(results)
    rows = []
    for title, cell in results.headline.items():
        full = results.timed[title]
        floor = _noise_floor(full)
        core = full.get(BASELINE)
        baseline = full.get(fastest.get(str(cell["cell"].iloc[0]), BASELINE), core)
        cell_rows = []
        for arm, own in cell.groupby("arm", sort=True):
            row = _place(title, cell) | _identity(own) | _counts(own, full[arm]) | _rates(full[arm])
            row |= _acceptance(own) | _speeds(full[arm], core, floor)
            row |= _against_fastest(full[arm], baseline, row["speedup_core"])
            row |= _full_batch(full[arm], core, row) | _phase_columns(timed, title, str(arm))
            row["phase_pass_slowdown"] = slowdowns.get((title, arm))
            cell_rows.append(row)
        limits.add(cell_rows, full, timed)
        rows += sorted(cell_rows, key=_fast_first)
    return pd.DataFrame(rows, columns=SUMMARY)


def positions(results: Results) -> pd.DataFrame:
    """Acceptance by draft position (from 1), one row per cell, arm and position."""
    functions = {
        "survival": acceptance.survival,
        "conditional_acceptance": acceptance.conditional_acceptance,
        "alpha": acceptance.alpha,
        "drafted_share": acceptance.drafted_share,
        "reached": acceptance.reached,
    }
    return _by_index(results, functions, "position", first=1)


def lengths(results: Results) -> pd.DataFrame:
    """Share of steps that kept exactly so many draft tokens: one row per cell, arm and number of tokens."""
    return _by_index(results, {"share": acceptance.accepted_lengths}, "accepted", first=0, drafting=True)


def _by_index(
    results: Results, functions: Mapping[str, Any], index: str, *, first: int, drafting: bool = False
) -> pd.DataFrame:
    """What functions of an arm's rows return as arrays, one row an entry."""
    parts = [pd.DataFrame(columns=["title", "arm", index, *functions])]
    for title, cell in results.headline.items():
        for arm, own in cell.groupby("arm", sort=True):
            values = {name: function(own) for name, function in functions.items()}
            count = len(next(iter(values.values())))
            if count > int(drafting):
                place = {"title": title, "arm": arm, index: range(first, first + count)}
                parts.append(pd.DataFrame(place | values))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def batches(results: Results) -> pd.DataFrame:
    """The spread: speed-up, tokens/s and block efficiency of each timed batch, one row a batch."""
    columns = ["title", "arm", *PAIR, "speedup_core", "decode_tokens_per_s", "block_efficiency"]
    parts = [pd.DataFrame(columns=columns)]
    for title, arms in results.timed.items():
        for arm, own in arms.items():
            found = _batch_rates(acceptance.measured(own))
            found["speedup_core"] = batch_ratios(arms[BASELINE], own) if BASELINE in arms else math.nan
            parts.append(found.reset_index().assign(title=title, arm=arm))
    return pd.concat(parts[1:] or parts, ignore_index=True)[columns]


def _batch_rates(own: pd.DataFrame) -> pd.DataFrame:
    """The same rates as in `throughput` and `acceptance`, for all batches of an arm at once."""
    sums = own.assign(tokens=acceptance.decode_tokens(own)).groupby(PAIR)[["tokens", "row_done_s", "steps"]].sum()
    sums = sums.astype(float).where(sums > 0)
    return pd.DataFrame(
        {
            "decode_tokens_per_s": sums["tokens"] / sums["row_done_s"],
            "block_efficiency": sums["tokens"] / sums["steps"],
        }
    )


def costs(overview: pd.DataFrame) -> pd.DataFrame:
    """What a step costs in autoregressive steps, and where the arm would break even: one row per cell and arm.

    Step times are those of the headline pass, parted as the phase pass says, and tokens are those that a user got:
    so ``composed_speedup`` is what a request saw. ``verify_ratio`` is the verification over the baseline's forward;
    ``alpha`` and the draft latencies by token exist for chains of one gamma. Arms without phase times are left out.
    """
    rows = []
    for _, cell in overview.groupby("title", sort=False):
        arms = [_as_timed(row) for row in cell.to_dict("records")]
        baseline = next((row for row in arms if row["arm"] == BASELINE), None)
        if baseline is not None:
            found = (_cost_of(arm, baseline) for arm in arms if arm["method"] != BASELINE)
            rows += [row for row in found if row]
    return pd.DataFrame(rows, columns=_COST_COLUMNS)


def _as_timed(row: dict[Any, Any]) -> dict[Any, Any]:
    """The phases of an arm, stretched so that they add up to the step of the headline pass."""
    names = [f"{phase}_ms" for phase in PHASES]
    stretch = 1000 * _real(row["step_s"]) / math.fsum(_real(row[name]) for name in names)
    timed = {name: stretch * _real(row[name]) for name in names}
    return row | timed | {"block_efficiency_uncut": row["block_efficiency"]}


def _real(value: Any) -> float:
    return math.nan if value is None else float(value)


def _cost_of(arm: dict[Any, Any], baseline: dict[Any, Any]) -> dict[str, Any] | None:
    gamma = None if pd.isna(arm["gamma"]) else int(arm["gamma"])
    if (found := compose(arm, baseline, gamma)) is None:
        return None
    step_ms, reference_ms = (math.fsum(row[f"{phase}_ms"] for phase in PHASES) for row in (arm, baseline))
    row = dict.fromkeys(_COST_COLUMNS) | {f"{phase}_share": arm[f"{phase}_ms"] / step_ms for phase in PHASES}
    row |= {
        "title": found.title,
        "arm": found.arm,
        "gamma": gamma,
        "step_ms": step_ms,
        "rest_ms": step_ms - found.draft_ms,
        "autoregressive_ms": reference_ms,
        "verify_ratio": arm["verify_ms"] / baseline["verify_ms"],
        "tokens": found.tokens,
        "composed_speedup": found.predicted,
        "break_even_tokens": found.break_even_tokens,
        "draft_ms": found.draft_ms,
        "break_even_draft_ms": found.break_even_draft_ms,
    }
    if found.chain and found.prediction:
        row |= {
            "alpha": found.chain.alpha,
            "break_even_alpha": found.prediction.break_even_alpha,
            "draft_ms_per_token": found.draft_ms / found.chain.gamma,
            "break_even_draft_ms_per_token": found.break_even_draft_ms / found.chain.gamma,
            "predicted_best_gamma": found.prediction.best_gamma,
            "predicted_best_speedup": found.prediction.best_speedup,
        }
    return row


_COST_COLUMNS = (
    "title", "arm", "gamma", *(f"{phase}_share" for phase in PHASES), "step_ms", "rest_ms", "autoregressive_ms",
    "verify_ratio", "tokens", "composed_speedup", "break_even_tokens", "draft_ms", "break_even_draft_ms", "alpha",
    "break_even_alpha", "draft_ms_per_token", "break_even_draft_ms_per_token", "predicted_best_gamma",
    "predicted_best_speedup",
)  # fmt: skip


def loops(results: Results) -> pd.DataFrame:
    """Texts of which more than `LOOPING` repeats, the worst first; a text that all repeats share is listed once."""
    rows = results.requests[results.requests["pass"] == "headline"]
    columns = ["title", "arm", "prompt_id", "output_tokens", "repeat_ngram_share"]
    found = rows.loc[rows["repeat_ngram_share"] > LOOPING, columns].drop_duplicates()
    return found.sort_values("repeat_ngram_share", ascending=False, kind="stable", ignore_index=True)


def head_to_head(results: Results, title: str, pair: tuple[str, str]) -> Speedup:
    """How much faster the second arm is than the first, in one cell.

    Raises:
        ResultsError: The two must not be compared.
    """
    arms = results.timed[title]
    return speedup(arms[pair[0]], arms[pair[1]])


# --- the columns of one arm


def _place(title: str, cell: pd.DataFrame) -> dict[str, Any]:
    first = cell.iloc[0]
    return {"title": title, "cell": first["cell"]} | {name: first[name] for name in PLACE}


def _identity(own: pd.DataFrame) -> dict[str, Any]:
    first = own.iloc[0]
    names = ("arm", "method", "label", "options", "draft", "rule", "attention", "captured_phases",
             "compiled_phases", "latency_mode", "draft_latency_ms")  # fmt: skip
    flags = {"lossless": bool(own["lossless"].all()), "simulated": bool(own["simulated_acceptance"].any())}
    return {name: first[name] for name in names} | flags | {"series": series(str(first["arm"]))}


def series(arm: str) -> str:
    """An arm's name without the shape of its draft and its latency: what the arms of one sweep share."""
    return re.sub(r" (gamma|width|length|nodes|branching|tree(\.\w+)?|latency)=\S+", "", arm)


def _counts(own: pd.DataFrame, full: pd.DataFrame) -> dict[str, Any]:
    failed = own[own["status"] != "ok"]
    statuses = failed["status"].value_counts()
    verdicts = acceptance.measured(own)["verdict"].value_counts()
    return {
        "requests": len(own),
        "failed": len(failed),
        "status": ", ".join(f"{name} {count}" for name, count in statuses.items()) or "ok",
        "reason": failed["reason"].iloc[0] if len(failed) else None,
        "equal": int(verdicts.get("equal", 0)),
        "near_tie": int(verdicts.get("near-tie", 0)),
        "wrong": int(verdicts.get("WRONG", 0)),
        "partial_batches_left_out": own["batch_id"].nunique() - full["batch_id"].nunique(),
    }


def _rates(own: pd.DataFrame) -> dict[str, Any]:
    functions = (
        throughput.decode_tokens_per_s, throughput.e2e_tokens_per_s, throughput.batch_tokens_per_s,
        throughput.full_batch_tokens_per_s, throughput.occupancy, throughput.ttft_s, throughput.tpot_s,
        throughput.step_s,
    )  # fmt: skip
    return {function.__name__: function(own) for function in functions}


def _acceptance(own: pd.DataFrame) -> dict[str, Any]:
    ok = acceptance.measured(own)
    functions = (
        acceptance.block_efficiency, acceptance.block_efficiency_uncut, acceptance.mean_accepted,
        acceptance.acceptance_rate,
    )  # fmt: skip
    values: dict[str, Any] = {function.__name__: function(own) for function in functions}
    nodes = ok["drafted_nodes_per_step"].dropna().to_numpy()
    steps = float(ok["steps"].sum())
    values["nodes_per_step"] = float(np.concatenate(nodes).sum()) / steps if len(nodes) and steps else None
    values["depth_per_step"] = float(ok["drafted_tokens"].sum()) / steps if len(nodes) and steps else None
    values["gamma"] = acceptance.chain_depth(own)
    values["output_tokens"] = int(ok["output_tokens"].sum()) if len(ok) else None
    values["repeat_ngram_share"] = _mean(ok["repeat_ngram_share"])
    values["looping"] = int((ok["repeat_ngram_share"] > LOOPING).sum())
    return values


def _speeds(own: pd.DataFrame, baseline: pd.DataFrame | None, floor: float | None) -> dict[str, Any]:
    """Speed-up over the core's own autoregressive arm, with what is needed to judge it."""
    names = (
        "speedup_core",
        "low",
        "high",
        "units",
        "baseline_tokens",
        "method_tokens",
        "speedup_e2e",
        "resolution",
    )
    if baseline is None:
        return dict.fromkeys(names) | {"noise_floor": floor}
    found = speedup(baseline, own)
    interval = None if own["arm"].iloc[0] == BASELINE else found.interval
    return {
        "speedup_core": found.ratio,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "units": found.units,
        "baseline_tokens": found.baseline_tokens,
        "method_tokens": found.method_tokens,
        "speedup_e2e": speedup(baseline, own, with_prefill=True).ratio,
        "resolution": None if own["arm"].iloc[0] == BASELINE else resolution(found, floor),
        "noise_floor": floor,
    }


def _against_fastest(own: pd.DataFrame, baseline: pd.DataFrame | None, speedup_core: float | None) -> dict[str, Any]:
    """Speed-up over the fastest autoregressive path at hand, which often is the core's own."""
    if baseline is None:
        return {"speedup": None, "fastest_autoregressive": None}
    name = str(baseline["arm"].iloc[0])
    ratio = speedup_core if name == BASELINE else speedup(baseline, own).ratio
    return {"speedup": ratio, "fastest_autoregressive": name}


def _full_batch(own: pd.DataFrame, baseline: pd.DataFrame | None, row: Mapping[str, Any]) -> dict[str, Any]:
    """Speed-up until the first row of each batch ends; that of `speedup_core` at batch size 1."""
    names = ("full_batch_speedup", "full_batch_low", "full_batch_high")
    if baseline is None or row["batch_size"] == 1:
        return dict(zip(names, (row["speedup_core"], row["low"], row["high"]), strict=True))
    found = full_batch_speedup(baseline, own)
    interval = None if row["arm"] == BASELINE else found.interval
    bounds = (interval.low, interval.high) if interval else (None, None)
    return dict(zip(names, (found.ratio, *bounds), strict=True))


def _phase_columns(phases: pd.DataFrame, title: str, arm: str) -> dict[str, Any]:
    names = [*(f"{phase}_ms" for phase in PHASES), "syncs_per_step"]
    if (title, arm) not in phases.index:
        return dict.fromkeys(names)
    return {name: float(phases.loc[(title, arm), name]) for name in names}


def _phase_pass_slowdowns(results: Results) -> dict[tuple[str, str], float]:
    """By cell and arm how much longer a token took in the phase pass than in the headline pass, a fraction."""
    rows = results.requests[results.requests["pass"] == "phase"]
    found = {}
    for (title, arm), own in rows.groupby(["title", "arm"], sort=False):
        ratio = speedup(results.timed[str(title)][str(arm)], full_batches(own)).ratio
        if ratio is not None:
            found[str(title), str(arm)] = 1 / ratio - 1
    return found


def _noise_floor(arms: Mapping[str, pd.DataFrame]) -> float | None:
    if BASELINE not in arms or TWIN not in arms:
        return None
    return twin_noise_floor(arms[BASELINE], arms[TWIN])


def _fastest_autoregressive(results: Results) -> dict[str, str]:
    """Cell to its fastest autoregressive arm, as the run decided on its warm-up."""
    found: dict[str, str] = {}
    for notes in results.notes:
        found |= notes.get("fastest_autoregressive", {})
    return found


def _fast_first(row: Mapping[str, Any]) -> tuple[float, str]:
    return (-(row["speedup_core"] or 0.0), str(row["arm"]))


def _mean(values: pd.Series) -> float | None:
    values = values.dropna()
    return float(values.mean()) if len(values) else None
