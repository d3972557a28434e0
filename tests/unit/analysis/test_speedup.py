"""specbench.analysis.speedup"""

import numpy as np
import pytest

from specbench.analysis.memo import of_frame
from specbench.analysis.speedup import (
    batch_rate,
    batch_ratios,
    efficiency_ratio,
    fastest_path,
    full_batch_rate,
    full_batch_speedup,
    request_speedup,
    request_speedups,
    speedup,
    twin_noise_floor,
)
from specbench.errors import ResultsError


@pytest.fixture
def arm(rows):
    """Four batches of two rows each, with the given decode times, 11 output tokens a row."""

    def make(seconds, name="x", **changes):
        block = np.repeat(np.arange(len(seconds)), 2)
        frame = rows(
            batch_id=[f"{name}{index}" for index in block],
            block=block,
            row=[0, 1] * len(seconds),
            batch_size=[2] * len(block),
            prompt_id=[f"p{index}" for index in range(len(block))],
            output_tokens=[11] * len(block),
            decode_s=np.repeat(seconds, 2),
            prefill_s=[1.0] * len(block),
        )
        return frame.assign(**changes)

    return make


def test_a_speed_up_is_the_ratio_of_decode_time_per_token(arm):
    found = speedup(arm([4.0, 4.0, 4.0, 4.0]), arm([2.0, 2.0, 2.0, 2.0]))
    assert found.ratio == pytest.approx(2.0)
    assert (found.interval.low, found.interval.high) == pytest.approx((2.0, 2.0))
    assert (found.units, found.pairs) == (4, 4)


def test_the_rate_of_an_arm_is_its_tokens_over_its_seconds_with_an_interval(arm):
    # 20 decode tokens a batch in 2 s, and in 1 to 4 s.
    steady = batch_rate(arm([2.0] * 4))
    assert (steady.ratio, steady.interval.low, steady.interval.high) == pytest.approx((10.0, 10.0, 10.0))
    uneven = batch_rate(arm([1.0, 2.0, 3.0, 4.0]))
    assert uneven.ratio == pytest.approx(80 / 10)
    # Leaving one out gives 60 / 9, 60 / 8, 60 / 7 and 60 / 6: a jackknife by hand, with a t quantile of 3.182.
    logs = np.log([60 / 9, 60 / 8, 60 / 7, 60 / 6])
    reach = 3.182 * np.sqrt(3 / 4 * ((logs - logs.mean()) ** 2).sum())
    assert np.log(uneven.interval.high / uneven.ratio) == pytest.approx(reach, rel=1e-3)


def test_the_rate_of_a_full_batch_ends_with_its_first_row(arm):
    # Of eleven tokens ten are decoded in two steps of five; the second row takes three steps.
    rows = arm([3.0]).assign(
        steps=[2, 3], accepted_per_step=[[4, 4], [4, 3, 0]], output_tokens=[11, 11], row_done_s=[2.0, 3.0]
    )
    assert full_batch_rate(rows).ratio == pytest.approx((10 + 9) / 2.0)
    assert batch_rate(rows).ratio == pytest.approx(20 / 3.0)


def test_the_times_of_a_batch_are_not_summed_over_its_rows(arm):
    # 20 decode tokens a batch; the baseline takes 4 s a batch, whichever number of rows stores that time.
    baseline = arm([4.0] * 4)
    one_row = arm([2.0] * 4).query("row == 0").assign(prompt_id="p0", output_tokens=21)
    baseline_one = baseline.query("row == 0").assign(prompt_id="p0", output_tokens=21)
    assert speedup(baseline_one, one_row).ratio == pytest.approx(speedup(baseline, arm([2.0] * 4)).ratio)


def test_both_token_counts_are_given_where_lengths_differ(arm):
    longer = arm([4.0] * 4).assign(output_tokens=21)
    found = speedup(arm([4.0] * 4), longer)
    assert (found.baseline_tokens, found.method_tokens) == (80, 160)
    assert found.ratio == pytest.approx(2.0)


def test_end_to_end_takes_prefill_and_the_first_token_too(arm):
    found = speedup(arm([4.0] * 4), arm([1.5] * 4), with_prefill=True)
    assert found.ratio == pytest.approx(2.0)
    assert found.baseline_tokens == 88


def test_a_batch_that_failed_on_one_side_counts_on_neither(arm):
    method = arm([2.0, 2.0, 2.0, 99.0])
    method.loc[method.index[-1], ["status", "decode_s", "output_tokens"]] = ["oom", np.nan, np.nan]
    found = speedup(arm([4.0, 4.0, 4.0, 1.0]), method)
    assert found.ratio == pytest.approx(2.0)
    assert (found.units, found.interval) == (3, None)


def test_an_arm_that_failed_everywhere_has_no_speed_up(arm):
    method = arm([2.0] * 4).assign(status="oom", decode_s=np.nan, output_tokens=np.nan)
    assert speedup(arm([4.0] * 4), method).ratio is None


def test_repeats_of_a_batch_of_prompts_are_one_unit(arm):
    repeats = [arm([4.0, 4.0], name=f"{repeat}-").assign(repeat=repeat) for repeat in range(3)]
    frame = repeats[0]
    for other in repeats[1:]:
        frame = frame.merge(other, how="outer")
    found = speedup(frame, frame)
    assert (found.pairs, found.units, found.interval) == (6, 2, None)
    # For the twins, which do the same work, each pair of timed batches is a unit.
    assert twin_noise_floor(frame, frame) == 0.0


