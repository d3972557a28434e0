"""The commands that train causal language models: targets, and drafts for any target."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.errors import ConfigError, TrainingError, did_you_mean

if TYPE_CHECKING:
    from specbench.train.causal_lm import Workshop
    from specbench.train.data import Corpus
    from specbench.train.recipes import Recipe, Role

app = typer.Typer(
    help="Train a target or a draft; a run that was cut short goes on from its last checkpoint.", no_args_is_help=True
)

Name = Annotated[
    str, typer.Argument(help="A recipe of the embedded family, or a name of your own.", show_default=False)
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        help="Text files, folders of them, or .jsonl with a text. Repeatable.", show_default="Python's library"
    ),
]
ShapeText = Annotated[
    str | None,
    typer.Option("--shape", metavar="LxHxAxF", help="Layers, hidden size, heads and feed-forward size: 2x320x5x640."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps.", show_default="the recipe's")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Windows in a step.", show_default="the recipe's")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens in a window.", show_default="the recipe's")]
Out = Annotated[Path | None, typer.Option(help="Folder of the finished models.", show_default="the zoo")]
Work = Annotated[Path, typer.Option(help="Folder of checkpoints and curves.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto.")]
Dtype = Annotated[str, typer.Option(help="Precision of the passes: float32 or bfloat16.")]

WORK = Path("results/training")


@app.command()
def target(
    name: Name,
    data: Data = None,
    shape: ShapeText = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    length: Length = None,
    out: Out = None,
    work: Work = WORK,
    device: Device = "auto",
    dtype: Dtype = "bfloat16",
) -> None:
    """Train a target and its tokenizer from scratch.

    Example: specbench train target pico
    """
    from specbench.train.causal_lm import train_target

    recipe = _recipe(name, "target", shape, steps, batch_size, length)
    folder = train_target(recipe, _corpus(data), _workshop(out, work, device, dtype), _printer(recipe))
    typer.echo(f"wrote {folder}")


@app.command()
def draft(
    name: Name,
    target: Annotated[
        str | None, typer.Option(help="The target: embedded, a folder or a hub id.", show_default="the recipe's")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Learn from the text alone.")] = False,
    data: Data = None,
    shape: ShapeText = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    length: Length = None,
    out: Out = None,
    work: Work = WORK,
    device: Device = "auto",
    dtype: Dtype = "bfloat16",
) -> None:
    """Train a draft with the target's token map: on the text, then on the target's view of it and on its own text.

    Example: specbench train draft my-draft --target ./my-model --shape 2x320x5x640 --data corpus/
    """
    from specbench.models.source import locate
    from specbench.models.zoo import ZOO
    from specbench.train.causal_lm import train_draft

    recipe = _recipe(name, "draft", shape, steps, batch_size, length)
    if from_scratch:
        recipe = replace(recipe, schedule=recipe.schedule.without_teacher())
    teacher = target or recipe.teacher
    if teacher is None:
        raise TrainingError(f"{name}: --target says whose draft it is to be")
    shop = _workshop(out, work, device, dtype)
    folder = train_draft(recipe, locate(teacher, out or ZOO), _corpus(data), shop, _printer(recipe))
    typer.echo(f"wrote {folder}")


def _recipe(
    name: str, role: "Role", shape: str | None, steps: int | None, batch_size: int | None, length: int | None
) -> "Recipe":
    from specbench.train.recipes import recipe_named

    recipe = recipe_named(name, role, shape)
    schedule = recipe.schedule if steps is None else recipe.schedule.over(steps)
    schedule = replace(schedule, batch_size=batch_size or schedule.batch_size, length=length or schedule.length)
    return replace(recipe, schedule=schedule)


def _corpus(data: list[Path] | None) -> "Corpus":
    from specbench.train.data import standard_library, text_files

    return text_files(data) if data else standard_library()


def _workshop(out: Path | None, work: Path, device: str, dtype: str) -> "Workshop":
    dtypes = ("float32", "bfloat16")
    if dtype not in dtypes:
        raise ConfigError(f"--dtype: unknown precision {dtype!r}. {did_you_mean(dtype, dtypes)}")

    import torch

    from specbench.models.zoo import ZOO
    from specbench.train.causal_lm import Workshop

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"--device: no such device, got {device!r}") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: this machine has no CUDA GPU")
    return Workshop(out or ZOO, work, place, getattr(torch, dtype))


def _printer(recipe: "Recipe") -> Any:
    def show(point: Any) -> None:
        held_out = ""
        if point.held_out_loss is not None:
            held_out = f", held-out loss {point.held_out_loss:.3f}, accuracy {point.held_out_accuracy:.1%}"
        place = f"{recipe.name} {point.step + 1}/{recipe.schedule.steps}"
        typer.echo(f"{place}: loss {point.loss:.3f}{held_out}, {point.elapsed_s:.0f} s")

    return show
