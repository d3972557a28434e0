"""From run folders to everything that is shown of them: the page, the figures, the tables, the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from specbench.errors import ResultsError
from specbench.report import composed_arms, plots, tables
from specbench.report.cautions import warnings
from specbench.report.cells import Results, folders, load
from specbench.report.curves import draw_curves, trainings
from specbench.report.findings import findings
from specbench.report.lessons import lessons
from specbench.report.metrics import Frames
from specbench.report.metrics import frames as frames_of
from specbench.report.page import facts, page
from specbench.report.painters import Painters, painters


@dataclass(frozen=True)
class Report:
    """What a run folder's report was made from, and where its page lies."""

    results: Results
    frames: Frames
    path: Path


def build_report(folder: Path, console: Console) -> list[Report]:
    """Draw the report of every folder of results at or below a folder, beside its data, and print its summary.

    Traces, latencies and scores have a report as well, with or without a run beside them. Trainings found there give
    one figure of their learning curves, in the folder itself.

    Args:
        folder: A run folder, or any folder above some: ``results/``, ``results/NAME/``, ``results/training/``.
        console: Where the summary goes.

    Returns:
        One report a run; none for trainings.

    Raises:
        ResultsError: No run lies there, or one cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder. Give the results folder of a run, or one above it.")
    found, curves = folders(folder), trainings(folder)
    for path in draw_curves(curves, folder) if curves else []:
        console.print(f"Learning curves: {path}", soft_wrap=True, markup=False, highlight=False)
    if not found and not curves:
        raise ResultsError(f"{folder}: no run in it. `specbench run EXPERIMENT.yaml` makes one.")
    if not found:
        return []
    with painters() as hired:
        return [_report(run, hired, console) for run in found]


def _report(folder: Path, hired: Painters, console: Console) -> Report:
    results = load(folder)
    frames = frames_of(results)
    drawn = hired.draw(frames, facts(results), _emptied(folder / "figures"))
    cautions = warnings(results, frames)
    _print_summary(results, frames, cautions, console)
    _write_tables(frames, folder / "tables")
    images = {name: plots.adaptive(svg) for name, svg in drawn if svg is not None}
    path = folder / "report.html"
    path.write_text(page(results, frames, images, cautions), encoding="utf-8")
    console.print(f"Report: {path}", soft_wrap=True, markup=False, highlight=False)
    return Report(results, frames, path)


def _print_summary(results: Results, frames: Frames, cautions: list[str], console: Console) -> None:
    console.print(f"\n{results.experiment} on {results.machine}", style="bold", markup=False, highlight=False)
    for table, (_, sentences) in zip(
        tables.terminal(frames.summary, console.width), findings(results, frames), strict=True
    ):
        console.print()
        console.print(table)
        console.print(" ".join(sentences), markup=False, highlight=False)
    if len(frames.composed_arms):
        console.print()
        console.print(composed_arms.terminal(frames.composed_arms))
    for sentence in lessons(frames):
        console.print(sentence, markup=False, highlight=False)
    for sentence in cautions:
        console.print(f"! {sentence}", style="yellow", markup=False, highlight=False)


def _write_tables(frames: Frames, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    texts = (
        {}
        if frames.summary.empty
        else {
            "summary.md": tables.markdown(frames.summary),
            "details.md": tables.markdown(frames.summary, tables.MORE_COLUMNS),
            "summary.csv": tables.csv(frames.summary),
            "along.csv": tables.csv(frames.along),
            "costs.csv": tables.csv(frames.costs),
            "step_time.csv": tables.csv(frames.phases),
            "acceptance.csv": tables.csv(frames.positions),
            "accepted_lengths.csv": tables.csv(frames.lengths),
            "batches.csv": tables.csv(frames.batches),
            "loops.csv": tables.csv(frames.loops),
        }
    )
    some = {
        "beams.csv": frames.beams, "rules.csv": frames.rules, "published.csv": frames.published,
        "drafts.csv": frames.drafts, "best_drafts.csv": frames.best_drafts, "depths.csv": frames.depths,
        "latency_axis.csv": frames.latency_axis,
        "forecasts.csv": frames.forecasts, "changes.csv": frames.changes, "composed.csv": frames.composed,
        "composed_arms.csv": frames.composed_arms,
        "left_out.csv": frames.left_out, "models.csv": frames.models, "forwards.csv": frames.forwards,
        "forward_slopes.csv": frames.forward_slopes, "skill.csv": frames.skill,
        "correlations.csv": frames.correlations, "telemetry.csv": frames.telemetry,
    }  # fmt: skip
    texts |= {name: tables.csv(frame) for name, frame in some.items() if len(frame)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _emptied(folder: Path) -> Path:
    """The folder of the figures, without those of an earlier report, whose data had an axis that this may lack."""
    folder.mkdir(exist_ok=True)
    for stale in (*folder.glob("*.png"), *folder.glob("*.svg")):
        if stale.stem in plots.FIGURES:
            stale.unlink()
    return folder
