"""Draft models side by side: throughput, tokens per step and the time of a forward, by draft, depth and gamma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from specbench.analysis.composition import LATENCY_MODE
from specbench.report.cells import BASELINE
from specbench.report.drafts import is_composed
from specbench.report.forwards import equal_sizes, significant_count
from specbench.report.metrics import Frames
from specbench.report.plots.panels import (
    bars,
    edge_labels,
    from_zero,
    name_lines,
    of_title,
    panels,
    stacked,
    titles_of,
    value_ticks,
)
from specbench.report.plots.steps import PHASE_COLOURS
from specbench.report.plots.style import Look, Sketch

_KINDS = {
    "tokens_per_s": "tokens/s\nof a batch",
    "block_efficiency": "tokens per step",
    "forward_ms": "ms of a\ndraft forward",
}
_ENDS = {"tokens_per_s": ("low", "high"), "block_efficiency": ("efficiency_low", "efficiency_high")}
_ASIDE = 0.09
"""By how far measured and composed points of one draft stand apart, in steps between two drafts."""

COMPOSED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0}


def leaders(frames: Frames) -> dict[str, str]:
    """The arm that lends its look to each draft: that of its middle gamma; itself where it was never run."""
    named = pd.concat([frames.drafts["draft"], frames.skill["draft"]]).unique()
    measured = frames.drafts[frames.drafts["arm"].notna()].sort_values("gamma")
    arms = {str(draft): list(own["arm"].unique()) for draft, own in measured.groupby("draft", sort=False)}
    return {str(draft): arms[draft][len(arms[draft]) // 2] if draft in arms else str(draft) for draft in named}


# --- by draft


def drafts(frames: Frames, style: Look) -> Sketch | None:
    """Throughput, tokens per step and the draft's own latency of every draft at its best gamma, by size."""
    best = frames.best_drafts
    several = best.groupby("title")["draft"].transform("nunique") > 1
    if not several.any():
        return None
    names = by_size(best[several], frames.sizes)
    places = {name: float(index) for index, name in enumerate(names)}
    shown = best[several].assign(x=lambda rows: rows["draft"].map(places))
    sketch = _over(shown, frames, style, width=max(2.6, 0.74 * len(names)))
    for axes in sketch.figure.axes:
        axes.set_xlim(-0.5, len(names) - 0.5)
        slanted: dict[str, Any] = {"rotation": 35, "ha": "right"} if max(map(len, names)) > _LONG_NAME else {}
        axes.set_xticks(range(len(names)), [_with_size(name, frames.sizes) for name in names], fontsize=7.5, **slanted)
    edge_labels(sketch.figure.axes, "draft")
    return sketch


_LONG_NAME = 10


def by_size(rows: pd.DataFrame, sizes: pd.DataFrame) -> list[str]:
    """Drafts from small to large, those of equal size from shallow to deep; unknown ones last, by name."""
    names = sorted(map(str, rows["draft"].unique()))
    known = sizes[sizes["model"].isin(names)]
    ordered = [
        str(model) for group in equal_sizes(known) for model in group.sort_values("layers", kind="stable")["model"]
    ]
    return ordered + [name for name in names if name not in ordered]


def _with_size(name: str, sizes: pd.DataFrame) -> str:
    own = sizes[sizes["model"] == name]
    return name if own.empty else f"{name}\n{significant_count(float(own['parameters'].iloc[0]))}"


def by_depth(frames: Frames, style: Look) -> Sketch | None:
    """The same over the layers of drafts that have equally many parameters."""
    shown = frames.depths.assign(x=frames.depths["layers"].astype(float))
    if shown.empty:
        return None
    sketch = _over(shown, frames, style, width=3.1)
    ticks = {float(x): f"{x:g}" for x in sorted(shown["x"].unique())}
    for axes in sketch.figure.axes:
        value_ticks(axes, ticks, "values")
    edge_labels(sketch.figure.axes, "layers of the draft")
    arms = leaders(frames)
    names = [style.handle(arms[draft], draft) for draft in dict.fromkeys(shown.sort_values("layers")["draft"])]
    return Sketch(sketch.figure, [*names, *sketch.handles])


