"""What every command shares: errors as exit codes, the arguments that several take, and where output goes."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from specbench.errors import SpecbenchError

if TYPE_CHECKING:
    from specbench.config import Experiment
    from specbench.grid import Plan

NOTHING_RAN, FAILED_TRIALS, INTERRUPTED = 2, 5, 130

File = Annotated[Path, typer.Argument(help="An experiment, like experiments/quickstart.yaml.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option, like decode.batch_size=8. Repeatable."),
]


class Commands(TyperGroup):
    """The commands, with every fault that a user can cause turned into one clear line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SpecbenchError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on where this one stopped", INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone: Typer ends such a command quietly
                raise
            place = f"{error.filename}: " if error.filename else ""
            fail(place + (error.strerror or str(error)), SpecbenchError.exit_code)


def plan_of(file: Path, overrides: list[str] | None) -> "tuple[Experiment, Plan]":
    """The experiment in a file, checked, and its plan."""
    from specbench.config import open_document
    from specbench.grid import read_plan
    from specbench.registry import options_class

    return read_plan(open_document(file, overrides or []), options_class)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line on stderr for each line of the message."""
    for line in message.splitlines() or ["unknown error"]:
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(code)


def count(number: int, noun: str) -> str:
    """``1 cell``, ``1,200 cells``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
