"""The sample method, spoilt in one way a class. A suite that passes one of them is no suite."""

import torch
from torch import Tensor

from specbench.decode.method import Caps, LoadContext, Prefill, RowView, StepResult, TokenTree

from .bigram import Bigram, BigramOptions


class Sampled(Bigram):
    """The drawing one, which all that meddle with chance derive from."""

    examples = ({"gamma": 3, "proposal": "sample", "sureness": 1.0},)


class KeepsItsTable(Bigram):
    """State of one batch reaches the next."""

    def begin(self, view: RowView, prefill: Prefill) -> None:
        old = getattr(self, "after", None)
        super().begin(view, prefill)
        if old is not None and old.shape == self.after.shape:
            self.after = torch.where(self.after > 0, self.after, old.clamp_max(int(view.lengths.min())))


class WritesToTheTargetsCache(Bigram):
    """A hand in the target's KV."""

    def load(self, context: LoadContext) -> None:
        super().load(context)
        self.target = context.target

    def draft(self, view: RowView) -> TokenTree:
        self.target.cache.slab[:, :, :, 0] = 0
        return super().draft(view)


class WritesToTheText(Bigram):
    """A view is the core's own tensors."""

    def draft(self, view: RowView) -> TokenTree:
        view.tokens[:, 0] = 0
        return super().draft(view)


class MovesTheRoot(Bigram):
    """It takes acceptance into its own hands."""

    def update(self, view: RowView, result: StepResult) -> None:
        super().update(view, result)
        view.root.copy_(self.after.argmax(1))


class DraftsBeyondItsCaps(Bigram):
    """One token more than promised."""

    def caps(self) -> Caps:
        return Caps(max_nodes=self.options.gamma - 1, max_depth=self.options.gamma - 1)


class SaysThatItDrew(Sampled):
    """The most likely token, said to be a draw."""

    def draft(self, view: RowView) -> TokenTree:
        tree = super().draft(view)
        if tree.draft_probs is None:
            return tree
        return TokenTree.chain(tree.draft_probs.argmax(-1), draft_probs=tree.draft_probs)


class DropsWhatItHasSeen(Sampled):
    """Unlikely draws are taken back."""

    def draft(self, view: RowView) -> TokenTree:
        tree = super().draft(view)
        if tree.draft_probs is None:
            return tree
        chance: Tensor = tree.draft_probs.gather(-1, tree.tokens[..., None])[..., 0]
        kept = (chance > 0.2).cumprod(-1).bool()
        return TokenTree.chain(tree.tokens, drafted=kept, draft_probs=tree.draft_probs)


class ThrowsItsOwnDice(Sampled):
    """Chance of its own, which no seed repeats."""

    def draft(self, view: RowView) -> TokenTree:
        tree = super().draft(view)
        if tree.draft_probs is None:
            return tree
        drawn = torch.multinomial(tree.draft_probs.flatten(0, 1), 1).view(tree.tokens.shape)
        return TokenTree.chain(drawn, draft_probs=tree.draft_probs)


class LooksAtItsNeighbour(Sampled):
    """All rows draft as the first one does."""

    def draft(self, view: RowView) -> TokenTree:
        tree = super().draft(view)
        if tree.draft_probs is None:
            return tree
        return TokenTree.chain(
            tree.tokens[:1].expand_as(tree.tokens), draft_probs=tree.draft_probs[:1].expand_as(tree.draft_probs)
        )


class RefusesWithoutAReason(Bigram):
    """An empty reason is none."""

    def unsupported(self, batch_size: int, rule: str) -> str | None:
        return "" if batch_size > 1 else None


class LooseOptions(BigramOptions, extra="ignore"):
    """A misspelt option passes."""


class TakesAnyOption(Bigram):
    """A misspelt option would be a default in silence."""

    Options = LooseOptions


class Renamed(Bigram):
    """A name that no experiment could write."""

    name = "Bi-gram"


class GivesNoExample(Bigram):
    """Nothing that the suite could try."""

    examples = ()


class GivesABadExample(Bigram):
    """An example that its own options refuse."""

    examples = ({"gamma": 0},)
