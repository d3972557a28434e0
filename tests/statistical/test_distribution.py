"""The joint law of sampled text under every lossless rule and kind of proposal, against exact enumeration.

One-layer models over five tokens: the law of the first four is a table of 625 numbers, computed with plain forwards of
the model. Of the four the drafts decide three. Each honest arm draws 4,000 texts in one batch and passes when Pearson's
chi-square has a p-value above 1e-4, so a new seed raises a false alarm in about one run of 10,000 per arm, one in 400
for the whole file. Each planted fault must fall below 1e-9. Seeds are fixed: a run that passed passes again.
"""

from functools import cache

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from methods.draft_model import DraftModel, DraftModelOptions
from specbench.decode.acceptance import Match, RedrafterPaper, Rejection, Rule, Typical
from specbench.decode.method import Method
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace
from support import decoding, laws, models, wrong

pytestmark = pytest.mark.statistical

PROMPT = (1, 3, 1)
TOKENS, TEMPERATURE, ROWS = 4, 0.8, 4_000
HONEST, WRONG = 1e-4, 1e-9


@cache
def _models() -> tuple[torch.nn.Module, torch.nn.Module]:
    return models.small_vocabulary(5, 0, 0.4), models.small_vocabulary(5, 1, 0.4)


@cache
def _overconfident() -> torch.nn.Module:
    """Sure of one token to the point where float32 holds the others at zero."""
    module = models.scaled(models.small_vocabulary.__wrapped__(5), 1, 0.4)
    with torch.no_grad():
        module.lm_head.weight.mul_(60)
    return module


@cache
def _law():
    return laws.joint_law(_models()[0], PROMPT, TOKENS, TEMPERATURE)


def _decode(
    method: Method, rule: Rule, draft: torch.nn.Module | None = None, rows: int = ROWS, seed: int = 5
) -> BatchTrace:
    target, usual = _models()
    model = CachedModel(target, "target")
    decoding.loaded(method, model, {"draft": draft or usual})
    return decoding.decode(model, method, [PROMPT] * rows, TOKENS + 1, rule=rule, temperature=TEMPERATURE, seed=seed)


def _p_value(
    method: Method, rule: Rule, draft: torch.nn.Module | None = None, rows: int = ROWS, seed: int = 5
) -> float:
    trace = _decode(method, rule, draft, rows, seed)
    if method.caps().max_nodes:
        assert 0 < _accepted_share(trace) < 1, "a draft that is accepted always, or never, tests nothing"
    return laws.p_value(laws.counts(decoding.ids(trace), 5, TOKENS), _law())


def _accepted_share(trace: BatchTrace) -> float:
    accepted = sum(sum(row.accepted_per_step) for row in trace.rows)
    return accepted / sum(sum(row.drafted_depth_per_step) for row in trace.rows)


def _total_variation(trace: BatchTrace) -> float:
    counts = laws.counts(decoding.ids(trace), 5, TOKENS)
    return float(abs(counts / counts.sum() - _law()).sum() / 2)


def _draft(kind: type[DraftModel] = DraftModel, **options: object) -> DraftModel:
    return kind(DraftModelOptions(draft="draft", **options))


def _tree(*branching: int, proposal: str = "top_k", kind: type[DraftModel] = DraftModel) -> DraftModel:
    return _draft(kind, tree={"branching": list(branching), "proposal": proposal})


def _beams(*branching: int) -> DraftModel:
    """A tree of the most likely tokens with the draft's distributions, as a beam search gives it."""
    return _tree(*branching, proposal="iid", kind=wrong.BeamsSaidToBeDrawn)


