"""The command line: each command parses its arguments and calls one function; errors become exit codes here.

Nothing heavy is imported before a command runs, so that ``specbench --help`` answers at once.
"""

from typing import Annotated

import typer

from specbench import __version__
from specbench.cli import training
from specbench.cli.common import Commands
from specbench.cli.designing import design
from specbench.cli.experiment import check, run
from specbench.cli.generation import generate
from specbench.cli.inventory import doctor, list_all
from specbench.cli.latency import latency
from specbench.cli.losslessness import verify
from specbench.cli.results import compare, report, show
from specbench.cli.scoring import score
from specbench.cli.theory import predict
from specbench.cli.tracing import trace

__all__ = ["app"]

app = typer.Typer(
    name="specbench",
    cls=Commands,
    help="The lab bench for speculative decoding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


for command in (run, report, compare, show, check, verify, predict, latency, score, trace, design, generate, doctor):
    app.command()(command)
app.command(name="list")(list_all)
app.add_typer(training.app, name="train")
