"""specbench.bench.distribution

Two models over 50 tokens that disagree; 1,500 texts of two prompts. Seeds are fixed, so that what passed passes again.
"""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from methods.draft_model import DraftModel, DraftModelOptions
from specbench.bench.distribution import (
    FALSE_ALARM,
    POWER,
    Sample,
    _Choices,
    _detectable,
    _pearson,
    is_wrong,
    position_tests,
)
from specbench.decode.acceptance import Rejection
from specbench.decode.loop import Requests, generate
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.testing import decoding, models
from support import wrong

PROMPTS = ([1, 3, 1], [4, 2, 2, 7])


@cache
def _models():
    return models.small_vocabulary(50, 0, 0.5), models.small_vocabulary(50, 1, 0.5)


def _tests(rule=None, kind=DraftModel, rows=1_500, options=None, **how):
    target, draft = _models()
    model = CachedModel(target, "target")
    method = decoding.loaded(
        kind(DraftModelOptions(draft="draft", **{"gamma": 3, **(options or {})})), model, {"draft": draft}
    )
    settings = Decoding(6, temperature=0.8, rule=rule or Rejection(), seed=5, **how)
    samples = []
    for number, prompt in enumerate(PROMPTS):
        keys = [number * rows + index for index in range(rows)]
        trace = generate(model, method, Requests([prompt] * rows, keys), settings)
        samples.append(Sample(prompt, keys, decoding.ids(trace)))
    return position_tests(model, samples, settings)


def test_an_honest_method_fits_at_every_place():
    tests = _tests()
    assert [test.position for test in tests] == [0, 1, 2, 3, 4, 5]
    assert not is_wrong(tests)
    assert min(test.p_value for test in tests) > 1e-3


def test_an_honest_method_fits_under_top_k_and_top_p():
    tests = _tests(top_k=6, top_p=0.8)
    assert not is_wrong(tests)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (wrong.FreshDrawAfterRejection, {}),
        (wrong.IndependentDrawPerCandidate, {"proposal": "argmax"}),
        (wrong.BonusIgnoresTemperature, {"gamma": 1}),  # longer drafts of this model are hardly ever accepted whole
    ],
)
def test_a_wrong_rule_is_found(rule, options):
    assert is_wrong(_tests(rule(), options=options))


def test_a_draft_that_lies_about_its_proposal_is_found():
    assert is_wrong(_tests(kind=wrong.ArgmaxSaidToBeDrawn))


def test_a_token_that_the_target_would_never_choose_is_found():
    target, _ = _models()
    model = CachedModel(target, "target")
    settings = Decoding(2, temperature=0.8, top_k=2, rule=Rejection(), seed=5)
    method = decoding.autoregressive()
    keys = list(range(400))
    texts = decoding.ids(generate(model, method, Requests([PROMPTS[0]] * 400, keys), settings))
    assert not is_wrong(position_tests(model, [Sample(PROMPTS[0], keys, texts)], settings))
    allowed = {text[0] for text in texts}
    assert len(allowed) == 2
    stranger = next(token for token in range(50) if token not in allowed)
    spoilt = [[stranger, *text[1:]] if index < 8 else text for index, text in enumerate(texts)]
    assert is_wrong(position_tests(model, [Sample(PROMPTS[0], keys, spoilt)], settings))


def test_a_model_that_leaves_no_choice_is_not_tested():
    target, _ = _models()
    settings = Decoding(3, temperature=1e-3, rule=Rejection(), seed=5)
    model = CachedModel(target, "target")
    keys = list(range(200))
    texts = decoding.ids(generate(model, decoding.autoregressive(), Requests([PROMPTS[0]] * 200, keys), settings))
    assert position_tests(model, [Sample(PROMPTS[0], keys, texts)], settings) == []


def test_the_statistic_of_alike_texts_is_pearsons():
    """Where every text has the same law, the exact covariance gives the statistic of scipy's chi-square."""
    law = np.array([0.5, 0.3, 0.2])
    rank = np.repeat([0, 1, 2], [240, 170, 90])
    found = _pearson(_Choices(np.tile(law, (500, 1)), rank, law[rank]))
    expected = stats.chisquare([240, 170, 90], 500 * law)
    assert (found.statistic, found.freedom) == (pytest.approx(expected.statistic), 2)


def test_p_values_of_unlike_texts_are_uniform():
    """Every text has a law of its own; the false alarms must still be those that are promised."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        laws = -np.sort(-rng.dirichlet(np.full(20, 0.3), size=300), axis=1)
        rank = np.array([rng.choice(20, p=law / law.sum()) for law in laws])
        found = _pearson(_Choices(laws, rank, laws[np.arange(300), rank]))
        p_values.append(stats.chi2.sf(found.statistic, found.freedom))
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_a_shift_of_the_detectable_size_is_found_as_often_as_is_said():
    """Half of the shift taken from the likeliest of two tokens and given to the other: the hardest case."""
    texts, alarm = 1_000, FALSE_ALARM
    shift = _detectable(1, texts, alarm)
    law = np.array([0.5, 0.5])
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(1_000):
        rank = (rng.random(texts) > 0.5 + shift).astype(int)
        test = _pearson(_Choices(np.tile(law, (texts, 1)), rank, law[rank]))
        found += stats.chi2.sf(test.statistic, test.freedom) < alarm
    assert found / 1_000 > POWER - 0.025


@pytest.mark.parametrize("moved", [0.0, 0.1, 0.25])
def test_the_shift_that_is_told_is_the_total_variation_that_there_is(moved):
    """A tenth, or a quarter, of the likeliest token's chance given to the two others; nothing where nothing is."""
    law, rng = np.array([0.5, 0.3, 0.2]), np.random.default_rng(3)
    biased = law + moved * np.array([-1, 0.5, 0.5])
    told = []
    for _ in range(200):
        rank = rng.choice(3, p=biased, size=2_000)
        told.append(_pearson(_Choices(np.tile(law, (2_000, 1)), rank, law[rank])).shifted / 2_000)
    # Chance is taken off in full, though it hides within a large shift: .012 of 2,000 draws at most.
    assert moved - 0.013 < np.mean(told) < moved + 0.001
