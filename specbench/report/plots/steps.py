"""Why an arm is as fast as it is: a step's time, which positions are accepted, and what would break even."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from specbench.analysis.closed_forms import expected_tokens
from specbench.records.schema import PHASES
from specbench.report.cells import TWIN
from specbench.report.metrics import Frames
from specbench.report.phases import NAMES
from specbench.report.plots.panels import (
    edge_labels,
    name_arms,
    of_title,
    ordered_arms,
    panels,
    stacked,
    titles_of,
)
from specbench.report.plots.style import Look, Sketch
from specbench.report.tables import TIMES

MIN_REACHED = 20
"""Fewest steps behind a point of alpha; with fewer its error is above 10 percentage points."""

# Phases have colours of their own, none of them an arm's.
PHASE_COLOURS = {
    "draft": "#6a51a3", "verify": "#a9b0c0", "accept": "#7fbf7b", "update": "#e3b778", "host": "#c65353",
}  # fmt: skip
_ACCEPTANCE = {
    "survival": "P(this position\nor more accepted)",
    "alpha": "P(accepted | drafted,\nall before accepted)",
}
_MOST_LENGTHS = 9
"""Accepted lengths that are told apart; longer ones count as the last."""

_MOST_MAPS = 6
"""Panels of `alpha_against_latency`; those with most arms are kept."""

_LEVELS = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)


def step_time(frames: Frames, style: Look) -> Sketch | None:
    """Where a step's time goes: a bar per arm, from the phase pass, with its total and its tokens."""
    phases = frames.phases
    arms = [arm for arm in ordered_arms(frames.summary) if arm in set(phases["arm"]) and arm != TWIN]
    if not arms:
        return None
    figure, found = panels(titles_of(phases), height=0.42 * len(arms) + 0.5, width=3.4, share="y")
    for title, axes in found.items():
        cell = of_title(phases, title).set_index("arm").reindex(arms)
        left = np.zeros(len(arms))
        for phase in PHASES:
            widths = cell[f"{phase}_ms"].fillna(0.0).to_numpy(float)
            axes.barh(range(len(arms)), widths, left=left, height=0.62, color=PHASE_COLOURS[phase])
            left += widths
        _bar_totals(axes, cell, style)
    name_arms(found, frames.summary, arms)
    edge_labels([*found.values()], "ms per decode step")
    handles = [Patch(color=colour, label=NAMES.get(phase, phase)) for phase, colour in PHASE_COLOURS.items()]
    return Sketch(figure, handles)


def _bar_totals(axes: Axes, cell: pd.DataFrame, style: Look) -> None:
    axes.set_xlim(0, 1.04 * float(cell["step_ms"].max()))
    for y, (_, row) in enumerate(cell.iterrows()):
        timed = pd.notna(row["step_ms"])
        text = f"{row['step_ms']:.1f} ms, {row['tokens_per_step']:.2f} tok" if timed else "no steps"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.quiet)


def acceptance(frames: Frames, style: Look) -> Sketch | None:
    """Acceptance by draft position: how often a draft survives so far, and alpha at each position."""
    positions = frames.positions
    if positions.empty:
        return None
    figure, found = stacked(titles_of(positions), _ACCEPTANCE, height=1.9, width=3.4)
    deepest = int(positions["position"].max())
    for (title, kind), axes in found.items():
        for arm, own in of_title(positions, title).groupby("arm", sort=True):
            own = own[own["reached"] >= MIN_REACHED] if kind == "alpha" else own
            colour, marker = style.colours[str(arm)], style.markers[str(arm)]
            axes.plot(own["position"], own[kind].astype(float), color=colour, marker=marker, markersize=5, mew=0)
        axes.set(ylim=(0, 1.04), xlim=(0.6, deepest + 0.4))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    edge_labels([*found.values()], "draft position (tokens)")
    drawn = set(positions["arm"])
    return Sketch(figure, [style.handle(arm, line=True) for arm in ordered_arms(frames.summary) if arm in drawn])


