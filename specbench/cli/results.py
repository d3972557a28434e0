"""Commands on folders of results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import Folder, Json, fail, open_console, print_json, results_folder, run_folder, text_of
from specbench.errors import ResultsError

if TYPE_CHECKING:
    from specbench.report.compare import Comparison


def report(
    folder: Annotated[Path, typer.Argument(help="A results folder, or one that holds several.", show_default=False)],
    readme: Annotated[
        Path | None,
        typer.Option(
            metavar="README.md",
            show_default=False,
            help="Also fill the figure and the table of this README, from one run.",
        ),
    ] = None,
) -> None:
    """Draw the figures, the tables and the page of a results folder."""
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder of results")

    from specbench.report.build import build_report

    reports = build_report(folder, open_console())
    if readme is not None:
        from specbench.report.readme import fill

        if len(reports) > 1:
            raise ResultsError(
                f"{folder}: holds {len(reports)} runs; give the folder of the one that {readme} is to show"
            )
        for path in fill(readme, reports[0]):
            typer.echo(f"wrote {path}")


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Results before a change.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B", help="Results after it.", show_default=False)],
    fail_if_slower: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            show_default=False,
            help="Exit with 1 where an arm of B is slower by more than this share, unless that is not resolved.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set two runs beside one another: how much faster each arm became, with its interval.

    Example: specbench compare results-before/quickstart results/quickstart --fail-if-slower 0.05
    """
    from specbench.report import compare as comparing

    found = comparing.compare(run_folder(before), run_folder(after))
    if as_json:
        print_json(
            {"arms": [comparing.as_data(change) for change in found.changes], "only_a": found.only_a,
             "only_b": found.only_b}
        )  # fmt: skip
    else:
        _print_comparison(found)
    if fail_if_slower is not None:
        slower = [change for change in found.changes if change.is_slower(fail_if_slower)]
        if slower:
            names = "; ".join(f"{change.arm} ({change.cell}): {change.found.ratio:.3f}" for change in slower)
            fail(f"slower by more than {100 * fail_if_slower:g} %: {names}", ResultsError.exit_code)


def _print_comparison(found: "Comparison") -> None:
    from specbench.analysis.intervals import estimand
    from specbench.report.compare import tables

    console = open_console()
    for table in tables(found):
        console.print(table)
    processes = min(change.found.processes for change in found.changes)
    console.print(f"Intervals: {estimand(processes)}.", style="dim", highlight=False)
    for name, missing in (("A", found.only_a), ("B", found.only_b)):
        for arm in missing:
            console.print(f"only in {name}: {arm}", style="dim", highlight=False, markup=False)


def show(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option(help="The prompt's id.", show_default="the first")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm. Repeatable.", show_default="all")] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="List the prompts' ids instead.")] = False,
) -> None:
    """Show the texts of a prompt side by side, where they first differ from the target's own, and what else is there.

    Example: specbench show results/quickstart/MACHINE --arm "draft_model gamma=4"
    """
    from specbench.records.store import Store
    from specbench.report.contents import contents
    from specbench.report.side_by_side import chosen, tables

    store = Store(results_folder(folder))
    console = open_console()
    if not store.has("requests") and not prompts:
        for line in contents(store):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    requests = store.read("requests")
    if prompts:
        for name in dict.fromkeys(requests["prompt_id"]):
            typer.echo(name)
        return
    rows = chosen(requests, prompt, arm or [])
    for target, own in rows.groupby("target", sort=False):
        for table in tables(own, text_of(str(target)), coloured=console.is_terminal and not console.no_color):
            console.print(table)
    for line in contents(store):
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
