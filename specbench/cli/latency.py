"""The command that measures forward times."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import FAILED_TRIALS, Json, announced, machine_settings, open_console, print_json
from specbench.errors import ConfigError, UnsupportedError, did_you_mean

if TYPE_CHECKING:
    from specbench.analysis.choosing import Choosing
    from specbench.bench.latencies import Measured
    from specbench.bench.latency_points import Mode


def latency(
    models: Annotated[
        list[str] | None, typer.Argument(help="Embedded family, hub ids or folders.", show_default=False)
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|NUMBERS",
            help="A shape with random weights: a name of `specbench list shapes`, or layers x width x heads x "
            "feed-forward, like 5x2560x32x11008 or 8x2048x16x5504,kv_heads=4. Repeatable.",
        ),
    ] = None,
    query: Annotated[
        list[int] | None, typer.Option(help="Tokens of one forward. Repeatable.", show_default="1")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Rows. Repeatable.", show_default="1")] = None,
    context: Annotated[
        list[int] | None, typer.Option(help="Tokens in the cache before them. Repeatable.", show_default="128")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also by torch.compile, beside eager.")] = False,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Also as CUDA graphs, of eager and, with --compiled, of compiled forwards.")
    ] = False,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            help="Also what choosing tokens takes: to draw a draft token, and to accept a draft. Repeatable.",
            show_default="forwards alone",
        ),
    ] = None,
    rule: Annotated[str, typer.Option(help="What accepts above temperature 0: auto, match or rejection.")] = "auto",
    top_k: Annotated[int, typer.Option(min=0, help="Above temperature 0 keep so many tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Above temperature 0 keep tokens that reach this; 1 keeps all.")] = 1.0,
    rounds: Annotated[int, typer.Option(help="Visits of every point; an interval takes six.")] = 20,
    burst: Annotated[int, typer.Option(help="Forwards of a visit, one after the other.")] = 4,
    seed: Annotated[int, typer.Option(help="Decides the order and the tokens.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the CPU.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the table; what it holds is not measured again.", show_default="results/latency"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how long one forward takes, by query length, batch size and context; all of it in shuffled rounds.

    Examples: specbench latency pico pico-wide pico-deep --query 1 --query 5

    specbench latency --shape opt-125m --shape opt-350m --shape 24x2048x32x8192 --compiled

    specbench latency pico pico-wide --query 1 --query 5 --temperature 0 --temperature 0.8
    """
    from specbench.bench.latencies import NO_GRAPHS, Study, measure
    from specbench.bench.machine import machine_slug
    from specbench.config import RandomModel
    from specbench.models.loader import placement

    references = (*(models or ()), *(RandomModel(shape=text) for text in shape or ()))
    if not references:
        raise ConfigError("name a model or give a --shape; `specbench list models` and `list shapes` name some")
    settings = machine_settings(device, dtype, threads)
    where = placement(settings).device
    if graphs and where.type != "cuda":
        raise UnsupportedError(f"--graphs: {NO_GRAPHS.format(device=where)}")
    study = Study(
        references,
        query_tokens=tuple(query or (1,)),
        batch_sizes=tuple(batch_size or (1,)),
        context_tokens=tuple(context or (128,)),
        choosing=tuple(_choosing(at, rule, top_k, top_p) for at in dict.fromkeys(temperature or ())),
        modes=_modes(compiled=compiled, graphs=graphs),
        rounds=rounds,
        burst=burst,
        seed=seed,
        machine=settings,
    )
    folder = out or Path("results/latency") / machine_slug(where)
    with announced() as say:
        found = measure(study, folder, argv=sys.argv, say=say)
    if as_json:
        print_json([row for rows in found for row in rows.to_dict("records")])
    else:
        _print(found, folder)
    if any(rows["status"].isin({"oom", "timeout", "error"}).any() for rows in found):
        raise typer.Exit(FAILED_TRIALS)


def _choosing(temperature: float, rule: str, top_k: int, top_p: float) -> "Choosing":
    """Drafts are drawn wherever the target's tokens are."""
    from specbench.analysis.choosing import Choosing
    from specbench.grid import TRACED_RULES

    if temperature > 0 and rule not in {"auto", *TRACED_RULES[1:]}:
        raise ConfigError(f"--rule: unknown rule {rule!r}. {did_you_mean(rule, ('auto', *TRACED_RULES[1:]))}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p: must be above 0 and at most 1, got {top_p:g}")
    name = "rejection" if rule == "auto" else rule
    return Choosing.of(temperature, name, "sample", top_k or None, None if top_p == 1 else top_p)


def _modes(*, compiled: bool, graphs: bool) -> "tuple[Mode, ...]":
    from specbench.bench.latency_points import MODES

    return tuple(mode for mode in MODES if ("compiled" not in mode or compiled) and ("graphs" not in mode or graphs))


def _print(found: "Measured", folder: Path) -> None:
    from specbench.report.latencies import CHOICES_NOTE, NOTE, choice_tables, failures, shape_table, time_tables

    console = open_console()
    for table in (shape_table(found.forwards), *time_tables(found.forwards), *choice_tables(found.choices)):
        console.print(table)
    for rows in found:
        for line in failures(rows):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    notes = [NOTE, *([CHOICES_NOTE] if len(found.choices) else [])]
    console.print(f"{' '.join(notes)} Kept in {folder}", style="dim", highlight=False, markup=False)
