"""specbench.analysis.intervals"""

import math

import numpy as np
import pytest

from specbench.analysis.intervals import Totals, jackknife_interval, noise_floor, ratio


def totals(seconds, tokens):
    return Totals(np.array(seconds, dtype=float), np.array(tokens, dtype=float))


def test_a_ratio_is_of_totals_and_not_a_mean_of_ratios():
    # 12 s for 6 tokens against 8 s for 8 tokens.
    baseline, method = totals([2.0, 10.0], [1, 5]), totals([4.0, 4.0], [1, 7])
    assert ratio(baseline, method) == pytest.approx(2.0)


def test_below_four_units_there_is_no_interval():
    three = totals([1.0, 2.0, 3.0], [1, 1, 1])
    assert jackknife_interval(three, three) is None
    assert noise_floor(three, three) is None


def test_the_same_work_at_the_same_speed_has_an_interval_of_no_width():
    same = totals([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1])
    found = jackknife_interval(same, same)
    assert (found.low, found.high, found.units) == (1.0, 1.0, 4)


def test_four_equal_units_give_the_t_interval_of_their_log_ratios():
    # With equal weights the jackknife is close to mean and standard error: log ratios of -.03, -.01, .01, .03
    # have a standard error of .01291, and t of three degrees of freedom is 3.182.
    baseline = totals(np.exp([-0.03, -0.01, 0.01, 0.03]), [1, 1, 1, 1])
    found = jackknife_interval(baseline, totals([1.0] * 4, [1] * 4))
    assert math.log(found.high) == pytest.approx(3.182 * 0.01291, rel=0.02)


def test_the_noise_floor_is_the_half_width_of_the_twins_interval():
    first = totals(np.exp([-0.03, -0.01, 0.01, 0.03]), [1, 1, 1, 1])
    assert noise_floor(first, totals([1.0] * 4, [1] * 4)) == pytest.approx(0.0411, abs=0.001)


@pytest.mark.parametrize("units", [4, 8, 20])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says(units):
    """Prompts differ in length and difficulty and both arms share them; the true ratio is 2.

    2,000 draws: the standard error of the coverage is 0.5 points, so a correct 95 % fails the bounds of 93 %
    and 97 % with probability 5e-5.
    """
    rng = np.random.default_rng(units)
    covered = 0
    for _ in range(2000):
        tokens = rng.integers(40, 80, units)
        difficulty = np.exp(0.15 * rng.standard_normal(units))
        baseline = totals(tokens * np.exp(0.01 * rng.standard_normal(units)), tokens)
        # The mean of exp(.15 z) is exp(.15^2 / 2), by which the method's true time a token is scaled to one
        # half.
        own = 0.5 * tokens * difficulty * math.exp(-(0.15**2) / 2)
        found = jackknife_interval(baseline, totals(own, tokens))
        covered += found.low <= 2 <= found.high
    assert 0.93 <= covered / 2000 <= 0.97
