"""specbench.analysis.intervals"""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, t

from specbench.analysis.intervals import Totals, estimand, jackknife_interval, noise_floor, ratio


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


@pytest.fixture
def sample():
    """Forty pairs of batches whose tokens and times differ."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(40, 80, 40)
    baseline = totals(tokens * np.exp(0.02 * rng.standard_normal(40)), tokens)
    return baseline, totals(0.5 * tokens * np.exp(0.15 * rng.standard_normal(40)), tokens)


def test_the_interval_is_that_of_scipys_bootstrap_where_units_are_many(sample):
    """BCa by scipy: another estimator by another author; at 40 units the two agree but for chance."""

    def log_ratio(*columns, axis=-1):
        sums = [column.sum(axis=axis) for column in columns]
        return np.log(sums[0] / sums[1] / (sums[2] / sums[3]))

    baseline, method = sample
    columns = (baseline.seconds, baseline.tokens, method.seconds, method.tokens)
    theirs = bootstrap(columns, log_ratio, paired=True, method="BCa", n_resamples=9999, rng=np.random.default_rng(0))
    ours = jackknife_interval(baseline, method)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert math.log(ours.low) == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert math.log(ours.high) == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_the_variance_is_that_of_the_delta_method_to_first_order(sample):
    """The linearised ratio estimator of survey sampling (Cochran 1977, eq. 6.9), which knows no leaving out."""
    baseline, method = sample
    parts = (baseline.seconds, baseline.tokens, method.seconds, method.tokens)
    signs = (1, -1, -1, 1)
    influence = sum(sign * part / part.mean() for sign, part in zip(signs, parts, strict=True))
    error = influence.std(ddof=1) / math.sqrt(len(influence))
    ours = jackknife_interval(baseline, method)
    assert ours.half_width == pytest.approx(error * t.ppf(0.975, 39), rel=0.02)


def test_processes_alone_give_the_t_interval_of_their_log_ratios():
    """Units that are alike and processes that are not: three log ratios of -.02, 0 and .02, t of two degrees."""
    ones = np.ones((8, 3))
    method = Totals(ones * np.exp([0.02, 0.0, -0.02]), ones)
    found = jackknife_interval(Totals(ones, ones), method)
    assert math.log(found.high) == pytest.approx(t.ppf(0.975, 2) * 0.02 / math.sqrt(3), rel=0.01)
    assert found.processes == 3


def test_fewer_than_three_processes_are_summed_and_the_estimand_says_so():
    rng = np.random.default_rng(5)
    seconds, ones = np.exp(0.02 * rng.standard_normal((8, 2))), np.ones((8, 2))
    both = jackknife_interval(Totals(ones, ones), Totals(seconds, ones))
    summed = jackknife_interval(totals([2] * 8, [2] * 8), totals(seconds.sum(axis=1), [2] * 8))
    assert (both.low, both.high) == (summed.low, summed.high)
    assert both.estimand == "prompts like these, on this machine; 2 processes: excludes run-to-run variation"
    assert "one process: excludes" in summed.estimand
    assert "excludes" not in estimand(3)


def test_an_interval_is_never_narrower_than_that_of_its_units_alone():
    rng = np.random.default_rng(7)
    ones = np.ones((8, 5))
    seconds = np.exp(0.1 * rng.standard_normal((8, 1)) + 0.01 * rng.standard_normal((8, 5)))
    crossed = jackknife_interval(Totals(ones, ones), Totals(seconds, ones))
    units = jackknife_interval(totals([5] * 8, [5] * 8), totals(seconds.sum(axis=1), [5] * 8))
    assert crossed.half_width >= units.half_width


def test_without_a_decode_step_on_one_side_there_is_no_number():
    nothing = totals([0.0] * 4, [0] * 4)
    assert math.isnan(jackknife_interval(nothing, totals([1.0] * 4, [1] * 4)).low)
