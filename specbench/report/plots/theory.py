"""The closed forms beside what was measured, and what they say would have to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from specbench.report.cells import BASELINE
from specbench.report.composed import WITHIN
from specbench.report.metrics import Frames, series
from specbench.report.plots.drafts import COMPOSED
from specbench.report.plots.panels import bars, edge_labels, from_zero, name_lines, of_title, panels, titles_of
from specbench.report.plots.style import Look, Sketch
from specbench.report.tables import percent

# --- predicted against measured

_PREDICTIONS = {"closed forms": "predicted_tokens_per_s", "composed": "composed_tokens_per_s"}


def predicted(frames: Frames, style: Look) -> Sketch | None:
    """Predicted and composed over measured throughput, with the band that counts as met."""
    sources = {"closed forms": frames.forecasts[frames.forecasts["arm"].notna()], "composed": frames.composed}
    sources = {name: rows[rows["error"].notna()] for name, rows in sources.items() if rows["error"].notna().any()}
    if not sources:
        return None
    figure, found = panels([*sources], height=3.2, width=3.4, share="both")
    rates = np.concatenate(
        [rows[[_PREDICTIONS[name], "measured_tokens_per_s"]].to_numpy(float).ravel() for name, rows in sources.items()]
    )
    ends = np.array([0.85 * rates.min(), 1.18 * rates.max()])
    for name, axes in found.items():
        axes.fill_between(ends, (1 - WITHIN) * ends, (1 + WITHIN) * ends, color=style.quiet, alpha=0.15, linewidth=0)
        axes.plot(ends, ends, color=style.quiet, linewidth=1)
        for row in sources[name].to_dict("records"):
            _prediction(axes, row, _PREDICTIONS[name], style)
        axes.text(0.03, 0.98, _errors(sources[name]["error"]), va="top", fontsize=8, transform=axes.transAxes)
        _log_rates(axes, float(ends[1] / ends[0]))
        axes.set(xlim=tuple(ends), ylim=tuple(ends))
    edge_labels([*found.values()], "measured tokens/s of a batch", "predicted tokens/s of a batch")
    arms = sorted({arm for rows in sources.values() for arm in rows["arm"]})
    names = {series(arm): arm for arm in arms}
    handles: list[Any] = [style.handle(arm, name) for name, arm in names.items()]
    return Sketch(figure, [*handles, Patch(color=style.quiet, alpha=0.15, label=f"within {percent(WITHIN)}")])


def _prediction(axes: Axes, row: Mapping[Any, Any], column: str, style: Look) -> None:
    arm, x, y = row["arm"], float(row["measured_tokens_per_s"]), float(row[column])
    low, high = (row["low"], row["high"]) if "low" in row else (row["measured_low"], row["measured_high"])
    ends: dict[str, Any] = {"xerr": None if pd.isna(low) else [[x - low], [high - x]]}
    if pd.notna(row.get("composed_low")):
        ends["yerr"] = [[y - row["composed_low"]], [row["composed_high"] - y]]
    fill = style.colours[arm] if abs(row["error"]) <= WITHIN else style.paper
    look: dict[str, Any] = {"color": style.colours[arm], "marker": style.markers[arm], "mfc": fill}
    axes.errorbar(x, y, elinewidth=0.7, markersize=5.5, **ends, **look)


def _errors(errors: pd.Series) -> str:
    sizes = errors.astype(float).abs()
    met = f"{int((sizes <= WITHIN).sum())} of {len(sizes)} within {percent(WITHIN)}"
    return f"{met}\nerror: median {percent(sizes.median(), 1)}, largest {percent(sizes.max(), 1)}"


def _log_rates(axes: Axes, reach: float) -> None:
    """Log scales, with the fewer ticks the further they reach."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    subs = next((subs for most, subs in _TICKS.items() if reach <= most), (1.0,))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


