"""The commands that train: targets, drafts for any target, and the weights that a method has of its own."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from specbench.cli.common import method_options
from specbench.errors import ConfigError, TrainingError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from specbench.models.source import Source
    from specbench.train.causal_lm import Workshop
    from specbench.train.data import Corpus
    from specbench.train.drafter_recipes import DrafterRecipe
    from specbench.train.recipes import Recipe, Role


class _Trainings(TyperGroup):
    """The commands below, and one for every other method that learns weights of its own, a plug-in's as well."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; a method's are all the same one."""
        from specbench.registry import names

        found = super().get_command(ctx, cmd_name)
        return super().get_command(ctx, "redrafter") if found is None and cmd_name in names() else found


app = typer.Typer(
    cls=_Trainings,
    help="Train a target, a draft or a method's own weights; a run that was cut short goes on from its checkpoint.",
    no_args_is_help=True,
)

Name = Annotated[
    str, typer.Argument(help="A recipe of the embedded family, or a name of your own.", show_default=False)
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Text files, folders of them, rows with a text, or a hub data set. Repeatable.",
        show_default="Python's library",
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

Target = Annotated[
    str | None, typer.Option(help="The target: embedded, a folder or a hub id.", show_default="the recipe's")
]
DrafterName = Annotated[
    str | None,
    typer.Argument(help="A recipe of the embedded family, or a name of your own.", show_default="by target and method"),
]
DrafterData = Annotated[
    list[str] | None,
    typer.Option(
        help="sharegpt, alpaca, stdlib, stdlib-tests, a hub data set, a file of conversations, texts. Repeatable.",
        show_default="the recipe's; sharegpt",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the weights' shape, like layers=1. Repeatable."),
]
Distil = Annotated[
    list[str] | None,
    typer.Option(
        help="responses: the target writes the answers first. continuations: at every place the target's own greedy "
        "tokens are learned. beliefs: its whole distribution is. Repeatable.",
        show_default="neither",
    ),
]
Template = Annotated[str | None, typer.Option(help="Chat template, like vicuna.", show_default="the tokenizer's own")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.", show_default="2")]
DrafterBatch = Annotated[int | None, typer.Option(min=1, help="Texts of a step.", show_default="128")]
MicroBatch = Annotated[int | None, typer.Option(min=1, help="Texts of a forward.", show_default="4")]
Rate = Annotated[float | None, typer.Option(min=0, help="Peak learning rate.", show_default="0.001")]
Places = Annotated[
    float | None,
    typer.Option(
        "--places-share", min=0.001, max=1, help="Share of a text's places that a step learns from.", show_default="1"
    ),
]
KeepStates = Annotated[
    bool,
    typer.Option("--keep-states", help="Keep the target's hidden states on disk: one forward, whatever the epochs."),
]
MaxTokens = Annotated[int | None, typer.Option(min=8, help="Longest text.", show_default="2048")]
Most = Annotated[int | None, typer.Option("--most-texts", min=1, help="Texts at most.", show_default="all")]

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
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe of the embedded family, a name of your own, or a file of shapes by `specbench design`.",
            show_default=False,
        ),
    ],
    target: Target = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", "--text-only", help="Learn from the text alone.")
    ] = False,
    prune: Annotated[
        str | None,
        typer.Option(
            help="Begin with the weights of this model, embedded, a folder or a hub id, pruned to the shape.",
            show_default="random weights",
        ),
    ] = None,
    layers_by: Annotated[
        str, typer.Option(help="Layers that pruning keeps: those of most influence on a text, or even ones.")
    ] = "influence",
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

    It begins with random weights, or with those of a larger model: specbench train draft pico-cut --target pico
    --prune pico --shape 2x320x5x640

    All shapes of a file, one after the other: specbench train draft results/design-pico/MACHINE/shapes.yaml
    """
    from specbench.models.shapes import numbers_of
    from specbench.train.causal_lm import train_draft

    shapes, target, out = _wanted(name, shape, target, out)
    source = None if prune is None else _located(prune, out)
    head_dim = None if source is None else numbers_of(source.config).head_dim
    shop, corpus = _workshop(out, work, device, dtype), _corpus(data)
    for own_name, own_shape in shapes.items():
        recipe = _recipe(own_name, "draft", own_shape, steps, batch_size, length, head_dim)
        recipe = replace(recipe, pruned_from=prune, layers_by=layers_by)
        if from_scratch:
            recipe = replace(recipe, schedule=recipe.schedule.without_teacher())
        teacher = target or recipe.teacher
        if teacher is None:
            raise TrainingError(f"{own_name}: --target says whose draft it is to be")
        folder = train_draft(recipe, _located(teacher, out), corpus, shop, _printer(recipe), pruned_from=source)
        typer.echo(f"wrote {folder}")


def _wanted(
    name: str, shape: str | None, target: str | None, out: Path | None
) -> tuple[dict[str, str | None], str | None, Path | None]:
    """The drafts to train with their shapes, their target and where they go: one of a name, or all of a file."""
    from specbench.models.draft_list import is_draft_list, read_draft_list

    if not is_draft_list(name):
        return {name: shape}, target, out
    if shape is not None:
        raise ConfigError(f"--shape: {name} says which shapes to train")
    wanted = read_draft_list(Path(name))
    folder = None if wanted.out is None else Path(wanted.out)
    return {entry.name: entry.shape for entry in wanted.drafts}, target or wanted.target, out or folder


