"""What models say along a text, and what they would draft after every place of it, all places at once.

The text is a chain of nodes, and behind every one of them hangs a branch of its own, which sees the text up to there
and itself. So drafts of ``length`` tokens after T places cost ``length`` forwards over T tokens and no more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.decode.target import Branches, CachedModel, Nodes

_NODES_AT_ONCE = 1024
_LOGITS_AT_ONCE = 2**24

Choose = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Logits (B, C, rows of the vocabulary) and the positions of the tokens to choose (B, C) -> those tokens (B, C), and
behind them whatever else is to be kept of each, (B, C) too."""


@dataclass(frozen=True)
class Text:
    """Texts, and the places in them that are looked at: ``count`` in a row, from ``first`` on.

    A row that is shorter than that has anything at the places beyond its end.

    Attributes:
        tokens: Padded on the right, (B, T).
        first: Index of the first place of every row, (B,).
        count: Places of a row.
    """

    tokens: Tensor
    first: Tensor
    count: int

    def places_at_once(self, vocab_size: int, branch: int = 1) -> int:
        """How many places to take at a time, so that memory does not grow with the text.

        Args:
            vocab_size: Of the logits.
            branch: Tokens that go through the model for each place.
        """
        most = min(_NODES_AT_ONCE // branch, _LOGITS_AT_ONCE // (len(self.tokens) * vocab_size))
        return min(max(1, most), self.count)


@dataclass(frozen=True)
class Places:
    """Some places of a text that follow one another, and what a model says there.

    Attributes:
        index: Of the first one in every row, (B,).
        logits: After the text up to and including each place, (B, C, rows of the vocabulary).
        positions: Of the tokens that the logits predict, (B, C).
        longest: No index is greater; known without asking the device.
    """

    index: Tensor
    logits: Tensor
    positions: Tensor
    longest: int


@torch.no_grad()
def walk(model: CachedModel, text: Text, at_once: int, branch: int = 1) -> Iterator[Places]:
    """Read texts, a few places at a time.

    Args:
        model: Its slab is used, and stays the walk's until that has ended.
        text: The texts and the places.
        at_once: Places that are taken at a time.
        branch: Tokens that the caller means to run for each place before it asks for the next ones.
    """
    farthest = int(text.first.max())
    model.allocate(len(text.tokens), farthest + text.count + at_once * branch + 2)
    if farthest:
        model.prefill(text.tokens[:, :farthest], text.first.clamp_min(1))
    for start in range(0, text.count, at_once):
        index = text.first + start
        places = index[:, None] + torch.arange(min(at_once, text.count - start), device=index.device)
        tokens = text.tokens.gather(1, places.clamp_max(text.tokens.shape[1] - 1))
        longest = farthest + start
        logits = model.forward(Nodes(tokens, index), longest).logits
        yield Places(index, logits, places + 1, longest)


@torch.no_grad()
def roll_out(model: CachedModel, text: Text, length: int, choose: Choose) -> tuple[Tensor, ...]:
    """What a model drafts after every place of a text, each draft as if the text ended there.

    Args:
        model: The one that drafts; its slab is used.
        text: The texts and the places.
        length: Tokens of a draft, at least 1.
        choose: Names each next token.

    Returns:
        Whatever ``choose`` returned, of all places and all tokens of their drafts, (B, count, length) each.
    """
    at_once = text.places_at_once(model.vocab_size, length)
    found = [_branches(model, places, length, choose) for places in walk(model, text, at_once, length)]
    return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))


def _branches(model: CachedModel, places: Places, length: int, choose: Choose) -> tuple[Tensor, ...]:
    """The drafts behind some places, (B, C, length) each."""
    count = places.logits.shape[1]
    column = torch.arange(count, device=places.index.device)
    itself = torch.eye(count, dtype=torch.bool, device=column.device)
    sees = column <= column[:, None]
    depths = [column]
    chosen = [choose(places.logits, places.positions)]
    for ahead in range(1, length):
        sees = torch.cat([sees, itself], dim=1)
        depths.append(column + ahead)
        branches = Branches(column + ahead * count, depths[-1][None], sees[None], torch.cat(depths)[None])
        logits = model.forward(Nodes(chosen[-1][0], places.index, branches), places.longest).logits
        chosen.append(choose(logits, places.positions + ahead))
    return tuple(torch.stack(parts, dim=2) for parts in zip(*chosen, strict=True))