_TICKS = {8: (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 100: (1.0, 2.0, 5.0)}
"""Largest over smallest rate -> the ticks of a decade."""


# --- over the draft's latency


def draft_latency(frames: Frames, style: Look) -> Sketch | None:
    """Throughput over the time of a draft forward: what was measured, beside the closed form through one arm."""
    points = frames.latency_axis
    if points.empty:
        return None
    arms = {str(name): _leader(own) for name, own in points[points["kind"] != "line"].groupby("series", sort=False)}
    figure, found = panels(titles_of(points), height=2.5, width=3.6, share="both")
    for title, axes in found.items():
        own = of_title(points, title)
        for name, rows in own.groupby("series", sort=False):
            _latency_line(axes, rows, (arms[str(name)], style))
        rate = of_title(frames.summary[frames.summary["arm"] == BASELINE], title)["full_batch_tokens_per_s"]
        if len(rate):
            axes.axhline(float(rate.iloc[0]), color=style.quiet, linewidth=1, linestyle=":")
    from_zero([*found.values()])
    edge_labels([*found.values()], "draft latency (ms per draft forward)", "tokens/s of a full batch")
    quiet: dict[str, Any] = {"color": style.quiet}
    handles = [style.handle(arm, name) for name, arm in arms.items()]
    handles.append(Line2D([], [], linewidth=1.2, label="closed form, through the ringed arm", **quiet))
    handles.append(Line2D([], [], linestyle=":", linewidth=1, label="autoregressive decoding", **quiet))
    if (points["kind"] == "composed").any():
        handles.append(Line2D([], [], marker="o", mfc=style.paper, label="composed, not run", **COMPOSED, **quiet))
    if (points["status"] == "unsupported").any():
        label = "unsupported: below the draft's own latency"
        handles.append(Line2D([], [], linestyle="", marker="x", label=label, **quiet))
    return Sketch(figure, handles)


def _leader(own: pd.DataFrame) -> str:
    """The arm at its own pace; the least slowed one where all were."""
    return str(own.sort_values("requested_ms", na_position="first")["arm"].iloc[0])


def _latency_line(axes: Axes, rows: pd.DataFrame, shown: tuple[str, Look]) -> None:
    arm, style = shown
    colour = style.colours[arm]
    line, arms = rows[rows["kind"] == "line"], rows[rows["kind"] == "arm"]
    axes.plot(line["draft_latency_ms"], line["predicted_tokens_per_s"], color=colour, linewidth=1.2)
    timed = arms[arms["tokens_per_s"].notna() & arms["draft_latency_ms"].notna()]
    ends = bars(timed, "tokens_per_s") if timed["low"].notna().all() else None
    look: dict[str, Any] = {"color": colour, "linestyle": "", "elinewidth": 1, "markersize": 5.5}
    at = timed["draft_latency_ms"].astype(float)
    axes.errorbar(at, timed["tokens_per_s"].astype(float), yerr=ends, marker=style.markers[arm], **look)
    ring = timed[timed["fitted"].astype(bool)]
    axes.plot(ring["draft_latency_ms"], ring["tokens_per_s"], "o", color=colour, mfc="none", markersize=11)
    composed = rows[rows["kind"] == "composed"].sort_values("draft_latency_ms")
    hollow: dict[str, Any] = {"color": colour, "marker": style.markers[arm], "mfc": style.paper, "markersize": 4.5}
    axes.plot(composed["draft_latency_ms"], composed["tokens_per_s"], **COMPOSED, **hollow)
    failed = arms[arms["status"] == "unsupported"]
    axes.plot(failed["requested_ms"], failed["predicted_tokens_per_s"], "x", color=colour, markersize=6)


# --- what would have to change

_NEEDS = {"tokens": "tokens per step", "draft_ms": "ms of a draft forward"}
_NEEDED = {"tokens": "required_tokens", "draft_ms": "tie_draft_ms"}


def changes(frames: Frames, style: Look) -> Sketch | None:
    """What each draft would have to gain in acceptance, or lose in latency, to be as fast as the best one."""
    found = frames.changes
    losers = found[~found["is_best"].astype(bool)]
    if losers.empty:
        return None
    contenders = list(dict.fromkeys(found.sort_values("predicted_speedup", ascending=False)["contender"]))
    titles = [f"{title}|{kind}" for title in titles_of(losers) for kind in _NEEDS]
    figure, axes_of = panels(titles, height=0.42 * len(contenders) + 0.5, width=2.9, share="y", columns=len(_NEEDS))
    for name, axes in axes_of.items():
        title, kind = name.rsplit("|", 1)
        axes.set_title(title if kind == "tokens" else "")
        for row in of_title(found, title).to_dict("records"):
            _need(axes, row, kind, (contenders.index(row["contender"]), _look_of(row["contender"], frames), style))
        axes.margins(x=0.12)
    name_lines([*axes_of.values()], [series(name) for name in contenders])
    for name, axes in axes_of.items():
        edge_labels([axes], _NEEDS[name.rsplit("|", 1)[1]])
    dot: dict[str, Any] = {"color": style.quiet, "marker": "o", "linestyle": ""}
    filled, hollow = "as it is, at its best gamma", "as it would have to be, to be as fast as the best draft"
    return Sketch(figure, [Line2D([], [], label=filled, **dot), Line2D([], [], mfc=style.paper, label=hollow, **dot)])


def _look_of(contender: str, frames: Frames) -> str:
    """The arm whose look a contender has."""
    forecasts = frames.forecasts
    own = forecasts[(forecasts["contender"] == contender) & forecasts["arm"].notna()].sort_values("gamma")
    arms = list(dict.fromkeys(own["arm"]))
    return str(arms[len(arms) // 2])


def _need(axes: Axes, row: Mapping[Any, Any], kind: str, where: tuple[int, str, Look]) -> None:
    y, arm, style = where
    now, needed = row[kind], row[_NEEDED[kind]]
    look: dict[str, Any] = {"color": style.colours[arm], "marker": style.markers[arm], "linestyle": ""}
    text = "the best" if row["is_best"] else "predicted faster"
    if not row["is_best"] and row["lead"] < 0:
        possible = pd.notna(needed)
        text = f"{100 * (needed / now - 1):+.0f} %" if possible else "not even at 0 ms"
        if possible:
            axes.annotate("", (needed, y), (now, y), arrowprops={"arrowstyle": "->", "color": style.quiet, "lw": 0.9})
            axes.plot(needed, y, mfc=style.paper, zorder=4, **look)
    axes.plot(now, y, zorder=5, **look)
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.quiet)
