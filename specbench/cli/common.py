"""What every command shares: errors as exit codes, the arguments that several take, and where output goes."""

import errno
import math
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from specbench.errors import ConfigError, ResultsError, SpecbenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console

    from specbench.config import Experiment, MachineSettings
    from specbench.grid import Plan

NOTHING_RAN, FAILED_TRIALS, INTERRUPTED = 2, 5, 130

File = Annotated[Path, typer.Argument(help="An experiment, like experiments/quickstart.yaml.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option, like decode.batch_size=8. Repeatable."),
]
Folder = Annotated[
    Path, typer.Argument(help="The results folder of a run, like results/quickstart/MACHINE.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


class Commands(TyperGroup):
    """The commands, with every fault that a user can cause turned into one clear line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _one_speaks():
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


@contextmanager
def _one_speaks() -> "Iterator[None]":
    """Of several processes that ``torchrun`` has started, only the first prints."""
    from specbench.models.ranks import leads

    if leads():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def plan_of(file: Path, overrides: list[str] | None) -> "tuple[Experiment, Plan]":
    """The experiment in a file, checked, and its plan."""
    from specbench.config import open_document
    from specbench.grid import read_plan
    from specbench.registry import options_class

    return read_plan(open_document(file, overrides or []), options_class)


def plans_of(file: Path, overrides: list[str] | None) -> "list[tuple[Experiment, Plan]]":
    """The experiments of a file that is one or lists some, each checked, with the faults of all reported together."""
    from specbench.config import open_documents
    from specbench.grid import read_plan
    from specbench.registry import options_class

    found, faults = [], []
    for document in open_documents(file, overrides or []):
        try:
            found.append(read_plan(document, options_class))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def plan_of_values(values: dict[str, Any], overrides: list[str] | None) -> "Plan":
    """The plan of an experiment that the options of a command line stand for."""
    from specbench.document import Document, override
    from specbench.grid import read_plan
    from specbench.registry import options_class

    document = Document("command line", values)
    for assignment in overrides or []:
        override(document, assignment)
    return read_plan(document, options_class)[1]


def method_options(assignments: "Iterable[str]", flag: str) -> dict[str, Any]:
    """The options of a method from the command line: ``gamma=4``, or ``stop.kind=fixed`` for one inside another.

    Args:
        assignments: Each one KEY=VALUE, the value in YAML.
        flag: The option of the command line that gave them.
    """
    from specbench.document import Document, override

    document = Document("command line")
    for assignment in assignments:
        if "=" not in assignment:
            raise ConfigError(f"{flag} {assignment}: write it as KEY=VALUE, like gamma=4")
        override(document, assignment)
    return document.values


def machine_settings(device: str, dtype: str, threads: int = 1) -> "MachineSettings":
    """What ``--device``, ``--dtype`` and ``--threads`` say.

    Raises:
        ConfigError: There is no such device or precision.
    """
    from pydantic import ValidationError

    from specbench.config import MachineSettings

    try:
        return MachineSettings.model_validate({"device": device, "dtype": dtype, "threads": threads})
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"--{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}") from None


def open_console() -> "Console":
    """Where tables go. What is piped has no width of its own, and must not be cut to that of a small terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


@contextmanager
def announced() -> "Iterator[Callable[[str], None]]":
    """A line that says what is on, where somebody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))


def run_folder(folder: Path) -> Path:
    """The one run folder at or below a folder.

    Raises:
        ResultsError: There is none, or there are several; the message names them.
    """
    from specbench.records.store import run_folders

    return _only(folder, run_folders)


def results_folder(folder: Path) -> Path:
    """The one folder of results at or below a folder, whether or not a run is in it.

    Raises:
        ResultsError: As for ``run_folder``.
    """
    from specbench.report.cells import folders

    return _only(folder, folders)


def _only(folder: Path, folders_below: "Callable[[Path], Sequence[Path]]") -> Path:
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder of results")
    found = folders_below(folder)
    if not found:
        raise ResultsError(f"{folder}: no run in it. `specbench run EXPERIMENT.yaml` makes one.")
    if len(found) > 1:
        raise ResultsError(f"{folder}: there are several runs in it; name one: {', '.join(map(str, found))}")
    return found[0]


def text_of(target: str) -> "Callable[[Sequence[int]], str]":
    """What turns a target's ids into text; where its tokenizer is not at hand, the ids themselves."""
    from specbench.models.source import locate

    try:
        tokenizer = locate(target).tokenizer
    except SpecbenchError:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def print_json(value: object) -> None:
    """Indented JSON; what is not a number there (NaN) is null."""
    import json

    typer.echo(json.dumps(_without_nan(value), indent=2, ensure_ascii=False))


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line on stderr for each line of the message."""
    say_error(message)
    raise typer.Exit(code)


def say_error(message: str) -> None:
    """One line on stderr for each line of the message."""
    for line in message.splitlines() or ["unknown error"]:
        typer.echo(f"error: {line}", err=True)


def count(number: int, noun: str) -> str:
    """``1 cell``, ``1,200 cells``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
