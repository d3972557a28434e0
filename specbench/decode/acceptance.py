"""Which draft tokens survive, and what the target adds: the rules, in the words of the papers.

A rule decides for all rows and nodes at once, in tensors of static shape. Lossless rules leave the distribution of the
text as the target's own; ``lossless = False`` follows a lossy rule into every table and figure.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from specbench.decode.sampling import Sampler, Stream
from specbench.decode.tree import Layout, children_table, deepest, sibling_ranks
from specbench.errors import ConfigError, ContractError

Proposal = Literal["point", "iid", "without_replacement"]


class Decision(NamedTuple):
    """A rule's verdict on one step.

    Attributes:
        best: The deepest accepted node of every row, 0 where only the root stands, (B,).
        target_token: The token that the target adds after it: recovered after a rejection, bonus otherwise, (B,).
    """

    best: Tensor
    target_token: Tensor


@dataclass(frozen=True)
class Verification:
    """All that a rule may look at. B rows, N1 nodes with the root first, V tokens of the common map.

    Attributes:
        layout: The trees.
        tokens: (B, N1), the root's token first.
        logits: The target's after every node, (B, N1, rows of the target's vocabulary).
        positions: Of the token that each node's logits predict, (B, N1).
        sampler: Warping and noise of this batch.
        proposal: How the draft tokens came about.
        draft_probs: (B, P, V): row ``draft_rows[b, u]`` is the distribution that node u's children were drawn from,
            or that a lossy rule takes for it; None for most point proposals.
        draft_rows: (B, N1) into P, or None where row u belongs to node u.
        max_depth: No node is deeper.
        max_children: No node has more children.
        steps: Decode steps that each row has taken before this one, (B,).
    """

    layout: Layout
    tokens: Tensor
    logits: Tensor
    positions: Tensor
    sampler: Sampler
    proposal: Proposal
    draft_probs: Tensor | None
    draft_rows: Tensor | None
    max_depth: int
    max_children: int
    steps: Tensor

    def draft_probs_at(self, nodes: Tensor) -> Tensor:
        """The proposal distributions for the children of ``nodes`` (B,), (B, V)."""
        assert self.draft_probs is not None
        if self.draft_rows is not None:
            nodes = self.draft_rows.gather(1, nodes[:, None])[:, 0]
        rows = nodes.clamp(0, self.draft_probs.shape[1] - 1)
        return self.draft_probs[torch.arange(len(nodes), device=nodes.device), rows]


class Rule(ABC):
    """Accepts a path of a draft tree and names the target's own next token.

    Attributes:
        name: What experiments and tables call it.
        lossless: The text keeps the target's own distribution.
        simulated: The text is not meant to be the target's: it exists to be timed.
        needs_draft_probs: It asks what a sampled draft was drawn from.
        takes_points_for_draws: It asks the same of a point proposal, above T = 0.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool] = True
    simulated: ClassVar[bool] = False
    needs_draft_probs: ClassVar[bool] = False
    takes_points_for_draws: ClassVar[bool] = False

    @abstractmethod
    def decide(self, step: Verification) -> Decision:
        """Decide for every row of one step."""


class Greedy(Rule):
    """T = 0: a draft token is accepted iff it is the target's most likely token there."""

    name = "greedy"

    def decide(self, step: Verification) -> Decision:
        """Follow the children that equal the argmax."""
        return follow(step, step.sampler.draw(step.logits, step.positions, Stream.TARGET))


class Match(Rule):
    """The target samples with noise keyed by position; a draft token is accepted iff it equals that sample.

    Lossless for any proposal, and the sampled text is the same for every method and for autoregressive decoding.
    Source: Daliri, Musco and Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding",
    arXiv 2408.07978.
    """

    name = "match"

    def decide(self, step: Verification) -> Decision:
        """Follow the children that equal the target's sample."""
        return follow(step, step.sampler.draw(step.logits, step.positions, Stream.TARGET))


class Rejection(Rule):
    """Speculative sampling: accept x with probability min(1, p(x) / q(x)), else go on with the residual (p - q)+.

    One recursion covers chains and trees. A point proposal has q(x) = 1, where the rule equals drawing once from p and
    following the child that was drawn. Children drawn without replacement see q without their refused siblings.
    Source: Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318; for several children Miao
    et al. (SpecInfer), arXiv 2305.09781, and Jeon et al. (recursive rejection sampling), arXiv 2402.14160.
    """

    name = "rejection"
    needs_draft_probs = True

    def decide(self, step: Verification) -> Decision:
        """Walk from the root, one level a round."""
        if step.sampler.is_greedy or step.proposal == "point":
            return follow(step, step.sampler.draw(step.logits, step.positions, Stream.RESIDUAL))
        target_probs = step.sampler.probs(step.logits, step.positions)
        if step.layout.is_chain:
            return _reject_along_chain(step, target_probs)
        return _reject_along_tree(step, target_probs)


