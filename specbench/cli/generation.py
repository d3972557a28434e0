"""The command that lets a method write: a chat in the terminal, or answers to a set of prompts."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.common import announced, method_options, open_console
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from specbench.bench.answers import Answers
    from specbench.grid import Plan

_DEFAULT_TOKENS, _DEFAULT_TURNS = 256, 2
_EMBEDDED = "pico"
_SHORTCUTS = {"draft": "draft", "gamma": "gamma", "beam_width": "width", "beam_length": "length"}
_BATCH_ONLY = ("batch_size", "max_num_prompts", "turns", "out", "model_id")
_DECODE = ("max_new_tokens", "temperature", "top_k", "top_p", "rule", "seed", "batch_size", "turns")


def generate(
    target: Annotated[str, typer.Option(help="Embedded model, folder or hub id.")] = _EMBEDDED,
    method: Annotated[str, typer.Option(help="A method by its name; see specbench list.")] = "autoregressive",
    draft: Annotated[str | None, typer.Option(help="The method's draft model.", show_default=False)] = None,
    gamma: Annotated[int | None, typer.Option(min=1, help="Its draft tokens per step.", show_default=False)] = None,
    drafter: Annotated[
        str | None,
        typer.Option("--drafter", "--heads", help="Its trained weights: a name or a folder.", show_default=False),
    ] = None,
    beam_width: Annotated[
        int | None, typer.Option(min=1, help="Its beams: the option width.", show_default=False)
    ] = None,
    beam_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a beam: the option length.", show_default=False)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "--option",
            metavar="KEY=VALUE",
            help="Any other option of the method, or of a section, like prompts.truncate=right. Repeatable.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Answer this source or file of prompts.", show_default="a chat")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the answers.", show_default="results/answers/PROMPTS/MODEL_ID.jsonl")
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="What the file calls model and method.", show_default="made from both")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts at a time.", show_default="1")] = None,
    turns: Annotated[
        int | None, typer.Option(min=1, help="Most turns of a prompt.", show_default=str(_DEFAULT_TURNS))
    ] = None,
    max_num_prompts: Annotated[int | None, typer.Option(min=1, help="Most prompts.", show_default="all")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer prompts are cut.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer ends.")] = _DEFAULT_TOKENS,
    template: Annotated[
        str | None,
        typer.Option(help="Text around each prompt, with {prompt} in it.", show_default="the chat template, if any"),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Temperature 0, which is the default.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0, help="Above 0 samples.", show_default="0")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Most probable tokens kept.", show_default="all")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability kept.", show_default="1")] = None,
    rule: Annotated[
        str | None, typer.Option(help="auto, greedy, match, rejection, or a lossy one.", show_default="auto")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all chance.", show_default="0")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.", show_default="auto")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.", show_default="1")] = None,
) -> None:
    """Chat with a method, or let it answer a set of prompts; a set that was cut short goes on where it stopped.

    Examples: specbench generate --method draft_model --draft pico-wide

    specbench generate --target MODEL --method redrafter --prompts mt_bench --batch-size 8 --out answers.jsonl
    """
    arguments = dict(locals())  # before anything else is one
    given = {name: value for name, value in arguments.items() if value is not None}
    if prompts is None and (wrong := next((name for name in _BATCH_ONLY if name in given), None)):
        raise ConfigError(f"{_flag(wrong)}: goes with --prompts; without them generate is a chat")
    if greedy and temperature:
        raise ConfigError(f"--greedy: is temperature 0, and --temperature is {temperature:g}; give one")
    plan = _plan(given)
    if prompts is None:
        _chat(plan)
    else:
        _answer(plan, out, model_id)


def _plan(given: dict[str, Any]) -> "Plan":
    """The experiment that the options of the command line stand for."""
    from specbench.bench.chat import TYPED
    from specbench.config import SECTIONS
    from specbench.document import Document, override
    from specbench.grid import read_plan
    from specbench.registry import options_class

    def part(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names if name in given}

    method, assignments = given["method"], given.get("assignments", [])
    of_sections = [one for one in assignments if one.partition("=")[0].partition(".")[0] in SECTIONS]
    of_method = [one for one in assignments if one not in of_sections]
    source = {"source": given.get("prompts", TYPED), **part("max_prompt_tokens", "template")}
    if "max_num_prompts" in given:
        source["count"] = given["max_num_prompts"]
    document = Document(
        "command line",
        {
            "name": "generate",
            "targets": [{"model": given["target"]}],
            "prompts": source,
            "decode": {"turns": _DEFAULT_TURNS, **part(*_DECODE)},
            "methods": [{method: _shortcuts(given) | method_options(of_method, "--set")}],
            "machine": part("device", "dtype", "threads"),
        },
    )
    for assignment in of_sections:
        override(document, assignment)
    return read_plan(document, options_class)[1]


def _shortcuts(given: dict[str, Any]) -> dict[str, Any]:
    """The options of the method that have an option of the command line, or that the embedded family can fill.

    Raises:
        ConfigError: The method has no such option.
    """
    from specbench.grid import options_declared
    from specbench.registry import options_class

    model = options_class(given["method"])
    known, trained = list(model.model_fields), options_declared(model, "drafter")
    found = _stand_ins(model) if given["target"] == _EMBEDDED else {}
    for name, option in (_SHORTCUTS | {"drafter": next(iter(trained), "drafter")}).items():
        if name in given and option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{_flag(name)}: the method {given['method']} has no option {option}; {has}")
        if name in given:
            found[option] = given[name]
    return found


def _stand_ins(model: "type[BaseModel]") -> dict[str, Any]:
    """What the embedded family offers for the models and weights that a method must be given."""
    from specbench.grid import options_declared

    offered = options_declared(model, "model") | options_declared(model, "drafter")
    return {name: names[0] for name, names in offered.items() if names and model.model_fields[name].is_required()}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _chat(plan: "Plan") -> None:
    from specbench.bench.chat import Terminal, begin

    with announced() as announce:
        announce("loading")
        conversation = begin(plan)
    Terminal(open_console(), conversation).run()


def _answer(plan: "Plan", out: Path | None, model_id: str | None) -> None:
    from specbench.bench.answers import write_answers
    from specbench.report.answers import LEGEND, table

    with _progress() as tell:
        answers = write_answers(plan, out, model_id=model_id, tell=tell)
    for note in answers.notes:
        typer.echo(f"note: {note}", err=True)
    if answers.requests:
        console = open_console()
        console.print(table(answers.title, answers.frame))
        console.print(LEGEND, style="dim", highlight=False)
    before = f", {answers.kept:,} of them before" if answers.kept else ""
    typer.echo(f"{answers.path}: {answers.done:,} questions answered{before}")


@contextmanager
def _progress() -> "Iterator[Callable[[Answers], None]]":
    """A bar where somebody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from specbench.report.answers import so_far

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("questions, {task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda answers: bar.update(
            task, total=answers.wanted, completed=answers.done, description=so_far(answers.frame)
        )
