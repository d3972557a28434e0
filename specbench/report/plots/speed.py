"""How fast arms are: over all, by the axes of the grid, and tokens per second against tokens per step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from specbench.report.cells import BASELINE, TWIN
from specbench.report.metrics import Frames
from specbench.report.plots import beside
from specbench.report.plots.panels import (
    bars,
    edge_labels,
    furthest,
    leader,
    name_arms,
    of_title,
    ordered_arms,
    panels,
    share_x_limits,
    stacked,
    table_axes,
    tile,
    titles_of,
    value_ticks,
)
from specbench.report.plots.style import Look, Sketch
from specbench.report.resolution import NOT_RESOLVED, RESOLVED
from specbench.report.tables import TIMES

_SPEEDUP = f"speed-up over\nautoregressive ({TIMES})"


# --- over all


def speedup(frames: Frames, style: Look) -> Sketch | None:
    """Speed-up per arm with its 95 % interval and each timed batch; the band at 1 is the noise floor."""
    summary = frames.summary[frames.summary["arm"] != BASELINE]
    arms = ordered_arms(summary)
    if not arms or summary["speedup_core"].isna().all():
        return None
    figure, found = panels(titles_of(summary), height=0.5 * len(arms) + 0.5, width=3.4, share="y")
    for title, axes in found.items():
        _speedup_panel(axes, (of_title(summary, title), of_title(frames.batches, title)), (arms, style))
    name_arms(found, summary, arms)
    edge_labels([*found.values()], f"speed-up over autoregressive ({TIMES})")
    share_x_limits([*found.values()], include=1.0)
    dot: dict[str, Any] = {"color": style.quiet, "marker": "o"}
    handles = [
        Line2D([], [], **dot, label="all batches, with 95 % interval"),
        Line2D([], [], **dot, markersize=3, alpha=0.5, linestyle="", label="one timed batch"),
        Line2D([], [], color=style.quiet, linewidth=7, alpha=0.3, label="A/A noise floor"),
    ]
    return Sketch(figure, handles)


def _speedup_panel(axes: Axes, data: tuple[pd.DataFrame, pd.DataFrame], shown: tuple[list[str], Look]) -> None:
    (cell, batches), (arms, style) = data, shown
    floor = cell["noise_floor"].dropna()
    if len(floor):
        axes.axvspan(math.exp(-floor.iloc[0]), math.exp(floor.iloc[0]), color=style.quiet, alpha=0.3, linewidth=0)
    axes.axvline(1.0, color=style.quiet, linewidth=1)
    for row in cell.to_dict("records"):
        y = arms.index(row["arm"])
        ratios = batches.loc[batches["arm"] == row["arm"], "speedup_core"].dropna().sort_values()
        spread = y + 0.26 + 0.06 * (np.arange(len(ratios)) % 3 - 1)
        colour = style.colours[row["arm"]]
        axes.plot(ratios, spread, linestyle="", marker="o", markersize=2.6, alpha=0.55, color=colour, mew=0)
        _speedup_mark(axes, row, (y, style))


def _speedup_mark(axes: Axes, row: dict[Any, Any], where: tuple[int, Look]) -> None:
    y, style = where
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
    if pd.isna(row["speedup_core"]):
        axes.text(1.02, y, row["status"], color=style.quiet, style="italic", **beside)
        return
    colour = style.colours[row["arm"]]
    if pd.notna(row["low"]):
        axes.plot([row["low"], row["high"]], [y, y], color=colour, solid_capstyle="butt", linewidth=2)
    hollow = style.paper if row["simulated"] or not row["lossless"] else colour
    axes.plot(row["speedup_core"], y, marker=style.markers[row["arm"]], color=colour, mfc=hollow, zorder=5)
    unsure = row["resolution"] == NOT_RESOLVED
    note = row["resolution"] if row["arm"] != TWIN and row["resolution"] != RESOLVED else None
    text = f"{row['speedup_core']:.2f}{TIMES}" + (f"\n{note}" if note else "")
    axes.text(1.02, y, text, color=style.quiet if unsure else None, linespacing=0.95, **beside)


# --- along an axis


@dataclass(frozen=True)
class Axis:
    """How one axis of `frames.along` is drawn.

    Attributes:
        name: As in the column ``axis``.
        x: Label of the x axis.
        kinds: Column -> label of its y axis; one panel below the other.
        scale: ``values`` with a tick at each, or the same ``log`` to base 2.
    """

    name: str
    x: str
    kinds: dict[str, str]
    scale: str = "values"


_TAU = "tokens per step"
BATCH_SIZE = Axis(
    "batch_size",
    "batch size (rows)",
    {
        "decode_tokens_per_s": "tokens/s\nof one request",
        "full_batch_tokens_per_s": "tokens/s\nof a full batch",
        "speedup": f"speed-up of\na full batch ({TIMES})",
        "occupancy": "occupancy\n(share of slot-time)",
    },
    "log",
)
WIDTH = Axis("width", "beam width", {"speedup": _SPEEDUP, "block_efficiency": _TAU}, "log")
LENGTH = Axis("length", "beam length (tokens, the root included)", {"speedup": _SPEEDUP, "block_efficiency": _TAU})
TEMPERATURE = Axis("temperature", "temperature", {"speedup": _SPEEDUP, "block_efficiency": _TAU})
GAMMA = Axis("gamma", "gamma (draft tokens per step)", {"speedup": _SPEEDUP, "block_efficiency": _TAU})
CONTEXT = Axis("prompt_tokens", "context length (tokens of the prompt)", {"speedup": _SPEEDUP})


def along(axis: Axis, frames: Frames, style: Look) -> Sketch | None:
    """Lines over one axis, a colour an arm, with 95 % intervals on speed-ups, and what was published hollow beside."""
    points = frames.along[frames.along["axis"] == axis.name]
    if points.empty:
        return None
    lines = [str(name) for name in points["series"].unique()]
    leaders = {name: leader(points, name) for name in lines}
    papers = beside.lines(axis.name, axis.kinds, frames, (leaders, style))
    figure, found = stacked(titles_of(points, "panel"), axis.kinds, height=1.75, width=3.3)
    for (panel, kind), axes in found.items():
        own = points[points["panel"] == panel]
        if kind == "speedup":
            axes.axhline(1.0, color=style.quiet, linewidth=1)
        shown = own if kind != "speedup" else own[own["arm"] != BASELINE]
        for index, name in enumerate(lines):
            line = shown[(shown["series"] == name) & shown[kind].notna()].sort_values("x")
            _line(axes, (line, kind, axis.scale), (index - (len(lines) - 1) / 2, leaders[name], style))
        beside.draw(axes, kind, papers, style)
        value_ticks(axes, _values(own) | beside.values(papers), axis.scale)
        if kind == "occupancy":
            axes.set_ylim(0, 1.05)
    edge_labels([*found.values()], axis.x)
    handles = [style.handle(arm, name, line=True) for name, arm in leaders.items()]
    return Sketch(figure, handles + beside.handles(papers, style))


def _values(points: pd.DataFrame) -> dict[float, str]:
    ticks = points.drop_duplicates("x").sort_values("x")
    return dict(zip(ticks["x"], ticks["label"], strict=True))


def _line(axes: Axes, data: tuple[pd.DataFrame, str, str], shown: tuple[float, str, Look]) -> None:
    (line, kind, scale), (offset, arm, style) = data, shown
    if line.empty:
        return
    x = line["x"].to_numpy(float)
    # Beside one another, or the intervals of arms would hide each other.
    x = x * 1.012**offset if scale == "log" else x + offset * 0.012 * (max(x.max(), 1.0) - min(x.min(), 0.0))
    look: dict[str, Any] = {"color": style.colours[arm], "marker": style.markers[arm], "markersize": 4.5, "mew": 0}
    if kind == "speedup" and line["low"].notna().any():
        middle = line[kind].to_numpy(float)
        axes.errorbar(x, middle, yerr=bars(line, kind), elinewidth=1, linewidth=1.4, **look)
    else:
        axes.plot(x, line[kind], linewidth=1.4, **look)


# --- by category


def by_category(frames: Frames, style: Look) -> Sketch | None:
    """Speed-up of each arm on each category, as a coloured table; what is not resolved has no colour."""
    points = frames.along[(frames.along["axis"] == "category") & frames.along["speedup"].notna()]
    if points.empty:
        return None
    arms = [arm for arm in ordered_arms(frames.summary) if arm in set(points["arm"])]
    labels = titles_of(points.sort_values("label"), "label")
    words = [label.replace("_", " ").split() for label in labels]
    column = max(0.72, 0.085 * max(len(word) for label in words for word in label))
    figure, found = panels(
        titles_of(points, "panel"),
        height=0.42 * len(arms) + 0.75,
        width=column * len(labels) + 0.2,
        share="y",
        columns=1 if len(labels) > 4 else None,
    )
    full = furthest(points["speedup"])
    for panel, axes in found.items():
        table_axes(axes, ["\n".join(label) for label in words])
        for row in points[points["panel"] == panel].to_dict("records"):
            bounds = f"{row['low']:.2f} to {row['high']:.2f}" if pd.notna(row["low"]) else "no interval"
            tile(axes, row, (labels.index(row["label"]), arms.index(row["arm"])), (full, style), bounds)
    name_arms(found, frames.summary, arms)
    return Sketch(figure, [])


# --- tokens per second against tokens per step


def tokens_against_efficiency(frames: Frames, style: Look) -> Sketch | None:
    """Decode tokens/s against block efficiency; the rays are lines of constant step time."""
    summary = frames.summary[frames.summary["decode_tokens_per_s"].notna() & (frames.summary["arm"] != TWIN)]
    if summary.empty:
        return None
    figure, found = panels(titles_of(summary), height=2.7, width=3.9, share="both")
    right = 1.12 * max(frames.batches["block_efficiency"].max(), 2.0)
    top = 1.12 * frames.batches["decode_tokens_per_s"].max()
    small: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 2.6, "alpha": 0.4, "mew": 0}
    for title, axes in found.items():
        axes.set(xlim=(0, right), ylim=(0, top))
        axes.set_title(title, pad=18)  # room for the labels of the rays
        _rays(axes, (right, top), style)
        batches = of_title(frames.batches, title)
        for row in of_title(summary, title).to_dict("records"):
            own, colour = batches[batches["arm"] == row["arm"]], style.colours[row["arm"]]
            large: dict[str, Any] = {"marker": style.markers[row["arm"]], "markersize": 8, "mec": style.paper}
            axes.plot(own["block_efficiency"], own["decode_tokens_per_s"], color=colour, **small)
            axes.plot(row["block_efficiency"], row["decode_tokens_per_s"], color=colour, mew=0.6, zorder=5, **large)
    edge_labels([*found.values()], "block efficiency (tokens per decode step)", "decode tokens/s of one request")
    return Sketch(figure, [style.handle(arm) for arm in ordered_arms(summary)])


def _rays(axes: Axes, corner: tuple[float, float], style: Look) -> None:
    """Lines of constant step time from the origin, labelled in ms where they leave the panel."""
    right, top = corner
    axes.grid(visible=False)
    diagonal_ms = 1000 * right / top
    for step_ms in _round_steps(diagonal_ms):
        slope = 1000 / step_ms
        end = (min(right, top / slope), min(top, right * slope))
        axes.plot([0, end[0]], [0, end[1]], color=style.quiet, linewidth=0.7, alpha=0.5, zorder=0)
        above = end[1] >= top
        place: dict[str, Any] = {"ha": "center", "va": "bottom"} if above else {"ha": "left", "va": "center"}
        place |= {"color": style.quiet, "fontsize": 7.5, "textcoords": "offset points"}
        axes.annotate(f"{step_ms:g} ms", end, (0, 2) if above else (3, 0), **place)


def _round_steps(diagonal_ms: float) -> list[float]:
    """Five round step times around the one of the panel's diagonal."""
    decades = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 1.5, 2, 3, 5, 7)]
    wanted = [diagonal_ms * factor for factor in (0.36, 0.6, 1.0, 1.7, 3.2)]
    return sorted({min(decades, key=lambda value: abs(math.log(value / step))) for step in wanted})
