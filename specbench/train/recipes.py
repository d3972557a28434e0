"""The embedded family: the shape of each model, and the settings that train it."""

from dataclasses import dataclass

VOCAB_SIZE = 4096
CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped decoder with tied embeddings."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int


@dataclass(frozen=True)
class Schedule:
    """How long a model is trained and how fast it learns: warm-up, a plateau, then a straight line down to zero.

    Matrices inside the layers are trained by Muon, embeddings and norms by AdamW, each with its own peak rate.
    """

    steps: int
    batch_size: int = 10
    length: int = 384
    matrix_lr: float = 0.02
    vector_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    decay_share: float = 0.6
    clip: float = 1.0
    seed: int = 0

    def factor(self, step: int) -> float:
        """The share of the peak rate that step ``step`` (from 0) trains with."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.steps - step) / max(1.0, self.steps * self.decay_share)
        return min(warm, left, 1.0)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a model's weights: shape, data, schedule, and the teacher where it has one.

    ``teacher`` names an earlier model of the family. The loss is then
    ``(1 - teacher_weight) * cross-entropy + teacher_weight * KL(teacher || model)``, both per token.
    """

    name: str
    role: str
    shape: Shape
    schedule: Schedule
    teacher: str | None = None
    teacher_weight: float = 0.0
    eval_windows: int = 64


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("pico", "target", Shape(10, 384, 6, 1024), Schedule(steps=1000)),
        Recipe("pico-wide", "draft", Shape(2, 320, 5, 640), Schedule(steps=350), "pico", 0.8),
        Recipe("pico-deep", "draft", Shape(8, 160, 5, 480), Schedule(steps=350), "pico", 0.8),
    )
}
