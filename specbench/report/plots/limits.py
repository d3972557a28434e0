"""How near each step is to what the machine allows."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from specbench.report.cells import TWIN
from specbench.report.metrics import Frames
from specbench.report.plots.panels import edge_labels, name_arms, of_title, ordered_arms, panels, titles_of
from specbench.report.plots.steps import PHASE_COLOURS
from specbench.report.plots.style import Look, Sketch
from specbench.report.tables import percent

_LIMITS = {"draft": "least time of the draft", "verify": "least time of the verification"}


def limits(frames: Frames, style: Look) -> Sketch | None:
    """A bar an arm: what the machine's limit explains of its step, by part, and the whole step behind it."""
    known = frames.summary[frames.summary["step_of_limit"].notna()]
    arms = [arm for arm in ordered_arms(frames.summary) if arm in set(known["arm"]) and arm != TWIN]
    if not arms:
        return None
    figure, found = panels(titles_of(known), height=0.42 * len(arms) + 0.5, width=3.4, share="y")
    for title, axes in found.items():
        _bars(axes, of_title(known, title).set_index("arm").reindex(arms), style)
    name_arms(found, frames.summary, arms)
    edge_labels([*found.values()], "ms per decode step")
    parts = [Patch(color=PHASE_COLOURS[phase], label=label) for phase, label in _LIMITS.items()]
    return Sketch(figure, [*parts, Line2D([], [], color=style.quiet, linewidth=1.2, label="measured step")])


def _bars(axes: Axes, cell: pd.DataFrame, style: Look) -> None:
    measured = 1000 * cell["step_s"].astype(float)
    left = pd.Series(0.0, index=cell.index)
    axes.barh(range(len(cell)), measured.fillna(0.0), height=0.62, facecolor="none", edgecolor=style.quiet, lw=1.2)
    for phase in _LIMITS:
        widths = cell[f"{phase}_limit_ms"].astype(float).fillna(0.0)
        axes.barh(range(len(cell)), widths, left=left, height=0.5, color=PHASE_COLOURS[phase])
        left = left + widths
    axes.set_xlim(0, 1.04 * float(max(measured.max(), left.max())))
    for y, reached in enumerate(cell["step_of_limit"]):
        text = percent(reached) if pd.notna(reached) else "not known"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.quiet)
