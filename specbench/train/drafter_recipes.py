"""Recipes for a method's own weights, those of the embedded family among them, and the run that follows one."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from specbench import registry
from specbench.config import brief
from specbench.decode.drafter import Drafter
from specbench.errors import ConfigError, TrainingError, did_you_mean
from specbench.models.corpus import library_tests
from specbench.models.drafters import DrafterFiles, embedded_folder
from specbench.models.loader import LoadedModel, Placement, load
from specbench.models.source import locate
from specbench.train.causal_lm import LICENCE, Workshop, beliefs_folder, versions
from specbench.train.continuations import Continuations
from specbench.train.conversations import read_documents
from specbench.train.data import Windows, encode, standard_library
from specbench.train.drafters import DrafterSchedule, DrafterTask, Student, adamw
from specbench.train.examples import Example, Examples, encode_documents, load_examples
from specbench.train.files import write_json
from specbench.train.framing import framing_for
from specbench.train.loop import Point, train
from specbench.train.processes import Processes
from specbench.train.recipes import Schedule
from specbench.train.responses import own_responses
from specbench.train.states import KeptStates
from specbench.train.teacher import PROMPT_SHARE, Teacher

Distillation = Literal["responses", "continuations", "beliefs"]
_HELD_OUT_BATCHES = 4
_EVAL_EVERY, _EVALUATIONS = 100, 30
"""Steps between two measurements at least, and measurements of a whole training at most."""
_WINDOWS = Schedule(())
"""The windows of the family's own trainings, whose batches on disk serve here as well."""

DISTILLATIONS: tuple[Distillation, ...] = ("responses", "continuations", "beliefs")


@dataclass(frozen=True)
class DrafterRecipe:
    """Everything that decides a drafter's weights.

    Attributes:
        name: Of the finished drafter.
        method: Whose weights they are.
        target: The model that they draft for.
        settings: Their shape, as the method's drafter takes it.
        data: What they learn from; see ``load_examples``.
        distil: ``responses``: from text that the target has written itself. ``continuations``: at every place from what
            the target would go on with, greedily. ``beliefs``: from the target's distribution of each next token, not
            the token alone. The first goes with either of the others.
        schedule: For how long.
        max_tokens: Longest text.
        most_texts: Texts at most, None for all.
        template: Chat template, where the tokenizer's own is not meant.
        temperature: At which the target writes its responses.
        keep_states: Keep the target's hidden states on disk, where it does not learn: from the second pass on the text
            costs no forward of the target.
        own_batches: How many batches of windows the target goes on with, of the library and of its tests, in place of
            ``data``; the former are those that the family's drafts learn from as well. None where responses are written
            to the data.
    """

    name: str
    method: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ("sharegpt",)
    distil: tuple[Distillation, ...] = ()
    schedule: DrafterSchedule = field(default_factory=DrafterSchedule)
    max_tokens: int = 2048
    most_texts: int | None = None
    template: str | None = None
    temperature: float = 0.0
    keep_states: bool = False
    own_batches: tuple[int, int] | None = None


_PICO = DrafterRecipe(
    "",
    "",
    "pico",
    settings={"shared_output": True},
    data=("stdlib",),
    # Many small steps: at the same price they came lower than few large ones.
    schedule=DrafterSchedule(epochs=20, batch_size=8, micro_batch=8, lr=4e-3, places_share=1 / 16),
    max_tokens=384,
    keep_states=True,
)
_OWN: dict[str, Any] = {"distil": ("responses", "beliefs"), "own_batches": (256, 0)}

FAMILY: dict[str, DrafterRecipe] = {
    recipe.name: recipe
    for recipe in (
        replace(
            _PICO,
            name="pico-medusa",
            method="medusa",
            settings={**_PICO.settings, "layers": 2},
            schedule=replace(_PICO.schedule, epochs=16, places_share=1 / 8),
            **_OWN | {"own_batches": (256, 144)},
        ),
        replace(_PICO, name="pico-redrafter", method="redrafter", **_OWN),
        replace(
            _PICO, name="pico-redrafter-bag", method="redrafter", settings={**_PICO.settings, "rnn": False}, **_OWN
        ),
        replace(_PICO, name="pico-redrafter-plain", method="redrafter", most_texts=2560),
    )
}
"""The drafters of the embedded family: heads, and recurrent drafters that have learned from the target's text or not,
with the recurrent net or without."""


