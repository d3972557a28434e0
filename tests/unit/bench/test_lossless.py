"""specbench.bench.lossless"""

import pytest
import torch

from specbench.bench.lossless import applies, claims, compare, repeat_ngram_share, tolerance
from specbench.decode.acceptance import Greedy, Match, RedrafterPaper, Rejection, Synthetic, Typical
from specbench.decode.sampling import Sampler, Stream
from specbench.decode.target import CachedModel
from tests.unit.models import tiny

PROMPT = [5, 9, 17, 40, 33]


@pytest.fixture(scope="module")
def target():
    return CachedModel(tiny.model(seed=3), "tiny")


def sampler(temperature=0.0, eos=()):
    return Sampler(
        temperature=temperature,
        top_k=None,
        top_p=None,
        min_new_tokens=0,
        eos_ids=torch.tensor(eos, dtype=torch.int64),
        vocab_size=320,
        seed=0,
        keys=torch.tensor([7], dtype=torch.int32),
        prompt_lengths=torch.tensor([len(PROMPT)]),
    )


@torch.no_grad()
def own_text(target, length, temperature=0.0):
    """What the target says, by plain forwards."""
    ids = list(PROMPT)
    chooser = sampler(temperature)
    for _ in range(length):
        logits = target.module(input_ids=torch.tensor([ids])).logits[:, -1:]
        ids.append(int(chooser.draw(logits, torch.tensor([[len(ids)]]), Stream.TARGET)))
    return ids[len(PROMPT) :]


def test_equal_ids_are_equal(target):
    text = own_text(target, 8)
    assert compare(target, PROMPT, text, text, sampler()).word == "equal"


def test_another_token_is_wrong_and_its_place_and_gap_are_told(target):
    text = own_text(target, 8)
    other = [*text[:3], (text[3] + 1) % 320, *text[4:]]
    verdict = compare(target, PROMPT, text, other, sampler())
    assert (verdict.word, verdict.first_divergence) == ("WRONG", 3)
    assert verdict.gap > 0.01


def test_a_near_tie_may_fall_either_way(target, monkeypatch):
    text = own_text(target, 8)
    other = own_text_after_a_flip(target, text, 3)
    gap = compare(target, PROMPT, text, other, sampler()).gap
    monkeypatch.setattr("specbench.bench.lossless.tolerance", lambda dtype, scale: gap * 1.01)
    assert compare(target, PROMPT, text, other, sampler()).word == "near-tie"
    monkeypatch.setattr("specbench.bench.lossless.tolerance", lambda dtype, scale: gap * 0.99)
    assert compare(target, PROMPT, text, other, sampler()).word == "WRONG"


@torch.no_grad()
def own_text_after_a_flip(target, text, at):
    """The text with the runner-up at one place, and what the target then says."""
    ids = PROMPT + text[:at]
    logits = target.module(input_ids=torch.tensor([ids])).logits[0, -1]
    ids = [*ids, int(logits.topk(2).indices[1])]
    while len(ids) < len(PROMPT) + len(text):
        ids.append(int(target.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_an_error_behind_a_near_tie_is_still_wrong(target, monkeypatch):
    text = own_text(target, 8)
    other = own_text_after_a_flip(target, text, 2)
    gap = compare(target, PROMPT, text, other, sampler()).gap
    broken = [*other[:6], (other[6] + 1) % 320, other[7]]
    monkeypatch.setattr("specbench.bench.lossless.tolerance", lambda dtype, scale: gap * 1.01)
    assert compare(target, PROMPT, text, other, sampler()).word == "near-tie"
    assert compare(target, PROMPT, text, broken, sampler()).word == "WRONG"


@pytest.mark.parametrize("cut", [slice(0, 5), slice(0, 0)])
def test_a_text_that_stops_early_is_wrong(target, cut):
    text = own_text(target, 8)
    verdict = compare(target, PROMPT, text, text[cut], sampler())
    assert (verdict.word, verdict.first_divergence) == ("WRONG", len(text[cut]))


def test_sampled_text_is_judged_with_the_noise_that_chose_it(target):
    text = own_text(target, 8, temperature=0.8)
    assert text != own_text(target, 8)
    other = [*text[:2], (text[2] + 1) % 320, *text[3:]]
    assert compare(target, PROMPT, text, other, sampler(0.8)).word == "WRONG"


@pytest.mark.parametrize(
    ("rule", "temperature", "expected"),
    [
        (Greedy(), 0.0, True),
        (Rejection(), 0.0, True),
        (Rejection(), 0.8, False),
        (Match(), 0.8, True),
        (Synthetic(mean_length=2.0), 0.0, False),
        (Typical(), 0.0, False),
        (RedrafterPaper(), 0.0, False),
    ],
)
def test_the_check_applies_where_the_same_ids_are_promised(rule, temperature, expected):
    assert applies(rule, temperature) is expected


def test_a_lossy_rule_takes_nothing_from_autoregressive_decoding_and_a_simulated_one_all():
    assert [claims(rule, drafts=False) for rule in (Typical(), RedrafterPaper(), Rejection())] == [True] * 3
    assert [claims(rule) for rule in (Typical(), RedrafterPaper(), Rejection())] == [False, False, True]
    assert not claims(Synthetic(mean_length=2.0), drafts=False)
    assert applies(Typical(), 0.0, drafts=False)
    assert not applies(Typical(), 0.8, drafts=False)


def test_half_precision_is_given_more_room_than_single():
    assert tolerance(torch.bfloat16, 10.0) == pytest.approx(0.625)
    assert tolerance(torch.float32, 10.0) < 1e-3


@pytest.mark.parametrize(
    ("ids", "share"),
    [([1, 2, 3, 4, 5], 0.0), ([1, 1, 1, 1, 1], 0.5), ([1, 2, 1, 2, 1, 2, 1, 2], 0.6), ([1, 2, 3], None), ([], None)],
)
def test_the_share_of_repeated_4_grams(ids, share):
    assert repeat_ngram_share(ids) == (share if share is None else pytest.approx(share))
