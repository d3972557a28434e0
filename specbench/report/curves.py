"""Learning curves: what held-out text costs each model, over the tokens that it has seen."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specbench.errors import ResultsError
from specbench.report import plots

METRICS = "metrics.parquet"
FIGURE, BY_DEPTH = "learning_curves", "accuracy_by_depth"


def trainings(folder: Path) -> dict[str, pd.DataFrame]:
    """The points of every training at or below a folder, by the model's name; empty where there is none.

    Raises:
        ResultsError: A file cannot be read.
    """
    found = {}
    for path in sorted(folder.rglob(METRICS)):
        try:
            found[path.parent.name] = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path}: not a table of a training: {error}") from error
    return found


def draw_curves(points: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Draw held-out loss and next-token accuracy of every model into ``folder``, as PNG and SVG.

    Of those that look several tokens ahead, how often each depth is right stands in a figure of its own.
    """
    ahead = {name: table for name, table in points.items() if "held_out_top1_1" in table}
    paths = []
    with plots.themed("light"):
        figures = {FIGURE: _figure(points)} | ({BY_DEPTH: _by_depth(ahead)} if ahead else {})
        for stem, figure in figures.items():
            for kind in ("png", "svg"):
                paths.append(folder / f"{stem}.{kind}")
                figure.savefig(paths[-1])
    return paths


def _figure(points: dict[str, pd.DataFrame]) -> Figure:
    style = plots.look(list(points))
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for name, table in points.items():
        measured = table.dropna(subset=["held_out_loss"])
        look = {"color": style.colours[name], "marker": style.markers[name], "markersize": 3}
        tokens = measured["tokens_seen"] / 1e6
        losses.plot(tokens, measured["held_out_loss"], label=name, **look)
        accuracies.plot(tokens, 100 * measured["held_out_accuracy"], **look)
    losses.set_ylabel("held-out loss (nats per token)")
    accuracies.set_ylabel("held-out next token right (%)")
    for axes in (losses, accuracies):
        axes.set_xlabel("tokens seen (million)")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _by_depth(points: dict[str, pd.DataFrame]) -> Figure:
    """A panel a training: how often the first guess is right at each depth, and dashed, one of the first five."""
    figure = Figure(figsize=(4.2 * min(3, len(points)), 3.2 * -(-len(points) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(points) // 3), min(3, len(points)), sharey=True, squeeze=False).flat
    for (name, table), axes in zip(points.items(), panels, strict=False):
        measured = table.dropna(subset=["held_out_loss"])
        depths = sum(column.startswith("held_out_top1_") for column in table)
        for depth in range(1, depths + 1):
            colour = f"C{depth - 1}"
            for rank, line in ((1, "-"), (5, "--")):
                right = 100 * measured[f"held_out_top{rank}_{depth}"]
                label = f"{depth} ahead" if rank == 1 else None
                axes.plot(
                    measured["tokens_seen"] / 1e6, right, line, color=colour, label=label, marker="o", markersize=3
                )
        axes.set_title(name)
        axes.set_xlabel("tokens seen (million)")
    for axes in panels:
        axes.set_axis_off()
    first = figure.axes[0]
    first.set_ylabel("held-out guess right (%)")
    lines = [*first.get_legend_handles_labels()[0], Line2D([], [], linestyle="--", color="0.4", label="among five")]
    figure.legend(handles=lines, loc="outside lower center", ncols=6)
    return figure