def drafter_recipe(method: str, name: str | None, target: str | None) -> DrafterRecipe:
    """The family's recipe of that name, or the papers' for a target.

    Raises:
        TrainingError: The recipe is another method's, or there is neither a recipe of that name nor a target.
    """
    if name in FAMILY:
        known = FAMILY[name]
        if known.method != method:
            raise TrainingError(f"{name} belongs to {known.method}: specbench train {known.method} {name}")
        return known if target is None else replace(known, target=target)
    if target is None:
        own = [recipe.name for recipe in FAMILY.values() if recipe.method == method]
        asked = f"unknown recipe {name!r}. {did_you_mean(name, own)} " if name else ""
        raise TrainingError(f"{asked}--target says for which model {method} is to be trained")
    return DrafterRecipe(name or f"{brief(target)}-{method}", method, target)


def train_drafter(
    recipe: DrafterRecipe, shop: Workshop, report: Callable[[Point, int], None], processes: Processes | None = None
) -> Path:
    """Train a drafter by its recipe and return the folder that holds it.

    Raises:
        TrainingError: The method learns nothing, or the target has no token map.
        ConfigError: A setting that the drafter does not have.
    """
    if {"continuations", "beliefs"} <= {*recipe.distil}:
        raise TrainingError("--distil: beliefs are about the text, and continuations leave it; give one of the two")
    if recipe.keep_states and recipe.schedule.joint:
        raise TrainingError("--keep-states: a target that learns has other states at every step; leave --joint out")
    processes = processes or Processes.alone()
    kind, settings = drafter_of(recipe.method, recipe.settings)
    target = load(locate(recipe.target, shop.out), _placement(recipe, shop))
    if target.source.own_tokenizer is None:
        raise TrainingError(f"{recipe.target}: random weights have no token map and teach nothing")
    examples = _examples(recipe, target, shop, processes)
    torch.manual_seed(recipe.schedule.seed)
    drafter = kind.new(settings, target.model).float().bind(target.model)
    student = Student(drafter, target.model, joint=recipe.schedule.joint)
    subject = f"{target.weights_sha}-{examples.sha[:12]}"
    continuations = states = None
    if "continuations" in recipe.distil:
        kept = shop.work / "continuations" / subject
        continuations = Continuations(target.model.sharing_weights(), kept, drafter.depth + 1)
    if recipe.keep_states:
        which = f"{drafter.hidden.kind}-{drafter.hidden.layer}"
        states = KeptStates(target.model, drafter.hidden, shop.work / "states" / subject / which)
    task = DrafterTask(
        recipe.name,
        student,
        examples,
        recipe.schedule,
        continuations=continuations,
        states=states,
        with_beliefs="beliefs" in recipe.distil,
        dtype=shop.dtype,
        processes=processes,
    )
    points = train(
        task,
        adamw(student, recipe.schedule, task.steps),
        task.steps,
        shop.work / recipe.name,
        clip=recipe.schedule.clip,
        eval_every=max(_EVAL_EVERY, task.steps // _EVALUATIONS),
        report=lambda point: report(point, task.steps),
        processes=processes,
    )
    folder = embedded_folder(recipe.name, shop.out)
    if processes.is_first:
        task.evaluate()  # a resumed training may have nothing left to do, and the accuracies are not in a checkpoint
        _write(folder, recipe, student, target, examples, points, shop)
    processes.wait()
    return folder


def drafter_of(method: str, given: Mapping[str, Any]) -> tuple[type[Drafter], Any]:
    """The drafter class of a method, and its settings checked.

    Raises:
        TrainingError: The method learns nothing.
        ConfigError: A setting that the drafter does not have, or a value that it refuses.
    """
    kind = registry.load(method).trains
    if kind is None:
        able = [name for name in registry.names() if name not in registry.baselines() and registry.load(name).trains]
        raise TrainingError(f"{method} has nothing to train; methods that do: {', '.join(able)}")
    try:
        return kind, kind.Settings.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        hint = did_you_mean(name, kind.Settings.model_fields) if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"--set {name}: {first['msg']}, got {first['input']!r}. {hint}".strip()) from error


def _placement(recipe: DrafterRecipe, shop: Workshop) -> Placement:
    # A target that learns keeps its weights in float32; one that only speaks may do so in half precision.
    return Placement(shop.device, torch.float32 if recipe.schedule.joint else shop.dtype, None)


