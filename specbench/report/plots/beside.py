"""Published numbers beside the measured ones: hollow, in the colour of the arm that they compare with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from specbench.report.cells import BASELINE, TWIN
from specbench.report.metrics import Frames
from specbench.report.plots.panels import edge_labels, name_arms, of_title, ordered_arms, panels, titles_of
from specbench.report.plots.style import Look, Sketch
from specbench.report.published import origin
from specbench.report.tables import TIMES

_COLUMNS = {
    "speedup": "speedup", "block_efficiency": "tokens_per_step", "decode_tokens_per_s": "tokens_per_s",
    "full_batch_tokens_per_s": "batch_tokens_per_s",
}  # fmt: skip
"""What a figure shows -> what holds it among the published numbers."""

_AXES = ("batch_size", "width", "length")
_SOURCE = ["beside", "model", "dataset", "method", "label"]
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_HOLLOW: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0, "markersize": 5.5, "mew": 1.1}

# --- along an axis


@dataclass(frozen=True)
class Line:
    """One published line: its points, and the colour and marker of the arms that it compares with.

    `name` is what tells it apart where no series of arms lends it a look of its own, and None where one does.
    """

    points: pd.DataFrame
    colour: str
    marker: str
    name: str | None


def lines(axis: str, kinds: Collection[str], frames: Frames, looks: tuple[Mapping[str, str], Look]) -> list[Line]:
    """The published lines over an axis, of methods that were measured here; none where the paper has none.

    Args:
        axis: As in `frames.along`.
        kinds: What the figure shows of it.
        frames: Of the report.
        looks: The arm that lends its look to each measured series, and the look of all.
    """
    paper = frames.published
    paper = paper.assign(batch_tokens_per_s=paper["tokens_per_s"] * paper["batch_size"])
    shown = [_COLUMNS[kind] for kind in kinds if kind in _COLUMNS]
    if axis not in _AXES or paper[shown].isna().all(axis=None):
        return []
    points = frames.along[frames.along["axis"] == axis]
    keys = _SOURCE + [name for name in _AXES if name != axis]
    own = paper[paper[axis].notna() & paper[shown].notna().any(axis=1)]
    found = [_line(axis, group, (points, frames.summary), looks) for _, group in own.groupby(keys, dropna=False)]
    return _told_apart([line for line in found if line is not None], axis)


def _told_apart(found: Sequence[Line], axis: str) -> list[Line]:
    """Lines that would look alike get markers of their own and a name."""
    alike = Counter((line.colour, line.marker) for line in found)
    return [
        replace(line, marker=_MARKERS[index % len(_MARKERS)], name=_name(line.points.iloc[0], axis))
        if alike[line.colour, line.marker] > 1
        else line
        for index, line in enumerate(found)
    ]


def _line(
    axis: str, group: pd.DataFrame, measured: tuple[pd.DataFrame, pd.DataFrame], looks: tuple[Mapping[str, str], Look]
) -> Line | None:
    (points, summary), (leaders, style), first = measured, looks, group.iloc[0]
    arms = _kin(first, [name for name in _AXES[1:] if name != axis], summary)
    series = set(points.loc[points["arm"].isin(arms), "series"])
    if not series or group[axis].nunique() < 2:
        return None
    group = group.assign(x=group[axis].astype(float)).sort_values("x")
    if len(series) > 1:
        return Line(group, style.quiet, _MARKERS[0], _name(first, axis))
    arm = leaders[series.pop()]
    return Line(group, style.colours[arm], style.markers[arm], None)


def _name(published: pd.Series, axis: str) -> str:
    """What tells a published line from the others of its table."""
    options = [f"{name} {published[name]:g}" for name in _AXES if name != axis and pd.notna(published[name])]
    words = [published["label"]] if pd.notna(published["label"]) else [published["method"], *options]
    return f"{', '.join(words)} (published)"


def _kin(published: pd.Series, options: Sequence[str], summary: pd.DataFrame) -> set[str]:
    """The arms that a published point compares with: of its method and options, and of its label if any is."""
    arms = [row for row in summary.to_dict("records") if row["method"] == published["method"]]
    arms = [row for row in arms if row["label"] == published["label"]] or arms
    asked = {name: published[name] for name in options if pd.notna(published[name])}
    return {str(row["arm"]) for row in arms if asked.items() <= json.loads(row["options"]).items()}


def draw(axes: Axes, kind: str, found: Sequence[Line], style: Look) -> None:
    """The published lines in one panel; tokens per second of other hardware need a log scale."""
    column = _COLUMNS.get(kind)
    drawn = [line for line in found if column and line.points[column].notna().any()]
    for line in drawn:
        look: dict[str, Any] = {"color": line.colour, "marker": line.marker, "mfc": style.paper}
        axes.plot(line.points["x"], line.points[column].astype(float), **_HOLLOW, **look)
    if drawn and kind.endswith("tokens_per_s"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def values(found: Sequence[Line]) -> dict[float, str]:
    """Where the published points lie along the axis, and how that reads."""
    return {float(x): f"{x:g}" for line in found for x in line.points["x"]}


def handles(found: Sequence[Line], style: Look) -> list[Line2D]:
    """For the legend: where the hollow points come from, and the lines that stand for no measured series."""
    named = [_handle(style, line.name, color=line.colour, marker=line.marker) for line in found if line.name]
    return named + sources(pd.concat([line.points for line in found]), style) if found else []


def sources(published: pd.DataFrame, style: Look) -> list[Line2D]:
    """An entry of the legend for each published table."""
    return [
        _handle(style, f"hollow: {origin(rows)}", color=style.quiet, marker="o")
        for _, rows in published.groupby("beside", sort=False)
    ]


def source_without_marks(published: pd.DataFrame, style: Look) -> list[Line2D]:
    """The same where what was published is no points but a range."""
    return [
        Line2D([], [], linestyle="--", color=style.quiet, label=origin(rows))
        for _, rows in published.groupby("beside", sort=False)
    ]


def _handle(style: Look, label: str, **look: Any) -> Line2D:
    return Line2D([], [], mfc=style.paper, label=label, **_HOLLOW, **look)


# --- by method

_KINDS = {"speedup": f"speed-up over autoregressive ({TIMES})", "tokens": "tokens per step"}
_MEASURED = {"speedup": "speedup_core", "tokens": "block_efficiency"}
_PRINTED = {"speedup": "speedup", "tokens": "tokens_per_step"}
_SIZES = (4.5, 6.5, 8.5, 10.5)


def methods(frames: Frames, style: Look) -> Sketch | None:
    """Speed-up and tokens per step of each arm, and below them those that a paper gives for whole methods."""
    paper = frames.published
    paper = paper[paper["speedup"].notna() & paper["tokens_per_step"].notna() & paper["width"].isna()]
    own = frames.summary[~frames.summary["arm"].isin({BASELINE, TWIN}) & frames.summary["speedup_core"].notna()]
    if paper.empty or own.empty:
        return None
    arms = ordered_arms(own)
    groups = {f"{method}, {data}, paper": rows for (method, data), rows in _by_method(paper)}
    names = [*arms, *groups]
    sizes = dict(zip(paper["model"].unique(), _SIZES, strict=False))
    titles = [f"{title}|{kind}" for title in titles_of(own) for kind in _KINDS]
    figure, found = panels(titles, height=0.3 * len(names) + 0.4, width=2.9, share="y", columns=len(_KINDS))
    for name, axes in found.items():
        title, kind = name.rsplit("|", 1)
        axes.set_title(title if kind == "speedup" else "")
        axes.axvline(1.0, color=style.quiet, linewidth=1)
        for row in of_title(own, title).to_dict("records"):
            _measured_mark(axes, row, kind, (arms.index(row["arm"]), style))
        for y, rows in enumerate(groups.values(), len(arms)):
            _printed_marks(axes, rows, kind, (y, _colour(rows, own, style), sizes, style))
    name_arms(found, own, names)
    for name, axes in found.items():
        edge_labels([axes], _KINDS[name.rsplit("|", 1)[1]])
    look: dict[str, Any] = {"color": style.quiet, "mfc": style.paper, "marker": "o", "linestyle": ""}
    marks = [Line2D([], [], markersize=size, label=f"{model} (published)", **look) for model, size in sizes.items()]
    return Sketch(figure, [*marks, *sources(paper, style)])


def _by_method(paper: pd.DataFrame) -> Any:
    return paper.groupby(["method", "dataset"], sort=False, dropna=False)


def _colour(rows: pd.DataFrame, own: pd.DataFrame, style: Look) -> str:
    """The colour of the method's fastest arm; a method that was not measured has none."""
    arms = ordered_arms(own[own["method"] == rows["method"].iloc[0]])
    return style.colours[arms[0]] if arms else style.quiet


def _measured_mark(axes: Axes, row: Mapping[Any, Any], kind: str, where: tuple[int, Look]) -> None:
    y, style = where
    colour, value = style.colours[row["arm"]], row[_MEASURED[kind]]
    if kind == "speedup" and pd.notna(row["low"]):
        axes.plot([row["low"], row["high"]], [y, y], color=colour, solid_capstyle="butt", linewidth=2)
    # Hollow is for what was published; a lossy arm says so in its name.
    axes.plot(value, y, marker=style.markers[row["arm"]], color=colour, zorder=5)
    _value_text(axes, y, f"{value:.2f}")


def _printed_marks(
    axes: Axes, rows: pd.DataFrame, kind: str, where: tuple[int, str, Mapping[str, float], Look]
) -> None:
    y, colour, sizes, style = where
    for row in rows.to_dict("records"):
        size = sizes[row["model"]]
        axes.plot(row[_PRINTED[kind]], y, marker="o", color=colour, mfc="none", mew=1.1, markersize=size, zorder=4)
    _value_text(axes, y, " ".join(f"{value:.2f}" for value in rows[_PRINTED[kind]]), color=style.quiet)


def _value_text(axes: Axes, y: int, text: str, **look: Any) -> None:
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, **look)
