"""The one training loop. A run that was killed goes on from its last checkpoint, on the loss curve that it was on."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from specbench.errors import TrainingError
from specbench.train.files import replacing
from specbench.train.processes import Processes

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.parquet"


class HeldOut(NamedTuple):
    """What the held-out text shows: mean loss in nats, the share of first guesses that are right, and more by name."""

    loss: float
    accuracy: float
    details: dict[str, float]


@dataclass(frozen=True)
class Point:
    """One row of the learning curve. Losses are nats; null where the held-out text was not measured.

    ``details`` are columns of their own in the file.
    """

    step: int
    tokens_seen: int
    loss: float
    lr_factor: float
    held_out_loss: float | None
    held_out_accuracy: float | None
    elapsed_s: float
    details: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """The point as a row of a table."""
        values = asdict(self)
        return {**{name: value for name, value in values.items() if name != "details"}, **self.details}


class Task(Protocol):
    """What is trained: the loop asks it for gradients and for measurements, and knows nothing else of it.

    Attributes:
        name: For messages.
        module: What learns; its state is what a checkpoint keeps.
        tokens_per_step: For the curve.
    """

    name: str
    module: nn.Module
    tokens_per_step: int

    def backward(self, step: int) -> float:
        """Add the gradients of step ``step`` (from 0), and return its loss in nats."""

    def evaluate(self) -> HeldOut:
        """Measure on text that is never trained on."""


class Optimizers:
    """One optimizer or several, each with a peak rate of its own, under one schedule.

    Args:
        parts: The optimizers and their peak rates.
        factor: The share of the peak rates that step ``step`` (from 0) trains with.
    """

    def __init__(self, parts: Sequence[tuple[torch.optim.Optimizer, float]], factor: Callable[[int], float]) -> None:
        self._parts, self._factor = parts, factor

    def step(self, step: int) -> float:
        """Apply the gradients of step ``step`` and clear them; returns the share of the peak rate."""
        factor = self._factor(step)
        for optimizer, peak in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return factor

    def state_dict(self) -> list[dict[str, object]]:
        """The state of all optimizers, in a fixed order."""
        return [optimizer.state_dict() for optimizer, _ in self._parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Restore what ``state_dict`` returned."""
        for (optimizer, _), state in zip(self._parts, states, strict=True):
            optimizer.load_state_dict(state)


def train(
    task: Task,
    optimizers: Optimizers,
    steps: int,
    folder: Path,
    *,
    clip: float = 1.0,
    eval_every: int = 100,
    report: Callable[[Point], None] | None = None,
    processes: Processes | None = None,
) -> list[Point]:
    """Train to the last step and return the learning curve.

    Args:
        task: What is trained.
        optimizers: Hold its parameters.
        steps: Optimizer steps of the whole training.
        folder: Where the checkpoint and the metrics are kept, and where a killed run is found again.
        clip: Largest norm of the gradients.
        eval_every: Steps between two measurements on the held-out text, and between two checkpoints.
        report: Called with every point of the curve, in the first process only.
        processes: Those that train together; this one alone unless given.

    Raises:
        TrainingError: The loss is no number any more.
    """
    processes = processes or Processes.alone()
    folder.mkdir(parents=True, exist_ok=True)
    first, points = _resume(folder, task.module, optimizers)
    before_s = points[-1].elapsed_s if points else 0.0
    started_s = time.monotonic()
    for step in range(first, steps):
        value = task.backward(step)
        nn.utils.clip_grad_norm_([p for p in task.module.parameters() if p.requires_grad], clip)
        factor = optimizers.step(step)
        if not math.isfinite(value):
            raise TrainingError(f"{task.name}: the loss became {value} at step {step}; lower the learning rate")
        measured = (step + 1) % eval_every == 0 or step + 1 == steps
        held_out = task.evaluate() if measured else None
        point = Point(
            step=step,
            tokens_seen=(step + 1) * task.tokens_per_step,
            loss=value,
            lr_factor=factor,
            held_out_loss=held_out.loss if held_out else None,
            held_out_accuracy=held_out.accuracy if held_out else None,
            elapsed_s=before_s + time.monotonic() - started_s,
            details=held_out.details if held_out else {},
        )
        points.append(point)
        if report is not None and processes.is_first:
            report(point)
        if measured and processes.is_first:
            _save(folder, task.module, optimizers, points, step + 1)
    processes.wait()
    return points


def _save(folder: Path, module: nn.Module, optimizers: Optimizers, points: list[Point], next_step: int) -> None:
    details = {name: None for point in points for name in point.details}
    with replacing(folder / METRICS) as path:
        pq.write_table(pa.Table.from_pylist([{**details, **point.row()} for point in points]), path)
    with replacing(folder / CHECKPOINT) as path:
        torch.save({"model": module.state_dict(), "optimizers": optimizers.state_dict(), "next_step": next_step}, path)


def _resume(folder: Path, module: nn.Module, optimizers: Optimizers) -> tuple[int, list[Point]]:
    if not (folder / CHECKPOINT).exists():
        return 0, []
    state = torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu")
    module.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    next_step = int(state["next_step"])
    rows = pq.read_table(folder / METRICS).to_pylist()
    return next_step, [_point(row) for row in rows if row["step"] < next_step]


def _point(row: dict[str, Any]) -> Point:
    fixed = {name: row.pop(name) for name in Point.__dataclass_fields__ if name != "details"}
    return Point(**fixed, details={name: value for name, value in row.items() if isinstance(value, float)})
