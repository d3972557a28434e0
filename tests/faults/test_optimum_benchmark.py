"""Faults found in optimum-benchmark, and that specbench does not have them."""

import numpy as np
import pytest

from specbench.analysis.speedup import speedup
from specbench.analysis.throughput import batch_tokens_per_s
from specbench.config import DecodeSettings
from tests.unit.bench.test_timing import FakeClock, decode
from tests.unit.bench.test_timing import headline as watch_on


def test_a_text_may_end_before_its_limit_unless_a_user_forbids_it():
    """It forced every text to its full length, on random prompts."""
    settings = DecodeSettings()
    assert (settings.min_new_tokens, settings.ignore_eos) == (0, False)


def test_decode_time_is_measured_and_not_a_difference_of_means():
    """It subtracted the mean prefill of other runs from a whole generation, and what came out could be negative."""
    clock = FakeClock()
    watch = watch_on(clock)
    quick = decode(watch, clock, [2, 3])
    clock.pass_ms(900)
    watch.start()
    clock.pass_ms(800)  # one prefill that is slow
    watch.first_token()
    watch.prefilled()
    for milliseconds in (2, 3):
        clock.pass_ms(milliseconds)
        watch.step()
    watch.finish(2)
    assert watch.timing.decode_s == quick.decode_s == pytest.approx(0.005)
    assert watch.timing.prefill_s == pytest.approx(0.8)


def test_a_rate_counts_the_tokens_that_there_were(rows):
    """It assumed exactly the tokens that were asked for, less one."""
    early = rows(batch_id=["a", "b"], output_tokens=[3, 12], max_new_tokens=12, decode_s=[1.0, 1.0])
    assert batch_tokens_per_s(early) == pytest.approx((2 + 11) / 2)


def test_a_speed_up_comes_with_an_interval_and_the_number_of_its_units(rows):
    """It gave a standard deviation over repeats of one input."""
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 6))
    arms = [
        rows(
            batch_id=[f"{arm}{i}" for i in range(6)],
            block=range(6),
            prompt_id=[f"p{i}" for i in range(6)],
            output_tokens=101,
            decode_s=scale * np.exp(noise[arm]),
        )
        for arm, scale in enumerate((2.0, 1.0))
    ]
    found = speedup(*arms)
    assert found.units == 6
    assert found.interval.low < 2.0 < found.interval.high
    assert found.interval.low < found.ratio < found.interval.high
