"""specbench.analysis.throughput"""

import pandas as pd
import pytest

from specbench.analysis import acceptance, throughput


@pytest.fixture
def batch(rows):
    """One batch of two rows: one ends after 2 steps and 2 s, the other after 4 steps and 4 s."""
    return rows(
        batch_id=["a", "a"],
        row=[0, 1],
        batch_size=[2, 2],
        output_tokens=[7, 9],
        steps=[2, 4],
        accepted_per_step=[[2, 3], [1, 1, 1, 1]],
        prefill_s=[1.0, 1.0],
        ttft_s=[1.0, 1.0],
        decode_s=[4.0, 4.0],
        row_done_s=[2.0, 4.0],
    )


def test_while_a_batch_is_full_a_fast_row_counts_as_much_as_a_slow_one(rows):
    batch = rows(
        batch_id=["a", "a"], row=[0, 1], steps=[2, 4], output_tokens=[9, 5],
        accepted_per_step=[[3, 3], [0, 0, 0, 0]], drafted_depth_per_step=[[3, 3], [3] * 4],
        drafted_nodes_per_step=[[3, 3], None],
    )  # fmt: skip
    assert acceptance.block_efficiency_uncut(batch) == pytest.approx(12 / 6)
    full = throughput.while_full(batch)
    assert acceptance.block_efficiency_uncut(full) == pytest.approx(10 / 4)
    assert list(full["steps"]) == [2, 2]
    assert full["drafted_nodes_per_step"].iloc[1] is None


def test_the_time_of_a_batch_is_taken_once_and_not_once_a_row(batch):
    # 6 + 8 tokens in 4 s, not in 8 s.
    assert throughput.batch_tokens_per_s(batch) == pytest.approx(3.5)
    # 16 tokens with those of the prefill, in 1 + 4 s.
    assert throughput.e2e_tokens_per_s(batch) == pytest.approx(3.2)


def test_a_request_sees_its_own_rate_until_its_own_end(batch):
    # 14 decode tokens over 2 s + 4 s of decoding.
    assert throughput.decode_tokens_per_s(batch) == pytest.approx(14 / 6)


def test_a_full_batch_ends_with_its_first_row(batch):
    # In the first 2 s the rows emit 6 of 7 possible tokens (one is overshoot) and 4 tokens.
    assert throughput.full_batch_tokens_per_s(batch) == pytest.approx(5.0)


def test_occupancy_is_the_share_of_slot_time_in_use(batch):
    assert throughput.occupancy(batch) == pytest.approx(0.75)


def test_mean_step_time_weighs_rows_by_their_steps(batch):
    assert throughput.step_s(batch) == pytest.approx(1.0)


def test_tpot_divides_by_the_tokens_after_the_first(rows):
    one = rows(batch_id=["a"], output_tokens=[5], prefill_s=[1.0], ttft_s=[1.5], decode_s=[4.5], row_done_s=[4.5])
    # 5.5 s in all less 1.5 s to the first token, over 4 further tokens.
    assert throughput.tpot_s(one) == pytest.approx(1.0)


def test_tpot_of_a_single_token_is_null_and_not_zero(rows):
    one = rows(batch_id=["a"], output_tokens=[1], decode_s=[0.0], row_done_s=[0.0], prefill_s=[1.0])
    assert throughput.tpot_s(one) is None
    assert throughput.decode_tokens_per_s(one) is None


def test_ttft_is_a_mean_over_batches_and_not_over_rows(rows):
    frame = rows(
        batch_id=["a", "a", "a", "b"],
        output_tokens=[2] * 4,
        decode_s=[1.0] * 4,
        row_done_s=[1.0] * 4,
        ttft_s=[1.0, 1.0, 1.0, 3.0],
    )
    assert throughput.ttft_s(frame) == pytest.approx(2.0)


def test_a_failed_arm_has_no_rates_rather_than_zeros(rows):
    frame = rows(batch_id=["a"], status=["oom"], output_tokens=[None], decode_s=[None], row_done_s=[None])
    for function in (
        throughput.decode_tokens_per_s,
        throughput.e2e_tokens_per_s,
        throughput.batch_tokens_per_s,
        throughput.ttft_s,
        throughput.tpot_s,
        throughput.occupancy,
    ):
        assert function(frame) is None


def test_a_full_batch_is_that_of_each_batch_whatever_stands_beside_it(rows, batch):
    other = rows(
        batch_id=["b", "b"], row=[0, 1], block=[1, 1], batch_size=[2, 2], output_tokens=[3, 9], steps=[1, 3],
        accepted_per_step=[[1], [4, 0, 1]], row_done_s=[0.5, 1.5],
    )  # fmt: skip
    ended_at_once = rows(
        batch_id=["c", "c"], row=[0, 1], block=[2, 2], batch_size=[2, 2], output_tokens=[1, 4], steps=[0, 2],
        accepted_per_step=[[], [1, 0]], row_done_s=[0.0, 1.0],
    )  # fmt: skip
    unrecorded = rows(batch_id=["d"], block=[3], output_tokens=[9], accepted_per_step=[None], row_done_s=[1.0])
    table = throughput.full_batch_table(pd.concat([other, batch, ended_at_once, unrecorded], ignore_index=True))
    # Of b: its first row emits 2 and the second 5 in the one step that both make.
    assert table["tokens"].to_dict() == {"b": 7.0, "a": 10.0}
    assert table["seconds"].to_dict() == {"b": 0.5, "a": 2.0}
