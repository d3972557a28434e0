"""What traces, forward times and scores teach about drafts, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from specbench.analysis.composition import LATENCY_MODE
from specbench.report.composed import Beside, Comparison
from specbench.report.drafts import is_composed
from specbench.report.forwards import significant_count
from specbench.report.metrics import Frames
from specbench.report.skill import METRICS
from specbench.report.tables import significant
from specbench.report.words import Row, bounds, counted, listed, times

QUESTION = "What makes a draft good here?"


def lessons(frames: Frames) -> list[str]:
    """Depth, forward times, skill, and how far a composed throughput can be trusted; empty without such data."""
    return [*_depth(frames.depths), *_forwards(frames.forward_slopes), *_skill(frames), *_composition(frames.composed)]


def _depth(depths: pd.DataFrame) -> Iterator[str]:
    """Who wins at equal parameters, and by how much; composed rows speak where nothing was run."""
    for panel, rows in depths.groupby("panel", sort=False):
        measured = rows[~is_composed(rows)]
        own = measured if len(measured) else rows
        first, *others = own.sort_values("tokens_per_s", ascending=False).to_dict("records")
        where = panel if len(measured) else f"{panel}, composed"
        compared = listed(f"{times(row['ratio'])} as fast as {_named(row)}{_interval(row)}" for row in others)
        yield (
            f"Of {counted(len(own), 'draft')} of {significant_count(first['parameters'])} parameters each ({where}), "
            f"{_named(first)} is fastest, with {significant(first['tokens_per_s'])} tokens/s at gamma "
            f"{first['gamma']}. It is {compared}."
        )


def _named(row: Row) -> str:
    return f"{row['draft']} with {counted(int(row['layers']), 'layer')}"


def _interval(row: Row) -> str:
    if row["latency_mode"] == LATENCY_MODE:
        return ""
    said = bounds(row["ratio_low"], row["ratio_high"], int(row["units"]))
    is_open = pd.notna(row["ratio_low"]) and row["ratio_low"] <= 1
    return f" ({said}{'; not resolved' if is_open else ''})"


def _forwards(slopes: pd.DataFrame) -> Iterator[str]:
    """What one more layer costs, by how forwards are run."""
    for title, rows in slopes[slopes["along"] == "depth"].groupby("title", sort=False):
        parts = [
            f"{significant(row['slope_ms'])} ms ({significant(row['slope_low_ms'])} to "
            f"{significant(row['slope_high_ms'])}) {row['mode']}"
            for row in rows.to_dict("records")
        ]
        yield f"At {title}, one more layer adds {listed(parts)} to a forward over one token."


def _skill(frames: Frames) -> Iterator[str]:
    """How far skill tells acceptance."""
    spearman = frames.correlations[frames.correlations["kind"] == "spearman"]
    for row in spearman.to_dict("records"):
        sign = -1 if row["metric"] == "perplexity" else 1
        low, high = sorted((sign * row["low"], sign * row["high"]))
        verdict = "has the order of" if low > 0 else "has the opposite order of" if high < 0 else "does not tell"
        yield (
            f"Over {counted(row['drafts'], 'draft')}, {METRICS[row['metric']]} on {row['data']} {verdict} their tokens "
            f"per step: rank correlation {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), p = "
            f"{row['p_value']:.2g}."
        )


def _composition(composed: pd.DataFrame) -> Iterator[str]:
    """How many cells are met, and the first of those that are not."""
    if composed.empty:
        return
    cells = tuple(Beside(**_without_nan(row)) for row in composed.to_dict("records"))
    first, *others = Comparison(cells, {}).sentences
    missed = sum(not cell.is_met for cell in cells)
    yield first
    yield from others[: min(missed, _MOST_MISSES)]
    if missed > _MOST_MISSES:
        yield f"The other {missed - _MOST_MISSES} that miss it stand in tables/composed.csv, with their parts."
    yield from others[missed:]


_MOST_MISSES = 4


def _without_nan(row: Row) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
