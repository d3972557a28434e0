"""The command that asks how skilled models are."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import Json, announced, machine_settings, open_console, print_json
from specbench.errors import ConfigError

SCORES = Path("results/scores")


def score(
    models: Annotated[list[str], typer.Argument(help="Embedded models, folders or hub ids.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="stdlib, hellaswag, mmlu, a text file, a folder of them, a file of rows or a hub data set with texts "
            "or with questions and choices. Repeatable.",
            show_default="stdlib",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Texts or questions of each to take.", show_default="all")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Texts are read in windows of so many tokens.")] = 512,
    column: Annotated[
        str | None, typer.Option("--field", help="The field that holds a text, where rows have no known format.")
    ] = None,
    examples: Annotated[
        str | None, typer.Option(help="Worked examples for a file of MMLU questions: a file of such rows.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of one forward.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the table of scores; what is in it is not computed again.")] = (
        SCORES
    ),
    as_json: Json = False,
) -> None:
    """Score models: perplexity and next-token accuracy on texts, accuracy on questions with choices.

    Examples: specbench score pico pico-wide pico-deep

    specbench score meta-llama/Llama-3.2-1B --data hellaswag --data mmlu --count 1000
    """
    from specbench.bench.score_data import read_score_data
    from specbench.bench.scores import ScoreSettings
    from specbench.bench.scores import score as score_all
    from specbench.report.scores import score_table

    names = list(dict.fromkeys(data or ["stdlib"]))
    settings = ScoreSettings(machine_settings(device, dtype, threads), length, batch_size)
    _check_out(out)
    sets = [read_score_data(name, count=count, column=column, examples=examples) for name in names]
    with announced() as announce:
        rows = [row for pair in score_all(models, sets, settings, out, announce=announce) for row in pair]
    if as_json:
        print_json(rows)
        return
    console = open_console()
    for name in names:
        console.print(score_table([row for row in rows if row["data"] == name]))
    for entry in sets:
        for what, reason in getattr(entry, "skipped", {}).items():
            console.print(f"{entry.name}: {what} is left out: {reason}", style="dim", highlight=False)
    console.print(f"scores are in {out}", style="dim", highlight=False)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: this is a file; give a folder")
