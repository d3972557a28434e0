"""The embedded family: the shape of each model, and the settings that train it."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from specbench.errors import ConfigError, TrainingError, did_you_mean
from specbench.models.shapes import shape_from

Role = Literal["target", "draft"]


VOCAB_SIZE = 4096
CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped decoder with tied embeddings."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int

    @classmethod
    def parse(cls, text: str, head_dim: int | None = None) -> "Shape":
        """Read ``layers x hidden x heads x feed-forward``, like ``2x320x5x640``.

        Args:
            text: They.
            head_dim: Width of a head; None where the heads share the hidden size.

        Raises:
            TrainingError: That is no such text, or no model can have this shape.
        """
        try:
            shape = shape_from(text, head_dim=head_dim)
        except ConfigError as error:
            raise TrainingError(f"--shape {text}: {error}") from None
        return cls(shape.layers, shape.hidden, shape.heads, shape.feed_forward)


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate: warm-up to ``peak``, a plateau, then a straight line down to zero.

    ``peak`` is a share of the schedule's peak rates; ``decay_share`` is the share of the steps that the fall takes.
    With a teacher the loss per token is ``(1 - w) * cross-entropy + w * KL(teacher || model)``, where w is
    ``teacher_weight``; a cycle of weight 0 asks no teacher. ``own_batches`` is how many different batches of text the
    teacher writes for the cycle, to be gone through again and again; with 0 the cycle learns from the training text.
    """

    steps: int
    peak: float = 1.0
    decay_share: float = 0.6
    teacher_weight: float = 0.0
    own_batches: int = 0


@dataclass(frozen=True)
class Schedule:
    """How long a model is trained and how fast it learns: one or more cycles.

    A later cycle warms a finished model up again, which is how a training is prolonged without starting it anew.
    Matrices inside the layers are trained by Muon, embeddings and norms by AdamW, each with its own peak rate.
    """

    cycles: tuple[Cycle, ...]
    batch_size: int = 10
    length: int = 384
    matrix_lr: float = 0.02
    vector_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """All optimizer steps, over all cycles."""
        return sum(cycle.steps for cycle in self.cycles)

    def over(self, steps: int) -> "Schedule":
        """The same schedule stretched or shrunk to ``steps`` steps, every cycle by the same factor."""
        ends = np.cumsum([cycle.steps for cycle in self.cycles]) * steps // self.steps
        lengths = np.diff(ends, prepend=0).tolist()
        return replace(self, cycles=tuple(replace(c, steps=n) for c, n in zip(self.cycles, lengths, strict=True) if n))

    def without_teacher(self) -> "Schedule":
        """The same schedule, learning from the text alone."""
        return replace(self, cycles=tuple(replace(cycle, teacher_weight=0.0, own_batches=0) for cycle in self.cycles))

    def at(self, step: int) -> tuple[Cycle, int]:
        """The cycle that step ``step`` (from 0) belongs to, and the step's place in it."""
        for cycle in self.cycles:
            if step < cycle.steps:
                return cycle, step
            step -= cycle.steps
        raise IndexError(f"step {step} lies {step} steps behind the last cycle")

    def factor(self, step: int) -> float:
        """The share of the peak rates that step ``step`` (from 0) trains with."""
        cycle, place = self.at(step)
        warm = (place + 1) / self.warmup_steps
        left = (cycle.steps - place) / max(1.0, cycle.steps * cycle.decay_share)
        return cycle.peak * min(warm, left, 1.0)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a model's weights: shape, data, schedule, and the teacher where it has one.

    ``teacher`` names an earlier model of the family; the schedule's cycles say how much it counts. A training begins
    with random weights, or with those of ``pruned_from``, whose layers are chosen as ``layers_by`` says.
    """

    name: str
    role: Role
    shape: Shape
    schedule: Schedule
    teacher: str | None = None
    eval_windows: int = 64
    pruned_from: str | None = None
    layers_by: str = "influence"

    @property
    def begins_with(self) -> str:
        """What the weights were before the training, in words."""
        return "random weights" if self.pruned_from is None else f"{self.pruned_from}, pruned"

    @property
    def has_teacher(self) -> bool:
        """Whether any cycle asks one."""
        return any(cycle.teacher_weight for cycle in self.schedule.cycles)

    @property
    def learns_from(self) -> str:
        """What the training goes by, in words."""
        return "text, and the target by distillation" if self.has_teacher else "text"


# A draft first learns the language from the text itself, then the target's view of it, then the target's own text.
_DRAFT = Schedule(
    (
        Cycle(300, decay_share=0.0),
        Cycle(400, decay_share=1.0, teacher_weight=0.9),
        Cycle(800, 0.7, decay_share=1.0, teacher_weight=1.0, own_batches=256),
    )
)

_TARGET = Schedule((Cycle(1000), Cycle(800, 0.7, 0.75)))

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("pico", "target", Shape(10, 384, 6, 1024), _TARGET),
        # Four drafts of equal size, within 5 %, from one layer to eight.
        Recipe("pico-flat", "draft", Shape(1, 448, 7, 544), _DRAFT, "pico"),
        Recipe("pico-wide", "draft", Shape(2, 320, 5, 640), _DRAFT, "pico"),
        Recipe("pico-tall", "draft", Shape(4, 256, 4, 416), _DRAFT, "pico"),
        Recipe("pico-deep", "draft", Shape(8, 160, 5, 480), _DRAFT, "pico"),
        # A clearly better one, of twice the size, and a clearly worse one, of a third.
        Recipe("pico-large", "draft", Shape(4, 320, 5, 896), _DRAFT, "pico"),
        Recipe("pico-small", "draft", Shape(1, 192, 3, 384), _DRAFT, "pico"),
    )
}


def recipe_named(name: str, role: Role, shape: str | None, head_dim: int | None = None) -> Recipe:
    """The family's recipe of that name and role, or a new one of that shape on the family's schedule.

    Args:
        name: Of the model.
        role: What it is to be.
        shape: In the words of ``Shape.parse``.
        head_dim: Width of a head, where the heads do not share the hidden size.

    Raises:
        TrainingError: The name is not the family's and no shape is given, or the recipe has another role.
    """
    known = {key for key, recipe in RECIPES.items() if recipe.role == role}
    if name in RECIPES and name not in known:
        raise TrainingError(f"{name} is a {RECIPES[name].role}: specbench train {RECIPES[name].role} {name}")
    if shape is not None:
        schedule = _TARGET if role == "target" else _DRAFT
        return Recipe(name, role, Shape.parse(shape, head_dim), schedule)
    if name not in known:
        raise TrainingError(f"unknown recipe {name!r}. {did_you_mean(name, known)} A new model needs its --shape")
    return RECIPES[name]
