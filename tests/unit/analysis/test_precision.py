"""specbench.analysis.precision"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from specbench.analysis.intervals import Interval
from specbench.analysis.precision import Noise, minimal_detectable_ratio, noise_of


def paired(rows, rng, units, repeats, between, within):
    """Rows of a baseline and of a method whose log ratio has the two standard deviations."""
    place = {"block": np.repeat(np.arange(units), repeats), "repeat": np.tile(np.arange(repeats), units)}
    size = units * repeats
    logs = np.repeat(between * rng.standard_normal(units), repeats) + within * rng.standard_normal(size)
    shared = {"output_tokens": 9, "steps": 8, "row_done_s": 1.0}
    ids = [f"{block}-{repeat}" for block, repeat in zip(*place.values(), strict=True)]
    baseline = rows(**place, **shared, batch_id=[f"a{name}" for name in ids], decode_s=1.0)
    return baseline, rows(**place, **shared, batch_id=[f"m{name}" for name in ids], decode_s=np.exp(-logs))


def test_both_parts_of_the_noise_are_found_again(rows):
    found = noise_of(*paired(rows, np.random.default_rng(0), 400, 3, between=0.15, within=0.04))
    assert found.between == pytest.approx(0.15, rel=0.1)
    assert found.within == pytest.approx(0.04, rel=0.1)


def test_the_parts_are_those_of_the_analysis_of_variance_by_hand(rows):
    """Two units of two repeats, log ratios 0, .2 and 1, 1.2: within^2 = .02; between^2 = (1 - .02) / 2."""
    baseline, method = paired(rows, np.random.default_rng(0), 2, 2, 0.0, 0.0)
    method["decode_s"] = np.exp([-0.0, -0.2, -1.0, -1.2])
    found = noise_of(baseline, method)
    assert found.within == pytest.approx(math.sqrt(0.02))
    assert found.between == pytest.approx(math.sqrt((1 - 0.02) / 2))


def test_without_repeats_the_parts_cannot_be_told_apart(rows):
    assert noise_of(*paired(rows, np.random.default_rng(0), 8, 1, 0.1, 0.1)) is None
    assert noise_of(*paired(rows, np.random.default_rng(0), 1, 4, 0.1, 0.1)) is None


def test_a_partial_batch_is_left_out(rows):
    arms = paired(rows, np.random.default_rng(0), 5, 2, 0.1, 0.02)
    of_two = [pd.concat([own, own[own["block"] < 4].assign(row=1)]).assign(batch_size=2) for own in arms]
    assert noise_of(*of_two) == noise_of(*(own[own["block"] < 4] for own in arms))


def test_the_expected_width_is_that_of_a_t_interval():
    noise = Noise(between=0.1, within=0.04)
    assert noise.half_width(16, 4) == pytest.approx(t.ppf(0.975, 15) * math.sqrt((0.01 + 0.0004) / 16))


def test_the_units_needed_are_the_fewest_that_do():
    noise = Noise(between=0.1, within=0.04)
    needed = noise.units_needed(0.02, repeats=3)
    assert noise.half_width(needed, 3) <= math.log1p(0.02) < noise.half_width(needed - 1, 3)


def test_no_run_has_fewer_than_four_units():
    assert Noise(0.0, 1e-6).units_needed(0.05, repeats=1) == 4


def test_repeats_help_as_far_as_noise_goes_and_not_beyond():
    noise = Noise(between=0.02, within=0.2)
    needed = noise.repeats_needed(0.05, units=20)
    assert noise.half_width(20, needed) <= math.log1p(0.05) < noise.half_width(20, needed - 1)
    assert noise.repeats_needed(0.005, units=20) is None


@pytest.mark.parametrize(("units", "effect"), [(34, 0.4956), (12, 0.8893), (5, 1.6819)])
def test_the_detectable_difference_has_the_power_that_it_promises(units, effect):
    """Effects in standard deviations that R's power.t.test(type = "paired", power = .8) finds for these n."""
    sd = 0.05
    half_width = t.ppf(0.975, units - 1) * sd / math.sqrt(units)
    found = minimal_detectable_ratio(Interval(math.exp(-half_width), math.exp(half_width), units))
    assert math.log(found) == pytest.approx(effect * sd, rel=2e-3)


def test_eight_in_ten_runs_find_the_detectable_difference():
    rng = np.random.default_rng(1)
    units, sd = 8, 0.03
    half_width = t.ppf(0.975, units - 1) * sd / math.sqrt(units)
    true = math.log(minimal_detectable_ratio(Interval(math.exp(-half_width), math.exp(half_width), units)))
    logs = true + sd * rng.standard_normal((20_000, units))
    errors = logs.std(axis=1, ddof=1) / math.sqrt(units)
    found = np.abs(logs.mean(axis=1)) > t.ppf(0.975, units - 1) * errors
    assert found.mean() == pytest.approx(0.8, abs=0.01)
