"""Commands on folders of results."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from specbench.errors import ResultsError


def report(
    folder: Annotated[Path, typer.Argument(help="A results folder, or one that holds several.", show_default=False)],
) -> None:
    """Draw the figures, the tables and the page of a results folder."""
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder of results")

    from rich.console import Console

    from specbench.report.build import build_report

    # What is piped into a file has no width of its own, and must not be cut to that of a small terminal.
    build_report(folder, Console() if sys.stdout.isatty() else Console(width=120))
