"""Draft what last followed each token in the text so far. It keeps state, learns in ``update`` and can sample."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from specbench.decode.method import Caps, LoadContext, Method, Options, Prefill, RowView, StepResult, TokenTree


class BigramOptions(Options):
    """How far, and how sure."""

    gamma: int = Field(4, ge=1, le=32, description="draft tokens of a step")
    proposal: Literal["follower", "sample"] = Field("follower", description="the follower itself, or a draw around it")
    sureness: float = Field(2.0, ge=0.0, description="logit of the follower where all other tokens have 0")


class Bigram(Method):
    """For every row a table: token -> the position of what followed it last."""

    name = "bigram"
    Options = BigramOptions
    examples = ({}, {"gamma": 7, "proposal": "sample"})

    options: BigramOptions

    def load(self, context: LoadContext) -> None:
        """The table is as long as the vocabulary."""
        self.vocab_size = context.target.vocab_size

    def caps(self) -> Caps:
        """A chain of gamma tokens."""
        return Caps(max_nodes=self.options.gamma, max_depth=self.options.gamma)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """Learn the prompts and the first token."""
        self.after = view.root.new_zeros((len(view.root), self.vocab_size))
        positions = torch.arange(1, prefill.tokens.shape[1] + 1, device=view.root.device).expand(len(view.root), -1)
        self.learn(view, positions, positions <= view.lengths[:, None])

    def update(self, view: RowView, result: StepResult) -> None:
        """Learn what the step wrote."""
        column = torch.arange(result.emitted.shape[1], device=view.root.device)
        known = column < result.emitted_tokens[:, None]
        self.learn(view, (result.lengths_before[:, None] + 1 + column) * known, known)

    def learn(self, view: RowView, positions: Tensor, known: Tensor) -> None:
        """Note for each known position that it follows the token before it; the latest wins."""
        before = view.tokens.gather(1, (positions - 1).clamp_min(0))
        self.after.scatter_reduce_(1, before, positions * known, "amax")

    def draft(self, view: RowView) -> TokenTree:
        """Follow the table from the root on."""
        sampled = self.options.proposal == "sample" and not view.sampler.is_greedy
        token, tokens, probs = view.root[:, None], [], []
        for index in range(self.options.gamma):
            follower = view.tokens.gather(1, self.after.gather(1, token))
            if sampled:
                logits = self.options.sureness * torch.nn.functional.one_hot(follower, self.vocab_size).float()
                positions = (view.lengths + index + 1)[:, None]
                token = view.sampler.draw(logits, positions, view.sampler.draft_stream)
                probs.append(view.sampler.probs(logits, positions))
            else:
                token = follower
            tokens.append(token)
        return TokenTree.chain(torch.cat(tokens, dim=1), draft_probs=torch.cat(probs, dim=1) if probs else None)
