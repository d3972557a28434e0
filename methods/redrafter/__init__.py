"""ReDrafter: a recurrent drafter searches for the likeliest continuations, and what they share is verified once.

Source: Cheng et al., arXiv 2403.09919. The beams are found without chance, so ``greedy``, ``match`` and ``rejection``
keep the target's text; the sampling rule that was published with them does not, and is called ``redrafter_paper`` here.
"""

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from methods.redrafter.beams import Search, prefix_tree
from methods.redrafter.drafter import RecurrentDrafter
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
from specbench.decode.tree import Topology
from specbench.errors import UnsupportedError


class ReDrafterOptions(Options):
    """Which drafter, and how wide and how far it searches."""

    drafter: str = Field(
        description="embedded drafter, folder or hub id in Apple's format; or random",
        json_schema_extra={"drafter": "pico-redrafter"},
    )
    width: int = Field(4, ge=1, le=128, description="beams")
    length: int = Field(5, ge=2, le=17, description="tokens of a beam, the root included: one more than it drafts")
    nodes: int | None = Field(None, ge=1, le=512, description="draft nodes at most; the likeliest are kept")
    branching: list[Annotated[int, Field(ge=1, le=64)]] | None = Field(
        None, min_length=1, max_length=16, description="a static tree in place of beams: children of a node, by depth"
    )
    top_k: int | None = Field(
        None, ge=1, description="tokens that the drafter considers at each step; Apple's code takes 50"
    )
    temperature: float = Field(1.0, gt=0, description="of the drafter's scores; Apple's code takes 1")

    @model_validator(mode="after")
    def _beams_or_static(self) -> "ReDrafterOptions":
        if self.branching is not None and (self.nodes is not None or self.top_k is not None or self.temperature != 1.0):
            raise ValueError("branching is a static tree without beams: leave nodes, top_k and temperature out")
        return self


class ReDrafter(Method):
    """Its state is one hidden vector a row; the drafter starts from nothing in every step."""

    name = "redrafter"
    Options = ReDrafterOptions
    examples = (
        {"drafter": "near"},
        {"drafter": "near", "width": 1, "length": 4},
        {"drafter": "same", "width": 6, "length": 4, "nodes": 9},
        {"drafter": "near", "width": 3, "length": 5, "top_k": 2, "temperature": 0.7},
        {"drafter": "near", "branching": [2, 2, 1]},
        {"drafter": "far", "width": 2, "length": 3},
    )
    trains = RecurrentDrafter

    options: ReDrafterOptions

    def load(self, context: LoadContext) -> None:
        """Take the drafter, and lay out the static tree where there is one."""
        options, vocab_size = self.options, context.target.vocab_size
        self._drafter = context.drafter(RecurrentDrafter, options.drafter)
        self._search = Search(options.width, options.length, options.top_k, options.temperature, vocab_size)
        if options.branching is not None:
            if max(options.branching) > vocab_size:
                raise UnsupportedError(
                    f"a node with {max(options.branching)} children, and the vocabulary has {vocab_size} tokens"
                )
            self._topology = Topology.from_branching(tuple(options.branching), context.target.device)

    def needs(self) -> Needs:
        """The state behind the root's logits."""
        return Needs(hidden=(POST_NORM,))

    def caps(self) -> Caps:
        """Known from the options alone."""
        options = self.options
        if options.branching is not None:
            nodes = len(self._topology.parents)
            return Caps(max_nodes=nodes, max_depth=len(options.branching), max_children=max(options.branching))
        nodes = options.width * (options.length - 1)
        return Caps(min(nodes, options.nodes or nodes), options.length - 1, max_children=options.width)

    def unsupported(self, batch_size: int, rule: str) -> str | None:
        """The published rule knows beams only."""
        if rule == "redrafter_paper" and self.options.branching is not None:
            return "rule redrafter_paper chooses among beams, and branching is a static tree"
        return None

    def carries(self) -> tuple[str, ...]:
        """The state behind the root's logits."""
        return ("_state",)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """Start from the prompt's last state."""
        self._state = prefill.hidden[POST_NORM][:, -1]

    def draft(self, view: RowView) -> TokenTree:
        """Search, and keep of the beams what differs."""
        if self.options.branching is not None:
            return self._static(view, self.options.branching)
        beams = self._search.run(self._drafter, self._state, view.root, with_probs=view.sampler.needs_draft_probs)
        tree = prefix_tree(beams, self.options.nodes)
        most = tree.kept.shape[1]
        nodes = min(self.options.nodes or view.host.largest(tree.counts, most), most)
        if beams.probs is None:
            tokens, parents = tree.packed(nodes)
            return TokenTree(tokens, parents)
        tokens, parents, rows = tree.packed(nodes, beams.rows_below)
        return TokenTree(tokens, parents, draft_probs=beams.probs, draft_rows=torch.nn.functional.pad(rows, (1, 0)))

    def _static(self, view: RowView, branching: list[int]) -> TokenTree:
        """The likeliest children of every node, level by level."""
        drafter, context = self._drafter, self._state[:, None]
        state = drafter.start(view.root[:, None], context.dtype)
        chosen: list[Tensor] = []
        for level, children in enumerate(branching):
            if level:
                state = drafter.advance(state.repeat_interleave(branching[level - 1], dim=1), chosen[-1])
            logits = drafter.logits(context.expand_as(state), state)[..., : view.sampler.vocab_size]
            chosen.append(logits.topk(children, dim=-1).indices.flatten(1))
        return TokenTree(torch.cat(chosen, dim=1), parents=self._topology)

    def update(self, view: RowView, result: StepResult) -> None:
        """Keep the state behind the new root's logits."""
        self._state = result.last_hidden(POST_NORM)


__all__ = ["ReDrafter", "ReDrafterOptions", "RecurrentDrafter"]