@dataclass(frozen=True)
class Typical(Rule):
    """Lossy. Typical acceptance: accept every draft token that the target finds likely enough.

    x is accepted iff p(x) > min(epsilon, delta exp(-H(p))), with p the target's warped distribution and H its entropy
    in nats. The longest accepted path wins, and the target's own token after it is drawn from p. So a step that drafts
    nothing is exact sampling; a draft is preferred to the tokens that the target would have drawn. At T = 0 p is
    one-hot, and the rule is ``Greedy``.
    Source: Cai et al. (Medusa), arXiv 2401.10774, section "Typical acceptance". There the target's own token is its
    argmax even above T = 0; ``epsilon`` and ``delta`` are the defaults of its code.

    Attributes:
        epsilon: A token more likely than this is always accepted, in (0, 1).
        delta: Scales the threshold where the target is unsure, above 0.
    """

    name = "typical"
    lossless = False

    epsilon: float = 0.09
    delta: float = 0.3

    def decide(self, step: Verification) -> Decision:
        """Accept by one threshold for the children of a node."""
        if _is_certain(step):
            return follow(step, step.sampler.draw(step.logits, step.positions, Stream.RESIDUAL))
        target_probs = step.sampler.probs(step.logits, step.positions)
        entropy = torch.special.entr(target_probs).sum(-1)
        threshold = (self.delta * (-entropy).exp()).clamp_max(self.epsilon).gather(1, step.layout.parent)
        best = deepest(step.layout, _of_token(step, target_probs, step.layout.parent) > threshold)
        whole = _at(target_probs, best)
        return _recover(step, best, whole, whole)


class RedrafterPaper(Rule):
    """Lossy. ReDrafter's published sampling: the tokens of a beam search, verified as if drawn from the drafter.

    The beams are the leaves of the tree. Each of a beam's tokens x is accepted with probability min(1, p(x) / q(x)),
    with luck of its own for every beam; the beam with the longest accepted prefix wins, the first of several. The
    target's token comes from p after a whole beam, else from the residual (p - q)+ where the beam was refused.
    The text is biased, not noisy, for three reasons: a beam search picks what is likely and does not draw from q; the
    best of several beams wins, where a prefix that they share may be refused in one and accepted in another; and the
    residual knows nothing of the tokens that were refused in the other beams. The nearer q is to p, the worse: with
    q = p every token of every beam is accepted. Only a single path that was drawn from q is sampled exactly.
    At T = 0 nothing is left to chance, and the rule is ``Greedy``: it follows the longest beam.
    Source: Cheng et al. (ReDrafter), arXiv 2403.09919, as published in github.com/apple/ml-recurrent-drafter, whose
    issue 6 names the first reason. That code keeps the target's best 50 tokens, which is ``top_k`` here.
    """

    name = "redrafter_paper"
    lossless = False
    needs_draft_probs = True
    takes_points_for_draws = True

    def decide(self, step: Verification) -> Decision:
        """Try every beam, and follow the luckiest.

        Raises:
            ContractError: Above T = 0, a draft that does not say what its tokens shall have been drawn from.
        """
        if _is_certain(step):
            return follow(step, step.sampler.draw(step.logits, step.positions, Stream.RESIDUAL))
        if step.draft_probs is None:
            raise ContractError(f"rule {self.name} needs draft_probs of every draft, and this one has none")
        target_probs = step.sampler.probs(step.logits, step.positions)
        beam, accepted = _luckiest_beam(step, *_chances(step, target_probs))
        layout = step.layout
        on_beam = layout.ancestors.gather(1, beam[:, None, None].expand(-1, 1, layout.num_nodes))[:, 0]
        best = (layout.node * (on_beam & (layout.depth == accepted[:, None]))).sum(1)
        whole = _at(target_probs, best)
        is_refused = (best != beam)[:, None]
        residual = torch.where(is_refused, (whole - step.draft_probs_at(best)).clamp_min(0), whole)
        return _recover(step, best, residual, whole)


