"""Training of a whole language model on windows of text, alone or with a teacher."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbench.errors import TrainingError
from specbench.train.data import Windows, consecutive
from specbench.train.loop import HeldOut, Optimizers, Point, train
from specbench.train.recipes import Recipe, Schedule
from specbench.train.teacher import Beliefs, Teacher, divergence


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


class LanguageTask:
    """A language model, the windows that it learns from, and its teacher where it has one."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        ids: np.ndarray,
        held_out: np.ndarray,
        teacher: Teacher | None,
        dtype: torch.dtype,
    ) -> None:
        schedule = recipe.schedule
        self.name, self.module = recipe.name, model
        self.tokens_per_step = schedule.batch_size * schedule.length
        self._schedule, self._teacher = schedule, teacher
        self._device = next(model.parameters()).device
        self._autocast = torch.autocast(self._device.type, dtype=dtype, enabled=dtype != torch.float32)
        self._windows = Windows(ids, schedule.length, schedule.batch_size, schedule.seed)
        self._probe = consecutive(held_out, schedule.length, recipe.eval_windows)

    def backward(self, step: int) -> float:
        """The gradients of one batch of windows."""
        cycle, place = self._schedule.at(step)
        if self._teacher is not None and cycle.own_batches:
            index = place % cycle.own_batches
            name, batch = f"own-{index:06d}", self._teacher.own_text(self._windows, index).to(self._device)
        else:
            name, batch = f"{step:06d}", self._windows.batch(step).to(self._device)
        weight, beliefs = cycle.teacher_weight, None
        if self._teacher is not None and weight:
            beliefs = self._teacher.beliefs(name, batch[:, :-1], self._autocast)
        with self._autocast:
            logits = self.module(batch[:, :-1], use_cache=False).logits
        loss = token_loss(logits, batch[:, 1:], beliefs, weight)
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, batch_size: int = 16) -> HeldOut:
        """Over the first held-out windows."""
        loss, hits, tokens = 0.0, 0, 0
        for batch in self._probe.split(batch_size):
            batch = batch.to(self._device)
            with self._autocast:
                logits = self.module(batch[:, :-1], use_cache=False).logits.float()
            labels = batch[:, 1:]
            loss += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
            hits += int((logits.argmax(-1) == labels).sum())
            tokens += labels.numel()
        return HeldOut(loss / tokens, hits / tokens, {})


def muon_and_adamw(model: nn.Module, schedule: Schedule) -> Optimizers:
    """Muon for the matrices inside the layers, AdamW for everything else, under one schedule.

    Raises:
        TrainingError: This torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise TrainingError(f"training needs torch 2.9 or newer (torch.optim.Muon), this is {torch.__version__}")
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=schedule.matrix_lr, momentum=0.95, weight_decay=schedule.weight_decay)
    adamw = torch.optim.AdamW(others, lr=schedule.vector_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return Optimizers([(muon, schedule.matrix_lr), (adamw, schedule.vector_lr)], schedule.factor)


def train_language_model(
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
    task = LanguageTask(model, recipe, ids, held_out, teacher, dtype)
    schedule = recipe.schedule
    optimizers = muon_and_adamw(model, schedule)
    return train(task, optimizers, schedule.steps, folder, clip=schedule.clip, eval_every=eval_every, report=report)
