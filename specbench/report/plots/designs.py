"""Shapes for a draft: what depth costs, and what acceptance that asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specbench.config import brief
from specbench.report.plots.style import Look, Sketch, framed, look

_KNOWN = "known"


def designs(frame: pd.DataFrame, budget_s: float | None = None) -> Figure:
    """A forward over depth, and the acceptance needed over a forward. Call it within `style.themed`.

    Args:
        frame: Columns of ``schema.DESIGNS``, all of one search.
        budget_s: The longest forward that was asked for, in seconds.
    """
    measured = frame[frame["status"] == "ok"]
    shapes, known = (measured[measured["kind"] == kind] for kind in ("candidate", _KNOWN))
    depths = {int(layers): _depth(layers) for layers in sorted(shapes["layers"].unique())}
    style = look([*depths.values(), _KNOWN], series=dict.fromkeys(depths.values(), "depth"))
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    latency, needed = figure.subplots(1, 2)
    for panel, draw in ((latency, _forward), (needed, _needed)):
        for row in shapes.sort_values("on_front").to_dict("records"):
            draw(panel, row, style, _depth(row["layers"]))
        for row in known.to_dict("records"):
            draw(panel, row, style, _KNOWN)
    _finish(latency, "layers", "forward of one token (ms)")
    _finish(needed, "forward of one token (ms)", "acceptance that is needed")
    _depth_ticks(latency, measured)
    _lines(latency, needed, known, budget_s, style)
    front = shapes[shapes["on_front"].astype(bool) & shapes["needed_alpha"].notna()].sort_values("forward_s")
    needed.plot(1000 * front["forward_s"], front["needed_alpha"], color=style.quiet, linewidth=0.8, zorder=2)
    first = frame.iloc[0]
    title = f"What a draft for {brief(first['target'])} costs by its shape, and what it has to reach"
    footer = (
        f"{first['device']}, {first['dtype']}, batch {first['batch_size']}, context {first['context_tokens']}; random "
        f"weights, median and 95 % interval. Needed: as fast as {first['rival']}. Large, and with their shape in the "
        "legend: worth training."
    )
    return framed(Sketch(figure, _handles(shapes, known, depths, style)), title, footer, style)


def _handles(shapes: pd.DataFrame, known: pd.DataFrame, depths: Mapping[int, str], style: Look) -> list[Line2D]:
    """A depth each, with the shape that is recommended of it."""
    named = {int(row["layers"]): row["model"] for row in shapes[shapes["name"].notna()].to_dict("records")}
    found = [
        style.handle(name, f"{name}: {named[layers]}" if layers in named else name) for layers, name in depths.items()
    ]
    if len(known):
        found.append(style.handle(_KNOWN, f"{brief(known['model'].iloc[0])}, the best known"))
    hollow: dict[str, Any] = {"color": style.quiet, "marker": "o", "mfc": style.paper, "linestyle": ""}
    return [*found, Line2D([], [], label="not on the front", **hollow)]


def _depth(layers: Any) -> str:
    return f"{int(layers)} layer{'' if int(layers) == 1 else 's'}"


def _forward(axes: Axes, row: Mapping[Any, Any], style: Look, name: str) -> None:
    reach = _reach(row, "forward_s", ("forward_low_s", "forward_high_s"), 1000)
    _point(axes, row["layers"], 1000 * row["forward_s"], reach, (row, style, name))


def _needed(axes: Axes, row: Mapping[Any, Any], style: Look, name: str) -> None:
    is_known = row["kind"] == _KNOWN
    alpha = row["alpha"] if is_known else row["needed_alpha"]
    if pd.isna(alpha):
        return
    ends = ("needed_alpha_low", "needed_alpha_high")
    reach = None if is_known else _reach(row, "needed_alpha", ends, 1)
    _point(axes, 1000 * row["forward_s"], alpha, reach, (row, style, name))


def _reach(row: Mapping[Any, Any], middle: str, ends: tuple[str, str], scale: float) -> np.ndarray | None:
    low, high = (row[end] for end in ends)
    if pd.isna(low) or pd.isna(high):
        return None
    return scale * np.array([[row[middle] - low], [high - row[middle]]], dtype=np.float64)


def _point(
    axes: Axes, x: float, y: float, reach: np.ndarray | None, shown: tuple[Mapping[Any, Any], Look, str]
) -> None:
    row, style, name = shown
    colour = style.colours[name]
    is_chosen = row["kind"] == _KNOWN or pd.notna(row["name"])
    hollow = not (is_chosen or row["on_front"])
    axes.errorbar(
        x, y, yerr=reach, color=colour, marker=style.markers[name], mfc=style.paper if hollow else colour,
        markersize=8 if is_chosen else 5, elinewidth=1, linestyle="", zorder=3 if hollow else 4,
    )  # fmt: skip


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(0.08)


def _depth_ticks(axes: Axes, measured: pd.DataFrame) -> None:
    depths = sorted(measured["layers"].unique())
    axes.set_xticks(depths, [str(int(depth)) for depth in depths])
    axes.set_ylim(bottom=0)


def _lines(latency: Axes, needed: Axes, known: pd.DataFrame, budget_s: float | None, style: Look) -> None:
    """The budget, and the acceptance that the best known draft has: below it lies what is easy to reach."""
    rule: dict[str, Any] = {"color": style.quiet, "linewidth": 1, "linestyle": "--", "zorder": 1}
    if budget_s is not None:
        latency.axhline(1000 * budget_s, **rule)
        needed.axvline(1000 * budget_s, **rule)
    if len(known) and pd.notna(known["alpha"].iloc[0]):
        needed.axhline(float(known["alpha"].iloc[0]), **rule)
