"""The four phases of a step, as functions of tensors: draft, verify, accept, update.

Nothing of a batch is kept here. What a phase reads comes in as an argument and what it decides goes out as a result; in
place it writes only the caches, the text so far, and what a method carries from step to step. So a phase may be run as
it is, compiled, or captured once as a graph and replayed for every batch: ``decode/graphs.py`` does that, the loop
cannot tell.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from specbench.decode.acceptance import Decision, Greedy, Rule, Verification
from specbench.decode.method import Caps, HostReads, Method, Prefill, RowView, StepResult, TokenTree
from specbench.decode.sampling import Sampler
from specbench.decode.target import CachedModel, Output
from specbench.decode.trace import Phase
from specbench.decode.tree import Layout, Topology, path_to
from specbench.errors import ContractError, UnsupportedError

T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """How the batch is decoded; the same for every method.

    Attributes:
        max_new_tokens: Tokens of a row, the prefill's included.
        min_new_tokens: EOS is impossible before this many.
        temperature: 0 is greedy.
        top_k: None for all tokens.
        top_p: None for all tokens.
        rule: What accepts a draft.
        seed: Of all randomness.
        eos_ids: Tokens that end a text; empty to ignore EOS.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    rule: Rule = field(default_factory=Greedy)
    seed: int = 0
    eos_ids: tuple[int, ...] = ()


class State(NamedTuple):
    """Where every row stands: all tensors (B,), but ``tokens`` (B, T), whose last column is trash.

    ``tokens`` is one buffer for the whole batch: a step writes what it emits into it.
    """

    root: Tensor
    lengths: Tensor
    budget: Tensor
    active: Tensor
    steps: Tensor
    tokens: Tensor


class Verified(NamedTuple):
    """A draft as the target saw it: its layout, its tokens with the root in front (B, N + 1), and what came out."""

    layout: Layout
    tokens: Tensor
    output: Output


class Accepted(NamedTuple):
    """What a step came to.

    Attributes:
        state: Where every row stands now.
        result: What the method may know of it.
        report: What the host will read, (B, 6 + A): active before, active after, accepted, emitted, depth, nodes, and
            the emitted tokens with -1 beyond them.
    """

    state: State
    result: StepResult
    report: Tensor


