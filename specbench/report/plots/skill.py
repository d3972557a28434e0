"""Draft skill against acceptance."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from specbench.report.metrics import Frames
from specbench.report.plots.drafts import by_size, leaders
from specbench.report.plots.panels import edge_labels, panels
from specbench.report.plots.style import Look, Sketch
from specbench.report.skill import METRICS


def skill(frames: Frames, style: Look) -> Sketch | None:
    """Tokens per step of every draft over what it scores, a panel a data set and metric, with the rank correlation."""
    points = frames.skill
    groups = {place: own for place, own in points.groupby(["title", "data", "metric"], sort=False) if len(own) > 1}
    if not groups:
        return None
    arms = leaders(frames)
    many = len({title for title, _, _ in groups}) > 1
    titles = {_title(place, many=many): place for place in groups}
    figure, found = panels([*titles], height=2.5, width=3.3, share="y")
    for name, axes in found.items():
        own = groups[titles[name]]
        for row in own.to_dict("records"):
            _point(axes, row, (arms[row["draft"]], style))
        _correlation(axes, frames.correlations, titles[name], style)
        axes.set_xlabel(_label(titles[name][2]))
        axes.margins(0.12, 0.2)
    gamma = int(points["gamma"].max())
    edge_labels([next(iter(found.values()))], _label(next(iter(titles.values()))[2]), f"tokens per step, gamma {gamma}")
    shown = by_size(pd.concat(groups.values()), frames.sizes)
    return Sketch(figure, [style.handle(arms[draft], draft) for draft in shown])


def _title(place: tuple[str, str, str], *, many: bool) -> str:
    title, data, metric = place
    return f"{data}, {METRICS[metric]}" + (f"\n{title}" if many else "")


def _label(metric: str) -> str:
    return "perplexity (lower is better)" if metric == "perplexity" else f"{METRICS[metric]} (share)"


def _point(axes: Axes, row: dict[Any, Any], shown: tuple[str, Look]) -> None:
    arm, style = shown

    def reach(name: str, low: str, high: str) -> list[list[float]] | None:
        if pd.isna(row[low]):
            return None
        return [[row[name] - row[low]], [row[high] - row[name]]]

    look: dict[str, Any] = {"color": style.colours[arm], "marker": style.markers[arm], "markersize": 7, "elinewidth": 1}
    ends: dict[str, Any] = {"xerr": reach("skill", "skill_low", "skill_high")}
    ends |= {"yerr": reach("block_efficiency", "efficiency_low", "efficiency_high")}
    axes.errorbar(row["skill"], row["block_efficiency"], **ends, **look)


def _correlation(axes: Axes, correlations: pd.DataFrame, place: tuple[str, str, str], style: Look) -> None:
    own = correlations
    for name, value in zip(("title", "data", "metric"), place, strict=True):
        own = own[own[name] == value]
    spearman = own[own["kind"] == "spearman"]
    text = "no rank correlation: six drafts are needed"
    if len(spearman):
        row = spearman.iloc[0]
        text = f"Spearman {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), p = {row['p_value']:.2g}"
    axes.text(0.02, 0.99, text, transform=axes.transAxes, va="top", fontsize=7.5, color=style.quiet)
