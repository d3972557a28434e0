"""What a target would go on with at every place of a text: the paper's labels for a distilled ReDrafter.

Source: Cheng et al., arXiv 2403.09919, section 3.3: at every position of a text the target's own greedy tokens are what
the drafter learns to name, instead of the text's.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specbench.decode.method import POST_NORM
from specbench.decode.target import Branches, CachedModel, Nodes
from specbench.train.files import kept_tensor

_PLACES_AT_ONCE = 128


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations, made once for a text and kept on disk.

    Attributes:
        target: The model that goes on.
        folder: Where they are kept; the name must tell target and data apart from any others.
        length: Tokens of a continuation.
    """

    target: CachedModel
    folder: Path
    length: int

    def of(self, name: str, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The continuation of every place of the texts ``name``, (B, T, length); see ``greedy_continuations``."""
        path = self.folder / f"{name}-{self.length}.safetensors"
        found = kept_tensor(
            path, lambda: greedy_continuations(self.target, tokens, lengths, self.length).int(), tokens.device
        )
        return found.long()


@torch.no_grad()
def greedy_continuations(target: CachedModel, tokens: Tensor, lengths: Tensor, length: int) -> Tensor:
    """What the target writes after every beginning of a text, greedily, (B, T, length).

    All beginnings go on at once: the text is a chain of nodes, and behind every one of them hangs a branch that sees
    the text up to there and itself. So a text of T tokens costs ``length`` forwards over T tokens and no more.

    Args:
        target: The model; its slab is used.
        tokens: (B, T), padded on the right.
        lengths: (B,).
        length: Tokens of every continuation.
    """
    batch, text = tokens.shape
    chunk = min(_PLACES_AT_ONCE, text)
    target.allocate(batch, text + chunk * length + 2)
    hidden = target.prefill(tokens, lengths, (POST_NORM,), all_positions=True).hidden[POST_NORM]
    found = [_go_on(target, hidden[:, first : first + chunk], first, text, length) for first in range(0, text, chunk)]
    return torch.cat(found, dim=1)


def _go_on(target: CachedModel, hidden: Tensor, first: int, text: int, length: int) -> Tensor:
    """The continuations of the places from ``first`` on, whose last hidden states are given, (B, places, length)."""
    batch, places = hidden.shape[:2]
    place = torch.arange(first, first + places, device=hidden.device)
    base = torch.zeros(batch, dtype=torch.int64, device=hidden.device)
    sees = torch.arange(text, device=hidden.device) <= place[:, None]
    itself = torch.eye(places, dtype=torch.bool, device=hidden.device)
    depths = [torch.arange(text, device=hidden.device)]
    tokens = [target.head(hidden)[..., : target.vocab_size].argmax(-1)]
    for ahead in range(1, length):
        sees = torch.cat([sees, itself], dim=1)
        depths.append(place + ahead)
        node = text + (ahead - 1) * places + torch.arange(places, device=hidden.device)
        branches = Branches(node, depths[-1][None], sees[None], torch.cat(depths)[None])
        logits = target.forward(Nodes(tokens[-1], base, branches), 0).logits
        tokens.append(logits[..., : target.vocab_size].argmax(-1))
    return torch.stack(tokens, dim=2)