@dataclass(frozen=True)
class Synthetic(Rule):
    """Accepts by prescription, to price a step apart from the quality of a draft. The text is not the model's.

    Exactly one source is given; accepted nodes are the first child of their parent. Rates are marginal: ``rates[i]`` is
    the chance that at least i + 1 draft tokens are accepted, so they never rise. A mean length counts the target's
    token, as block efficiency does, and is met with the least spread: 2.3 means one accepted token always and a second
    with chance 0.3. A trace is walked from a place that depends on the prompt, one entry a step.
    """

    name = "synthetic"
    lossless = False
    simulated = True

    rates: tuple[float, ...] | None = None
    mean_length: float | None = None
    trace: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check what pydantic cannot: the sources against one another.

        Raises:
            ConfigError: Not exactly one source, rates that rise, or a mean below 1.
        """
        given = [source for source in (self.rates, self.mean_length, self.trace) if source is not None]
        if len(given) != 1:
            raise ConfigError("rule synthetic: give exactly one of rates, mean_length and trace")
        if self.rates is not None and any(a < b for a, b in zip(self.rates, self.rates[1:], strict=False)):
            raise ConfigError(
                f"rule synthetic: rates must not rise from one position to the next, got {list(self.rates)}"
            )
        if self.mean_length is not None and self.mean_length < 1:
            raise ConfigError(
                f"rule synthetic: mean_length counts the target's token, so it is at least 1, got {self.mean_length}"
            )

    def survival(self, depth: int) -> list[float]:
        """The chance that at least 1, 2, ... ``depth`` draft tokens are accepted."""
        if self.rates is not None:
            return [*self.rates, *([0.0] * depth)][:depth]
        assert self.mean_length is not None
        return [min(1.0, max(0.0, self.mean_length - 1 - index)) for index in range(depth)]

    def decide(self, step: Verification) -> Decision:
        """Accept first children down to the prescribed depth; the target's token is its argmax there."""
        wanted = self._wanted_depth(step)
        layout = step.layout
        best = deepest(layout, (sibling_ranks(layout) == 0) & (layout.depth <= wanted[:, None]))
        return Decision(best, _at(step.logits, best)[..., : step.sampler.vocab_size].argmax(-1))

    def _wanted_depth(self, step: Verification) -> Tensor:
        sampler, device = step.sampler, step.sampler.keys.device
        if self.trace is not None:
            return _constant(self.trace, device)[(sampler.keys.abs() + step.steps) % len(self.trace)]
        luck = sampler.uniforms(step.positions[:, :1], 0, Stream.ACCEPT)
        return (luck < _constant(tuple(self.survival(step.max_depth)), device)).sum(-1)


_constants: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


# The compiler looks behind a cache: it would make the tensor on the host in every step, and no graph can hold the copy.
@torch.compiler.assume_constant_result
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor that is copied to the device once, not in every step; a captured graph may read it to the end."""
    if (values, device) not in _constants:
        _constants[values, device] = torch.tensor(values, device=device)
    return _constants[values, device]


def _at(values: Tensor, nodes: Tensor) -> Tensor:
    """One node of every row: (B, N1, ...) and (B,) -> (B, ...)."""
    return values[torch.arange(len(nodes), device=nodes.device), nodes]


def follow(step: Verification, chosen: Tensor) -> Decision:
    """Accept the nodes whose token, and whose ancestors' tokens, are what the target chose after their parent.

    Args:
        step: The step.
        chosen: The target's token after every node, (B, N1).
    """
    layout = step.layout
    if layout.num_nodes == 1:
        return Decision(torch.zeros_like(chosen[:, 0]), chosen[:, 0])
    best = deepest(layout, step.tokens == chosen.gather(1, layout.parent))
    return Decision(best, chosen.gather(1, best[:, None])[:, 0])


def _is_certain(step: Verification) -> bool:
    """Whether p is one-hot, or nothing was drafted: then a rule has nothing to weigh."""
    return step.sampler.is_greedy or step.layout.num_nodes == 1


def _of_token(step: Verification, probs: Tensor, rows: Tensor) -> Tensor:
    """What row ``rows[b, u]`` of (B, P, V) says of node u's token, (B, N1)."""
    return probs[torch.arange(len(rows), device=rows.device)[:, None], rows, step.tokens]


def _chances(step: Verification, target_probs: Tensor) -> tuple[Tensor, Tensor]:
    """p(x) and q(x) of every node's token after its parent, (B, N1) each."""
    assert step.draft_probs is not None
    parent = step.layout.parent
    rows = parent if step.draft_rows is None else step.draft_rows.gather(1, parent)
    rows = rows.clamp(0, step.draft_probs.shape[1] - 1)
    return _of_token(step, target_probs, parent), _of_token(step, step.draft_probs, rows)


