"""How many tokens a forward takes for the price of one: its time over the tokens of all rows, by batch size."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from specbench.report.metrics import Frames
from specbench.report.plots.panels import bars, edge_labels, panels, value_ticks
from specbench.report.plots.style import Look, Sketch

# Batch sizes have colours and markers of their own; they are no arms.
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_TICKS_A_DECADE = (1, 2, 5)


def tokens(frames: Frames, _: Look) -> Sketch | None:
    """A panel for each model and way to run it, a line a batch size; of several contexts the shortest."""
    ok = frames.forwards[frames.forwards["status"] == "ok"]
    ok = ok[ok["context_tokens"] == ok["context_tokens"].min()]
    groups = ok.groupby(["model", "mode"], sort=False)
    shown = {f"{model}, {mode}": own for (model, mode), own in groups if _has_both(own)}
    if not shown:
        return None
    figure, found = panels([*shown], height=2.5, width=3.3, share="both")
    points = pd.concat([*shown.values()])
    looks = dict(zip(sorted(points["batch_size"].unique()), cycle(zip(_HUES, _MARKERS, strict=True)), strict=False))
    for title, axes in found.items():
        for batch, line in shown[title].groupby("batch_size"):
            _line(axes, line.sort_values("query_tokens"), looks[batch])
    for axes in found.values():
        _ticks(axes, points)
    edge_labels([*found.values()], "tokens of the forward, all rows", "ms of a forward")
    handles = [
        Line2D([], [], color=hue, marker=marker, label=f"batch {batch}") for batch, (hue, marker) in looks.items()
    ]
    return Sketch(figure, handles)


def _has_both(own: pd.DataFrame) -> bool:
    """Whether both the tokens of a row and the rows differ."""
    return all(len(own[axis].unique()) > 1 for axis in ("query_tokens", "batch_size"))


def _line(axes: Axes, line: pd.DataFrame, look: tuple[str, str]) -> None:
    hue, marker = look
    ends = line.rename(columns={"low_ms": "low", "high_ms": "high"})
    drawn: dict[str, Any] = {"color": hue, "marker": marker, "markersize": 5, "mew": 0, "elinewidth": 1}
    yerr = bars(ends, "forward_ms") if ends["low"].notna().all() else None
    axes.errorbar(ends["query_tokens"] * ends["batch_size"], ends["forward_ms"], yerr=yerr, linewidth=1.4, **drawn)


def _ticks(axes: Axes, points: pd.DataFrame) -> None:
    """Both axes by factors: what is flat and what is in proportion are straight lines."""
    most = int((points["query_tokens"] * points["batch_size"]).max())
    powers = [4**power for power in range(most.bit_length()) if 4**power <= most]
    value_ticks(axes, {float(power): f"{power:,}" for power in powers}, "log")
    axes.set_yscale("log")
    low = points[["forward_ms", "low_ms"]].min(axis=None) / 1.5
    high = points[["forward_ms", "high_ms"]].max(axis=None) * 1.5
    values = [step * 10.0**power for power in range(-4, 5) for step in _TICKS_A_DECADE]
    values = [value for value in values if low <= value <= high]
    axes.yaxis.set_major_locator(FixedLocator(values))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(values, [f"{value:g}" for value in values])
    axes.set_ylim(low, high)
