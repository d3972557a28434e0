"""How long a forward takes: over depth at equal parameters, and over width at equal depth."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from specbench.report.metrics import Frames
from specbench.report.plots.panels import bars, edge_labels, from_zero, panels, titles_of, value_ticks
from specbench.report.plots.style import Look, Sketch
from specbench.report.tables import significant

# Ways to run a forward have colours and markers of their own; they are no arms.
_MODES = {
    "eager": ("#0072B2", "o"), "compiled": ("#D55E00", "s"), "graphs": ("#009E73", "^"),
    "graphs, compiled": ("#CC79A7", "D"),
}  # fmt: skip
_AXES = {"depth": ("layers", 1, "layer"), "width": ("width of the residual stream", 1000, "1,000 of width")}


def _forwards(along: str, frames: Frames, style: Look) -> Sketch | None:
    """A panel for each group of models that differ in one thing, a line for each way to run them."""
    points = frames.forward_lines[frames.forward_lines["along"] == along]
    if points.empty:
        return None
    label, unit, word = _AXES[along]
    figure, found = panels(titles_of(points), height=2.3, width=3.3, share="y")
    for title, axes in found.items():
        own = points[points["title"] == title]
        for mode, line in own.groupby("mode", sort=False):
            _line(axes, line.sort_values("x"), str(mode))
        slopes = frames.forward_slopes
        _slopes(axes, slopes[(slopes["along"] == along) & (slopes["title"] == title)], (unit, word), style)
        value_ticks(axes, {float(x): f"{x:g}" for x in sorted(own["x"].unique())}, "values")
    from_zero([*found.values()])
    used = [mode for mode in _MODES if mode in set(points["mode"])]
    _room_for_words(next(iter(found.values())), len(used))
    edge_labels([*found.values()], label, "ms of a forward over one token")
    handles = [Line2D([], [], color=_MODES[mode][0], marker=_MODES[mode][1], label=mode) for mode in used]
    return Sketch(figure, handles)


depth = partial(_forwards, "depth")
width = partial(_forwards, "width")


def _line(axes: Axes, line: pd.DataFrame, mode: str) -> None:
    colour, marker = _MODES[mode]
    ends = line.rename(columns={"low_ms": "low", "high_ms": "high"})
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "mew": 0, "elinewidth": 1}
    yerr = bars(ends, "forward_ms") if ends["low"].notna().all() else None
    axes.errorbar(ends["x"], ends["forward_ms"], yerr=yerr, linewidth=1.4, **look)


def _room_for_words(axes: Axes, rows: int) -> None:
    """Above the lines of all panels, which share the axis."""
    axes.set_ylim(top=axes.get_ylim()[1] * (1 + 0.125 * max(2, rows)))


def _slopes(axes: Axes, found: pd.DataFrame, unit: tuple[int, str], style: Look) -> None:
    """What one more layer costs, in words at the top of the panel."""
    scale, word = unit
    for index, row in enumerate(found.to_dict("records")):
        value, low, high = (significant(scale * row[name]) for name in ("slope_ms", "slope_low_ms", "slope_high_ms"))
        text = f"{row['mode']}: {value} ms ({low} to {high}) per {word}"
        place: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "fontsize": 7.5, "color": style.quiet}
        axes.text(0.02, 0.99 - 0.075 * index, text, **place)
