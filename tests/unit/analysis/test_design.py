"""specbench.analysis.design"""

import math
from dataclasses import replace

import pytest

from specbench.analysis.design import Bar, Forward, design, geometric_tokens, with_front, worth_training

TARGET_S, GAMMAS = 0.010, range(1, 9)
REST_S = {gamma: TARGET_S + 0.0003 * gamma for gamma in GAMMAS}
PLAIN = Bar("autoregressive", TARGET_S, TARGET_S, REST_S, {})


def tokens(alpha, gamma):
    """Leviathan et al. (2023), eq. 1."""
    return (1 - alpha ** (gamma + 1)) / (1 - alpha)


def s_per_token(alpha, forward_s, gamma):
    return (gamma * forward_s + REST_S[gamma]) / tokens(alpha, gamma)


def known(alpha, forward_s):
    """A bar set by a draft of that acceptance and latency."""
    own = min(s_per_token(alpha, forward_s, gamma) for gamma in GAMMAS)
    return replace(
        PLAIN, rival="known", s_per_token=own, draft="known", tokens=geometric_tokens(alpha, GAMMAS), alpha=alpha
    )


def shape(forward_s=0.001, *, layers=1, parameters=1000, bar=PLAIN, budget_s=None, name="1x64x1x64", reach=0.0):
    forward = Forward(forward_s, forward_s - reach, forward_s + reach)
    return design(name, layers, parameters, forward, bar, budget_s)


def test_at_the_acceptance_that_is_needed_it_is_as_fast_as_the_rival_and_no_gamma_is_faster():
    bar = known(0.7, 0.002)
    needed = shape(0.0031, bar=bar).needed
    speeds = {gamma: s_per_token(needed.alpha, 0.0031, gamma) for gamma in GAMMAS}
    assert speeds[needed.gamma] == pytest.approx(bar.s_per_token, rel=1e-9)
    assert min(speeds.values()) == speeds[needed.gamma]
    assert needed.value == pytest.approx(tokens(needed.alpha, needed.gamma))


def test_a_shape_as_slow_as_the_known_draft_needs_its_acceptance():
    found = shape(0.002, bar=known(0.7, 0.002))
    assert found.needed.alpha == pytest.approx(0.7, abs=1e-9)
    assert found.gain == pytest.approx(1)


def test_a_faster_shape_needs_less_and_gains_were_as_much_of_it_accepted():
    bar = known(0.7, 0.002)
    found = shape(0.001, bar=bar)
    assert found.needed.alpha < 0.7
    best = min(s_per_token(0.7, 0.001, gamma) for gamma in GAMMAS)
    assert found.gain == pytest.approx(bar.s_per_token / best)
    assert found.gain > 1


def test_it_pays_from_a_lower_acceptance_on_than_it_wins():
    found = shape(0.002, bar=known(0.7, 0.001))
    assert found.pays.alpha < found.needed.alpha
    assert found.pays == shape(0.002).needed


def test_where_full_acceptance_is_too_little_nothing_is_needed():
    assert shape(TARGET_S).needed is None
    assert shape(TARGET_S - 0.0011).needed is not None  # 8 (t + 0.3 ms) + 10 ms < 9 x 10 ms


def test_a_forward_costs_more_in_a_step_of_a_slower_run():
    bar = replace(PLAIN, pace=1.5, extra_s=0.0002)
    assert shape(0.001, bar=bar).draft_s == pytest.approx(0.0017)
    assert shape(0.001, bar=bar).needed.alpha == pytest.approx(shape(0.0017).needed.alpha)


def test_the_interval_of_the_forward_is_that_of_what_is_needed():
    found = shape(0.002, reach=0.0005)
    assert found.needed_low.alpha == shape(0.0015).needed.alpha
    assert found.needed_high.alpha == shape(0.0025).needed.alpha


def test_without_a_known_draft_nothing_is_said_of_a_gain():
    assert shape().gain is None


def test_the_budget_is_of_the_forward_alone():
    bar = replace(PLAIN, pace=2.0)
    assert [shape(s, bar=bar, budget_s=0.002).within_budget for s in (0.002, 0.0021)] == [True, False]


def fronts(*shapes):
    return [found.on_front for found in with_front(shapes)]


def test_the_front_is_what_no_shape_as_deep_and_as_large_is_faster_than():
    shallow, wide_and_slow = shape(0.001), shape(0.002)
    assert fronts(shallow, wide_and_slow) == [True, False]
    deeper, larger = shape(0.002, layers=2), shape(0.002, parameters=1060)
    assert fronts(shallow, deeper, larger) == [True, True, True]


def test_five_per_cent_more_parameters_do_not_count_as_larger():
    assert fronts(shape(0.001, parameters=1000), shape(0.002, parameters=1050)) == [True, False]


def test_a_deeper_shape_that_is_faster_takes_a_shallow_one_from_the_front():
    assert fronts(shape(0.002), shape(0.001, layers=2)) == [False, True]


def test_what_exceeds_the_budget_is_not_on_the_front():
    assert fronts(shape(0.001, budget_s=0.0015), shape(0.002, layers=3, budget_s=0.0015)) == [True, False]


def test_of_each_depth_the_largest_is_worth_training_and_the_least_acceptance_comes_first():
    found = with_front(
        [
            shape(0.001, name="small"),
            shape(0.002, parameters=2000, name="large"),
            shape(0.0015, layers=2, name="deep"),
            shape(0.02, layers=3, name="never"),
        ]
    )
    assert [entry.shape for entry in worth_training(found, 4)] == ["deep", "large"]
    assert [entry.shape for entry in worth_training(found, 1)] == ["deep"]


def test_the_tokens_of_a_chain_are_leviathans():
    assert geometric_tokens(0.8, [1, 5]) == {1: pytest.approx(1.8), 5: pytest.approx(3.68928)}
    assert math.isclose(geometric_tokens(1.0, [3])[3], 4)
