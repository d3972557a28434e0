"""Prompt lookup: when the last few tokens have occurred before, propose what followed them then.

Source: Saxena, "Prompt Lookup Decoding" (2023), github.com/apoorvumang/prompt-lookup-decoding. Here the longest n-gram
wins, and of its occurrences the latest, as text tends to repeat what it said last.
"""

import torch
from pydantic import Field, model_validator

from specbench.decode.method import Caps, Method, Options, RowView, TokenTree


class PromptLookupOptions(Options):
    """How much must match, and how much is proposed."""

    max_ngram: int = Field(3, ge=1, le=16, description="longest n-gram that is looked for, in tokens")
    min_ngram: int = Field(1, ge=1, le=16, description="shortest n-gram that is looked for, in tokens")
    gamma: int = Field(8, ge=1, le=64, description="most tokens that are proposed")

    @model_validator(mode="after")
    def _ordered(self) -> "PromptLookupOptions":
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram ({self.min_ngram}) is above max_ngram ({self.max_ngram})")
        return self


class PromptLookup(Method):
    """Draft by copying. It reads the text on the host, which costs one wait a step on a GPU."""

    name = "prompt_lookup"
    Options = PromptLookupOptions
    examples = ({}, {"max_ngram": 1, "gamma": 3}, {"max_ngram": 5, "min_ngram": 2, "gamma": 12})

    options: PromptLookupOptions

    def caps(self) -> Caps:
        """A chain of up to gamma tokens."""
        return Caps(max_nodes=self.options.gamma, max_depth=self.options.gamma)

    def draft(self, view: RowView) -> TokenTree:
        """Propose for each row what it wrote after the same words, as far as there is any."""
        texts = view.host.tokens(view.tokens, view.lengths + 1)
        drafts = [self.lookup(text) for text in texts]
        width = max(map(len, drafts))
        tokens = torch.tensor([draft + [0] * (width - len(draft)) for draft in drafts], dtype=torch.int64)
        drafted = torch.arange(width) < torch.tensor([len(draft) for draft in drafts])[:, None]
        device = view.root.device
        return TokenTree.chain(tokens.view(len(drafts), width).to(device), drafted=drafted.to(device))

    def lookup(self, text: list[int]) -> list[int]:
        """The tokens that followed the latest occurrence of the longest n-gram that ends ``text``; at most gamma."""
        for size in range(min(self.options.max_ngram, len(text) - 1), self.options.min_ngram - 1, -1):
            start = _latest(text, text[-size:])
            if start is not None:
                return text[start + size : start + size + self.options.gamma]
        return []


def _latest(text: list[int], ngram: list[int]) -> int | None:
    """Where ``ngram`` last began before the end of ``text``, or None."""
    size, last = len(ngram), ngram[-1]
    for end in range(len(text) - 2, size - 2, -1):
        if text[end] == last and text[end - size + 1 : end + 1] == ngram:
            return end - size + 1
    return None
