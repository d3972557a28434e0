"""One function per figure: tidy frames -> matplotlib Figure, in a light and a dark theme.

An arm has one colour and one marker in every figure of a report: `Look` gives them out by sorted name, the
autoregressive arms are grey. Nothing here reads or writes a file but the style sheet.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from specbench.records.schema import PHASES
from specbench.report.metrics import BASELINE, NOT_RESOLVED, RESOLVED, TWIN, Frames
from specbench.report.tables import TIMES

THEMES = ("light", "dark")
MIN_REACHED = 20
"""Fewest steps behind a point of alpha; with fewer its error is above 10 percentage points."""

# Okabe & Ito (2008) less yellow and black, then Tol's muted set: told apart by people with colour-blindness
# too.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#AA4499", "#999933", "#882255",
            "#44AA99")  # fmt: skip
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "*", "<", ">", "d")
_GREYS = {BASELINE: "#7f7f7f", TWIN: "#a9a9a9"}
# Phases have colours of their own, none of them an arm's.
_PHASE_COLOURS = {
    "draft": "#6a51a3", "verify": "#c4c7d0", "accept": "#a6d3a0", "update": "#e3b778", "host": "#c65353",
}  # fmt: skip
_KINDS = {
    "survival": "P(this position\nor more accepted)",
    "alpha": "P(accepted | drafted,\nall before accepted)",
}
_ACROSS = 3
_INK = {"light": "#1b1d21", "dark": "#e6e6e6"}
_PAPER = {"light": "#ffffff", "dark": "#16181d"}
_QUIET = {"light": "#6b7280", "dark": "#9aa1ac"}


@dataclass(frozen=True)
class Look:
    """Colour and marker of every arm, and the theme's ink."""

    colours: dict[str, str]
    markers: dict[str, str]
    theme: str

    @property
    def quiet(self) -> str:
        """Colour of what stands back: notes, the line at 1."""
        return _QUIET[self.theme]

    @property
    def paper(self) -> str:
        """Colour of the background."""
        return _PAPER[self.theme]


def look(arms: Sequence[str], theme: str = "light") -> Look:
    """The look of a report that shows these arms; the same arms give the same look."""
    names = sorted(set(arms) - set(_GREYS))
    colours = {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}
    markers = {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(names)}
    return Look(colours | _GREYS, markers | dict.fromkeys(_GREYS, "o"), theme)


@contextmanager
def themed(theme: str) -> Iterator[None]:
    """Draw and save within this: the style sheet, with the theme's ink and paper."""
    ink, paper = _INK[theme], _PAPER[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    colours: Any = dict.fromkeys(inked, ink)
    colours |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper)
    sheet = Path(__file__).with_name("specbench.mplstyle")
    style: Any = mpl.rc_params_from_file(sheet, use_default_template=False)
    with mpl.rc_context({**style, **colours, "grid.color": _QUIET[theme]}):
        yield


