"""Beam search with a recurrent drafter, and the tree of its beams. B rows, W beams of D drafted tokens."""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.redrafter.drafter import RecurrentDrafter
from specbench.decode.sampling import largest


@dataclass(frozen=True)
class Beams:
    """What a search has found, the best beam first.

    Attributes:
        tokens: What was drafted, (B, W, D).
        places: Which beam of its round each token was added by, (B, W, D). Beams that begin alike have the same places
            there.
        rounds: What the search had found round by round.
        probs: The distributions that tokens were taken from, (B, P, V); None unless asked for. Row 0 is the root's,
            those of the first round's beams come next, and so on.
    """

    tokens: Tensor
    places: Tensor
    rounds: "list[Round]"
    probs: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """Sum of the log-probabilities up to each token, (B, W, D)."""
        return torch.stack(
            [found.scores.gather(1, places) for found, places in zip(self.rounds, self.places.unbind(2), strict=True)],
            dim=2,
        )

    @property
    def rows_below(self) -> Tensor:
        """Which distribution each token's children were taken from, (B, W, D).

        The root's come from row 0. What a beam's last token would go on with nobody asks, and there is no such row.
        """
        firsts = accumulate((found.tokens.shape[1] for found in self.rounds[:-1]), initial=1)
        return torch.stack([places + first for places, first in zip(self.places.unbind(2), firsts, strict=True)], dim=2)


class Round(NamedTuple):
    """The beams after one round: their newest tokens, their scores, and the beams of the round before, (B, W) each."""

    tokens: Tensor
    scores: Tensor
    parents: Tensor | None


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
        context = context[:, None]
        state = drafter.start(root[:, None], context.dtype)
        rounds: list[Round] = []
        probs: list[Tensor] = []
        while True:
            logits = drafter.logits(context.expand_as(state), state)[..., : self.vocab_size]
            if self.temperature != 1.0:
                logits = logits.float() / self.temperature
            if with_probs:
                probs.append(self._probs(logits))
            found = self._next(logits, rounds)
            rounds.append(found)
            if len(rounds) == self.length - 1:
                break
            if found.parents is not None:  # else all beams come from the root, whose state serves them all
                state = _take(state, found.parents)
            state = drafter.advance(state, found.tokens)
        return _trace(rounds, torch.cat(probs, dim=1) if probs else None)

    def _next(self, logits: Tensor, rounds: list[Round]) -> Round:
        """The best beams that are one token longer."""
        values, ids = self._candidates(logits)
        if not rounds:
            return Round(ids[:, 0], values[:, 0], None)
        grown = (rounds[-1].scores[:, :, None] + values).flatten(1)
        scores, best = grown.topk(min(self.width, grown.shape[1]))
        return Round(ids.flatten(1).gather(1, best), scores, best // values.shape[2])

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that each beam may go on with: log-probabilities (float32) and ids, (B, W, C) each.

        The likeliest come first. A beam contributes at most ``width`` to the next round, so no more are looked at.
        """
        if self.top_k is None or self.top_k >= self.vocab_size:
            return largest(logits.log_softmax(-1, dtype=torch.float32), min(self.width, self.vocab_size))
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


def _trace(rounds: list[Round], probs: Tensor | None) -> Beams:
    """Walk back from the last round's beams to where each of their tokens came from."""
    last = rounds[-1]
    place = torch.arange(last.tokens.shape[1], device=last.tokens.device).expand_as(last.tokens)
    tokens, places, parents = [last.tokens], [place], last.parents
    for found in reversed(rounds[:-1]):
        assert parents is not None  # only the first round has none
        place = parents
        tokens.append(found.tokens.gather(1, place))
        places.append(place)
        parents = None if found.parents is None else found.parents.gather(1, place)
    return Beams(torch.stack(tokens[::-1], dim=2), torch.stack(places[::-1], dim=2), rounds, probs)


@dataclass(frozen=True)
class PrefixTree:
    """Beams without what they share: one node for every different beginning.

    Attributes:
        tokens: Of every place that could be a node, beam by beam, (B, W * D).
        parents: Its parent's number among the nodes that are kept, -1 for the root, (B, W * D).
        kept: Whether it is a node: no earlier beam begins the same, (B, W * D).
        number: The node's number, where it is one, (B, W * D).
    """

    tokens: Tensor
    parents: Tensor
    kept: Tensor
    number: Tensor

    @property
    def counts(self) -> Tensor:
        """Nodes of every row, (B,)."""
        return self.kept.sum(1)

    def packed(self, nodes: int, *of_beams: Tensor) -> tuple[Tensor, ...]:
        """The nodes alone, in order, padding at the end: tokens, parents, and what else (B, W, D) there is.

        Each is (B, nodes).
        """
        number = torch.where(self.kept, self.number, nodes)  # what is none goes to a column behind the last

        def pack(values: Tensor, filler: int) -> Tensor:
            room = values.new_full((len(values), nodes + 1), filler)
            return room.scatter(1, number, values)[:, :nodes]

        return pack(self.tokens, 0), pack(self.parents, -2), *(pack(values.flatten(1), 0) for values in of_beams)


def prefix_tree(beams: Beams, nodes: int | None = None) -> PrefixTree:
    """Find what beams share, for all rows at once. Source: arXiv 2403.09919, section 3.2 and figure 3.

    Args:
        beams: Of equal length.
        nodes: Keep so many nodes at most, the likeliest ones. A node is never likelier than the one above it, so what
            is left is a tree.
    """
    places = beams.places
    alike = places[:, :, None] == places[:, None]  # (B, W, W, D): they begin alike, up to here
    owner = alike.view(torch.uint8).argmax(2)  # the first beam of those, (B, W, D)
    beam = torch.arange(places.shape[1], device=places.device)
    kept = (owner == beam[:, None]).flatten(1)
    if nodes is not None and nodes < kept.shape[1]:
        # A step down costs a little at least, or a certain token could be kept without the one before it.
        depth = torch.arange(places.shape[2], device=places.device)
        score = (beams.scores - 1e-4 * depth).flatten(1).masked_fill(~kept, -torch.inf)
        best = score.topk(nodes, dim=1).indices
        kept = kept & torch.zeros_like(kept).scatter(1, best, value=True)
    number = kept.cumsum(1) - 1
    above = number.view(places.shape).gather(1, owner)[:, :, :-1]
    return PrefixTree(beams.tokens.flatten(1), F.pad(above, (1, 0), value=-1).flatten(1), kept, number)
