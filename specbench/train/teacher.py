"""What a teacher thinks of the training text: computed once a batch, kept on disk, shared by all its pupils."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Beliefs:
    """A teacher's most likely next tokens at every position of a batch.

    Attributes:
        ids: Token ids, (batch, length, k).
        probs: Their probabilities, (batch, length, k), float32.
    """

    ids: Tensor
    probs: Tensor


class Teacher:
    """A frozen model, asked at most once for each batch of the training text.

    One draft's training costs about as much as the teacher's forward over the same text, so several drafts of one
    target learn at half the price from one set of files. Only the ``k`` likeliest tokens are kept; the others count
    as one outcome in ``divergence``.

    Args:
        model: The teacher; it gets no gradients.
        folder: Where the beliefs are kept. The name must tell teacher and text apart from any others.
        k: Tokens kept for each position.
    """

    def __init__(self, model: nn.Module, folder: Path, *, k: int = 32) -> None:
        self._model = model.eval().requires_grad_(requires_grad=False)
        self._folder = folder
        self._k = k

    def beliefs(self, name: str, inputs: Tensor, autocast: torch.autocast) -> Beliefs:
        """The beliefs about the token after each of ``inputs``, (batch, length); ``name`` identifies the batch."""
        path = self._folder / f"{name}-top{self._k}.safetensors"
        if not path.exists():
            with torch.no_grad(), autocast:
                logits = self._model(inputs, use_cache=False).logits
            top = logits.float().softmax(-1).topk(self._k, dim=-1)
            self._folder.mkdir(parents=True, exist_ok=True)
            # Several trainings may share the folder: each writes under a name of its own, then moves it.
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({"ids": top.indices.int().cpu(), "probs": top.values.half().cpu()}, temporary)
            temporary.replace(path)
        kept = load_file(path, device=str(inputs.device))
        return Beliefs(kept["ids"].long(), kept["probs"].float())


def divergence(log_probs: Tensor, beliefs: Beliefs) -> Tensor:
    """Mean KL(teacher || model) per token, where all tokens but the teacher's first ``k`` count as one outcome.

    Args:
        log_probs: The model's log-probabilities, (batch, length, vocab).
        beliefs: The teacher's, for the same positions.
    """
    tiny = torch.finfo(torch.float32).tiny
    kept = log_probs.gather(-1, beliefs.ids)
    rest = 1 - kept.exp().sum(-1)
    teacher_rest = (1 - beliefs.probs.sum(-1)).clamp(min=0)
    own = beliefs.probs * (beliefs.probs.clamp(min=tiny).log() - kept)
    # The rest may round to nothing on either side; 1e-6 keeps the logarithm and its gradient finite.
    other = teacher_rest * (teacher_rest.clamp(min=1e-6).log() - rest.clamp(min=1e-6).log())
    return (own.sum(-1) + other).mean()
