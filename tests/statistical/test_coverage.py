"""How often the stated 95 % interval holds the true speed-up, on simulated runs whose true speed-up is known.

Time a token is white noise of 2 %, times an AR(1) drift of 2 % along the run, times an offset of 2 % that a whole run
has. All arms of an interleaved run share its offset, and neighbours share most of the drift. In a sequential design
each arm has a run of its own. Prompts differ in how much a method helps on them.

With 4,000 draws the standard error of a coverage of 95 % is 0.34 points: a correct interval leaves the band of 93.5 to
96.5 % with probability 1e-5.
"""

import math

import numpy as np
import pytest

from specbench.analysis.intervals import Totals, jackknife_interval, noise_floor, ratio
from specbench.analysis.speedup import Speedup
from specbench.report.resolution import RESOLVED, resolution

pytestmark = pytest.mark.statistical

DRAWS, REPEATS = 4000, 3
SPEEDUP = 2.0
NOISE = DRIFT = OFFSET = 0.02
REMEMBERED = 0.9
"""Share of its deviation that the drift keeps from one batch to the next."""

NOISE_DOMINATED, PROMPT_DOMINATED = 0.0, 0.15
"""By how much the speed-up of one prompt differs from that of another, on the log scale."""


def drift(rng, *shape):
    """AR(1) along the last axis, stationary."""
    values = rng.standard_normal(shape) * DRIFT
    for place in range(1, shape[-1]):
        values[..., place] *= math.sqrt(1 - REMEMBERED**2)
        values[..., place] += REMEMBERED * values[..., place - 1]
    return values


def interleaved(rng, units, processes=1):
    """Drift and offset of each timed batch ``[2 arms, draws, processes, repeats, units]``: the order is a coin's."""
    along = drift(rng, DRAWS, processes, 2 * REPEATS * units).reshape(DRAWS, processes, REPEATS, units, 2)
    swapped = rng.random(along.shape[:-1]) < 0.5
    first, second = np.where(swapped[..., None], along[..., ::-1], along).transpose(4, 0, 1, 2, 3)
    return np.stack([first, second]) + OFFSET * rng.standard_normal((DRAWS, processes, 1, 1))


def sequential(rng, units):
    """The same, with a run of its own for each arm."""
    along = drift(rng, 2, DRAWS, 1, REPEATS * units).reshape(2, DRAWS, 1, REPEATS, units)
    return along + OFFSET * rng.standard_normal((2, DRAWS, 1, 1, 1))


def arms(rng, shared, prompt_sd, process_sd=0.0):
    """Totals of baseline and method in every draw: arrays ``[draws, units, processes]``."""
    draws, processes, _, units = shared.shape[1:]
    tokens = rng.integers(64, 129, (draws, units, 1)).astype(float)
    # The mean of exp(s z) is exp(s^2 / 2): without that the true speed-up would be another.
    difficulty = np.exp(prompt_sd * rng.standard_normal((draws, units, 1)) - prompt_sd**2 / 2)
    of_process = np.exp(process_sd * rng.standard_normal((draws, 1, processes)))
    per_token = np.exp(shared + NOISE * rng.standard_normal(shared.shape)).sum(axis=3).transpose(0, 1, 3, 2)
    counted = np.broadcast_to(REPEATS * tokens, per_token.shape[1:])
    baseline = tokens * per_token[0]
    method = tokens * difficulty * of_process * per_token[1] / SPEEDUP
    return [(Totals(baseline[draw], counted[draw]), Totals(method[draw], counted[draw])) for draw in range(draws)]


def coverage(pairs):
    found = [jackknife_interval(*pair) for pair in pairs]
    return np.mean([interval.low <= SPEEDUP <= interval.high for interval in found])


@pytest.mark.parametrize("prompt_sd", [NOISE_DOMINATED, PROMPT_DOMINATED], ids=["noise", "prompts"])
@pytest.mark.parametrize("units", [4, 16, 80])
def test_an_interleaved_run_has_intervals_that_hold_what_they_say(units, prompt_sd):
    rng = np.random.default_rng([units, int(100 * prompt_sd)])
    assert 0.935 <= coverage(arms(rng, interleaved(rng, units), prompt_sd)) <= 0.965


@pytest.mark.parametrize(
    ("units", "prompt_sd", "most"),
    [
        (4, NOISE_DOMINATED, 0.6),
        (16, NOISE_DOMINATED, 0.4),
        (80, NOISE_DOMINATED, 0.25),
        (16, PROMPT_DOMINATED, 0.92),
        (80, PROMPT_DOMINATED, 0.8),
    ],
)
def test_one_arm_after_the_other_fails_the_same_test(units, prompt_sd, most):
    """Where four prompts that differ by 15 % decide, the 2 % of the design do not show: that case is left out."""
    rng = np.random.default_rng([units, int(100 * prompt_sd)])
    assert coverage(arms(rng, sequential(rng, units), prompt_sd)) <= most


