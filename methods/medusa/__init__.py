"""Medusa: heads on the target's last hidden state name several tokens at once, and a tree of their guesses is verified.

Source: Cai et al., arXiv 2401.10774. A chain of first guesses is blockwise parallel decoding, Stern et al., arXiv
1811.03115. The drafts are chosen without chance, so ``greedy``, ``match`` and ``rejection`` keep the target's text.
"""

from collections import Counter
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator

from methods.medusa import trees
from methods.medusa.heads import MedusaHeads
from methods.medusa.trees import PUBLISHED
from specbench.decode.method import (
    POST_NORM,
    Caps,
    LoadContext,
    Method,
    Needs,
    Options,
    Prefill,
    RowView,
    StepResult,
    TokenTree,
)
from specbench.errors import UnsupportedError


class Cartesian(Options):
    """Every combination of the first guesses of each head."""

    branching: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        min_length=1, max_length=16, description="first guesses that are tried of each head in turn"
    )


class Budget(Options):
    """The nodes that are right most often, by the accuracy that the heads' training has measured."""

    nodes: int = Field(ge=1, le=256, description="draft nodes of the tree")
    depth: int = Field(16, ge=1, le=16, description="heads that are used, at most")


class Paths(Options):
    """A tree of one's own."""

    paths: list[list[Annotated[int, Field(ge=0, le=63)]]] = Field(
        min_length=1, description="every node by the ranks of the guesses that lead to it: [0, 2] is two deep"
    )


def _kind_of_tree(value: Any) -> str:
    if isinstance(value, dict):
        return "cartesian" if "branching" in value else "paths" if "paths" in value else "budget"
    return type(value).__name__.lower() if isinstance(value, Options) else "name"


TreeName = Literal[
    "chain",
    "mc_sim_7b_63",
    "vicuna_7b_stage1",
    "vicuna_7b_stage2",
    "vicuna_13b_stage1",
    "vicuna_13b_stage2",
    "vicuna_33b_stage1",
    "vicuna_33b_stage2",
    "zephyr_stage2",
]
Tree = Annotated[
    Annotated[TreeName, Tag("name")]
    | Annotated[Cartesian, Tag("cartesian")]
    | Annotated[Budget, Tag("budget")]
    | Annotated[Paths, Tag("paths")],
    Discriminator(_kind_of_tree),
]


class MedusaOptions(Options):
    """Which heads, and which of their guesses are verified."""

    heads: str = Field(
        description="embedded heads, a folder or a hub id: Medusa's own files, a Medusa-2 model, or vLLM's layout; or "
        "random",
        json_schema_extra={"drafter": "pico-medusa"},
    )
    tree: Tree = Field(
        "mc_sim_7b_63",
        description="chain, a published tree, {branching: [...]}, {nodes: N} by measured accuracy, or {paths: [...]}",
    )
    gamma: int | None = Field(None, ge=1, le=16, description="heads that a chain uses; all of them unless given")

    @model_validator(mode="after")
    def _gamma_belongs_to_a_chain(self) -> "MedusaOptions":
        if self.gamma is not None and self.tree != "chain":
            raise ValueError("gamma is how long a chain is: give tree: chain, or leave gamma out")
        return self


class Medusa(Method):
    """A static tree of guesses; its state is one hidden vector a row."""

    name = "medusa"
    Options = MedusaOptions
    examples = (
        {"heads": "near", "tree": "chain"},
        {"heads": "same", "tree": {"branching": [3, 2, 2, 1]}},
        {"heads": "near", "tree": {"nodes": 12}},
        {"heads": "same", "tree": "mc_sim_7b_63"},
        {"heads": "far", "tree": {"paths": [[0], [1], [0, 0], [0, 1]]}},
    )
    trains = MedusaHeads

    options: MedusaOptions

    def load(self, context: LoadContext) -> None:
        """Take the heads, and lay out the tree once."""
        self._heads = context.drafter(MedusaHeads, self.options.heads)
        try:
            self._topology, paths = trees.topology(self._paths(), context.target.device)
        except ValueError as error:
            raise UnsupportedError(f"tree: {error}") from error
        self._depth, self._ranks = len(paths[-1]), 1 + max(map(max, paths))
        if self._depth > self._heads.depth:
            raise UnsupportedError(
                f"the tree is {self._depth} deep, and {self.options.heads} has {self._heads.depth} heads"
            )
        if self._ranks > context.target.vocab_size:
            raise UnsupportedError(
                f"a guess of rank {self._ranks}, and the vocabulary has {context.target.vocab_size} tokens"
            )
        self._children = max(Counter(path[:-1] for path in paths).values())
        # Where every node finds its token among (head, rank).
        places = [(len(path) - 1) * self._ranks + path[-1] for path in paths]
        self._places = torch.tensor(places, device=context.target.device)

    def _paths(self) -> list[trees.Path]:
        tree = self.options.tree
        if isinstance(tree, Cartesian):
            return trees.cartesian(tree.branching)
        if isinstance(tree, Paths):
            return [tuple(path) for path in tree.paths]
        if isinstance(tree, Budget):
            if self._heads.rank_accuracy is None:
                raise UnsupportedError(
                    f"{self.options.heads} does not say how often its guesses are right, so no tree can be chosen by "
                    "that; name a tree, or train heads here"
                )
            return trees.likeliest(self._heads.rank_accuracy[: tree.depth], tree.nodes)
        if tree == "chain":
            return trees.chain(self.options.gamma or self._heads.depth)
        return trees.published(tree)

    def needs(self) -> Needs:
        """The state behind the root's logits."""
        return Needs(hidden=(POST_NORM,))

    def caps(self) -> Caps:
        """Those of the tree."""
        return Caps(max_nodes=len(self._places), max_depth=self._depth, max_children=self._children)

    def carries(self) -> tuple[str, ...]:
        """The state behind the root's logits."""
        return ("_state",)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """Start from the prompt's last state."""
        self._state = prefill.hidden[POST_NORM][:, -1]

    def draft(self, view: RowView) -> TokenTree:
        """All heads' guesses from one state, placed on the tree."""
        logits = self._heads.logits(self._state, self._depth)[..., : view.sampler.vocab_size]
        tokens = logits.topk(self._ranks, dim=-1).indices.flatten(1)[:, self._places]
        return TokenTree(tokens, parents=self._topology)

    def update(self, view: RowView, result: StepResult) -> None:
        """Keep the state behind the new root's logits."""
        self._state = result.last_hidden(POST_NORM)


__all__ = ["PUBLISHED", "Medusa", "MedusaHeads", "MedusaOptions"]
