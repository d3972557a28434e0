"""A frozen target's hidden states over the training texts: asked for once, whatever the passes over the data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specbench.decode.method import Hidden
from specbench.decode.target import CachedModel
from specbench.train.files import kept_tensor


@dataclass(frozen=True)
class KeptStates:
    """Hidden states, made once for a text and kept on disk, 2 x T x H bytes in half precision.

    Attributes:
        target: The model; it must not learn meanwhile.
        which: The hidden state.
        folder: Where they are kept; the name must tell target and data apart from any others.
    """

    target: CachedModel
    which: Hidden
    folder: Path

    def of(self, name: str, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The hidden states of the texts ``name``, (B, T, H); see ``hidden_states``."""
        return kept_tensor(
            self.folder / f"{name}.safetensors",
            lambda: hidden_states(self.target, self.which, tokens, lengths).to(self.target.dtype),
            tokens.device,
        )


@torch.no_grad()
def hidden_states(target: CachedModel, which: Hidden, tokens: Tensor, lengths: Tensor) -> Tensor:
    """What a target makes of texts at every token, (B, T, H); nothing flows back through it. Its slab is used.

    Args:
        target: The model.
        which: The hidden state.
        tokens: (B, T), padded on the right.
        lengths: (B,).
    """
    batch, longest = tokens.shape
    target.allocate(batch, longest + 1)
    return target.prefill(tokens, lengths, (which,), all_positions=True).hidden[which]