PROPOSALS = {
    "autoregressive": decoding.autoregressive,
    "a sampled chain": lambda: _draft(gamma=3),
    "an argmax chain": lambda: _draft(gamma=3, proposal="argmax"),
    "a sampled chain that stops once unsure": lambda: _draft(gamma=3, stop={"kind": "confidence", "threshold": 0.5}),
    "a sampled chain of changing length": lambda: _draft(gamma=3, stop={"kind": "heuristic", "start": 1}),
    "a tree of the most likely tokens": lambda: _tree(2, 2, 1),
    "a tree drawn with replacement": lambda: _tree(3, 2, 1, proposal="iid"),
    "a tree drawn without replacement": lambda: _tree(3, 2, 1, proposal="without_replacement"),
    "a tree without replacement of the whole vocabulary": lambda: _tree(5, 2, proposal="without_replacement"),
    "lookup": lambda: decoding.prompt_lookup(max_ngram=2, gamma=3),
}


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_rejection_leaves_the_joint_law_of_the_first_tokens_as_the_targets(proposal: str):
    assert _p_value(PROPOSALS[proposal](), Rejection()) > HONEST


@pytest.mark.parametrize(
    "proposal", ["a sampled chain", "a tree drawn with replacement", "a tree drawn without replacement"]
)
def test_rejection_is_exact_for_a_draft_whose_other_tokens_underflow(proposal: str):
    """Siblings drawn without replacement then have a chance of zero, and must not be taken for certain."""
    assert _p_value(PROPOSALS[proposal](), Rejection(), _overconfident()) > HONEST


@pytest.mark.parametrize("proposal", ["autoregressive", "a sampled chain", "a tree drawn with replacement"])
def test_match_leaves_the_joint_law_of_the_first_tokens_as_the_targets(proposal: str):
    assert _p_value(PROPOSALS[proposal](), Match()) > HONEST


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        pytest.param(
            lambda: _draft(gamma=3), wrong.FreshDrawAfterRejection, id="a fresh draw from p after a rejection"
        ),
        pytest.param(
            lambda: _draft(gamma=3, proposal="argmax"),
            wrong.IndependentDrawPerCandidate,
            id="one draw decides, another is emitted",
        ),
        pytest.param(lambda: _tree(2, 2, 1), wrong.IndependentDrawPerCandidate, id="the same over a tree"),
        pytest.param(
            lambda: decoding.prompt_lookup(max_ngram=2, gamma=3),
            wrong.IndependentDrawPerCandidate,
            id="the same after a lookup",
        ),
        pytest.param(lambda: _tree(2, 2, 1), Typical, id="typical acceptance"),
        pytest.param(lambda: _beams(2, 2, 1), RedrafterPaper, id="ReDrafter's published rule"),
        pytest.param(lambda: _beams(1, 1, 1), RedrafterPaper, id="the same with a single beam"),
        pytest.param(lambda: _draft(gamma=1), wrong.BonusIgnoresTemperature, id="a bonus token from the raw logits"),
        pytest.param(lambda: _draft(gamma=3), wrong.DraftProbsWithoutTemperature, id="q at another temperature"),
        pytest.param(lambda: _draft(gamma=3), wrong.ShiftedDraftProbs, id="q of another node"),
        pytest.param(
            lambda: _tree(3, 2, 1, proposal="without_replacement"),
            wrong.SiblingsTakenForReplaced,
            id="siblings taken for replaced",
        ),
        pytest.param(
            lambda: _draft(wrong.ArgmaxSaidToBeDrawn, gamma=3), Rejection, id="an argmax draft with softmax q"
        ),
        pytest.param(
            lambda: _tree(3, 2, 1, proposal="iid", kind=wrong.BeamsSaidToBeDrawn),
            Rejection,
            id="beams said to be drawn",
        ),
        pytest.param(
            lambda: _draft(wrong.DropsWhatItHasSeen, gamma=3), Rejection, id="an unlikely token dropped once seen"
        ),
    ],
)
def test_a_wrong_rule_or_a_lying_draft_fails_the_same_check(method, rule):
    assert _p_value(method(), rule(), rows=6_000) < WRONG


@pytest.mark.parametrize(
    ("proposal", "rule"),
    [("autoregressive", Typical), ("autoregressive", RedrafterPaper), ("a sampled chain", RedrafterPaper)],
)
def test_a_lossy_rule_is_exact_where_it_has_nothing_to_bias(proposal, rule):
    assert _p_value(PROPOSALS[proposal](), rule()) > HONEST


