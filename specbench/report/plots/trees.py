"""Trees of drafts: what shared prefixes save, how wide and how long beams should be, which shape a budget favours."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from specbench.report.cells import BASELINE, TWIN
from specbench.report.metrics import Frames
from specbench.report.plots.beside import source_without_marks
from specbench.report.plots.panels import (
    bars,
    edge_labels,
    furthest,
    leader,
    of_title,
    panels,
    stacked,
    table_axes,
    tile,
    titles_of,
    value_ticks,
)
from specbench.report.plots.style import Look, Sketch
from specbench.report.tables import TIMES

# --- shared prefixes

_SAVINGS = {"nodes": "draft nodes\nper step", "saved": "share of tokens that\nthe tree saves (%)"}
_WITHOUT: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0}
_DRAFT_ONLY: dict[str, Any] = {"linestyle": ":", "linewidth": 1.0}


def prefix_tree(frames: Frames, style: Look) -> Sketch | None:
    """Verified draft nodes over the beam width, with and without the prefix tree, and the share that it saves."""
    whole = frames.beams[frames.beams["beam_nodes"].notna()]
    lines = ["title", "group", "length"]
    whole = whole[whole.groupby(lines)["width"].transform("nunique") > 1].assign(x=lambda rows: rows["width"])
    if whole.empty:
        return None
    figure, found = stacked(titles_of(whole), _SAVINGS, height=1.9, width=3.4)
    names = {}
    many = len(whole["length"].unique()) > 1
    for (title, kind), axes in found.items():
        for (_, length), own in of_title(whole, title).groupby(lines[1:], sort=False):
            name = f"{own['series'].iloc[0]}{f' length={length}' if many else ''}"
            names[name] = leader(own.assign(series=name), name)
            (_nodes if kind == "nodes" else _shares)(axes, own.sort_values("x"), names[name], style)
        if kind == "saved":
            _published_shares(axes, frames.published, style)
            axes.set_ylim(0, 100)
        value_ticks(axes, {float(x): f"{x:g}" for x in sorted(whole["x"].unique())}, "log")
    edge_labels([*found.values()], "beam width")
    handles = [style.handle(arm, name, line=True) for name, arm in names.items()]
    quiet: dict[str, Any] = {"color": style.quiet}
    handles.append(Line2D([], [], label="above: every beam verified whole", **quiet, **_WITHOUT))
    handles.append(Line2D([], [], label="below: of the draft nodes alone", **quiet, **_DRAFT_ONLY))
    published = frames.published[frames.published["saved_low"].notna()]
    return Sketch(figure, handles + source_without_marks(published, style))


def _nodes(axes: Axes, own: pd.DataFrame, arm: str, style: Look) -> None:
    colour, marker = style.colours[arm], style.markers[arm]
    axes.plot(own["x"], own["beam_nodes"].astype(float), color=colour, **_WITHOUT)
    axes.plot(own["x"], own["nodes_per_step"].astype(float), color=colour, marker=marker, markersize=5, mew=0)


def _shares(axes: Axes, own: pd.DataFrame, arm: str, style: Look) -> None:
    """Share of tokens, from the 1st to the 99th percentile over steps, and the share of draft nodes."""
    colour, marker = style.colours[arm], style.markers[arm]
    percent = pd.DataFrame(
        {"saved": own["tokens_saved"], "low": own["tokens_saved_p01"], "high": own["tokens_saved_p99"]}
    ).astype(float).mul(100)  # fmt: skip
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "mew": 0, "elinewidth": 1}
    axes.errorbar(own["x"], percent["saved"], yerr=bars(percent, "saved"), **look)
    axes.plot(own["x"], 100 * own["saved"].astype(float), color=colour, **_DRAFT_ONLY)


def _published_shares(axes: Axes, published: pd.DataFrame, style: Look) -> None:
    """A published range of shares, over the widths that it was measured at."""
    for _, rows in published[published["saved_low"].notna()].groupby("beside"):
        first, last = rows["width"].min(), rows["width"].max()
        low, high = 100 * rows["saved_low"].min(), 100 * rows["saved_high"].max()
        box = Rectangle((first, low), last - first, high - low, fill=False, edgecolor=style.quiet, linestyle="--")
        axes.add_patch(box)


# --- width and length


def beam_shape(frames: Frames, style: Look) -> Sketch | None:
    """Speed-up over beam width and length, as a coloured table, with the tokens per step below it."""
    beams = frames.beams[frames.beams["speedup"].notna()]
    pairs = beams.groupby(["title", "group"])[["width", "length"]].transform("nunique")
    beams = beams[(pairs > 1).all(axis=1)]
    if beams.empty:
        return None
    beams = beams.assign(panel=_panels(beams))
    widths, lengths = (sorted(beams[name].unique()) for name in ("width", "length"))
    figure, found = panels(
        titles_of(beams, "panel"), height=0.42 * len(lengths) + 0.3, width=0.62 * len(widths), share="y"
    )
    for panel, axes in found.items():
        table_axes(axes, [str(width) for width in widths])
        axes.set_yticks(range(len(lengths)), [str(length) for length in lengths])
        axes.set_ylim(len(lengths) - 0.5, -0.5)
        for row in beams[beams["panel"] == panel].to_dict("records"):
            place = (widths.index(row["width"]), lengths.index(row["length"]))
            tile(axes, row, place, (furthest(beams["speedup"]), style), f"{row['block_efficiency']:.2f} tok/step")
    edge_labels([*found.values()], "beam width", "beam length (tokens)")
    return Sketch(figure, [])


def _panels(beams: pd.DataFrame) -> pd.Series:
    """A panel for each cell, and for each drafter where a cell has several."""
    several = beams.groupby("title")["group"].nunique().max() > 1
    return beams["title"] + ": " + beams["series"] if several else beams["title"]


# --- one budget, several shapes

_BUDGET = {"speedup_core": f"speed-up over\nautoregressive ({TIMES})", "block_efficiency": "tokens per step"}


def verified_nodes(frames: Frames, style: Look) -> Sketch | None:
    """Speed-up and tokens per step over the draft nodes that a step verifies: a vertical line is one budget."""
    summary = frames.summary[~frames.summary["arm"].isin({BASELINE, TWIN})]
    own = summary[summary["speedup_core"].notna() & (summary["nodes_per_step"].fillna(0) > 0)]
    is_tree = own["nodes_per_step"] > own["depth_per_step"] * (1 + _ODD)
    if len(own["series"].unique()) < 2 or not is_tree.any():
        return None
    own = own.assign(x=own["nodes_per_step"].astype(float))
    leaders = {str(name): leader(own, str(name)) for name in own["series"].unique()}
    figure, found = stacked(titles_of(own), _BUDGET, height=1.9, width=3.6)
    for (title, kind), axes in found.items():
        if kind == "speedup_core":
            axes.axhline(1.0, color=style.quiet, linewidth=1)
        for name, points in of_title(own, title).groupby("series", sort=False):
            _shape(axes, points.sort_values("x"), kind, (leaders[str(name)], style))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    edge_labels([*found.values()], "draft nodes verified per step")
    return Sketch(figure, [style.handle(arm, name, line=True) for name, arm in leaders.items()])


_ODD = 0.01
"""By how much nodes may exceed depth in a chain: steps whose draft was cut count less than whole ones."""


def _shape(axes: Axes, points: pd.DataFrame, kind: str, shown: tuple[str, Look]) -> None:
    arm, style = shown
    look: dict[str, Any] = {"color": style.colours[arm], "linestyle": "-" if _is_sweep(points) else ""}
    axes.plot(points["x"], points[kind].astype(float), linewidth=1.2, **look)
    for row in points.to_dict("records"):
        fill = style.paper if row["simulated"] or not row["lossless"] else style.colours[arm]
        one = pd.DataFrame([row])
        ends = bars(one, kind) if kind == "speedup_core" and pd.notna(row["low"]) else None
        mark: dict[str, Any] = {"color": style.colours[arm], "marker": style.markers[arm], "mfc": fill}
        axes.errorbar(one["x"], one[kind].astype(float), yerr=ends, markersize=5.5, elinewidth=1, **mark)


def _is_sweep(points: pd.DataFrame) -> bool:
    """Whether the arms differ in one option alone, so that a line through them says something."""
    options = [json.loads(text) for text in points["options"]]
    names = {name for one in options for name in one}
    differing = [name for name in names if len({json.dumps(one.get(name)) for one in options}) > 1]
    return len(differing) == 1
