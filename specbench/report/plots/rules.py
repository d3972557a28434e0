"""What a lossy acceptance rule gains, beside the exact one."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from specbench.report.metrics import Frames
from specbench.report.plots.panels import bars, edge_labels, ordered_arms, stacked, titles_of, value_ticks
from specbench.report.plots.style import Look, Sketch
from specbench.report.tables import TIMES
from specbench.report.words import listed

_KINDS = {
    "block_efficiency": "tokens per step",
    "inflation": "tokens per step beyond\nthe exact rule (%)",
    "speedup": f"speed-up over\nautoregressive ({TIMES})",
}
_LOSSY: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.2}


def rules(frames: Frames, style: Look) -> Sketch | None:
    """Tokens per step and speed-up of the same arms under an exact and a lossy rule, over the temperature."""
    points = frames.rules
    if points.empty or points["lossless"].astype(bool).all():
        return None
    points = points.assign(inflation=100 * points["inflation"], low=100 * points["low"], high=100 * points["high"])
    arms = [arm for arm in ordered_arms(frames.summary) if arm in set(points["arm"])]
    figure, found = stacked(titles_of(points, "panel"), _KINDS, height=1.7, width=3.4)
    temperatures = {float(value): f"{value:g}" for value in sorted(points["temperature"].unique())}
    reach = 0.012 * max(0.5, max(temperatures) - min(temperatures))
    for (panel, kind), axes in found.items():
        if kind != "block_efficiency":
            axes.axhline(1.0 if kind == "speedup" else 0.0, color=style.quiet, linewidth=1)
        for index, arm in enumerate(arms):
            own = points[(points["panel"] == panel) & (points["arm"] == arm)].sort_values("temperature")
            own = own.assign(x=own["temperature"] + reach * (index - (len(arms) - 1) / 2))
            for _, line in own.groupby("rule", sort=True):
                _line(axes, line[line[kind].notna()], kind, (arm, style))
        value_ticks(axes, temperatures, "values")
    edge_labels([*found.values()], "temperature")
    lossy = sorted(points.loc[~points["lossless"].astype(bool), "rule"].unique())
    hollow = Line2D([], [], color=style.quiet, marker="o", mfc=style.paper, **_LOSSY)
    hollow.set_label(f"hollow: {listed(lossy)} (lossy)")
    return Sketch(figure, [*(style.handle(arm, line=True) for arm in arms), hollow])


def _line(axes: Axes, line: pd.DataFrame, kind: str, shown: tuple[str, Look]) -> None:
    if line.empty:
        return
    (arm, style), exact = shown, bool(line["lossless"].all())
    colour = style.colours[arm]
    fill = colour if exact else style.paper
    look: dict[str, Any] = {"color": colour, "marker": style.markers[arm], "mfc": fill, "markersize": 5.5}
    look |= {"linewidth": 1.4} if exact else _LOSSY
    ends = bars(line, kind) if kind == "inflation" and line["low"].notna().any() else None
    axes.errorbar(line["x"], line[kind].astype(float), yerr=ends, elinewidth=1, **look)
