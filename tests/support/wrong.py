"""Published or tempting ways to get the distribution wrong. A check that lets one of them pass is no check.

The rules are as found in Medusa, REST, the first EAGLE and elsewhere, beside the lossy ones that the core has itself;
the drafts are methods that say one thing about where their tokens come from and do another.
"""

from dataclasses import replace

import torch
from torch import Tensor

from methods.draft_model import DraftModel
from specbench.decode.acceptance import Decision, Rejection, Verification, follow
from specbench.decode.method import RowView, TokenTree
from specbench.decode.sampling import Stream


def _at(values: Tensor, nodes: Tensor) -> Tensor:
    return values[torch.arange(len(nodes)), nodes]


def _position(step: Verification, nodes: Tensor) -> Tensor:
    return step.positions.gather(1, nodes[:, None])[:, 0]


class _Wrong(Rejection):
    name = "wrong"
    lossless = False


class FreshDrawAfterRejection(_Wrong):
    """After a rejection a token from the whole of p, not from the residual: drafted tokens are refused twice."""

    def decide(self, step: Verification) -> Decision:
        best = super().decide(step).best
        whole = _at(step.sampler.probs(step.logits, step.positions), best)
        return Decision(best, step.sampler.draw_from(whole, _position(step, best), Stream.RESIDUAL))


class IndependentDrawPerCandidate(_Wrong):
    """Medusa's "nucleus" posterior: one draw decides about the draft, another one is emitted."""

    def decide(self, step: Verification) -> Decision:
        best = follow(step, step.sampler.draw(step.logits, step.positions, Stream.ACCEPT)).best
        whole = _at(step.sampler.probs(step.logits, step.positions), best)
        return Decision(best, step.sampler.draw_from(whole, _position(step, best), Stream.RESIDUAL))


class BonusIgnoresTemperature(_Wrong):
    """The first EAGLE: the bonus token after full acceptance comes from the raw logits."""

    def decide(self, step: Verification) -> Decision:
        best, token = super().decide(step)
        has_child = (step.layout.eligible & (step.layout.parent == best[:, None])).any(-1)
        raw = _at(step.logits, best).float().softmax(-1)
        bonus = step.sampler.draw_from(raw, _position(step, best), Stream.RESIDUAL)
        return Decision(best, torch.where(has_child, token, bonus))


class DraftProbsWithoutTemperature(_Wrong):
    """The ratio uses the draft's distribution at T = 1, and the draft was drawn at another."""

    def decide(self, step: Verification) -> Decision:
        assert step.draft_probs is not None
        raw = step.draft_probs**step.sampler.temperature
        return super().decide(replace(step, draft_probs=raw / raw.sum(-1, keepdim=True)))


class SiblingsTakenForReplaced(_Wrong):
    """Children drawn without replacement, verified as if each had been drawn anew."""

    def decide(self, step: Verification) -> Decision:
        return super().decide(replace(step, proposal="iid"))


class ShiftedDraftProbs(_Wrong):
    """Each token is weighed against the distribution of its neighbour."""

    def decide(self, step: Verification) -> Decision:
        assert step.draft_probs is not None
        return super().decide(replace(step, draft_probs=step.draft_probs.roll(1, dims=1)))


class ArgmaxSaidToBeDrawn(DraftModel):
    """An argmax draft with its softmax in the ratio."""

    def _choose(self, view: RowView, logits: Tensor, positions: Tensor, *, sampled: bool) -> tuple[Tensor, Tensor]:
        sampler = view.sampler
        return sampler.weigh(logits, positions).argmax(-1), sampler.probs(logits, positions)


class BeamsSaidToBeDrawn(DraftModel):
    """As a beam search drafts: the most likely children, verified as if drawn."""

    def _children(self, view: RowView, logits: Tensor, positions: Tensor, children: int) -> Tensor:
        return view.sampler.weigh(logits, positions).topk(children, dim=-1).indices.flatten(1)


class DropsWhatItHasSeen(DraftModel):
    """A confidence stop that leaves out the unlikely token itself."""

    def draft(self, view: RowView) -> TokenTree:
        tree = super().draft(view)
        assert tree.draft_probs is not None
        chance = tree.draft_probs.gather(-1, tree.tokens[..., None])[..., 0]
        return replace(tree, drafted=(chance >= 0.5).cumprod(-1).bool())


class DraftsWithTheResidualsNoise(DraftModel):
    """The recovered token depends on the very noise that chose the refused one."""

    def _choose(self, view: RowView, logits: Tensor, positions: Tensor, *, sampled: bool) -> tuple[Tensor, Tensor]:
        sampler = view.sampler
        return sampler.draw(logits, positions, Stream.RESIDUAL), sampler.probs(logits, positions)
