"""Weights that a method learns: they draft from what the target computes, and are trained by the one loop of ``train``.

A training batch is a list of places in a text. At each place the drafter gets what it gets when it drafts, the target's
hidden state and the root that the target adds, and shall name the tokens that follow.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from pydantic import BaseModel

    from specbench.decode.method import Hidden
    from specbench.decode.target import CachedModel

IGNORED = -100
"""The label of a token that nothing is learned from."""
TOP = 10
"""Ranks whose accuracy a training reports."""
_ROWS_AT_ONCE = 2048  # of logits over the whole vocabulary
_RANDOM_STD = 0.02  # what transformers draws weights with


@dataclass(frozen=True)
class TrainingBatch:
    """Places in texts, seen as a drafter sees them. P places, n depths.

    Attributes:
        hidden: The target's hidden states at the last token before the root, as the drafter's ``hidden`` asks, (P, H).
        tokens: The root, then the n tokens that follow, (P, n + 1).
        labels: ``tokens[:, 1:]``, with ``IGNORED`` where a token does not count, (P, n).
        counts: Labels of every depth in the whole optimizer step, all processes together, at least 1, (n,) float32.
        beliefs: What the target's head reads before each label, so that a drafter can learn the target's distribution
            in place of the label, (P, n, H); None to learn the labels.
    """

    hidden: "Mapping[Hidden, Tensor]"
    tokens: Tensor
    labels: Tensor
    counts: Tensor
    beliefs: Tensor | None = None


class Losses(NamedTuple):
    """What a drafter made of a batch. Sums over its places; n depths.

    Attributes:
        loss: To be minimised: each depth's mean cross-entropy over ``TrainingBatch.counts``, against the labels or the
            target's distribution, weighted and added up.
        nats: Cross-entropy of every depth against the labels, (n,).
        hits: Labels among the k likeliest tokens, for k = 1 .. ``TOP``, (n, TOP); not counted where gradients are
            wanted, since finding them would cost a third of a step.
    """

    loss: Tensor
    nats: Tensor
    hits: Tensor


class Drafter(nn.Module, ABC):
    """Trainable weights of a method. The target that they are bound to is no part of them.

    Attributes:
        hidden: The hidden state that it reads.
        Settings: What decides its shape beside the target; a default for every one.
        depth: Tokens beyond the root that it is trained to name, n.
        rank_accuracy: How often its token of rank r was right at each depth, on held-out text; None if not measured.
    """

    hidden: "ClassVar[Hidden]"
    Settings: "ClassVar[type[BaseModel]]"
    depth: int
    rank_accuracy: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    @abstractmethod
    def new(cls, settings: "BaseModel", target: "CachedModel") -> Self:
        """Untrained weights for a target, float32 on its device; torch's seed decides them."""

    @classmethod
    def random(cls, settings: "BaseModel", target: "CachedModel", seed: int = 0) -> Self:
        """Weights that nobody has trained, of the shape that fits a target: they take their time, and guess nothing.

        All are drawn, those too that training begins with at zero: kernels and power limits treat zeros kindly. They
        are made on the target's device and in its precision, so that no larger copy ever stands anywhere. A kind whose
        constructor takes other arguments than (settings, hidden size, rows of the vocabulary) brings its own.
        """
        rows, hidden_size = target.output_matrix.shape
        make: Callable[..., Self] = cls
        with torch.device("meta"):
            made = make(settings, hidden_size, rows)
        made = made.to(target.dtype).to_empty(device=target.device)
        with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            for weight in made.parameters():
                weight.normal_(std=_RANDOM_STD)
        return made

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, target: "CachedModel") -> Self:
        """Trained weights from a folder, on the target's device and in its precision.

        Raises:
            ConfigError: The files are not of this kind, or do not fit the target; the message names both sides.
        """

    @abstractmethod
    def save(self, folder: Path, target_name: str) -> None:
        """Write what ``load`` reads."""

    @abstractmethod
    def forward(self, batch: TrainingBatch) -> Losses:
        """The loss over a batch."""

    def bind(self, target: "CachedModel") -> Self:
        """Lend it the target's embedding and output matrix. They are no parameters of the drafter's."""
        self._lender = (target,)  # in a tuple, or nn.Module would take the target's weights for its own
        return self

    @property
    def target(self) -> "CachedModel":
        """The target that it is bound to."""
        return self._lender[0]


class ResidualBlock(nn.Module):
    """x + silu(W x + b); an untrained block hands x on as it is, so that a drafter begins as the target's own head."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return x + F.silu(self.linear(x))


def write_checkpoint(folder: Path, file: str, weights: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    """Write weights as safetensors under the name ``file``, and ``config.json`` beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / file)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def losses_by_depth(
    features: Sequence[Tensor],
    output: Callable[[Tensor, int], Tensor],
    batch: TrainingBatch,
    weights: Sequence[float],
    target_head: Callable[[Tensor], Tensor],
) -> Losses:
    """Cross-entropy of every depth, without ever holding the logits of all places.

    Logits are made for a few thousand places at a time, forgotten, and made again in the backward pass.

    Args:
        features: What the output matrix of each depth is applied to, n times (P, F).
        output: (features, depth) -> logits over the vocabulary.
        batch: The places.
        weights: How much each depth counts.
        target_head: (..., H) -> the target's logits, for batches with ``beliefs``.
    """
    loss = features[0].new_zeros((), dtype=torch.float32)
    nats: list[Tensor] = []
    hits: list[Tensor] = []
    for depth, (feature, weight) in enumerate(zip(features, weights, strict=True)):
        labels = batch.labels[:, depth]
        states = feature[:, :0] if batch.beliefs is None else batch.beliefs[:, depth]
        slices = zip(*(values.split(_ROWS_AT_ONCE) for values in (feature, labels, states)), strict=True)
        parts = [
            checkpoint(_slice_loss, *values, lambda x, depth=depth: output(x, depth), target_head, use_reentrant=False)
            for values in slices
        ]
        totals, hard, right = (torch.stack(values) for values in zip(*parts, strict=True))
        loss = loss + weight * totals.sum() / batch.counts[depth]
        nats.append(hard.detach().sum())
        hits.append(right.sum(0))
    return Losses(loss, torch.stack(nats), torch.stack(hits))


def _slice_loss(
    features: Tensor,
    labels: Tensor,
    states: Tensor,
    output: Callable[[Tensor], Tensor],
    target_head: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """What is minimised, the cross-entropy against the labels, and the labels among the likeliest tokens: sums."""
    logits = output(features).float()
    nats = loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    if states.shape[1]:
        with torch.no_grad():
            believed = target_head(states).float().softmax(-1)
        soft = F.cross_entropy(logits, believed, reduction="none")
        loss = soft.masked_fill(labels == IGNORED, 0.0).sum()
    if torch.is_grad_enabled():
        return loss, nats, labels.new_zeros(TOP)
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
    hits = (best == labels[:, None]).cumsum(1).sum(0)
    return loss, nats, F.pad(hits, (0, TOP - len(hits)), value=0)
