"""The command that measures forward times."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import FAILED_TRIALS, Json, announced, machine_settings, open_console, print_json
from specbench.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


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
    """
    from specbench.bench.latencies import Study, measure
    from specbench.bench.machine import machine_slug
    from specbench.config import RandomModel
    from specbench.models.loader import placement

    references = (*(models or ()), *(RandomModel(shape=text) for text in shape or ()))
    if not references:
        raise ConfigError("name a model or give a --shape; `specbench list models` and `list shapes` name some")
    study = Study(
        references,
        query_tokens=tuple(query or (1,)),
        batch_sizes=tuple(batch_size or (1,)),
        context_tokens=tuple(context or (128,)),
        modes=("eager", "compiled") if compiled else ("eager",),
        rounds=rounds,
        burst=burst,
        seed=seed,
        machine=machine_settings(device, dtype, threads),
    )
    folder = out or Path("results/latency") / machine_slug(placement(study.machine).device)
    with announced() as say:
        rows = measure(study, folder, argv=sys.argv, say=say)
    if as_json:
        print_json(rows.to_dict("records"))
    else:
        _print(rows, folder)
    if rows["status"].isin({"oom", "timeout", "error"}).any():
        raise typer.Exit(FAILED_TRIALS)


def _print(rows: "pd.DataFrame", folder: Path) -> None:
    from specbench.report.latencies import NOTE, failures, shape_table, time_tables

    console = open_console()
    for table in (shape_table(rows), *time_tables(rows)):
        console.print(table)
    for line in failures(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{NOTE} Kept in {folder}", style="dim", highlight=False, markup=False)