def _over(shown: pd.DataFrame, frames: Frames, style: Look, *, width: float) -> Sketch:
    """Panels of all kinds over the column ``x``."""
    column, arms = "panel" if "panel" in shown else "title", leaders(frames)
    kinds = {kind: label for kind, label in _KINDS.items() if shown[kind].notna().any()}
    figure, found = stacked(titles_of(shown, column), kinds, height=1.5, width=width)
    for (panel, kind), axes in found.items():
        own = shown[shown[column] == panel]
        if kind == "tokens_per_s":
            _baseline(axes, frames.summary, str(own["title"].iloc[0]), style)
        for composed, rows in own.groupby(is_composed(own), sort=True):
            points = rows[rows[kind].notna()].sort_values("x")
            step = _ASIDE * (1 if composed else -1) * (is_composed(own).nunique() - 1)
            points = points.assign(x=points["x"] + step)
            axes.plot(points["x"], points[kind], color=style.quiet, alpha=0.6, linewidth=1, zorder=1)
            for row in points.to_dict("records"):
                _point(axes, row, kind, (arms[row["draft"]], style))
    from_zero([*found.values()])
    return Sketch(figure, _handles(shown, style, [_line_handle(style)]))


def _baseline(axes: Axes, summary: pd.DataFrame, title: str, style: Look) -> None:
    rate = of_title(summary[summary["arm"] == BASELINE], title)["batch_tokens_per_s"]
    if len(rate):
        axes.axhline(float(rate.iloc[0]), color=style.quiet, linewidth=1, linestyle=":")


def _line_handle(style: Look) -> Line2D:
    return Line2D([], [], color=style.quiet, linewidth=1, linestyle=":", label="autoregressive decoding")


def _point(axes: Axes, row: Mapping[Any, Any], kind: str, shown: tuple[str, Look]) -> None:
    arm, style = shown
    one = pd.DataFrame([row])
    ends = None
    if kind in _ENDS and pd.notna(row[_ENDS[kind][0]]):
        ends = bars(one.assign(**dict(zip(("low", "high"), (one[name] for name in _ENDS[kind]), strict=True))), kind)
    fill = style.colours[arm] if _is_real(row) else style.paper
    look: dict[str, Any] = {"color": style.colours[arm], "marker": style.markers[arm], "mfc": fill, "markersize": 6}
    axes.errorbar(one["x"], one[kind].astype(float), yerr=ends, elinewidth=1, **look)


def _is_real(row: Mapping[Any, Any]) -> bool:
    """Whether the point was measured on the target's own text."""
    return bool(row["latency_mode"] != LATENCY_MODE and row["lossless"] and not row["simulated"])


def _handles(shown: pd.DataFrame, style: Look, more: Sequence[Line2D]) -> list[Line2D]:
    """What filled and hollow marks are, where both are there."""
    dot: dict[str, Any] = {"color": style.quiet, "marker": "o", "linestyle": ""}
    handles = list(more)
    if not is_composed(shown).all():
        handles.append(Line2D([], [], label="measured", **dot))
    if is_composed(shown).any():
        handles.append(Line2D([], [], mfc=style.paper, label="composed, not run", **dot))
    if shown["simulated"].any():
        handles.append(Line2D([], [], mfc=style.paper, label="measured, with simulated acceptance", **dot))
    return handles


# --- over gamma

_OVER_GAMMA = {kind: _KINDS[kind] for kind in ("tokens_per_s", "block_efficiency")}
_LEAST_GAMMAS = 3


