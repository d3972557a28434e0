"""From run folders to everything that is shown of them: the page, the figures, the tables, the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from specbench.errors import ResultsError
from specbench.records.store import run_folders
from specbench.report import plots, tables
from specbench.report.metrics import Frames, Results, load
from specbench.report.metrics import frames as frames_of
from specbench.report.page import page
from specbench.report.words import findings, warnings


def build_report(folder: Path, console: Console) -> list[Path]:
    """Draw the report of every run at or below a folder, beside its data, and print its summary.

    Args:
        folder: A run folder, or any folder above some: ``results/``, ``results/NAME/``.
        console: Where the summary goes.

    Returns:
        The ``report.html`` of each run.

    Raises:
        ResultsError: No run lies there, or one cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder. Give the results folder of a run, or one above it.")
    found = run_folders(folder)
    if not found:
        raise ResultsError(f"{folder}: no run in it. `specbench run EXPERIMENT.yaml` makes one.")
    return [_report(run, console) for run in found]


def _report(folder: Path, console: Console) -> Path:
    results = load(folder)
    frames = frames_of(results)
    _print_summary(results, frames, console)
    _write_tables(frames, folder / "tables")
    images = _write_figures(frames, folder / "figures")
    path = folder / "report.html"
    path.write_text(page(results, frames, images), encoding="utf-8")
    console.print(f"Report: {path}", soft_wrap=True, markup=False, highlight=False)
    return path


def _print_summary(results: Results, frames: Frames, console: Console) -> None:
    console.print(f"\n{results.experiment} on {results.machine}", style="bold", markup=False, highlight=False)
    for table, (_, sentences) in zip(
        tables.terminal(frames.summary, console.width), findings(results, frames), strict=True
    ):
        console.print()
        console.print(table)
        console.print(" ".join(sentences), markup=False, highlight=False)
    for sentence in warnings(results, frames):
        console.print(f"! {sentence}", style="yellow", markup=False, highlight=False)


def _write_tables(frames: Frames, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    texts = {
        "summary.md": tables.markdown(frames.summary),
        "details.md": tables.markdown(frames.summary, tables.MORE_COLUMNS),
        "summary.csv": tables.csv(frames.summary),
        "step_time.csv": tables.csv(frames.phases),
        "acceptance.csv": tables.csv(frames.positions),
        "batches.csv": tables.csv(frames.batches),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_figures(frames: Frames, folder: Path) -> dict[str, dict[str, bytes]]:
    """Write each figure as PNG and SVG in the light theme, and return the SVGs of both themes."""
    folder.mkdir(exist_ok=True)
    images: dict[str, dict[str, bytes]] = {name: {} for name in plots.FIGURES}
    arms = [str(arm) for arm in frames.summary["arm"].unique()]
    for theme in plots.THEMES:
        with plots.themed(theme):
            for name, draw in plots.FIGURES.items():
                figure = draw(frames, plots.look(arms, theme))
                sink = io.BytesIO()
                figure.savefig(sink, format="svg", metadata={"Date": None})
                images[name][theme] = sink.getvalue()
                if theme == "light":
                    (folder / f"{name}.svg").write_bytes(images[name][theme])
                    figure.savefig(folder / f"{name}.png")
    return images