def _examples(recipe: DrafterRecipe, target: LoadedModel, shop: Workshop, processes: Processes) -> Examples:
    if "responses" not in recipe.distil:
        return load_examples(
            recipe.data,
            target.tokenizer,
            max_tokens=recipe.max_tokens,
            most=recipe.most_texts,
            template=recipe.template,
        )
    if not processes.is_first:
        processes.wait()  # the first one has the target write; the others find the answers
    examples = own_windows(recipe, target, shop) if recipe.own_batches else _own_answers(recipe, target, shop)
    if processes.is_first:
        processes.wait()
    return examples


def _own_answers(recipe: DrafterRecipe, target: LoadedModel, shop: Workshop) -> Examples:
    framing = framing_for(target.tokenizer, template=recipe.template)
    documents = own_responses(
        read_documents(recipe.data, most=recipe.most_texts),
        target,
        framing,
        shop.work / "responses" / target.weights_sha,
        max_tokens=recipe.max_tokens,
        max_new_tokens=recipe.max_tokens // 2,
        temperature=recipe.temperature,
        batch_size=recipe.schedule.micro_batch,
        seed=recipe.schedule.seed,
    )
    return encode_documents(documents, framing, max_tokens=recipe.max_tokens, most=recipe.most_texts)


def own_windows(recipe: DrafterRecipe, target: LoadedModel, shop: Workshop) -> Examples:
    """Beginnings from plain texts that the target has gone on with; its part is what is learned.

    The batches from the library are those that the family's drafts learn from (``Teacher.own_text``), so they are
    written once. The target knows the library by heart, where it is small; of the tests it has seen nothing.
    """
    library, tests = recipe.own_batches or (0, 0)
    corpus = standard_library()
    texts = _own(target, encode(target.tokenizer, corpus.training), library, shop)
    if tests:
        texts += _own(target, encode(target.tokenizer, [module.text for module in library_tests()]), tests, shop)
    measured = _own(target, encode(target.tokenizer, corpus.held_out), _HELD_OUT_BATCHES, shop)
    sha = hashlib.sha256(b"".join(text.tokens.tobytes() for text in (*texts, *measured))).hexdigest()
    what = f"{corpus.what}{' and from those' if tests else ''}"
    return Examples(f"beginnings from {what}, gone on with by {target.source.name}", texts, measured, sha)


def _own(target: LoadedModel, ids: np.ndarray, batches: int, shop: Workshop) -> list[Example]:
    """Windows that the target has written on, of which only its own part is learned."""
    module = target.model.module
    teacher = Teacher(module, beliefs_folder(target.source, ids, _WINDOWS, shop.work))
    windows = Windows(ids, _WINDOWS.length, _WINDOWS.batch_size, _WINDOWS.seed)
    rows = np.concatenate([teacher.own_text(windows, index).numpy() for index in range(batches)]).astype(np.int32)
    learn = np.arange(rows.shape[1]) >= int(rows.shape[1] * PROMPT_SHARE)
    return [Example(row, learn) for row in rows]


def _write(
    folder: Path,
    recipe: DrafterRecipe,
    student: Student,
    target: LoadedModel,
    examples: Examples,
    points: list[Point],
    shop: Workshop,
) -> None:
    base = recipe.target
    if recipe.schedule.joint:
        base = str(folder / "target")
        student.target.module.to(shop.dtype).save_pretrained(base)
        target.tokenizer.save_pretrained(base)
    student.drafter.to(torch.bfloat16).save(folder, base)
    write_json(folder / "card.json", _card(folder, recipe, student, target, examples, points))


def _card(
    folder: Path,
    recipe: DrafterRecipe,
    student: Student,
    target: LoadedModel,
    examples: Examples,
    points: list[Point],
) -> dict[str, object]:
    return {
        "name": recipe.name,
        "role": recipe.method,
        "parameters": sum(parameter.numel() for parameter in student.drafter.parameters()),
        "recipe": asdict(recipe),
        "data": {"what": examples.what, "texts": len(examples.training), "sha": examples.sha[:16]},
        "target": {"name": target.source.name, "weights_sha": target.weights_sha},
        "tokens_seen": points[-1].tokens_seen,
        "held_out_loss": points[-1].held_out_loss,
        "held_out": points[-1].details,
        "versions": versions(),
        "weights_sha": DrafterFiles(recipe.name, folder).weights_sha,
        "licence": LICENCE,
        "rebuild": f"specbench train {recipe.method} {recipe.name}",
    }
