"""specbench.analysis.composition"""

import math

import numpy as np
import pandas as pd
import pytest

from specbench.analysis.composition import Estimate, Setting, compose, independent, together
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.replay import Replay, RowReplay
from specbench.errors import ResultsError

FORWARD_MS = {("target", 1): 10.0, ("target", 2): 10.5, ("target", 4): 11.0, ("draft", 1): 1.0, ("draft", 2): 1.2}


def table(half_width=0.02, **changed):
    rows = [
        {"run_id": "r", "point_id": f"{model} {query} {batch} {context}", "model": model, "mode": "eager",
         "query_tokens": query, "batch_size": batch, "context_tokens": context, "status": "ok", "reason": None,
         "forward_s": ms / 1000, "forward_low_s": (1 - half_width) * ms / 1000,
         "forward_high_s": (1 + half_width) * ms / 1000,
         "device": "cpu", "dtype": "float32", "threads": 1, "attention": "sdpa", "burst": 4, "parameters": 1}
        for (model, query), ms in FORWARD_MS.items() for batch in (1, 2) for context in (64, 192)
    ]  # fmt: skip
    return LatencyTable(pd.DataFrame(rows).assign(**changed))


def setting(batch_size=1, context_tokens=100, half_width=0.02):
    step = Estimate(0.0108, 0.0001)
    return Setting(table(half_width), "target", "draft", batch_size, context_tokens, step)


def row(prompt, accepted, gamma=3, tokens=None):
    """A text whose steps kept so many of gamma draft tokens, the last one cut where the tokens say so."""
    steps = np.zeros((len(accepted), gamma + 1))
    steps[np.arange(len(accepted)), accepted] = 1
    drafted = np.zeros_like(steps)
    drafted[:, gamma] = 1
    return RowReplay(prompt, tokens or sum(accepted) + len(accepted), steps, drafted)


def walked(*rows, gamma=3):
    return Replay(f"gamma {gamma}", gamma, rows)


def test_a_step_is_its_forwards_and_the_autoregressive_arms_host_time():
    found = compose(walked(row(0, [3, 1, 0, 2])), setting())
    assert found.draft_s.value == pytest.approx(0.0012 + 2 * 0.0010)  # the first reads two tokens
    assert found.verify_s.value == pytest.approx(0.011)
    assert found.host_s.value == pytest.approx(0.0008)
    assert found.tokens_per_s == pytest.approx(10 / 4 / 0.015)
    assert found.latency_mode == "composed"


def test_a_batch_waits_for_its_slowest_row_and_a_partial_one_is_left_out():
    rows = [row(0, [3, 3]), row(1, [0, 1, 1, 0]), row(2, [3])]
    found = compose(walked(*rows), setting(batch_size=2))
    assert found.tokens_per_step.value == pytest.approx((8 + 6) / 4)


def test_drafts_that_end_early_cost_what_they_are_long():
    drafted = np.zeros((2, 4))
    drafted[0, 1] = drafted[1, 3] = 1
    found = compose(walked(RowReplay(0, 4, drafted, drafted)), setting())
    assert found.draft_s.value == pytest.approx(((0.0012) + (0.0012 + 2 * 0.0010)) / 2)
    assert found.verify_s.value == pytest.approx((0.0105 + 0.011) / 2)


@pytest.mark.parametrize("latency_ms", [0.0, 0.5, 5.0])
def test_a_draft_latency_replaces_the_tables_also_below_it(latency_ms):
    found = compose(walked(row(0, [3, 1, 0, 2])), setting(), latency_ms)
    assert found.draft_s == Estimate(pytest.approx(3 * latency_ms / 1000), 0.0)
    assert found.tokens_per_s == pytest.approx(2.5 / (0.0118 + 3 * latency_ms / 1000))


def test_to_draft_nothing_is_the_autoregressive_arm_again():
    found = compose(walked(row(0, [0] * 9, gamma=0), gamma=0), setting())
    assert found.tokens_per_s == pytest.approx(1 / 0.0108)


def test_the_interval_covers_what_comes_of_uncertain_parts():
    """Acceptance and times are drawn again and again; 95 % of what is composed of them lies in the interval."""
    rng = np.random.default_rng(3)
    rows = [row(prompt, rng.binomial(3, 0.5, size=20).tolist()) for prompt in range(12)]
    found = compose(walked(*rows), setting(half_width=0.1))
    widths = [found.tokens_per_step, found.draft_s, found.verify_s, found.host_s]
    draws = [part.value + part.half_width / 1.96 * rng.standard_normal(20_000) for part in widths]
    rates = draws[0] / (draws[1] + draws[2] + draws[3])
    low, high = found.interval
    assert ((low < rates) & (rates < high)).mean() == pytest.approx(0.95, abs=0.01)


def test_without_intervals_of_all_parts_there_is_none():
    texts = [row(prompt, [prompt % 4, 1]) for prompt in range(6)]
    assert compose(walked(*texts), setting()).interval is not None
    assert compose(walked(*texts), setting(half_width=math.nan)).interval is None
    assert compose(walked(*texts[:3]), setting()).interval is None  # three prompts tell no spread


def test_errors_of_one_kind_add_and_those_of_two_do_so_as_squares():
    parts = [Estimate(5.0, 3.0), Estimate(1.0, 4.0)]
    assert together(parts) == Estimate(6.0, 7.0)
    assert independent(parts) == Estimate(6.0, 5.0)
    assert independent(parts, signs=[1, -1]) == Estimate(4.0, 5.0)


def test_a_gamma_that_the_table_does_not_reach_is_one_clear_line():
    with pytest.raises(ResultsError, match="query_tokens 6 lies outside of what was measured, 1 to 4"):
        compose(walked(row(0, [2, 5], gamma=5), gamma=5), setting())
    with pytest.raises(ResultsError, match="context_tokens 500 lies outside"):
        compose(walked(row(0, [2, 1])), setting(context_tokens=500))
