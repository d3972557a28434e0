"""Lands what a whole run of several experiments left under ``results/published``, named by device and day.

    python -m specbench.report.publish results/gpu --to results/published --part gpu_texts --part gpu_methods

Each table becomes one file, beside it the figures as SVG and the tables of the report; ``specbench report`` draws the
page from them again. What does not belong to one commit, one device and a whole run is refused, with all that is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from specbench.errors import ResultsError, SpecbenchError
from specbench.records.store import Store
from specbench.report.cells import Results, folders, load, missing_blocks

_BESIDE = ("overhead.json", "kernels.json", "tests.xml")
"""Files of a suite that belong to none of its experiments."""


def publish(source: Path, into: Path, parts: Sequence[str] = ()) -> Path:
    """Copy results and what their reports show into a new folder, ``DEVICE-YEAR-MONTH-DAY``.

    Args:
        source: Holds the folders of experiments, and their reports.
        into: Where the new folder is made.
        parts: Experiments that must be there; what else there is, is copied as well.

    Returns:
        The new folder.

    Raises:
        ResultsError: One line for each reason why these results must not be published, or nothing to copy, or a folder
            of that name.
    """
    runs = [load(folder) for folder in folders(source)]
    if not runs:
        raise ResultsError(f"{source}: no run in it")
    faults = [*_faults(runs, parts)]
    if faults:
        raise ResultsError("\n".join(faults))
    target = into / f"{runs[0].machine}-{max(run.runs['started_at'].max() for run in runs)[:10]}"
    if target.exists():
        raise ResultsError(f"{target}: is there already")
    for run in runs:
        _copy(run.folder, target / run.experiment / run.machine)
    for name in _BESIDE:
        if (source / name).exists():
            shutil.copy2(source / name, target / name)
    return target


def _faults(runs: Sequence[Results], parts: Sequence[str]) -> Iterator[str]:
    """Why the runs are no whole run of one commit on one device, in words."""
    known = {run.experiment for run in runs}
    yield from (f"{part}: nothing is there of it" for part in parts if part not in known)
    for name, values in {
        "machine": {run.machine for run in runs},
        "git_sha": {sha for run in runs for sha in run.runs["git_sha"]},
    }.items():
        if len(values) > 1:
            yield f"{name} differs: {', '.join(sorted(map(str, values)))}"
    for run in runs:
        yield from (f"{run.experiment}: {fault}" for fault in _faults_of(run))


def _faults_of(run: Results) -> Iterator[str]:
    if run.experiment.endswith("-rehearsal"):
        yield "is a rehearsal"
    if run.runs["git_sha"].isna().any():
        yield "nothing tells from which commit it is"
    if True in set(run.runs["git_dirty"]):
        yield "the code had changes that were not committed"
    if len(run.requests) and (missing := missing_blocks(run)):
        yield f"blocks are missing: {missing}; the same command goes on with them"
    if not (run.folder / "report.html").exists():
        yield "has no report; specbench report draws it"


def _copy(folder: Path, target: Path) -> None:
    """The tables as one file each, and what the report shows; SVG alone, for a PNG of it is as large again."""
    Store(folder).copy_whole(target)
    shutil.copytree(folder / "tables", target / "tables")
    shutil.copytree(folder / "figures", target / "figures", ignore=shutil.ignore_patterns("*.png"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish, and say where and how large; exit with one line for each reason against it."""
    parser = argparse.ArgumentParser(prog="python -m specbench.report.publish", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--part", action="append", default=[], help="an experiment that must be there")
    asked = parser.parse_args(arguments)
    try:
        target = publish(asked.source, asked.to, asked.part)
    except SpecbenchError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")  # noqa: T201  (a command)


if __name__ == "__main__":
    main()