def speedup(frames: Frames, style: Look) -> Figure:
    """Speed-up per arm with its 95 % interval and each timed batch; the band at 1 is the noise floor."""
    summary = frames.summary[frames.summary["arm"] != BASELINE]
    arms = _ordered_arms(summary)
    if not arms:
        return _nothing("There is no arm beside the baseline.")
    figure, panels = _panels(_titles(summary), rows_inches=0.5 * len(arms) + 0.5, width=3.4, share="y")
    for title, axes in panels.items():
        _speedup_panel(axes, (summary[summary["title"] == title], _cell(frames.batches, title)), (arms, style))
    _name_arms(panels, summary, arms)
    _edge_labels(panels, f"speed-up over autoregressive ({TIMES})")
    _share_x_limits(panels, include=1.0)
    dot: dict[str, Any] = {"color": style.quiet, "marker": "o"}
    marks = [
        Line2D([], [], **dot, label="all batches, with 95 % interval"),
        Line2D([], [], **dot, markersize=3, alpha=0.5, linestyle="", label="one timed batch"),
        Line2D([], [], color=style.quiet, linewidth=7, alpha=0.3, label="A/A noise floor"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


def _speedup_panel(axes: Axes, data: tuple[pd.DataFrame, pd.DataFrame], shown: tuple[list[str], Look]) -> None:
    (cell, batches), (arms, style) = data, shown
    floor = cell["noise_floor"].dropna()
    if len(floor):
        axes.axvspan(math.exp(-floor.iloc[0]), math.exp(floor.iloc[0]), color=style.quiet, alpha=0.3, linewidth=0)
    axes.axvline(1.0, color=style.quiet, linewidth=1)
    axes.grid(visible=False, axis="y")
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


def tokens_against_efficiency(frames: Frames, style: Look) -> Figure:
    """Decode tokens/s against block efficiency; the rays are lines of constant step time."""
    summary = frames.summary[frames.summary["decode_tokens_per_s"].notna() & (frames.summary["arm"] != TWIN)]
    if summary.empty:
        return _nothing("No arm finished a request.")
    figure, panels = _panels(_titles(summary), rows_inches=2.7, width=3.9, share="both")
    right = 1.12 * max(frames.batches["block_efficiency"].max(), 2.0)
    top = 1.12 * frames.batches["decode_tokens_per_s"].max()
    for title, axes in panels.items():
        axes.set(xlim=(0, right), ylim=(0, top))
        axes.set_title(title, pad=18)  # room for the labels of the rays
        _rays(axes, (right, top), style)
        batches = _cell(frames.batches, title)
        for row in _cell(summary, title).to_dict("records"):
            own, colour = batches[batches["arm"] == row["arm"]], style.colours[row["arm"]]
            axes.plot(own["block_efficiency"], own["decode_tokens_per_s"], linestyle="", marker="o",
            markersize=2.6,
                      alpha=0.4, color=colour, mew=0)  # fmt: skip
            axes.plot(row["block_efficiency"], row["decode_tokens_per_s"], linestyle="", color=colour,
            zorder=5,
                      marker=style.markers[row["arm"]], markersize=8, mec=style.paper, mew=0.6)  # fmt: skip
    _edge_labels(panels, "block efficiency (tokens per decode step)", "decode tokens/s of one request")
    _arm_legend(figure, _ordered_arms(summary), style)
    return figure


def _rays(axes: Axes, corner: tuple[float, float], style: Look) -> None:
    """Lines of constant step time from the origin, labelled in ms where they leave the panel."""
    right, top = corner
    axes.grid(visible=False)
    diagonal_ms = 1000 * right / top
    for step_ms in _round_steps(diagonal_ms):
        slope = 1000 / step_ms
        end = (min(right, top / slope), min(top, right * slope))
        axes.plot([0, end[0]], [0, end[1]], color=style.quiet, linewidth=0.7, alpha=0.5, zorder=0)
        leaves_above = end[1] >= top
        place: dict[str, Any] = {"ha": "center", "va": "bottom"} if leaves_above else {"ha": "left", "va": "center"}
        offset = (0, 2) if leaves_above else (3, 0)
        axes.annotate(f"{step_ms:g} ms", end, offset, textcoords="offset points", color=style.quiet,
        fontsize=7.5,
                      **place)  # fmt: skip


def _round_steps(diagonal_ms: float) -> list[float]:
    """Five round step times around the one of the panel's diagonal."""
    decades = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 1.5, 2, 3, 5, 7)]
    wanted = [diagonal_ms * factor for factor in (0.36, 0.6, 1.0, 1.7, 3.2)]
    return sorted({min(decades, key=lambda value: abs(math.log(value / step))) for step in wanted})


def step_time(frames: Frames, style: Look) -> Figure:
    """Where a step's time goes: a bar per arm, from the phase pass, with its total and its tokens."""
    phases = frames.phases
    if phases.empty:
        return _nothing("No phase pass was recorded.")
    arms = [arm for arm in _ordered_arms(frames.summary) if arm in set(phases["arm"]) and arm != TWIN]
    figure, panels = _panels(_titles(frames.summary), rows_inches=0.42 * len(arms) + 0.5, width=3.4, share="y")
    for title, axes in panels.items():
        cell = _cell(phases, title).set_index("arm").reindex(arms)
        left = np.zeros(len(arms))
        for phase in PHASES:
            widths = cell[f"{phase}_ms"].fillna(0.0).to_numpy()
            axes.barh(range(len(arms)), widths, left=left, height=0.62, color=_PHASE_COLOURS[phase], label=phase)
            left += widths
        axes.grid(visible=False, axis="y")
        _bar_totals(axes, cell, style)
    _name_arms(panels, frames.summary, arms)
    _edge_labels(panels, "ms per decode step")
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PHASES))
    return figure


def _bar_totals(axes: Axes, cell: pd.DataFrame, style: Look) -> None:
    axes.set_xlim(0, 1.04 * float(cell["step_ms"].max()))
    for y, (_, row) in enumerate(cell.iterrows()):
        text = "no steps"
        if pd.notna(row["step_ms"]):
            text = f"{row['step_ms']:.1f} ms, {row['tokens_per_step']:.2f} tok"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.quiet)