class Step:
    """The phases of one method on one target, under one way of decoding.

    Attributes:
        host: How the method reads a tensor on the host where that cannot be avoided.
    """

    def __init__(self, target: CachedModel, method: Method, decoding: Decoding) -> None:
        self.target, self.method, self.decoding = target, method, decoding
        self.rule = decoding.rule
        self.host = HostReads(is_free=target.device.type == "cpu")
        self.caps, self.needs = method.caps(), method.needs()
        self.columns = self.caps.max_depth + 1

    def bound(self, longest: int) -> int:
        """What phases are told that no row is longer than."""
        return longest

    @property
    def captured_phases(self) -> tuple[Phase, ...]:
        """Phases that are replayed without Python."""
        return ()

    @property
    def compiled_phases(self) -> tuple[Phase, ...]:
        """Phases that went through ``torch.compile``."""
        return ()

    def adopt(self, values: T) -> T:
        """Where the tensors of a new batch shall live."""
        return values

    def settle(self) -> None:
        """The warm-up is over: nothing is compiled or recorded any more."""

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """Let the method read the prompts."""
        self.method.begin(view, prefill)

    def draft(self, view: RowView) -> TokenTree:
        """Let the method propose."""
        return self.method.draft(view)

    def verify(self, tree: TokenTree, root: Tensor, lengths: Tensor, longest: int) -> Verified:
        """Run the target over the draft, with the root in front of it."""
        layout = tree.layout(self.caps.max_depth + 1)  # one level more, or what is too deep would not be seen
        tokens = torch.cat([root[:, None], tree.tokens], dim=1)
        return Verified(layout, tokens, self.target.verify(layout, tokens, lengths, longest, self.needs.hidden))

    def accept(self, tree: TokenTree, verified: Verified, state: State, sampler: Sampler) -> Accepted:
        """Ask the rule, cut the accepted path at EOS and length, keep its KV, and move every row on."""
        layout, tokens, output = verified
        decision = self.rule.decide(
            Verification(
                layout=layout,
                tokens=tokens,
                logits=output.logits,
                positions=state.lengths[:, None] + layout.depth + 1,
                sampler=sampler,
                proposal=tree.proposal,
                draft_probs=tree.draft_probs,
                draft_rows=tree.draft_rows,
                max_depth=self.caps.max_depth,
                max_children=self.caps.max_children,
                steps=state.steps,
            )
        )
        accepted = self._commit(verified, decision, state, sampler)
        if not layout.is_chain:
            self.target.cache.compact(accepted.result.path, accepted.result.emitted_tokens, state.lengths)
        return accepted

    def update(self, view: RowView, result: StepResult) -> None:
        """Let the method learn what became of its draft."""
        self.method.update(view, result)

    def _commit(self, verified: Verified, decision: Decision, state: State, sampler: Sampler) -> Accepted:
        layout, tokens, output = verified
        cache = self.target.cache
        column = cache.index[: self.columns]
        path, accepted, text = self._accepted_path(layout, tokens, decision)
        emitted = torch.minimum(accepted + 1, state.budget)
        active = state.active & (emitted < state.budget)
        if self.decoding.eos_ids:
            ends = sampler.ends(text) & (column < emitted[:, None])
            first_end = torch.where(ends, column, self.columns).amin(1)
            active = active & (first_end >= emitted)
            emitted = torch.minimum(emitted, first_end + 1)
        emitted = emitted * state.active
        kept = column < emitted[:, None]
        trash = state.tokens.shape[1] - 1
        slots = torch.where(kept, state.lengths[:, None] + 1 + column, trash)
        all_tokens = state.tokens.scatter_(1, slots, text)
        lengths = state.lengths + emitted
        moved = State(
            root=all_tokens.gather(1, lengths[:, None])[:, 0],
            lengths=lengths,
            budget=state.budget - emitted,
            active=active,
            steps=state.steps + state.active,
            tokens=all_tokens,
        )
        text = torch.where(kept, text, -1)
        hidden = {key: value[cache.rows, path.clamp_min(0)] for key, value in output.hidden.items()}
        result = StepResult(path, accepted, emitted, text, state.lengths, hidden, self.top_nodes(output, sampler))
        head = torch.stack([state.active, active, accepted, emitted], dim=1)
        return Accepted(moved, result, torch.cat([head, layout.tally, text], dim=1))

    def _accepted_path(self, layout: Layout, tokens: Tensor, decision: Decision) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes of the path (B, A), how many were drafted (B,), and the text that it and the target make (B, A)."""
        best, own = decision.best, decision.target_token[:, None]
        if self.columns == 1:
            return best[:, None], best, own
        path = path_to(layout, best, self.columns)
        if layout.is_chain:
            accepted, text = best, F.pad(tokens[:, 1:], (0, self.columns + 1 - tokens.shape[1]))
        else:
            accepted = layout.depth.gather(1, best[:, None])[:, 0]
            text = F.pad(tokens.gather(1, path[:, 1:].clamp_min(0)), (0, 1))
        return path, accepted, text.scatter(1, accepted[:, None], own)

    def top_nodes(self, output: Output, sampler: Sampler) -> Tensor | None:
        """The most likely tokens after every node, for methods that ask for them."""
        if not self.needs.node_topk:
            return None
        return output.logits[..., : sampler.vocab_size].topk(self.needs.node_topk, dim=-1).indices

    # --- the contract

    def check_draft(self, tree: TokenTree, batch: int, sampler: Sampler) -> None:
        """Hold a draft to the contract: its form always, its values where reading them costs no wait.

        Raises:
            ContractError: With the method's name and what is wrong.
            UnsupportedError: The rule asks of a draft what this method does not say of its own.
        """
        fault = _form_fault(tree, self.caps, batch)
        if fault is None and tree.tokens.device.type == "cpu":
            fault = _value_fault(tree, sampler.vocab_size)
        self._refuse(fault)
        is_asked = self.rule.takes_points_for_draws and sampler.needs_draft_probs
        if is_asked and tree.draft_probs is None and tree.tokens.shape[1]:
            raise UnsupportedError(
                f"method {self.method.name} gives no draft_probs for its drafts, and the rule {self.rule.name} needs "
                "them"
            )

    def check_layout(self, tree: TokenTree, layout: Layout) -> None:
        """Hold the shape of a tree to the contract, where only its parents tell it.

        Raises:
            ContractError: With the method's name and what is wrong.
        """
        if isinstance(tree.parents, Tensor) and tree.tokens.device.type == "cpu":
            self._refuse(_layout_fault(layout, self.caps))

    def _refuse(self, fault: str | None) -> None:
        if fault is not None:
            raise ContractError(f"method {self.method.name}: {fault}")


def _form_fault(tree: TokenTree, caps: Caps, batch: int) -> str | None:
    """What shapes and types alone say."""
    shape = tuple(tree.tokens.shape)
    if len(shape) != 2 or shape[0] != batch or tree.tokens.dtype != torch.int64:
        return f"draft tokens are {tree.tokens.dtype} of shape {shape}, expected int64 of shape ({batch}, nodes)"
    if shape[1] > caps.max_nodes:
        return f"a draft of {shape[1]} nodes, and its caps say {caps.max_nodes}"
    if tree.proposal != "point" and tree.draft_probs is None:
        return "a sampled draft needs draft_probs, the distribution it was drawn from"
    for part in ("drafted", "probe"):
        given = getattr(tree, part)
        if given is not None and tuple(given.shape) != shape:
            return f"{part} has shape {tuple(given.shape)}, and the draft tokens {shape}"
    return _shape_fault(tree, shape, caps.max_depth)


def _shape_fault(tree: TokenTree, shape: tuple[int, ...], max_depth: int) -> str | None:
    """Whether the parents fit the tokens, and how deep they can be told to be."""
    depth = 0
    if tree.parents is None:
        depth = shape[1]
    elif isinstance(tree.parents, Topology):
        depth = len(tree.parents.levels) - 1
        if len(tree.parents.parents) != shape[1]:
            return f"a topology of {len(tree.parents.parents)} nodes for {shape[1]} draft tokens"
    elif tuple(tree.parents.shape) not in {shape, shape[1:]}:
        return f"parents have shape {tuple(tree.parents.shape)}, and the draft tokens {shape}"
    if depth > max_depth:
        return f"a draft of depth {depth}, and its caps say {max_depth}"
    return None


def _value_fault(tree: TokenTree, vocab_size: int) -> str | None:
    """What the ids say."""
    tokens = tree.tokens
    if tokens.numel():
        least, most = tokens.aminmax()
        if int(least) < 0 or int(most) >= vocab_size:
            return f"a draft token outside 0..{vocab_size - 1}"
    if isinstance(tree.parents, Tensor):
        parents = tree.parents.expand(tokens.shape)
        if bool(((parents < -2) | (parents >= torch.arange(tokens.shape[1]))).any()):
            return "a parent that is neither -1, -2 nor an earlier node"
    return None


def _layout_fault(layout: Layout, caps: Caps) -> str | None:
    """What the shape of a tree says that only its parents tell."""
    depth = int(layout.depth.max())
    if depth > caps.max_depth:
        return f"a draft of depth {depth}, and its caps say {caps.max_depth}"
    children = torch.zeros_like(layout.parent).scatter_add(1, layout.parent, layout.eligible.long())
    most = int(children.max())
    if most > caps.max_children:
        return f"a node with {most} children, and its caps say {caps.max_children}"
    return None
