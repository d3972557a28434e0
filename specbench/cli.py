"""The command line: each command parses its arguments and calls one function; errors become exit codes here.

Nothing heavy is imported before a command runs, so that ``specbench --help`` answers at once.
"""

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from specbench import __version__
from specbench.errors import ConfigError, ContractError, NotLosslessError, ResultsError, SpecbenchError, did_you_mean

if TYPE_CHECKING:
    from specbench.config import Experiment
    from specbench.grid import Plan

NOTHING_RAN, FAILED_TRIALS, INTERRUPTED = 2, 5, 130


class _Commands(TyperGroup):
    """The commands, with every fault that a user can cause turned into one clear line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpecbenchError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; the same command goes on where this one stopped", INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone: Typer ends such a command quietly
                raise
            place = f"{error.filename}: " if error.filename else ""
            _fail(place + (error.strerror or str(error)), SpecbenchError.exit_code)


app = typer.Typer(
    name="specbench",
    cls=_Commands,
    help="The lab bench for speculative decoding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="An experiment, like experiments/quickstart.yaml.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option, like decode.batch_size=8. Repeatable."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specbench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Run the same grid on the embedded family with a few short prompts."),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only this many prompts.")] = None,
    override: Set = None,
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("results"),
) -> None:
    """Run an experiment; one that was cut short goes on where it stopped."""
    experiment, plan = _plan(file, override)
    if rehearse:
        from specbench.grid import rehearsal

        plan = rehearsal(plan)

    from rich.console import Console

    from specbench.bench import runner

    console = Console()
    if dry_run:
        runner.dry_run(plan, limit=limit, rehearse=rehearse, console=console)
        return
    summary = runner.run(
        plan,
        results=results,
        limit=limit,
        rehearse=rehearse,
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
        _fail(
            f"nothing ran: {summary.unsupported} trials are unsupported here; {summary.folder} says why",
            NOTHING_RAN,
        )


@app.command()
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


@app.command()
def check(file: File, override: Set = None) -> None:
    """Check an experiment file, its methods and their options, without a GPU and without loading a model."""
    _, plan = _plan(file, override)
    typer.echo(f"ok: {_count(len(plan.cells), 'cell')}, {_count(len(list(plan.trials)), 'trial')}")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A recipe of the embedded family, like pico.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder of the finished models.", show_default="the zoo")] = None,
    work: Annotated[Path, typer.Option(help="Folder of checkpoints and curves.")] = Path("results/training"),
    dtype: Annotated[str, typer.Option(help="Precision of the passes: float32 or bfloat16.")] = "bfloat16",
) -> None:
    """Train one model of the embedded family; a run that was cut short goes on from its last checkpoint."""
    dtypes = ("float32", "bfloat16")
    if dtype not in dtypes:
        raise ConfigError(f"--dtype: unknown precision {dtype!r}. {did_you_mean(dtype, dtypes)}")

    import torch

    from specbench.models.zoo import ZOO
    from specbench.train.family import train_member

    folder = train_member(name, out or ZOO, work, dtype=getattr(torch, dtype), report=_print_point)
    typer.echo(f"wrote {folder}")


@app.command(name="list")
def list_all() -> None:
    """List the methods, the embedded models, the prompt sources and the experiments."""
    from specbench import registry
    from specbench.config import PROMPT_SOURCES
    from specbench.models.zoo import ZOO
    from specbench.train.recipes import RECIPES

    models = {
        name: f"{recipe.role}, {recipe.shape.layers} layers of width {recipe.shape.hidden}"
        + ("" if (ZOO / name).is_dir() else f"; not built yet: specbench train {name}")
        for name, recipe in RECIPES.items()
    }
    _print_section("methods", dict.fromkeys(registry.names(), ""))
    _print_section("embedded models", models)
    _print_section(
        "prompt sources",
        {
            **PROMPT_SOURCES,
            "FILE.jsonl": "a line each, with the key prompt or turns",
            "FILE.txt": "a prompt a line",
            "OWNER/NAME": "a hub data set",
        },
    )
    _print_section("experiments", _experiments())


def _plan(file: Path, overrides: list[str] | None) -> "tuple[Experiment, Plan]":
    from specbench.config import open_document
    from specbench.grid import read_plan
    from specbench.registry import options_class

    return read_plan(open_document(file, overrides or []), options_class)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines() or ["unknown error"]:
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(code)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _print_point(recipe: Any, point: Any) -> None:
    held_out = "" if point.held_out_loss is None else f", held-out loss {point.held_out_loss:.3f}"
    steps = recipe.schedule.steps
    typer.echo(f"{recipe.name} {point.step + 1}/{steps}: loss {point.loss:.3f}{held_out}, {point.elapsed_s:.0f} s")


def _print_section(title: str, entries: dict[str, str]) -> None:
    typer.echo(f"{title}:")
    width = max(map(len, entries), default=0)
    for name, words in entries.items():
        typer.echo(f"  {name:<{width}}  {words}".rstrip())


def _experiments() -> dict[str, str]:
    """The experiments of the checkout, each with the claim that its first comment states."""
    folder = Path(__file__).parent.parent / "experiments"
    return {path.name: _claim(path) for path in sorted(folder.glob("*.yaml"))}


def _claim(path: Path) -> str:
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