def _luckiest_beam(step: Verification, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The leaf whose accepted prefix is the longest, the first of several, and that prefix's length: (B,) each.

    Where a row has no draft the leaf is the root.
    """
    layout = step.layout
    batch, num_nodes = layout.parent.shape
    is_leaf, beam = _beams(layout)
    # No beam may share its luck with another: 64 have room at a position, the rest go where no position reaches.
    rank = beam % 64 + (beam // 64) * 2**26
    every = (batch, num_nodes, num_nodes)
    positions = (step.positions - 1)[:, None, :].expand(every)
    luck = step.sampler.uniforms(positions.flatten(1), rank[:, :, None].expand(every).flatten(1), Stream.ACCEPT)
    missed = layout.ancestors & (luck.view(every) * q[:, None] >= p[:, None]) & (layout.node > 0)
    first_missed = torch.where(missed, layout.depth[:, None, :], layout.depth[:, :, None] + 1).amin(-1)
    accepted = first_missed - 1
    # Unique, so that no device's habit with ties decides; the root comes after every leaf.
    score = torch.where(is_leaf, accepted * num_nodes + num_nodes - layout.node, -layout.node)
    luckiest = score.argmax(1)
    return luckiest, accepted.gather(1, luckiest[:, None])[:, 0]


def _beams(layout: Layout) -> tuple[Tensor, Tensor]:
    """Whether a node is the leaf of a beam, and how many such leaves come before it, (B, N1) each.

    Of a beam every node may be accepted, and nothing that may be hangs below its leaf.
    """
    barred = ~layout.eligible & (layout.node > 0)
    on_beam = layout.eligible & ~(layout.ancestors & barred[:, None, :]).any(-1)
    has_child = torch.zeros_like(on_beam, dtype=torch.int64).scatter_add(1, layout.parent, on_beam.long()) > 0
    is_leaf = on_beam & ~has_child
    return is_leaf, (is_leaf.cumsum(1) - 1).clamp_min(0)


def _reject_along_chain(step: Verification, target_probs: Tensor) -> Decision:
    """Algorithm 1 of Leviathan et al. for all rows at once; the residual is needed at one node of each row only."""
    layout = step.layout
    p, q = _chances(step, target_probs)
    luck = step.sampler.uniforms(step.positions - 1, 0, Stream.ACCEPT)
    best = deepest(layout, luck * q < p)
    refused_child = (layout.eligible & (layout.parent == best[:, None])).any(-1, keepdim=True)
    whole = _at(target_probs, best)
    residual = torch.where(refused_child, (whole - step.draft_probs_at(best)).clamp_min(0), whole)
    return _recover(step, best, residual, whole)


def _reject_along_tree(step: Verification, target_probs: Tensor) -> Decision:
    """Recursive rejection: at each level the siblings in order, each against what the refused ones left over."""
    layout, tokens = step.layout, step.tokens
    children = children_table(layout, step.max_children)
    batch = len(tokens)
    rows = torch.arange(batch, device=tokens.device)
    current = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
    walking = torch.ones(batch, dtype=torch.bool, device=tokens.device)
    residual = target_probs[:, 0]
    for _ in range(step.max_depth):
        left = target_probs[rows, current]
        draft = step.draft_probs_at(current)
        taken, following = torch.zeros_like(walking), current
        for rank in range(step.max_children):
            child = children[rows, current, rank]
            here = walking & ~taken & (child >= 0)
            child = child.clamp_min(0)
            token = tokens[rows, child][:, None]
            # The uniform belongs to the child: its position, its rank among its siblings.
            position = step.positions[rows, child][:, None] - 1
            luck = step.sampler.uniforms(position, rank, Stream.ACCEPT)[:, 0]
            chance = draft.gather(1, token)[:, 0]
            # Where the draft had fewer tokens left than siblings were asked for, the rest were not drawn from it.
            here = here & (chance > 0)
            take = here & (luck * chance < left.gather(1, token)[:, 0])
            refuse = (here & ~take)[:, None]
            left = torch.where(refuse, _normalised((left - draft).clamp_min(0), left), left)
            if step.proposal == "without_replacement":
                draft = torch.where(refuse, _normalised(draft.scatter(1, token, 0.0), draft), draft)
            following = torch.where(take, child, following)
            taken = taken | take
        residual = torch.where(walking[:, None], left, residual)
        walking = walking & taken
        current = torch.where(walking, following, current)
        residual = torch.where(walking[:, None], target_probs[rows, current], residual)
    return _recover(step, current, residual, target_probs[rows, current])


def _normalised(weights: Tensor, fallback: Tensor) -> Tensor:
    """Weights scaled to sum 1; ``fallback`` where rounding left nothing."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, fallback)


def _recover(step: Verification, best: Tensor, residual: Tensor, whole: Tensor) -> Decision:
    weights = torch.where(residual.sum(-1, keepdim=True) > 0, residual, whole)
    position = step.positions.gather(1, best[:, None])[:, 0]
    return Decision(best, step.sampler.draw_from(weights, position, Stream.RESIDUAL))


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Greedy, Match, Rejection, Typical, RedrafterPaper)}


def rule_for(name: str, temperature: float) -> Rule:
    """The rule of that name; ``auto`` is greedy at T = 0 and rejection above.

    Raises:
        ConfigError: A rule that cannot run at that temperature.
    """
    if name == "auto":
        name = "greedy" if temperature == 0 else "rejection"
    if name == "greedy" and temperature != 0:
        raise ConfigError(f"rule greedy needs temperature 0, got {temperature}; use match, rejection or auto")
    return RULES[name]()
