"""Commands on an experiment file, or on one that lists some: run them, check them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import FAILED_TRIALS, NOTHING_RAN, File, Set, count, plans_of, say_error
from specbench.errors import ContractError, NotLosslessError, SpecbenchError

if TYPE_CHECKING:
    from specbench.bench.runner import RunSummary
    from specbench.config import Experiment
    from specbench.grid import Plan

_BY_GRAVITY = (0, NOTHING_RAN, FAILED_TRIALS, SpecbenchError.exit_code, NotLosslessError.exit_code,
               ContractError.exit_code)  # fmt: skip
"""Exit codes, the worst last: a list of experiments ends with the worst of its own."""


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
    """Run an experiment, or all that a file lists; what was cut short goes on where it stopped."""
    plans = plans_of(file, override)

    from rich.console import Console

    from specbench.bench import runner
    from specbench.models.ranks import leave
    from specbench.rehearsal import rehearsal

    console = Console()

    def run_one(experiment: "Experiment", plan: "Plan") -> int:
        if rehearse:
            plan = rehearsal(plan)
        if dry_run:
            runner.dry_run(plan, results=results, limit=limit, rehearse=rehearse, console=console)
            return 0
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
        return _exit_code(summary)

    code = run_one(*plans[0]) if len(plans) == 1 else _one_after_the_other(plans, run_one)
    leave()
    if code:
        raise typer.Exit(code)


def _exit_code(summary: "RunSummary") -> int:
    """How a run ended; where nothing ran, say so."""
    studies = summary.studies
    if summary.broke_contract:
        return ContractError.exit_code
    if summary.wrong:
        return NotLosslessError.exit_code
    if summary.failed or studies.failed:
        return FAILED_TRIALS
    if summary.finished or summary.skipped or studies.made.total():
        return 0
    unsupported = " and ".join(
        f"{number} {noun}" for number, noun in ((summary.unsupported, "trials"), (studies.unsupported, "studies"))
        if number
    )  # fmt: skip
    say_error(f"nothing ran: {unsupported or 'no trials'} are unsupported here; {summary.folder} says why")
    return NOTHING_RAN


def _one_after_the_other(plans: "list[tuple[Experiment, Plan]]", run_one: "Callable[[Experiment, Plan], int]") -> int:
    """Run every experiment, whatever becomes of the others; the worst of their exit codes."""
    codes: dict[str, int] = {}
    for index, (experiment, plan) in enumerate(plans, start=1):
        typer.secho(f"\n{experiment.name}: {index} of {len(plans)}", bold=True)
        try:
            codes[experiment.name] = run_one(experiment, plan)
        except SpecbenchError as error:
            say_error(str(error))
            codes[experiment.name] = error.exit_code
    troubled = [f"{name} ({code})" for name, code in codes.items() if code]
    typer.echo(f"\n{len(codes) - len(troubled)} of {count(len(codes), 'experiment')} ended well")
    if troubled:
        typer.echo(f"with an exit code of their own: {', '.join(troubled)}")
    return max(codes.values(), key=_BY_GRAVITY.index)


def check(file: File, override: Set = None) -> None:
    """Check an experiment file, its methods and their options, without a GPU and without loading a model."""
    plans = plans_of(file, override)
    for experiment, plan in plans:
        name = f"{experiment.name}: " if len(plans) > 1 else ""
        typer.echo(f"{name}ok: {', '.join(_contents(plan))}")


def _contents(plan: "Plan") -> list[str]:
    """``2 cells``, ``14 trials``, and what is asked for beside them."""
    latencies, scores = plan.latencies, plan.scores
    points = 0 if latencies is None else len(latencies.models) * latencies.points
    beside = {
        "composed arm": sum(len(cell.composed) for cell in plan.cells),
        "trace": plan.traces,
        "forward time": points * len(plan.studies.machines),
        "score": 0 if scores is None else len(scores.models) * len(scores.data) * len(plan.studies.machines),
    }
    trials = [count(len(plan.cells), "cell"), count(len(list(plan.trials)), "trial")]
    return [*(trials if plan.cells else []), *(count(number, noun) for noun, number in beside.items() if number)]