def lookahead(frames: Frames, style: Look) -> Sketch | None:
    """Throughput and tokens per step over gamma, a line a draft; composed ones are dashed."""
    points = frames.drafts.assign(x=frames.drafts["gamma"].astype(float))
    counts = points.groupby(["title", "draft"])["gamma"].transform("nunique")
    points = points[counts >= _LEAST_GAMMAS]
    if points.empty:
        return None
    arms = {draft: leaders(frames)[draft] for draft in by_size(points, frames.sizes)}
    figure, found = stacked(titles_of(points), _OVER_GAMMA, height=1.9, width=3.4)
    ticks = {float(x): f"{x:g}" for x in sorted(points["x"].unique())}
    for (title, kind), axes in found.items():
        own = of_title(points, title)
        if kind == "tokens_per_s":
            _baseline(axes, frames.summary, title, style)
        for (draft, composed), line in own.groupby(["draft", is_composed(own)], sort=True):
            _gamma_line(axes, line.sort_values("x"), kind, (arms[str(draft)], style), composed=bool(composed))
        value_ticks(axes, ticks, "values")
    edge_labels([*found.values()], "gamma (draft tokens per step)")
    names = [style.handle(arm, draft, line=True) for draft, arm in arms.items()]
    return Sketch(figure, _handles(points, style, [*names, _line_handle(style)]))


def _gamma_line(axes: Axes, line: pd.DataFrame, kind: str, shown: tuple[str, Look], *, composed: bool) -> None:
    arm, style = shown
    colour = style.colours[arm]
    low, high = (line[name].to_numpy(float) for name in _ENDS[kind])
    look: dict[str, Any] = {"color": colour, "marker": style.markers[arm], "markersize": 4.5}
    if composed:
        axes.plot(line["x"], line[kind], mfc=style.paper, **COMPOSED, **look)
        return
    axes.plot(line["x"], line[kind], linewidth=1.4, mew=0, **look)
    axes.fill_between(line["x"], low, high, color=colour, alpha=0.12, linewidth=0)


# --- parts of a step

_PARTS = ("draft", "verify", "host")


def step_by_draft(frames: Frames, style: Look) -> Sketch | None:
    """What drafting, verifying and all else take of a step, a bar a draft at its best gamma."""
    best = frames.best_drafts[frames.best_drafts["draft_ms"].notna()]
    if best.groupby("title")["draft"].nunique().max() < 2 or best.empty:
        return None
    names = by_size(best, frames.sizes)
    modes = sorted(best["latency_mode"].unique(), reverse=True)
    figure, found = panels(titles_of(best), height=(0.2 + 0.26 * len(modes)) * len(names) + 0.4, width=3.4, share="y")
    height = 0.8 / len(modes)
    for title, axes in found.items():
        for row in of_title(best, title).to_dict("records"):
            y = names.index(row["draft"]) + (modes.index(row["latency_mode"]) - (len(modes) - 1) / 2) * height
            _parts_bar(axes, row, (y, 0.88 * height), style)
    name_lines([*found.values()], [_with_size(name, frames.sizes) for name in names])
    edge_labels([*found.values()], "ms per decode step")
    handles = [Patch(color=PHASE_COLOURS[part], label=part) for part in _PARTS]
    if is_composed(best).any():
        handles.append(Patch(facecolor=style.paper, edgecolor=style.quiet, hatch=_HATCH, label="hatched: composed"))
    return Sketch(figure, handles)


_HATCH = "////"


def _parts_bar(axes: Axes, row: Mapping[Any, Any], place: tuple[float, float], style: Look) -> None:
    (y, height), left = place, 0.0
    is_hatched = row["latency_mode"] == LATENCY_MODE
    look: dict[str, Any] = {"hatch": _HATCH, "edgecolor": style.paper, "linewidth": 0} if is_hatched else {}
    for part in _PARTS:
        length = max(0.0, float(row[f"{part}_ms"]))
        axes.barh(y, length, left=left, height=height, color=PHASE_COLOURS[part], **look)
        left += length
    step_ms = float(np.sum([row[f"{part}_ms"] for part in _PARTS]))
    text = f"gamma {row['gamma']}, {100 * row['draft_ms'] / step_ms:.0f} % draft"
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7.5}
    axes.text(1.02, y, text, color=style.quiet, **beside)
