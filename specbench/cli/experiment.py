"""Commands on an experiment file: run it, check it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import FAILED_TRIALS, NOTHING_RAN, File, Set, count, fail, plan_of
from specbench.errors import ContractError, NotLosslessError


def run(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Run the same grid on the embedded family with a few short prompts."),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only this many prompts.")] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Run blocks again in which an arm failed; unsupported ones are left."),
    ] = False,
    override: Set = None,
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("results"),
) -> None:
    """Run an experiment; one that was cut short goes on where it stopped."""
    experiment, plan = plan_of(file, override)
    if rehearse:
        from specbench.grid import rehearsal

        plan = rehearsal(plan)

    from rich.console import Console

    from specbench.bench import runner

    console = Console()
    if dry_run:
        runner.dry_run(plan, results=results, limit=limit, rehearse=rehearse, console=console)
        return
    summary = runner.run(
        plan,
        results=results,
        limit=limit,
        rehearse=rehearse,
        retry_failed=retry_failed,
        argv=["specbench", *sys.argv[1:]],
        experiment_yaml=experiment.yaml,
        console=console,
    )
    if summary.broke_contract:
        raise typer.Exit(ContractError.exit_code)
    if summary.wrong:
        raise typer.Exit(NotLosslessError.exit_code)
    if summary.failed:
        raise typer.Exit(FAILED_TRIALS)
    if not summary.finished and not summary.skipped:
        fail(
            f"nothing ran: {summary.unsupported} trials are unsupported here; {summary.folder} says why",
            NOTHING_RAN,
        )


def check(file: File, override: Set = None) -> None:
    """Check an experiment file, its methods and their options, without a GPU and without loading a model."""
    _, plan = plan_of(file, override)
    typer.echo(f"ok: {count(len(plan.cells), 'cell')}, {count(len(list(plan.trials)), 'trial')}")