def _located(model: str, out: Path | None) -> "Source":
    """A model among those trained here, or any other one."""
    from specbench.models.source import locate
    from specbench.models.zoo import ZOO, family

    return locate(model, out if out is not None and model in family(out) else ZOO)


def _weights(
    context: typer.Context,
    name: DrafterName = None,
    target: Target = None,
    data: DrafterData = None,
    settings: Settings = None,
    distil: Distil = None,
    template: Template = None,
    epochs: Epochs = None,
    batch_size: DrafterBatch = None,
    micro_batch: MicroBatch = None,
    lr: Rate = None,
    places_share: Places = None,
    keep_states: KeepStates = False,
    max_tokens: MaxTokens = None,
    most: Most = None,
    joint: Annotated[bool, typer.Option("--joint", help="Train the target as well, as Medusa-2 does.")] = False,
    out: Out = None,
    work: Work = WORK,
    device: Device = "auto",
    dtype: Dtype = "bfloat16",
) -> None:
    schedule = _changes(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        places_share=places_share,
        joint=joint or None,
    )
    texts = _changes(
        data=tuple(data) if data else None,
        distil=tuple(distil) if distil else None,
        template=template,
        max_tokens=max_tokens,
        most_texts=most,
        keep_states=keep_states or None,
    )
    recipe = _drafter_recipe(str(context.info_name), name, target, settings, schedule, texts)
    _train_drafter(recipe, out, work, device, dtype)


_TRAINED = {
    "medusa": """Train Medusa heads for a target that stays as it is, or together with it.

    Example: specbench train medusa --target lmsys/vicuna-7b-v1.3 --data sharegpt
    """,
    "redrafter": """Train a recurrent drafter; with nothing but a target as Apple's script does.

    Example: specbench train redrafter --target lmsys/vicuna-7b-v1.3 --data sharegpt
    On eight GPUs: torchrun --nproc-per-node 8 -m specbench train redrafter --target lmsys/vicuna-7b-v1.3
    """,
}
for _name, _help in _TRAINED.items():
    app.command(_name, help=_help)(_weights)


def _changes(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _drafter_recipe(
    method_name: str,
    name: str | None,
    target: str | None,
    settings: list[str] | None,
    schedule: dict[str, Any],
    changes: dict[str, Any],
) -> "DrafterRecipe":
    """The family's recipe of that name, or the method's usual one for a target, with what is given in place of it."""
    from specbench.train.drafter_recipes import DISTILLATIONS, drafter_recipe

    if unknown := [way for way in changes.get("distil", ()) if way not in DISTILLATIONS]:
        raise ConfigError(f"--distil: unknown way {unknown[0]!r}. {did_you_mean(unknown[0], DISTILLATIONS)}")
    recipe = drafter_recipe(method_name, name, target)
    shape = {**recipe.settings, **method_options(settings, "--set")} if settings else recipe.settings
    return replace(recipe, settings=shape, schedule=replace(recipe.schedule, **schedule), **changes)


def _train_drafter(recipe: "DrafterRecipe", out: Path | None, work: Path, device: str, dtype: str) -> None:
    from specbench.train.drafter_recipes import train_drafter
    from specbench.train.processes import Processes, device_of

    shop = _workshop(out, work, device, dtype)
    processes = Processes.started(shop.device.type)
    try:
        shop = replace(shop, device=device_of(processes, shop.device))
        with _curve(recipe.name, quiet=not processes.is_first) as report:
            folder = train_drafter(recipe, shop, report, processes)
        if processes.is_first:
            typer.echo(f"wrote {folder}")
    finally:
        processes.leave()


@contextmanager
def _curve(name: str, *, quiet: bool) -> "Iterator[Any]":
    """A progress line that shows where a training stands, and a line of its own for every measurement."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet) as bar:
        line = bar.add_task("", total=None)

        def show(point: Any, steps: int) -> None:
            bar.update(line, completed=point.step + 1, total=steps, description=f"loss {point.loss:.3f}")
            if point.held_out_loss is not None:
                bar.console.print(
                    f"{name} {point.step + 1}/{steps}: loss {point.loss:.3f}, held-out {point.held_out_loss:.3f}, "
                    f"first guess right {point.held_out_accuracy:.1%}, {point.elapsed_s:.0f} s"
                )

        yield show


def _recipe(
    name: str,
    role: "Role",
    shape: str | None,
    steps: int | None,
    batch_size: int | None,
    length: int | None,
    head_dim: int | None = None,
) -> "Recipe":
    from specbench.train.recipes import recipe_named

    recipe = recipe_named(name, role, shape, head_dim)
    schedule = recipe.schedule if steps is None else recipe.schedule.over(steps)
    schedule = replace(schedule, batch_size=batch_size or schedule.batch_size, length=length or schedule.length)
    return replace(recipe, schedule=schedule)


def _corpus(data: list[str] | None) -> "Corpus":
    from specbench.train.data import standard_library, texts_of

    return texts_of(data) if data else standard_library()


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