def acceptance(frames: Frames, style: Look) -> Figure:
    """Acceptance by draft position: how often a draft survives so far, and alpha at each position."""
    positions = frames.positions
    if positions.empty:
        return _nothing("Nothing was drafted.")
    titles = _titles(frames.summary)
    columns = _columns(len(titles))
    names = _acceptance_names(titles, columns)
    figure, panels = _panels(names, rows_inches=1.9, width=3.4, share="both", columns=columns)
    deepest = int(positions["position"].max())
    for name, axes in panels.items():
        title, kind = name.rsplit("|", 1)
        for arm, own in _cell(positions, title).groupby("arm", sort=True):
            own = own[own["reached"] >= MIN_REACHED] if kind == "alpha" else own
            colour, marker = style.colours[str(arm)], style.markers[str(arm)]
            axes.plot(own["position"], own[kind], color=colour, marker=marker, markersize=5, mew=0)
        axes.set(ylim=(0, 1.04), xlim=(0.6, deepest + 0.4), title=title if kind == "survival" else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(_KINDS[kind])
    _edge_labels(panels, "draft position (tokens)")
    _arm_legend(figure, sorted(set(positions["arm"])), style)
    return figure


FIGURES: dict[str, Callable[[Frames, Look], Figure]] = {
    "speedup": speedup,
    "tokens_against_efficiency": tokens_against_efficiency,
    "step_time": step_time,
    "acceptance": acceptance,
}
"""File name -> the function that draws it."""


# --- shared pieces


def _panels(
    titles: Sequence[str | None], *, rows_inches: float, width: float, share: str, columns: int | None = None
) -> tuple[Figure, dict[str, Axes]]:
    """A grid of panels, one per title, none for None; `share` says whether they share y only or both axes."""
    columns = columns or _columns(len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width * columns + 1.6, (rows_inches + 0.35) * rows + 0.75))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=share == "both")
    panels = {}
    for title, axes in zip_longest(titles, grid.flat):
        if title is None:
            axes.remove()
            continue
        panels[title] = axes
        axes.set_title(title)
        if share == "both":
            axes.label_outer(remove_inner_ticks=False)
    return figure, panels


def _columns(panels: int) -> int:
    return panels if panels <= _ACROSS else 2 if panels == 4 else _ACROSS


def _acceptance_names(titles: list[str], columns: int) -> list[str | None]:
    """Panels row by row: survival of some cells, below it alpha of the same; None fills up the last rows."""
    names: list[str | None] = []
    for start in range(0, len(titles), columns):
        group = titles[start : start + columns]
        blanks = [None] * (columns - len(group))
        for kind in _KINDS:
            names += [*(f"{title}|{kind}" for title in group), *blanks]
    return names


def _nothing(sentence: str) -> Figure:
    """A figure that says why it is empty."""
    figure = Figure(figsize=(5, 1))
    figure.text(0.5, 0.5, sentence, ha="center", va="center")
    return figure


def _cell(frame: pd.DataFrame, title: str) -> pd.DataFrame:
    return frame[frame["title"] == title]


def _titles(frame: pd.DataFrame) -> list[str]:
    return [str(title) for title in frame["title"].unique()]


def _ordered_arms(summary: pd.DataFrame) -> list[str]:
    """Arms from fast to slow over all cells, the same in every panel and figure; the A/A pair last."""
    logs = np.log(summary["speedup_core"].astype(float))
    mean = logs.groupby(summary["arm"]).mean().fillna(-np.inf)
    return sorted(map(str, mean.index), key=lambda arm: (arm in _GREYS, -mean[arm], arm))


def _name_arms(panels: dict[str, Axes], summary: pd.DataFrame, arms: list[str]) -> None:
    """Arm names at the left edge, wrapped, with what a reader must know of each."""
    notes = {}
    for arm, own in summary.groupby("arm"):
        flags = [" (simulated)"] if own["simulated"].any() else []
        flags += [" (lossy)"] if not own["lossless"].all() else []
        notes[str(arm)] = "".join(flags)
    labels = ["\n".join(textwrap.wrap(arm + notes.get(arm, ""), 30, break_on_hyphens=False)) for arm in arms]
    for axes in panels.values():
        axes.set_yticks(range(len(arms)), labels)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)


def _edge_labels(panels: dict[str, Axes], x: str, y: str | None = None) -> None:
    """Label the lowest panel of each column, and the first of each row."""
    lowest: dict[int, Axes] = {}
    for axes in panels.values():
        place = axes.get_subplotspec()
        assert place is not None  # every panel comes from `_panels`
        lowest[place.colspan.start] = axes
        if y and place.is_first_col():
            axes.set_ylabel(y)
    for axes in lowest.values():
        axes.set_xlabel(x)
        axes.tick_params(labelbottom=True)


def _share_x_limits(panels: dict[str, Axes], *, include: float) -> None:
    """One x range for all panels, so that their distances compare."""
    lows, highs = zip(*(axes.dataLim.intervalx for axes in panels.values()), strict=True)
    low, high = min(*lows, include), max(*highs, include)
    margin = 0.05 * (high - low) or 0.05
    for axes in panels.values():
        axes.set_xlim(low - margin, high + margin)


def _arm_legend(figure: Figure, arms: list[str], style: Look) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=style.markers[arm], color=style.colours[arm], label=arm) for arm in arms
    ]
    longest = max(len(arm) for arm in arms)
    width = figure.get_figwidth()
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, int(width / (0.075 * longest + 0.5))))
