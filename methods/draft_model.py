"""Speculative decoding with a small causal LM: it drafts a chain or a tree, the target verifies it in one forward.

Source: Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318, for chains; Miao et al. (SpecInfer),
arXiv 2305.09781, and Jeon et al., arXiv 2402.14160, for trees drawn with and without replacement.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from specbench.decode.method import Caps, LoadContext, Method, Options, Prefill, RowView, StepResult, TokenTree
from specbench.decode.target import Branches, CachedModel, Nodes
from specbench.decode.tree import Layout, Topology, lay_out
from specbench.errors import UnsupportedError


class Tree(Options):
    """The shape of a draft tree, and how the children of a node are chosen."""

    branching: list[Annotated[int, Field(ge=1, le=16)]] = Field(
        min_length=1, max_length=16, description="children of every node, depth by depth"
    )
    proposal: Literal["top_k", "iid", "without_replacement"] = Field(
        "top_k", description="the most likely tokens, or draws with or without replacement"
    )


class Stop(Options):
    """When a row's chain ends before gamma tokens; the token that ends it is always kept, so nothing is biased.

    ``heuristic`` is transformers' schedule: two tokens more after a draft that was accepted whole, else one less.
    ``confidence`` ends the chain at the first token that the draft model holds less likely than ``threshold``.
    """

    kind: Literal["fixed", "heuristic", "confidence"] = Field("fixed", description="the policy")
    start: int = Field(5, ge=1, le=64, description="heuristic: draft tokens of the first step")
    threshold: float = Field(0.4, ge=0.0, le=1.0, description="confidence: least probability that goes on")


class DraftModelOptions(Options):
    """Which model drafts, how far, and how."""

    draft: str = Field(description="embedded model, folder or hub id", json_schema_extra={"model": True})
    gamma: int = Field(4, ge=1, le=64, description="draft tokens of a step along one path, at most")
    proposal: Literal["auto", "argmax", "sample"] = Field(
        "auto", description="chain: the draft's most likely token, or a draw; auto draws above temperature 0"
    )
    tree: Tree | None = Field(None, description="draft a tree of this shape; its depth then stands for gamma")
    stop: Stop = Field(Stop(), description="when a chain ends early")

    @model_validator(mode="after")
    def _tree_or_chain(self) -> "DraftModelOptions":
        if self.tree is not None and (self.stop.kind != "fixed" or self.proposal != "auto"):
            raise ValueError("a tree has no stop, and its proposal is the tree's own: leave stop and proposal out")
        return self


class DraftModel(Method):
    """A draft model with a ragged cache of its own, in step with the target's by slots and positions."""

    name = "draft_model"
    Options = DraftModelOptions
    examples = (
        {"draft": "near", "gamma": 4},
        {"draft": "same", "gamma": 7},
        {"draft": "far", "gamma": 2},
        {"draft": "near", "gamma": 3, "proposal": "argmax"},
        {"draft": "near", "gamma": 6, "stop": {"kind": "heuristic", "start": 2}},
        {"draft": "near", "gamma": 6, "stop": {"kind": "confidence", "threshold": 0.3}},
        {"draft": "near", "tree": {"branching": [3, 2, 1]}},
        {"draft": "same", "tree": {"branching": [2, 2, 2]}},
        {"draft": "near", "tree": {"branching": [2, 2], "proposal": "iid"}},
        {"draft": "near", "tree": {"branching": [3, 2], "proposal": "without_replacement"}},
    )

    options: DraftModelOptions
    model: CachedModel

    def load(self, context: LoadContext) -> None:
        """Take the draft model, and lay out the tree where there is one."""
        self.model = context.draft_model(self.options.draft)
        if self.options.tree is not None:
            if max(self.options.tree.branching) > context.target.vocab_size:
                raise UnsupportedError(
                    f"a node with {max(self.options.tree.branching)} children, and the vocabulary has "
                    f"{context.target.vocab_size} tokens"
                )
            self._topology = Topology.from_branching(tuple(self.options.tree.branching), self.model.device)
            self._layout = lay_out(self._topology.parents[None], len(self.options.tree.branching))

    def caps(self) -> Caps:
        """Known from the options alone."""
        tree = self.options.tree
        if tree is None:
            return Caps(max_nodes=self.options.gamma, max_depth=self.options.gamma)
        width, nodes = 1, 0
        for children in tree.branching:
            width *= children
            nodes += width
        return Caps(max_nodes=nodes, max_depth=len(tree.branching), max_children=max(tree.branching))

    def carries(self) -> tuple[str, ...] | None:
        """Nothing beside its cache; a chain that may end early asks the host, and one by schedule remembers more."""
        return None if self._may_stop else ()

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """Read the prompts with the draft model."""
        self._check_context(view)
        self.model.allocate(len(view.root), view.capacity)
        self.model.prefill(prefill.tokens, prefill.lengths)
        self._chain_limit = torch.full_like(view.root, min(self.options.stop.start, self.options.gamma))
        self._drafted = self._chain_limit

    def draft(self, view: RowView) -> TokenTree:
        """Draft a chain or a tree."""
        return self._draft_chain(view) if self.options.tree is None else self._draft_tree(view)

    def update(self, view: RowView, result: StepResult) -> None:
        """Keep the cache in step with the accepted path, and learn how far to draft next time."""
        if self.options.tree is not None:
            self.model.cache.compact(result.path, result.emitted_tokens, result.lengths_before)
        if self.options.stop.kind == "heuristic":
            whole = result.accepted_tokens >= self._drafted
            limit = torch.where(whole, self._chain_limit + 2, self._chain_limit - 1)
            self._chain_limit = limit.clamp(1, self.options.gamma)

    def _check_context(self, view: RowView) -> None:
        positions = self.model.max_positions
        if positions is not None and view.text_limit > positions:
            raise UnsupportedError(
                f"the draft {self.model.name} has {positions} positions, and prompts with new tokens take "
                f"{view.text_limit}"
            )

    def _catch_up(self, view: RowView) -> Tensor:
        """Logits after the root, (B, 1, rows of the vocabulary).

        The last accepted token is read again together with the root: where a draft was accepted whole its KV is
        missing, everywhere else it is written a second time with the same values. So no row needs a case of its own.
        """
        before = view.tokens.gather(1, view.lengths[:, None] - 1)
        both = torch.cat([before, view.root[:, None]], dim=1)
        return self.model.forward(Nodes(both, view.lengths - 1), view.longest).logits[:, -1:]

    def _draft_chain(self, view: RowView) -> TokenTree:
        sampled = self._is_sampled(view)
        logits = self._catch_up(view)
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        drafted: list[Tensor] = []
        going = view.active
        for index in range(self.options.gamma):
            positions = (view.lengths + index + 1)[:, None]
            token, distribution = self._choose(view, logits, positions, sampled=sampled)
            tokens.append(token)
            drafted.append(going)
            if distribution is not None:
                probs.append(distribution)
            going = self._goes_on(view, going, logits, token, index)
            if index + 1 == self.options.gamma or (self._may_stop and not view.host.any(going)):
                break
            logits = self._next_logits(view, token, index)
        is_drafted = torch.stack(drafted, dim=1) if self._may_stop else None
        if is_drafted is not None:
            self._drafted = is_drafted.sum(1)
        return TokenTree.chain(
            torch.cat(tokens, dim=1),
            drafted=is_drafted,
            draft_probs=torch.cat(probs, dim=1) if probs else None,
        )

    @property
    def _may_stop(self) -> bool:
        return self.options.stop.kind != "fixed"

    def _is_sampled(self, view: RowView) -> bool:
        return self.options.proposal != "argmax" and not view.sampler.is_greedy

    def _choose(
        self, view: RowView, logits: Tensor, positions: Tensor, *, sampled: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The next draft token (B, 1), and the distribution (B, 1, V) that it was drawn from, if it was."""
        sampler = view.sampler
        token = sampler.propose(logits, positions, sampled=sampled)
        return token, sampler.probs(logits, positions) if sampled and sampler.needs_draft_probs else None

    def _goes_on(self, view: RowView, going: Tensor, logits: Tensor, token: Tensor, index: int) -> Tensor:
        """Which rows draft another token."""
        stop = self.options.stop
        if stop.kind == "heuristic":
            return going & (index + 1 < self._chain_limit)
        if stop.kind == "confidence":
            return going & (view.sampler.confidence(logits, token)[:, 0] >= stop.threshold)
        return going

    def _next_logits(self, view: RowView, token: Tensor, index: int) -> Tensor:
        return self.model.forward(Nodes(token, view.lengths + index + 1), view.longest + index + 1).logits

    def _draft_tree(self, view: RowView) -> TokenTree:
        tree = self.options.tree
        assert tree is not None
        levels, layout = self._topology.levels, self._layout
        logits = self._catch_up(view)
        chosen: list[Tensor] = []
        probs: list[Tensor] = []
        with_probs = tree.proposal != "top_k" and view.sampler.needs_draft_probs
        for depth, children in enumerate(tree.branching):
            positions = (view.lengths + depth + 1)[:, None].expand(-1, logits.shape[1])
            chosen.append(self._children(view, logits, positions, children))
            if with_probs:
                probs.append(view.sampler.probs(logits, positions))
            if depth + 1 < len(tree.branching):
                logits = self._expand(view, layout, torch.cat(chosen, dim=1), levels[depth], levels[depth + 1])
        return TokenTree(
            torch.cat(chosen, dim=1),
            parents=self._topology,
            proposal=tree.proposal if with_probs and tree.proposal != "top_k" else "point",
            draft_probs=torch.cat(probs, dim=1) if with_probs else None,
        )

    def _children(self, view: RowView, logits: Tensor, positions: Tensor, children: int) -> Tensor:
        """The children of every node of a level, (B, level) -> (B, level * children), siblings side by side."""
        sampler, kind = view.sampler, self.options.tree.proposal if self.options.tree else "top_k"
        if kind == "iid" and not sampler.is_greedy:
            draws = [sampler.draw(logits, positions, sampler.draft_stream, rank) for rank in range(children)]
            return torch.stack(draws, dim=-1).flatten(1)
        noisy = kind == "without_replacement"
        scores = sampler.scores(logits, positions, sampler.draft_stream) if noisy else sampler.weigh(logits, positions)
        return scores.topk(children, dim=-1).indices.flatten(1)

    def _expand(self, view: RowView, layout: Layout, tokens: Tensor, first: int, last: int) -> Tensor:
        """Logits after the nodes of one level, (B, level, rows of the vocabulary)."""
        level = slice(first + 1, last + 1)
        seen = last + 1
        branches = Branches(
            node=layout.node[level],
            depth=layout.depth[:, level],
            ancestors=layout.ancestors[:, level, :seen],
            key_depth=layout.depth[:, :seen],
        )
        return self.model.forward(Nodes(tokens[:, first:last], view.lengths, branches), view.longest).logits