@pytest.mark.parametrize("process_sd", [0.0, 0.02])
@pytest.mark.parametrize("prompt_sd", [NOISE_DOMINATED, PROMPT_DOMINATED], ids=["noise", "prompts"])
@pytest.mark.parametrize(("units", "processes"), [(4, 3), (16, 5)])
def test_from_three_processes_on_the_interval_holds_the_variation_from_run_to_run(
    units, processes, prompt_sd, process_sd
):
    """The sum over crossed levels counts the noise twice where neither level varies: too wide, never too narrow."""
    rng = np.random.default_rng([units, processes, int(100 * prompt_sd), int(1000 * process_sd)])
    assert coverage(arms(rng, interleaved(rng, units, processes), prompt_sd, process_sd)) >= 0.93


def test_two_processes_do_not_tell_what_runs_differ_by():
    """Why the estimand of fewer than three processes says so."""
    rng = np.random.default_rng(2)
    assert coverage(arms(rng, interleaved(rng, 16, 2), NOISE_DOMINATED, 0.02)) < 0.6


@pytest.mark.parametrize("units", [4, 16])
def test_one_in_twenty_comparisons_of_the_same_with_the_same_is_resolved_at_most(units):
    """`resolved` asks for an interval without 1 and a difference above the floor of the twins, so it is rarer still."""
    rng = np.random.default_rng(units)
    shared = drift(rng, DRAWS, 3 * REPEATS * units).reshape(DRAWS, REPEATS, units, 3)
    per_token = np.exp(rng.permuted(shared, axis=-1) + NOISE * rng.standard_normal(shared.shape))
    tokens = np.ones(units)
    resolved = 0
    for draw in range(DRAWS):
        first, method = (Totals(per_token[draw, ..., arm].sum(axis=0), tokens) for arm in (0, 2))
        each = [Totals(per_token[draw, ..., arm].ravel(), np.ones(REPEATS * units)) for arm in range(2)]
        found = Speedup(ratio(first, method), jackknife_interval(first, method), units, 0, 0, 0)
        resolved += resolution(found, noise_floor(*each)) == RESOLVED
    assert 0.01 <= resolved / DRAWS <= 0.05


def test_static_batches_have_intervals_that_hold_what_they_say():
    """A static batch lasts as long as its slowest row, and rows of other acceptance end at other steps."""
    rng = np.random.default_rng(6)
    true = math.exp(_log_ratio(*(totals.sum(axis=0) for totals in _static_batches(rng, 400_000))))
    for units in (4, 16):
        covered = 0
        for _ in range(DRAWS):
            baseline_s, method_s, tokens = _static_batches(rng, units)
            found = jackknife_interval(Totals(baseline_s, tokens), Totals(method_s, tokens))
            covered += found.low <= true <= found.high
        assert 0.935 <= covered / DRAWS <= 0.965


def test_static_batches_keep_little_of_what_full_ones_deliver():
    """Between 55 and 85 %, the reason why there are two numbers for batches larger than one."""
    rng = np.random.default_rng(7)
    _, method_s, tokens = _static_batches(rng, 20_000)
    static = tokens.sum() / method_s.sum()
    full = _ROWS * _tokens_per_step(rng, 200_000).mean() / _STEP_S
    assert 0.55 <= static / full <= 0.85


_ROWS, _GAMMA, _LENGTH, _STEP_S = 8, 4, 128, 1.3


def _static_batches(rng, batches):
    """Seconds of baseline and method, and tokens, of batches of rows with an acceptance of their own."""
    steps = np.ceil(_LENGTH / _tokens_per_step(rng, (batches, _ROWS))).max(axis=1)
    noise = np.exp(NOISE * rng.standard_normal((2, batches)))
    tokens = np.full(batches, float(_ROWS * _LENGTH))
    return _LENGTH * noise[0], _STEP_S * steps * noise[1], tokens


def _tokens_per_step(rng, shape):
    """Expected tokens a step (Leviathan et al. 2023, eq. 1) of rows whose acceptance differs as prompts do."""
    alpha = rng.beta(7, 3, shape)
    return (1 - alpha ** (_GAMMA + 1)) / (1 - alpha)


def _log_ratio(baseline_s, method_s, tokens):
    return math.log(baseline_s / tokens) - math.log(method_s / tokens)