def accepted_lengths(frames: Frames, style: Look) -> Sketch | None:
    """How many draft tokens a step keeps: shares of steps, a bar per arm."""
    lengths = frames.lengths
    arms = [arm for arm in ordered_arms(frames.summary) if arm in set(lengths["arm"])]
    if not arms:
        return None
    last = min(int(lengths["accepted"].max()), _MOST_LENGTHS - 1)
    longer = int(lengths["accepted"].max()) > last
    colours = [mpl.colors.to_hex(colour) for colour in mpl.colormaps["viridis"](np.linspace(0.12, 0.95, last + 1))]
    figure, found = panels(titles_of(lengths), height=0.36 * len(arms) + 0.5, width=3.4, share="y")
    for title, axes in found.items():
        cell = of_title(lengths, title)
        table = cell.assign(accepted=cell["accepted"].clip(upper=last).astype(int))
        shares = table.pivot_table(index="arm", columns="accepted", values="share", aggfunc="sum").reindex(arms)
        shares = shares.reindex(columns=range(last + 1)).fillna(0.0)
        left = np.zeros(len(arms))
        for count, colour in enumerate(colours):
            widths = 100 * shares[count].to_numpy(float)
            axes.barh(range(len(arms)), widths, left=left, height=0.66, color=colour, edgecolor=style.paper, lw=0.4)
            left += widths
        axes.set_xlim(0, 100)
    name_arms(found, frames.summary, arms)
    edge_labels([*found.values()], "share of steps (%)")
    names = [f"{count}{' or more' if longer and count == last else ''}" for count in range(last + 1)]
    names[0] = "0 draft tokens kept"
    return Sketch(figure, [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)])


def alpha_against_latency(frames: Frames, style: Look) -> Sketch | None:
    """Contours of the speed-up over acceptance and draft latency, from measured verify times; arms as points."""
    costs = frames.costs[frames.costs["alpha"].notna()]
    if costs.empty:
        return None
    groups = {(title, int(gamma)): own for title in titles_of(frames.costs) for gamma, own in _by_gamma(costs, title)}
    kept = sorted(groups, key=lambda key: -len(groups[key]))[:_MOST_MAPS]
    titles = {f"{title}, gamma {gamma}": (title, gamma) for title, gamma in groups if (title, gamma) in kept}
    figure, found = panels([*titles], height=2.6, width=3.3, share="both")
    reach = 1.3 * float(np.nanmax(costs[["draft_ms_per_token", "break_even_draft_ms_per_token"]].to_numpy(float)))
    for name, axes in found.items():
        _contours(axes, groups[titles[name]], titles[name][1], (reach, style))
        for row in groups[titles[name]].to_dict("records"):
            look: dict[str, Any] = {"color": style.colours[row["arm"]], "marker": style.markers[row["arm"]]}
            axes.plot(row["draft_ms_per_token"], row["alpha"], markersize=8, mec=style.paper, mew=0.7, zorder=5, **look)
        axes.set(xlim=(0, reach), ylim=(0, 1))
        axes.grid(visible=False)
    edge_labels([*found.values()], "draft latency (ms per draft token)", "alpha (acceptance of a draft token)")
    arms = [style.handle(arm) for arm in ordered_arms(frames.summary) if arm in set(costs["arm"])]
    return Sketch(figure, [*arms, Line2D([], [], color=style.ink, linewidth=2, label="break-even")])


def _by_gamma(costs: pd.DataFrame, title: str) -> Iterator[tuple[float, pd.DataFrame]]:
    yield from of_title(costs, title).groupby("gamma", sort=True)


def _contours(axes: Axes, arms: pd.DataFrame, gamma: int, shown: tuple[float, Look]) -> None:
    """Lines of equal speed-up of a chain of gamma; everything but draft and acceptance is as the arms measured it."""
    reach, style = shown
    latency_ms, alphas = np.linspace(0, reach, 80), np.linspace(0, 1, 80)
    tokens = np.array([expected_tokens(float(alpha), gamma) for alpha in alphas])
    step_ms = gamma * latency_ms + float(arms["rest_ms"].mean())
    speedups = tokens[:, None] * float(arms["autoregressive_ms"].mean()) / step_ms[None, :]
    axes.contourf(latency_ms, alphas, speedups, levels=[0, 1], colors=[style.quiet], alpha=0.12)
    lines = axes.contour(latency_ms, alphas, speedups, levels=_LEVELS, colors=style.quiet, linewidths=0.8)
    axes.clabel(lines, fmt=lambda level: f"{level:g}{TIMES}", fontsize=7.5)
    axes.contour(latency_ms, alphas, speedups, levels=[1.0], colors=style.ink, linewidths=2)
