"""Panels side by side, and what they share: labels, limits, the names of arms."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from specbench.report.plots.style import GREYS, Look
from specbench.report.tables import TIMES
from specbench.report.words import text_notes

_ACROSS = 3
_MOST_TICKS = 8


def panels(
    titles: Sequence[str | None], *, height: float, width: float, share: str, columns: int | None = None
) -> tuple[Figure, dict[str, Axes]]:
    """A grid of panels, one per title, none for None.

    Args:
        titles: Row by row.
        height: Of one panel, inches.
        width: Of one panel, inches.
        share: ``y``, or ``both`` axes, or ``row``: y along each row, and x.
        columns: Panels in a row; as many as look well where None.
    """
    columns = columns or across(len(titles))
    rows = -(-len(titles) // columns)
    size = (max(width * columns + 1.6, 5.6), (height + 0.35) * rows + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if share == "row" else True, sharex=share != "y")
    found = {}
    for title, axes in zip_longest(titles, grid.flat):
        if title is None:
            axes.remove()
            continue
        found[title] = axes
        axes.set_title(title)
        if share != "y":
            axes.label_outer(remove_inner_ticks=False)
    return figure, found


def across(count: int) -> int:
    """How many panels stand in a row."""
    return count if count <= _ACROSS else 2 if count == 4 else _ACROSS


def stacked(titles: Sequence[str], kinds: Mapping[str, str], *, height: float, width: float) -> tuple[
    Figure, dict[tuple[str, str], Axes]
]:  # fmt: skip
    """Panels by title and kind: the kinds of one title stand below one another, each with its own y axis.

    Args:
        titles: Of the panels.
        kinds: Name of a kind -> the label of its y axis.
        height: Of one panel, inches.
        width: Of one panel, inches.
    """
    columns = across(len(titles))
    names: list[str | None] = []
    for start in range(0, len(titles), columns):
        group = titles[start : start + columns]
        for kind in kinds:
            names += [*(f"{title}|{kind}" for title in group), *[None] * (columns - len(group))]
    figure, flat = panels(names, height=height, width=width, share="row", columns=columns)
    first = next(iter(kinds))
    found = {}
    for name, axes in flat.items():
        title, kind = name.rsplit("|", 1)
        axes.set_title(title if kind == first else "")
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(kinds[kind])
        found[title, kind] = axes
    return figure, found


def titles_of(frame: pd.DataFrame, column: str = "title") -> list[str]:
    """The panels of a frame, in their order."""
    return [str(title) for title in frame[column].unique()]


def of_title(frame: pd.DataFrame, title: str) -> pd.DataFrame:
    """The rows of one cell."""
    return frame[frame["title"] == title]


def ordered_arms(summary: pd.DataFrame) -> list[str]:
    """Arms from fast to slow over all cells, the same in every panel and figure; the A/A pair last."""
    logs = np.log(summary["speedup_core"].astype(float))
    mean = logs.groupby(summary["arm"]).mean().fillna(-np.inf)
    return sorted(map(str, mean.index), key=lambda arm: (arm in GREYS, -mean[arm], arm))


def leader(points: pd.DataFrame, name: str) -> str:
    """The arm that lends its look to a line: the middle one of its series along ``x``."""
    arms = [str(arm) for arm in points.loc[points["series"] == name].sort_values("x")["arm"].unique()]
    return arms[len(arms) // 2]


def name_arms(found: Mapping[str, Axes], summary: pd.DataFrame, arms: Sequence[str]) -> None:
    """Arm names at the left edge, wrapped, with what a reader must know of each."""
    notes = text_notes(summary)
    name_lines([*found.values()], [arm + notes.get(arm, "") for arm in arms])


def name_lines(found: Sequence[Axes], names: Sequence[str]) -> None:
    """Names at the left edge, wrapped, one a line from above."""
    labels = ["\n".join(textwrap.wrap(name, 30, break_on_hyphens=False)) for name in names]
    for axes in found:
        axes.set_yticks(range(len(names)), labels)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")


def edge_labels(found: Sequence[Axes], x: str, y: str | None = None) -> None:
    """Label the lowest panel of each column, and the first of each row."""
    lowest: dict[int, Axes] = {}
    for axes in found:
        place = axes.get_subplotspec()
        assert place is not None  # every panel comes from `panels`
        lowest[place.colspan.start] = axes
        if y and place.is_first_col():
            axes.set_ylabel(y)
    for axes in lowest.values():
        axes.set_xlabel(x)
        axes.tick_params(labelbottom=True)


_SLOWER, _FASTER = "#E08214", "#3F8FC4"


def tile(axes: Axes, row: Mapping[Any, Any], place: tuple[int, int], shown: tuple[float, Look], note: str) -> None:
    """A speed-up as a coloured field of a table: blue is faster, orange slower, without colour not resolved.

    Args:
        axes: Of the table; fields are one wide and one high.
        row: With ``speedup`` and ``resolved``.
        place: Column and row of the field.
        shown: The log of the speed-up that has the full colour, and the look.
        note: Small print below.
    """
    (x, y), (furthest, style) = place, shown
    change = math.log(row["speedup"]) / furthest
    colour = (_FASTER if change > 0 else _SLOWER) if row["resolved"] else style.paper
    strength = 0.15 + 0.6 * abs(change) if row["resolved"] else 1.0
    axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=strength, linewidth=0))
    quiet = None if row["resolved"] else style.quiet
    axes.text(x, y - 0.14, f"{row['speedup']:.2f}{TIMES}", ha="center", va="center", fontsize=8.5, color=quiet)
    axes.text(x, y + 0.26, note, ha="center", va="center", fontsize=6, color=quiet)


def table_axes(axes: Axes, columns: Sequence[str]) -> None:
    """Prepare a panel for the fields of a table, with the names of its columns below."""
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def furthest(speedups: pd.Series) -> float:
    """The largest log of a speed-up, either way: what has the full colour in a table."""
    return max(0.05, float(np.abs(np.log(speedups.astype(float))).max()))


def value_ticks(axes: Axes, values: Mapping[float, str], scale: str) -> None:
    """A tick at each value with its text, if they are few; ``log`` is to base 2."""
    if scale == "log":
        axes.set_xscale("log", base=2)
    if len(values) <= _MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator([*values]))
        axes.set_xticks([*values], [*values.values()])
        axes.xaxis.set_minor_locator(NullLocator())


def bars(own: pd.DataFrame, kind: str) -> np.ndarray:
    """What an interval reaches below and above its points, as matplotlib wants it."""
    middle = own[kind].to_numpy(float)
    return np.abs(np.vstack([middle - own["low"], own["high"] - middle]).astype(float))


def from_zero(found: Sequence[Axes]) -> None:
    """Let y begin at 0; called when all is drawn, since it fixes the limits of panels that share their axis."""
    for axes in found:
        axes.set_ylim(bottom=0)


def share_x_limits(found: Sequence[Axes], *, include: float) -> None:
    """One x range for all panels, so that their distances compare."""
    lows, highs = zip(*(axes.dataLim.intervalx for axes in found), strict=True)
    low, high = min(*lows, include), max(*highs, include)
    margin = 0.05 * (high - low) or 0.05
    for axes in found:
        axes.set_xlim(low - margin, high + margin)
