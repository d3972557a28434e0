"""specbench.analysis.roofline"""

import math

import pandas as pd
import pytest

from specbench.analysis.roofline import (
    DenseModel,
    Hardware,
    attainable_s,
    attainable_target_efficiency,
    context_threshold,
    forward_work,
    model_of,
    over_memory_roof,
)

LLAMA_2_7B = DenseModel(
    layers=32, width=4096, ffn=11008, attention_width=4096, kv_width=4096, vocab_size=32000, bytes_per_value=2
)
A100 = Hardware(bytes_per_s=2.0e12, operations_per_s=312e12)


def layer(width, groups):
    """A layer as MagicDec counts it: two matrices of 4 d in the feed-forward part, KV heads shared by groups."""
    return DenseModel(1, width, 4 * width, width, width // groups, vocab_size=0, gated=False, bytes_per_value=2)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize(("batch", "context"), [(1, 4096), (64, 32000)])
def test_a_layer_moves_and_computes_what_magicdec_says(groups, batch, context):
    d = 4096
    work = forward_work(layer(d, groups), batch_size=batch, query_tokens=1, context_tokens=context)
    assert work.weight_bytes == 2 * (10 * d**2 + 2 * d**2 / groups)
    assert work.weight_operations == 2 * batch * (10 * d**2 + 2 * d**2 / groups)
    assert work.kv_bytes == 4 * batch * context * d / groups
    assert work.kv_operations == 4 * batch * context * d
    assert work.weight_operations / work.weight_bytes == batch  # their intensities
    assert work.kv_operations / work.kv_bytes == groups


def test_the_numbers_of_llama_2_7b():
    # 6,738,415,616 parameters less the embedding and 65 norms; half a MiB of KV a token.
    assert LLAMA_2_7B.multiplied == 6_738_415_616 - 32000 * 4096 - 65 * 4096
    assert LLAMA_2_7B.kv_bytes_per_token == 524_288


def test_a_single_token_takes_as_long_as_reading_weights_and_keys():
    work = forward_work(LLAMA_2_7B, batch_size=1, query_tokens=1, context_tokens=2048)
    # 13.214 GB of weights and 1.074 GB of KV at 2 TB/s.
    assert attainable_s(work, A100) == pytest.approx(7.144e-3, rel=1e-3)
    assert work.kv_share == pytest.approx(1.0737 / 14.2879, rel=1e-3)


def test_a_large_batch_waits_for_operations():
    # At 512 rows and next to no context: 2 x 6.607e9 x 512 operations at 312e12 a second.
    work = forward_work(LLAMA_2_7B, batch_size=512, query_tokens=1, context_tokens=0)
    assert attainable_s(work, A100) == pytest.approx(21.685e-3, rel=1e-3)


def test_verification_is_free_until_operations_run_out():
    def efficiency(batch, context):
        return attainable_target_efficiency(LLAMA_2_7B, A100, batch_size=batch, gamma=3, context_tokens=context)

    assert efficiency(1, 128) == 1.0
    assert efficiency(156, 0) == pytest.approx(0.25)  # past the ridge each token costs a whole one
    # Long contexts make it cheap again, and the more so the larger the batch: MagicDec's point.
    assert efficiency(64, 32000) > efficiency(64, 2000)
    assert efficiency(256, 32000) > 0.9


@pytest.mark.parametrize("hardware", [A100, Hardware(bytes_per_s=2.0e12, operations_per_s=16e12)])
def test_beyond_the_threshold_memory_is_what_every_batch_waits_for(hardware):
    n = context_threshold(LLAMA_2_7B, hardware)
    for context, waits_for_memory in ((1.01 * n, True), (0.99 * n, False)):
        work = forward_work(LLAMA_2_7B, batch_size=10**7, query_tokens=1, context_tokens=context)
        moved = (work.weight_bytes + work.kv_bytes) / hardware.bytes_per_s
        computed = (work.weight_operations + work.kv_operations) / hardware.operations_per_s
        assert (moved > computed) is waits_for_memory


def test_where_many_heads_share_their_keys_no_context_is_long_enough():
    slow = Hardware(bytes_per_s=2.0e12, operations_per_s=8e12)  # a ridge of 4 operations a byte, under 8 heads a key
    assert context_threshold(layer(4096, 8), slow) == math.inf
    assert context_threshold(layer(4096, 1), slow) < math.inf


# --- forwards that were measured

# Published configurations and counts: Llama-2-7B, OPT-1.3B (two matrices, tied) and TinyLlama (four KV heads).
ROWS = pd.DataFrame(
    [
        (32, 4096, 32, 32, 128, 11008, 32000, 6_738_415_616),
        (24, 2048, 32, 32, 64, 8192, 50272, 1_315_758_080),
        (22, 2048, 32, 4, 64, 5632, 32000, 1_100_048_384),
    ],
    columns=["layers", "hidden", "heads", "kv_heads", "head_dim", "feed_forward", "vocab", "parameters"],
).assign(query_tokens=1, batch_size=1, context_tokens=2047)


def measured(*seconds, bytes_per_value=2):
    return ROWS.assign(forward_s=seconds, weight_bytes=bytes_per_value * ROWS["parameters"])


def test_the_matrices_of_a_measured_model_follow_from_its_numbers():
    llama, opt, tiny = (model_of(row) for row in measured(1, 1, 1).to_dict("records"))
    assert llama == LLAMA_2_7B
    # OPT-1.3B: 12 matrices of 2048 x 2048 a layer and the embedding, which is the output matrix as well.
    assert (opt.gated, opt.multiplied) == (False, 24 * 12 * 2048**2 + 50272 * 2048)
    assert (tiny.gated, tiny.kv_width) == (True, 256)
    assert tiny.multiplied == 1_100_048_384 - 32000 * 2048 - 45 * 2048


def test_a_forward_that_reads_at_the_best_pace_is_at_the_roof_and_one_that_takes_longer_above_it():
    def at_2_tb_per_s(row):
        return attainable_s(forward_work(model_of(row), batch_size=1, query_tokens=1, context_tokens=2048), A100)

    llama, opt, tiny = map(at_2_tb_per_s, measured(1, 1, 1).to_dict("records"))
    assert over_memory_roof(measured(llama, 1.5 * opt, 4 * tiny)).tolist() == pytest.approx([1, 1.5, 4])
    # A pace is what was seen: at half of it all, nothing changes.
    assert over_memory_roof(measured(2 * llama, 3 * opt, 8 * tiny)).tolist() == pytest.approx([1, 1.5, 4])


def test_a_forward_without_a_time_or_a_width_has_no_roof():
    rows = measured(0.01, None, 0.002)
    rows.loc[2, "feed_forward"] = None
    assert over_memory_roof(rows).isna().tolist() == [False, True, True]
    assert over_memory_roof(measured(None, None, None)).isna().all()
