"""Beam search with a recurrent drafter, and the tree of its beams. B rows, W beams of L tokens, the root included."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.redrafter.drafter import RecurrentDrafter


@dataclass(frozen=True)
class Beams:
    """What a search has found, the best beam first.

    Attributes:
        tokens: (B, W, L), the root in front.
        scores: Sum of the log-probabilities up to each drafted token, (B, W, L - 1).
        probs: The distributions that tokens were taken from, (B, P, V); None unless asked for.
        probs_rows: Which of them each drafted token was taken from, (B, W, L - 1); None unless asked for.
    """

    tokens: Tensor
    scores: Tensor
    probs: Tensor | None = None
    probs_rows: Tensor | None = None


@dataclass(frozen=True)
class Search:
    """The settings of a beam search.

    Attributes:
        width: Beams that are kept. There are fewer where the vocabulary, or ``top_k``, offers fewer beginnings.
        length: Tokens of a beam, the root included.
        top_k: Only the k likeliest tokens are considered and share the probability; None for all. Apple's code has 50.
        temperature: Of the drafter's distribution.
        vocab_size: Tokens of the common map.
    """

    width: int
    length: int
    top_k: int | None
    temperature: float
    vocab_size: int

    def run(self, drafter: RecurrentDrafter, context: Tensor, root: Tensor, *, with_probs: bool) -> Beams:
        """Search from the target's last hidden state (B, H) and the root (B,).

        No chance is at work, and no distribution is kept unless it is asked for.
        """
        tokens = root[:, None, None]
        state = torch.zeros_like(context)[:, None]
        scores = context.new_zeros((len(root), 1, 0), dtype=torch.float32)
        total = context.new_zeros((len(root), 1), dtype=torch.float32)
        rows = root.new_zeros((len(root), 1, 0))
        probs: list[Tensor] = []
        for _ in range(self.length - 1):
            state = drafter.advance(state, tokens[:, :, -1])
            logits = drafter.logits(context[:, None].expand_as(state), state)[..., : self.vocab_size]
            if self.temperature != 1.0:
                logits = logits.float() / self.temperature
            values, ids = self._candidates(logits)
            beams = tokens.shape[1]
            total, flat = (total[:, :, None] + values).flatten(1).topk(min(self.width, beams * values.shape[2]))
            parent = flat // values.shape[2]
            chosen = ids.flatten(1).gather(1, flat)
            if with_probs:
                first = sum(part.shape[1] for part in probs)
                rows = torch.cat([_take(rows, parent), (parent + first)[:, :, None]], dim=2)
                probs.append(self._probs(logits))
            tokens = torch.cat([_take(tokens, parent), chosen[:, :, None]], dim=2)
            scores = torch.cat([_take(scores, parent), total[:, :, None]], dim=2)
            state = _take(state, parent)
        return Beams(tokens, scores, torch.cat(probs, dim=1) if probs else None, rows if probs else None)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that each beam may go on with: log-probabilities (float32) and ids, (B, W, C) each.

        A beam contributes at most ``width`` tokens to the next round, so no more of each are looked at.
        """
        if self.top_k is None or self.top_k >= self.vocab_size:
            values, ids = logits.log_softmax(-1, dtype=torch.float32).topk(min(self.width, self.vocab_size), dim=-1)
            return values, ids
        values, ids = logits.topk(self.top_k, dim=-1)
        return values.log_softmax(-1, dtype=torch.float32)[..., : self.width], ids[..., : self.width]

    def _probs(self, logits: Tensor) -> Tensor:
        if self.top_k is not None and self.top_k < self.vocab_size:
            edge = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < edge, -torch.inf)
        return logits.softmax(-1, dtype=torch.float32)


def _take(values: Tensor, beams: Tensor) -> Tensor:
    """Beams of every row: (B, W, n) and (B, W') -> (B, W', n)."""
    return values.gather(1, beams[:, :, None].expand(-1, -1, values.shape[2]))


@dataclass(frozen=True)
class PrefixTree:
    """Beams without what they share: one node for every different beginning.

    Attributes:
        tokens: Of every place that could be a node, beam by beam, (B, W * (L - 1)).
        parents: Its parent's number among the nodes that are kept, -1 for the root, (B, W * (L - 1)).
        kept: Whether it is a node: no earlier beam begins the same, (B, W * (L - 1)).
    """

    tokens: Tensor
    parents: Tensor
    kept: Tensor

    @property
    def counts(self) -> Tensor:
        """Nodes of every row, (B,)."""
        return self.kept.sum(1)

    def packed(self, nodes: int, *extra: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The nodes alone, in order: tokens and parents (B, nodes), padding at the end; ``extra`` values likewise."""
        trash = nodes
        number = torch.where(self.kept, self.kept.cumsum(1) - 1, trash)

        def pack(values: Tensor, filler: int) -> Tensor:
            room = values.new_full((len(values), nodes + 1), filler)
            return room.scatter(1, number, values)[:, :nodes]

        return pack(self.tokens, 0), pack(self.parents, -2), [pack(values, 0) for values in extra]


def prefix_tree(beams: Beams, nodes: int | None = None) -> PrefixTree:
    """Find what beams share, for all rows at once. Source: arXiv 2403.09919, section 3.2 and figure 3.

    Args:
        beams: Of equal length.
        nodes: Keep so many nodes at most, the likeliest ones. A node is never likelier than the one above it, so what
            is left is a tree.
    """
    tokens = beams.tokens
    batch, width, length = tokens.shape
    same = (tokens[:, :, None] == tokens[:, None]).cumprod(3)  # (B, W, W, L): equal up to here
    owner = same.argmax(2)  # the first beam with that beginning, (B, W, L)
    beam = torch.arange(width, device=tokens.device)
    kept = (owner == beam[:, None])[:, :, 1:].flatten(1)
    if nodes is not None and nodes < kept.shape[1]:
        # A step down costs a little at least, or a certain token could be kept without the one before it.
        depth = torch.arange(length - 1, device=tokens.device)
        score = (beams.scores - 1e-4 * depth).flatten(1).masked_fill(~kept, -torch.inf)
        best = score.topk(nodes, dim=1).indices
        kept = kept & torch.zeros_like(kept).scatter(1, best, value=True)
    number = F.pad((kept.cumsum(1) - 1).view(batch, width, length - 1), (1, 0), value=-1)
    parents = number.gather(1, owner)[:, :, :-1]
    return PrefixTree(tokens[:, :, 1:].flatten(1), parents.flatten(1), kept)