def test_the_spread_is_the_ratio_of_each_batch_alone(arm):
    assert batch_ratios(arm([4.0, 6.0]), arm([2.0, 2.0])).tolist() == pytest.approx([2.0, 3.0])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("target", "vicuna"), ("dtype", "bfloat16"), ("device", "NVIDIA H100"), ("prompts_sha", "0"),
        ("target_sha", "0"), ("threads", 2), ("temperature", 0.8), ("max_new_tokens", 9), ("batch_size", 3),
    ],
)  # fmt: skip
def test_what_must_not_be_compared_is_refused_by_the_name_of_its_column(arm, column, value):
    with pytest.raises(ResultsError, match=rf"different '{column}' must not be compared: .+ against {value}"):
        speedup(arm([1.0]), arm([1.0]).assign(**{column: value}))


def test_a_block_with_other_prompts_is_refused(arm):
    with pytest.raises(ResultsError, match=r"different 'prompt_id'.*block 0"):
        speedup(arm([1.0]), arm([1.0]).assign(prompt_id=["p0", "p9"]))


@pytest.mark.parametrize(
    ("warm_up_s", "fastest"),
    [
        ({"core": [0.5], "outside": [0.1]}, "outside"),
        ({"core": [0.5], "outside": [0.9]}, "core"),
        ({"core": [0.5, 0.3], "outside": [9.0, 0.2]}, "outside"),  # a first pass also pays for what is done once
        ({"core": [0.5], "unsupported": []}, "core"),
        ({"core": []}, None),
    ],
)
def test_the_fastest_path_is_the_one_whose_best_warm_up_pass_is(warm_up_s, fastest):
    assert fastest_path(warm_up_s) == fastest


def test_tokens_that_came_with_the_prefill_are_no_decode_tokens(rows):
    def arm(**columns):
        return rows(batch_id=["a", "b"], block=[0, 1], output_tokens=[9, 9], decode_s=1.0, row_done_s=1.0, **columns)

    plain, drafting = arm(prefill_tokens=[1, None]), arm(prefill_tokens=[5, 3])
    assert speedup(plain, drafting).ratio == pytest.approx(10 / 16)
    assert request_speedup(plain, drafting).ratio == pytest.approx(10 / 16)
    assert speedup(plain, drafting, with_prefill=True).ratio == pytest.approx(1.0)
    assert speedup(plain, arm()).ratio == pytest.approx(1.0)  # rows from before the column


def test_a_full_batch_counts_until_its_first_row_ends(arm):
    steps = [np.full(10, 0)] * 8
    slow = arm([10.0] * 4).assign(steps=10, accepted_per_step=steps, row_done_s=10.0)
    # One row of each batch ends at half time, with as many tokens; the other takes all of it.
    uneven = [np.full(5, 1), np.full(10, 0)] * 4
    fast = arm([10.0] * 4).assign(steps=[5, 10] * 4, accepted_per_step=uneven, row_done_s=[5.0, 10.0] * 4)
    assert speedup(slow, fast).ratio == pytest.approx(1.0)
    # 10 + 5 tokens in 5 s against 20 in 10 s.
    assert full_batch_speedup(slow, fast).ratio == pytest.approx(1.5)


def test_the_ratio_of_tokens_per_step_counts_steps_and_no_time(arm):
    exact = arm([4.0] * 4, steps=[10, 10, 10, 10, 5, 5, 5, 5])
    lossy = arm([1.0, 2.0, 3.0, 9.0], steps=[5] * 8)
    found = efficiency_ratio(exact, lossy)
    # 80 tokens in 60 steps against 80 tokens in 40.
    assert found.ratio == pytest.approx(1.5)
    assert found.units == 4
    assert found.interval.low < 1.5 < found.interval.high
    assert efficiency_ratio(exact, exact.assign(decode_s=1.0)).ratio == pytest.approx(1.0)


def test_groups_of_prompts_have_their_own_speed_up_and_units(arm):
    slow = arm([4.0] * 8).assign(row_done_s=4.0)
    fast = arm([4.0] * 8).assign(row_done_s=[1.0] * 8 + [2.0] * 8)
    groups = {
        "first": {f"p{index}" for index in range(8)},
        "second": {f"p{index}" for index in range(8, 16)},
        "none": {"q"},
    }
    found = request_speedups(slow, fast, groups)
    assert (found["first"].ratio, found["first"].units) == (pytest.approx(4.0), 4)
    assert (found["second"].ratio, found["second"].units) == (pytest.approx(2.0), 4)
    assert found["none"].ratio is None
    assert request_speedup(slow, fast).ratio == pytest.approx(64 / 24)


def test_an_arm_of_which_nothing_finished_has_no_speed_up_on_any_group(arm):
    failed = arm([4.0] * 4).assign(status="oom", row_done_s=np.nan, output_tokens=np.nan)
    found = request_speedups(arm([4.0] * 4).assign(row_done_s=4.0), failed, {"all": {"p0", "p1"}})
    assert found["all"].ratio is None


def test_a_table_is_made_once_for_a_frame_and_anew_for_its_equal(arm):
    calls = []

    @of_frame
    def total(rows):
        calls.append(len(rows))
        return rows["decode_s"].sum()

    first = arm([1.0, 2.0])
    assert total(first) == total(first) == 6.0
    assert calls == [4]
    assert total(first.copy()) == 6.0
    assert calls == [4, 4]
