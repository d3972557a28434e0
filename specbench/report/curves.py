"""Learning curves: what held-out text costs each model, over the tokens that it has seen."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from specbench.errors import ResultsError
from specbench.report import plots

METRICS = "metrics.parquet"
FIGURE = "learning_curves"


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
    """Draw held-out loss and next-token accuracy of every model into ``folder``, as PNG and SVG."""
    with plots.themed("light"):
        figure = _figure(points)
        paths = [folder / f"{FIGURE}.{kind}" for kind in ("png", "svg")]
        for path in paths:
            figure.savefig(path)
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
