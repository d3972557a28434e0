"""The one training loop. A run that was killed goes on from its last checkpoint, on the loss curve that it was on."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbench.errors import TrainingError
from specbench.train.data import Windows, consecutive
from specbench.train.files import replacing
from specbench.train.recipes import Recipe, Schedule
from specbench.train.teacher import Beliefs, Teacher, divergence

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.parquet"


@dataclass(frozen=True)
class Point:
    """One row of the learning curve. Losses are nats per token; null where the held-out text was not measured."""

    step: int
    tokens_seen: int
    loss: float
    lr_factor: float
    held_out_loss: float | None
    held_out_accuracy: float | None
    elapsed_s: float


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for everything else, under one schedule."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise TrainingError(f"training needs torch 2.9 or newer (torch.optim.Muon), this is {torch.__version__}")
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if inner else others).append(parameter)
        self._schedule = schedule
        self._all = [
            torch.optim.Muon(matrices, lr=schedule.matrix_lr, momentum=0.95, weight_decay=schedule.weight_decay),
            torch.optim.AdamW(others, lr=schedule.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self._peaks = [schedule.matrix_lr, schedule.vector_lr]

    def step(self, step: int) -> float:
        """Apply the gradients of step ``step`` and clear them; returns the share of the peak rate."""
        factor = self._schedule.factor(step)
        for optimizer, peak in zip(self._all, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return factor

    def state_dict(self) -> list[dict[str, object]]:
        """The state of both optimizers, in a fixed order."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Restore what ``state_dict`` returned."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def token_loss(logits: Tensor, labels: Tensor, beliefs: Beliefs | None, teacher_weight: float) -> Tensor:
    """Mean loss per token: cross-entropy, mixed with the divergence from a teacher where there is one.

    Args:
        logits: The model's, (batch, length, vocab).
        labels: The next tokens, (batch, length).
        beliefs: The teacher's for the same inputs, or None.
        teacher_weight: Share of ``KL(teacher || model)`` in the mix.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    hard = F.nll_loss(log_probs.flatten(0, 1), labels.flatten())
    if beliefs is None:
        return hard
    return (1 - teacher_weight) * hard + teacher_weight * divergence(log_probs, beliefs)


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor, autocast: torch.autocast, batch_size: int = 16) -> tuple[float, float]:
    """Held-out loss in nats per token, and the share of tokens that the model's first guess gets right."""
    loss, hits, tokens = 0.0, 0, 0
    for batch in windows.split(batch_size):
        with autocast:
            logits = model(batch[:, :-1], use_cache=False).logits.float()
        labels = batch[:, 1:]
        loss += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        hits += int((logits.argmax(-1) == labels).sum())
        tokens += labels.numel()
    return loss / tokens, hits / tokens


def _save(folder: Path, model: nn.Module, optimizers: Optimizers, points: list[Point], next_step: int) -> None:
    with replacing(folder / METRICS) as path:
        pq.write_table(pa.Table.from_pylist([asdict(point) for point in points]), path)
    with replacing(folder / CHECKPOINT) as path:
        torch.save({"model": model.state_dict(), "optimizers": optimizers.state_dict(), "next_step": next_step}, path)


def _resume(folder: Path, model: nn.Module, optimizers: Optimizers) -> tuple[int, list[Point]]:
    if not (folder / CHECKPOINT).exists():
        return 0, []
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    next_step = int(state["next_step"])
    rows = pq.read_table(folder / METRICS).to_pylist()
    return next_step, [Point(**row) for row in rows if row["step"] < next_step]


def train(
    model: nn.Module,
    recipe: Recipe,
    ids: np.ndarray,
    held_out: np.ndarray,
    folder: Path,
    *,
    teacher: Teacher | None = None,
    dtype: torch.dtype = torch.bfloat16,
    eval_every: int = 100,
    report: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Train a model by its recipe and return the learning curve; weights end up in ``model``.

    Args:
        model: The causal LM to train, in float32 on its device.
        recipe: Shape, schedule and teacher; the shape is not read here.
        ids: Training text as token ids.
        held_out: Held-out text as token ids, never trained on.
        folder: Where the checkpoint and the metrics are kept, and where a killed run is found again.
        teacher: Whom to distil from. None where no cycle of the schedule gives a teacher weight.
        dtype: Precision of the forward and backward passes; weights and optimizer state stay in float32.
        eval_every: Steps between two measurements on the held-out text, and between two checkpoints.
        report: Called with every point of the curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    schedule = recipe.schedule
    optimizers = Optimizers(model, schedule)
    first, points = _resume(folder, model, optimizers)
    windows = Windows(ids, schedule.length, schedule.batch_size, schedule.seed)
    probe = consecutive(held_out, schedule.length, recipe.eval_windows)
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    before_s = points[-1].elapsed_s if points else 0.0
    started_s = time.monotonic()
    for step in range(first, schedule.steps):
        cycle, place = schedule.at(step)
        if teacher is not None and cycle.own_batches:
            index = place % cycle.own_batches
            name, batch = f"own-{index:06d}", teacher.own_text(windows, index).to(device)
        else:
            name, batch = f"{step:06d}", windows.batch(step).to(device)
        weight = cycle.teacher_weight
        beliefs = teacher.beliefs(name, batch[:, :-1], autocast) if teacher is not None and weight else None
        with autocast:
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = token_loss(logits, batch[:, 1:], beliefs, weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        factor = optimizers.step(step)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"{recipe.name}: the loss became {value} at step {step}; lower the learning rate")
        last = step + 1 == schedule.steps
        measured = (step + 1) % eval_every == 0 or last
        held_loss, held_accuracy = evaluate(model, probe.to(device), autocast) if measured else (None, None)
        point = Point(
            step=step,
            tokens_seen=(step + 1) * schedule.batch_size * schedule.length,
            loss=value,
            lr_factor=factor,
            held_out_loss=held_loss,
            held_out_accuracy=held_accuracy,
            elapsed_s=before_s + time.monotonic() - started_s,
        )
        points.append(point)
        if report is not None:
            report(point)
        if measured:
            _save(folder, model, optimizers, points, step + 1)
    return points
