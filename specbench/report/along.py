"""Speed-up along each axis that a run has: batch size, temperature, category, context length, options of methods.

One tidy frame for all of them. Points that agree in everything but the axis form a series; the series of one
panel can be compared. An axis with fewer than two values is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.speedup import Speedup, request_speedups
from specbench.report.cells import BASELINE, TWIN, Results, places_without
from specbench.report.resolution import RESOLVED, resolution

COLUMNS = (
    "axis", "panel", "title", "series", "arm", "x", "label", "speedup", "low", "high", "units", "resolved",
    "lossless", "simulated", "block_efficiency", "decode_tokens_per_s", "full_batch_tokens_per_s", "occupancy",
)  # fmt: skip
"""One row a point. ``x`` orders the points, ``label`` is how the value reads; of the last four, what the axis has."""

OPTIONS = ("gamma", "width", "length", "draft_latency_ms")
"""What one entry of a method is swept over."""


def axes(results: Results, summary: pd.DataFrame) -> pd.DataFrame:
    """Every point of every axis that has at least two values in some panel.

    Args:
        results: For what the summary does not tell apart: categories, and lengths of prompts.
        summary: One row per cell and arm.
    """
    points = [
        *_over_cells(summary, "batch_size"),
        *_over_cells(summary, "temperature"),
        *(point for option in OPTIONS for point in _over_options(summary, option)),
        *_over_requests(results, summary, "category"),
        *_over_requests(results, summary, "prompt_tokens"),
    ]
    frame = pd.DataFrame([point for point in points if point["arm"] != TWIN], columns=COLUMNS)
    frame = frame[frame["speedup"].notna()]
    values = frame.groupby(["axis", "panel"])["x"].transform("nunique")
    return frame[values > 1].reset_index(drop=True)


def _point(axis: str, row: dict[Any, Any], **own: Any) -> dict[str, Any]:
    """A point, with the speed-up of the summary where the axis brings none of its own."""
    shared = {
        "axis": axis, "title": row["title"], "panel": row["title"], "series": row["arm"], "arm": row["arm"],
        "speedup": row["speedup_core"], "low": row["low"], "high": row["high"], "units": row["units"],
        "resolved": row["resolution"] == RESOLVED, "lossless": row["lossless"], "simulated": row["simulated"],
        "block_efficiency": row["block_efficiency"], "decode_tokens_per_s": row["decode_tokens_per_s"],
        "full_batch_tokens_per_s": row["full_batch_tokens_per_s"], "occupancy": row["occupancy"],
    }  # fmt: skip
    return shared | own


def _over_cells(summary: pd.DataFrame, axis: str) -> Iterator[dict[str, Any]]:
    """An axis of the grid: the same arm in cells that differ in it alone."""
    full = {"speedup": "full_batch_speedup", "low": "full_batch_low", "high": "full_batch_high"}
    for place, row in zip(places_without(summary, axis), summary.to_dict("records"), strict=True):
        own = {name: row[column] for name, column in full.items()} if axis == "batch_size" else {}
        yield _point(axis, row, panel=place, x=float(row[axis]), label=f"{row[axis]:g}", **own)


_NEEDED = {"draft_latency_ms": "gamma"}
"""The option that an arm must have to be a point of an axis, where that is not the axis itself."""


def _over_options(summary: pd.DataFrame, axis: str) -> Iterator[dict[str, Any]]:
    """An option of the method: arms of one cell that differ in it alone."""
    rows = [row | {"settings": _settings(row)} for row in summary.to_dict("records")]
    groups: dict[tuple[str, str], list[dict[Any, Any]]] = {}
    for row in rows:
        if row["arm"] in {BASELINE, TWIN} or row["settings"].get(_NEEDED.get(axis, axis)) is None:
            continue
        kept = {name: value for name, value in row["settings"].items() if name != axis}
        alike = [row["method"], row["rule"], row["lossless"], row["simulated"], kept]
        groups.setdefault((row["title"], json.dumps(alike, sort_keys=True)), []).append(row)
    for group in groups.values():
        if len({json.dumps(row["settings"][axis]) for row in group}) < 2:
            continue
        # Named after the arm that runs as it is: a slowed one may carry a label of its own.
        leader = min(group, key=lambda row: (pd.notna(row["draft_latency_ms"]), row["arm"]))
        name = _stripped(leader["arm"], axis)
        for row in group:
            value = _draft_ms(row) if axis == "draft_latency_ms" else row["settings"][axis]
            if isinstance(value, int | float) and not np.isnan(value):
                yield _point(axis, row, series=name, x=float(value), label=f"{value:.3g}")


def _settings(row: dict[Any, Any]) -> dict[str, Any]:
    latency = row["draft_latency_ms"]
    return json.loads(row["options"]) | {"draft_latency_ms": None if pd.isna(latency) else float(latency)}


def _stripped(arm: str, axis: str) -> str:
    word = "latency" if axis == "draft_latency_ms" else axis
    return " ".join(part for part in arm.split(" ") if not part.startswith(f"{word}="))


def _draft_ms(row: dict[Any, Any]) -> float:
    """The latency that was asked for; where none was, what a draft token took, if phases were timed."""
    if pd.notna(row["draft_latency_ms"]):
        return float(row["draft_latency_ms"])
    gamma = row["gamma"]
    return float(row["draft_ms"]) / gamma if pd.notna(row["draft_ms"]) and pd.notna(gamma) else np.nan


def _over_requests(results: Results, summary: pd.DataFrame, axis: str) -> Iterator[dict[str, Any]]:
    """A property of the prompts: the same arm on those of one category, or of about one length."""
    rows = {(row["title"], row["arm"]): row for row in summary.to_dict("records")}
    for title, arms in results.timed.items():
        groups = _groups(arms[BASELINE], axis) if BASELINE in arms else {}
        for arm in sorted(set(arms) - {BASELINE, TWIN}) if len(groups) > 1 else ():
            row = rows[title, arm]
            floor = None if pd.isna(row["noise_floor"]) else float(row["noise_floor"])
            for x, (label, found) in enumerate(request_speedups(arms[BASELINE], arms[arm], groups).items()):
                yield _point(axis, row, x=float(x), label=label, **_found(found, floor))


def _found(found: Speedup, floor: float | None) -> dict[str, Any]:
    bounds = found.interval
    return {
        "speedup": found.ratio,
        "low": bounds.low if bounds else None,
        "high": bounds.high if bounds else None,
        "units": found.units,
        "resolved": resolution(found, floor) == RESOLVED,
        **dict.fromkeys(("block_efficiency", "decode_tokens_per_s", "full_batch_tokens_per_s", "occupancy")),
    }


def _groups(rows: pd.DataFrame, axis: str) -> dict[str, set[str]]:
    """Label -> prompts, in the order of the axis; empty if the prompts have no such groups.

    Lengths are grouped by powers of two. A category of a single prompt is that prompt, so at least one must have
    two.
    """
    prompts = rows.drop_duplicates("prompt_id").dropna(subset=[axis])
    keys = prompts[axis] if axis == "category" else np.floor(np.log2(prompts[axis].clip(lower=1))).astype(int)
    groups = {key: set(own["prompt_id"]) for key, own in prompts.groupby(keys, sort=True)}
    if axis == "category":
        several = max(map(len, groups.values()), default=0) > 1
        return {str(key): own for key, own in groups.items()} if several else {}
    return {f"{2**key} to {2 ** (key + 1) - 1}": own for key, own in groups.items()}
