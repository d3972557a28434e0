"""What a teacher thinks of a text, and texts of its own: made once a batch, kept on disk, shared by all its pupils."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from specbench.train.data import Windows
from specbench.train.files import replacing

PROMPT_SHARE = 0.25
"""Of a window that the teacher continues, the share that stays the training text."""
GROUP = 4
"""Batches that are written together: one token costs a few rows nearly as much as many."""
TEMPERATURES = (0.4, 0.8)
"""Groups are written at these in turn: as a greedy reader and a sampling one will meet the teacher's text."""


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

    def __init__(self, model: PreTrainedModel, folder: Path, *, k: int = 32) -> None:
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
            _keep(path, {"ids": top.indices.int().cpu(), "probs": top.values.half().cpu()})
        kept = load_file(path, device=str(inputs.device))
        return Beliefs(kept["ids"].long(), kept["probs"].float())

    def own_text(self, windows: Windows, index: int) -> Tensor:
        """Batch ``index`` of windows that the teacher has gone on with after their first quarter, (batch, length + 1).

        A draft meets the target's own text when it is used, not the training text: on that it should agree
        (Zhou et al. 2023, DistillSpec, arXiv:2310.08461).
        """
        path = self._own_path(index)
        if not path.exists():
            first = index // GROUP * GROUP
            group = torch.cat([windows.batch(number) for number in range(first, first + GROUP)])
            text = self._continued(group, seed=first, temperature=TEMPERATURES[first // GROUP % len(TEMPERATURES)])
            for number, batch in enumerate(text.split(windows.batch_size), start=first):
                _keep(self._own_path(number), {"ids": batch.int().cpu().contiguous()})
        return load_file(path)["ids"].long()

    def _own_path(self, index: int) -> Path:
        return self._folder / f"own-{index:06d}.safetensors"

    @torch.no_grad()
    def _continued(self, windows: Tensor, *, seed: int, temperature: float) -> Tensor:
        prompts = windows[:, : int(windows.shape[1] * PROMPT_SHARE)].to(self._model.device)
        new = windows.shape[1] - prompts.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            text: Tensor = self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,  # every row fills its window
                cache_implementation="static",
            )
        return text


def _keep(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file that several trainings may be writing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{os.getpid()}.tmp") as temporary:
        save_file(tensors, temporary)


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
