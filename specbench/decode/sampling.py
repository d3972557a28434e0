"""Logits become a distribution, and noise becomes a choice: the same for target and draft, for every method.

All randomness is a hash of (seed, stream, prompt key, position, rank): no generator has a state. A prompt's text then
depends on neither its batch, its slot, nor the order of the run, and nothing here forbids capturing a step as a graph.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


class Stream(IntEnum):
    """What a piece of noise is for. Streams are independent of one another."""

    TARGET = 1
    DRAFT = 2
    ACCEPT = 3
    RESIDUAL = 4


def _signed(value: int) -> int:
    """An unsigned 32-bit constant as the int32 that tensors hold."""
    value &= _LOW_32
    return value - (1 << 32) if value >= 1 << 31 else value


def _mix(x: Tensor) -> Tensor:
    """A bijection on 32 bits that lets every input bit reach every output bit.

    Source: the "lowbias32" constants of Chris Wellons, "Prospecting for Hash Functions". ``>>`` on int32 repeats the
    sign, hence the masks.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _signed(0x7FEB352D)
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def hash32(seed: int, stream: int, *keys: Int[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """Hash integers to int32: one mixing round a key, and one more at the end, because the last key is the dense one.

    Args:
        seed: The experiment's seed.
        stream: A ``Stream``.
        keys: Integer tensors that broadcast against one another.
    """
    start = seed * 0x85EBCA6B + stream * 0xC2B2AE35 + 0x165667B1
    state = _mix(keys[0].to(torch.int32) + _signed(start))
    for index, key in enumerate(keys[1:], start=2):
        state = _mix(state + key.to(torch.int32) * _signed(0x9E3779B9) + index)
    return _mix(state ^ _signed(0x27D4EB2F))


def uniform(bits: Int32[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Int32 hashes as float32 in (0, 1), with all 32 bits of resolution next to 0."""
    unsigned = (bits.to(torch.int64) & _LOW_32).to(torch.float32)
    return ((unsigned + 0.5) * 2.0**-32).clamp_(max=1.0 - 2.0**-24)


def gumbel(bits: Int32[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Int32 hashes as standard Gumbel noise, float32; the large values, which win, are the finely resolved ones."""
    return -torch.log(-torch.log1p(-uniform(bits)))


@dataclass(frozen=True)
class Sampler:
    """How tokens are chosen in one batch. Methods draft with the very object that the verifier uses.

    ``positions`` in the methods below are those of the token that is to be chosen: the position after its context.

    Attributes:
        temperature: 0 means the most likely token, and a distribution that is one-hot.
        top_k: Keep the k most likely tokens, None for all. Ties at the edge are kept.
        top_p: Keep the smallest set of tokens whose probability reaches p, None for all.
        min_new_tokens: EOS is impossible before this many output tokens.
        eos_ids: The tokens that end a text, (E,); empty when EOS is ignored.
        vocab_size: Tokens of the common map; rows of a logit beyond it are padding and are cut off.
        seed: The experiment's seed.
        keys: A stable integer for every row's prompt and sample, (batch,).
        prompt_lengths: Tokens of every prompt, (batch,).
        draft_stream: Where sampled drafts take their noise from. Under the rule ``match`` it is the target's own
            stream: draft and target are then coupled, and agree as often as they can.
        needs_draft_probs: Whether the rule asks what a sampled draft was drawn from; if not, it need not be computed.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    min_new_tokens: int
    eos_ids: Int[Tensor, " ends"]
    vocab_size: int
    seed: int
    keys: Int[Tensor, " batch"]
    prompt_lengths: Int[Tensor, " batch"]
    draft_stream: Stream = Stream.DRAFT
    needs_draft_probs: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether every distribution is one-hot."""
        return self.temperature == 0.0

    def weigh(
        self, logits: Float[Tensor, "batch nodes rows"], positions: Int[Tensor, "batch nodes"]
    ) -> Float[Tensor, "batch nodes vocab"]:
        """Logits as unnormalised log-probabilities, forbidden tokens at -inf.

        Args:
            logits: (batch, nodes, rows of the model's vocabulary), any float type.
            positions: (batch, nodes).

        Returns:
            (batch, nodes, vocab_size); float32 unless greedy, where the logits' own type decides nothing.
        """
        logits = self._fit(logits)
        if self.min_new_tokens and self.eos_ids.numel():
            logits = self._forbid_early_end(logits, positions)
        if self.is_greedy:
            return logits
        weights = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < self.vocab_size:
            edge = weights.topk(self.top_k, dim=-1).values[..., -1:]
            weights = weights.masked_fill(weights < edge, -torch.inf)
        if self.top_p is not None and self.top_p < 1.0:
            weights = _keep_nucleus(weights, self.top_p)
        return weights

    def probs(
        self, logits: Float[Tensor, "batch nodes rows"], positions: Int[Tensor, "batch nodes"]
    ) -> Float[Tensor, "batch nodes vocab"]:
        """The distribution that a token is drawn from, float32, (batch, nodes, vocab_size); one-hot at T = 0."""
        weights = self.weigh(logits, positions)
        if self.is_greedy:
            best = weights.argmax(-1, keepdim=True)
            return torch.zeros(weights.shape, device=weights.device).scatter_(-1, best, 1.0)
        return weights.softmax(-1)

    def ends(self, tokens: Tensor) -> Tensor:
        """Which tokens end a text, in their shape."""
        # torch.isin sorts where there are many to compare with, and on a GPU that waits.
        return (tokens[..., None] == self.eos_ids).any(-1)

    def scores(
        self,
        logits: Float[Tensor, "batch nodes rows"],
        positions: Int[Tensor, "batch nodes"],
        stream: Stream,
        rank: int = 0,
    ) -> Float[Tensor, "batch nodes vocab"]:
        """Log-probabilities with Gumbel noise added: the largest is a draw, the k largest are k without replacement.

        At T = 0 there is no noise, and the k largest are simply the k most likely. ``rank`` gives siblings noise of
        their own, for draws with replacement.
        """
        weights = self.weigh(logits, positions)
        return weights if self.is_greedy else weights + self.noise(positions, stream, rank)

    def draw(
        self,
        logits: Float[Tensor, "batch nodes rows"],
        positions: Int[Tensor, "batch nodes"],
        stream: Stream,
        rank: int = 0,
    ) -> Int[Tensor, "batch nodes"]:
        """One token for every node, (batch, nodes)."""
        return first_largest(self.scores(logits, positions, stream, rank))

    def propose(
        self, logits: Float[Tensor, "batch nodes rows"], positions: Int[Tensor, "batch nodes"], *, sampled: bool
    ) -> Int[Tensor, "batch nodes"]:
        """A draft's next token after every node: a draw from ``draft_stream``, or the most likely one."""
        if sampled:
            return self.draw(logits, positions, self.draft_stream)
        return first_largest(self.weigh(logits, positions))

    def confidence(
        self, logits: Float[Tensor, "batch nodes rows"], tokens: Int[Tensor, "batch nodes"]
    ) -> Float[Tensor, "batch nodes"]:
        """How likely a model itself holds some tokens, before temperature and truncation, float32."""
        return self._fit(logits).float().softmax(-1).gather(-1, tokens[..., None])[..., 0]

    def entropy(self, logits: Float[Tensor, "batch nodes rows"]) -> Float[Tensor, "batch nodes"]:
        """How unsure a model itself is, before temperature and truncation, in nats, float32."""
        return torch.special.entr(self._fit(logits).float().softmax(-1)).sum(-1)

    def draw_from(
        self, weights: Float[Tensor, "batch vocab"], positions: Int[Tensor, " batch"], stream: Stream
    ) -> Int[Tensor, " batch"]:
        """One token from non-negative weights that need no sum of 1, (batch, vocab_size) -> (batch,)."""
        scores = weights.log()[:, None] + self.noise(positions[:, None], stream)
        return scores[:, 0].argmax(-1)

    def noise(
        self, positions: Int[Tensor, "batch nodes"], stream: Stream, rank: int = 0
    ) -> Float[Tensor, "batch nodes vocab"]:
        """Gumbel noise for every token at every position, (batch, nodes, vocab_size), float32.

        It depends on a node's position and not on the node: of the nodes at one depth at most one is on the path that
        is followed, so they may share it.
        """
        tokens = torch.arange(self.vocab_size, device=positions.device, dtype=torch.int32)
        shifted = positions * 64 + rank
        return gumbel(hash32(self.seed, stream, self.keys[:, None, None], shifted[..., None], tokens))

    def uniforms(
        self, positions: Int[Tensor, "batch nodes"], ranks: Int[Tensor, "batch nodes"] | int, stream: Stream
    ) -> Float[Tensor, "batch nodes"]:
        """One number in (0, 1) for every node, keyed by position and rank among siblings, (batch, nodes)."""
        return uniform(hash32(self.seed, stream, self.keys[:, None], positions * 64 + ranks))

    def _fit(self, logits: Tensor) -> Tensor:
        rows = logits.shape[-1]
        if rows >= self.vocab_size:
            return logits[..., : self.vocab_size]
        return torch.nn.functional.pad(logits, (0, self.vocab_size - rows), value=-torch.inf)

    def _forbid_early_end(self, logits: Tensor, positions: Tensor) -> Tensor:
        early = (positions - self.prompt_lengths[:, None]) < self.min_new_tokens
        ends = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device).index_fill_(
            0, self.eos_ids, value=True
        )
        return logits.masked_fill(early[..., None] & ends, -torch.inf)


_GROUP, _MANY = 64, 1 << 17


def first_largest(scores: Float[Tensor, "*nodes vocab"]) -> Int[Tensor, "*nodes"]:
    """The argmax, the first of equals; on a CPU faster than ``argmax``, which is slow over bfloat16."""
    if not _by_groups(scores, 1):
        return scores.max(-1).indices
    wide = scores.float() if scores.element_size() < 4 else scores
    groups = wide.unflatten(-1, (-1, _GROUP))
    group = groups.amax(-1).max(-1, keepdim=True).indices
    inside = _taken(groups, group).max(-1).indices
    return group[..., 0] * _GROUP + inside


def largest(scores: Float[Tensor, "*nodes vocab"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest and their ids, in order, as ``topk`` gives them."""
    if not _by_groups(scores, k):
        return scores.topk(k, dim=-1)
    groups = scores.unflatten(-1, (-1, _GROUP))
    group = groups.amax(-1).topk(k, dim=-1).indices  # no other group can hold one of them
    values, place = _taken(groups, group).topk(k, dim=-1)
    return values, group.gather(-1, place // _GROUP) * _GROUP + place % _GROUP


def _by_groups(scores: Tensor, k: int) -> bool:
    """Whether it pays to find out first which groups of tokens matter.

    On a CPU torch looks at every score by itself for the place of the largest, and at many at once for its value.
    """
    is_eager_cpu = scores.device.type == "cpu" and not torch.compiler.is_compiling()
    vocab = scores.shape[-1]
    return is_eager_cpu and scores.numel() >= _MANY and vocab % _GROUP == 0 and vocab >= k * _GROUP


def _taken(groups: Tensor, group: Tensor) -> Tensor:
    """The scores of some groups, one after the other: (..., G, size) and (..., k) -> (..., k * size)."""
    return groups.gather(-2, group[..., None].expand(*group.shape, _GROUP)).flatten(-2)


def _keep_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Set to -inf every token outside the smallest set whose probability reaches ``top_p``; the first always stays."""
    ordered, order = weights.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter_(-1, order, before >= top_p)
    return weights.masked_fill(dropped, -torch.inf)