def test_a_better_drafter_makes_the_lossy_rules_no_less_biased_and_inflates_their_acceptance():
    """The same tree of the most likely tokens by another model, and by the target itself, which is q = p.

    The exact rule's distance from the target's law is what 4,000 texts leave to chance.
    """
    drafts = {Rejection: _tree, Typical: _tree, RedrafterPaper: _beams}
    found = {
        (rule.name, name): _decode(draft(2, 2, 1), rule(), model)
        for name, model in zip(("same", "other"), _models(), strict=True)
        for rule, draft in drafts.items()
    }
    expected = {
        ("rejection", "other"): (0.06, 0.26), ("typical", "other"): (0.77, 0.64),
        ("redrafter_paper", "other"): (0.57, 0.52), ("rejection", "same"): (0.06, 0.78),
        ("typical", "same"): (0.67, 1.0), ("redrafter_paper", "same"): (0.67, 1.0),
    }  # fmt: skip
    for key, (variation, share) in expected.items():
        assert _total_variation(found[key]) == pytest.approx(variation, abs=0.015), key
        assert _accepted_share(found[key]) == pytest.approx(share, abs=0.015), key


@pytest.mark.slow
def test_a_draft_that_shares_its_noise_with_the_residual_fails_the_same_check():
    """The faintest fault of all, so it takes more texts."""
    assert _p_value(_draft(wrong.DraftsWithTheResidualsNoise, gamma=3), Rejection(), rows=12 * ROWS) < WRONG


@pytest.mark.slow
@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("seed", range(10, 15))
def test_rejection_stays_exact_over_more_texts_and_seeds(proposal: str, seed: int):
    assert _p_value(PROPOSALS[proposal](), Rejection(), rows=6 * ROWS, seed=seed) > HONEST


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "proposal"),
    [
        pytest.param(0.8, 2, None, "a tree drawn without replacement", id="top-k leaves fewer tokens than siblings"),
        pytest.param(0.8, None, 0.7, "a tree drawn without replacement", id="top-p leaves fewer tokens than siblings"),
        pytest.param(0.8, 3, 0.9, "a sampled chain", id="top-k and top-p over a chain"),
        pytest.param(0.8, 2, None, "a tree drawn with replacement", id="top-k over a tree"),
        pytest.param(
            1.5, 3, None, "a tree of the most likely tokens", id="a high temperature and top-k over a point tree"
        ),
        pytest.param(
            0.02, None, None, "a tree drawn without replacement", id="so cold that all but one token underflow"
        ),
        pytest.param(0.02, None, None, "a sampled chain", id="so cold that a chain's other tokens underflow"),
    ],
)
def test_rejection_is_exact_where_warping_leaves_few_tokens(temperature, top_k, top_p, proposal):
    """The first two tokens, against the logits processors of transformers; false alarms as above.

    The two models mostly disagree about which tokens are the best two.
    """
    target, draft = _models()[0], models.small_vocabulary(5, 37, 0.4)
    model = CachedModel(target, "target")
    method = decoding.loaded(PROPOSALS[proposal](), model, {"draft": draft})
    trace = decoding.decode(
        model, method, [PROMPT] * ROWS, 3, rule=Rejection(), temperature=temperature, top_k=top_k, top_p=top_p, seed=5
    )
    warp = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warp += [TopKLogitsWarper(top_k)] if top_k else []
    warp += [TopPLogitsWarper(top_p)] if top_p else []

    def law(*text: int):
        logits = models.plain_logits(target, [*PROMPT, *text])[-1:].float()
        return warp(None, logits).double().softmax(-1)[0].numpy()

    first = law()
    joint = first[:, None] * torch.stack([torch.tensor(law(token)) for token in range(5)]).numpy()
    seen = laws.counts(decoding.ids(trace), 5, 2)
    assert seen[joint == 0].sum() == 0
    assert laws.p_value(seen, joint) > HONEST
