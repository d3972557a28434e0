"""specbench.analysis.roofline"""

import math

import pandas as pd
import pytest

from specbench.analysis.roofline import (
    DenseModel,
    Hardware,
    Load,
    attainable_s,
    attainable_target_efficiency,
    context_threshold,
    forward_work,
    hardware_of,
    model_of,
    over_memory_roof,
    products_s,
    step_limit,
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


# --- steps that were counted

H200 = {"device": "NVIDIA H200", "read_bytes_per_s": 3.9e12, "copy_bytes_per_s": 4.3e12, "operations_per_s": 790e12}
COUNTED = {
    "batch_size": 1,
    "verify_weight_bytes": 2.0 * LLAMA_2_7B.multiplied,
    "verify_operations_per_token": 2.0 * LLAMA_2_7B.multiplied,
    "kv_bytes_per_token": 524_288.0,
    "kv_operations_per_token": 4.0 * 32 * 4096,
    "kv_window_tokens": None,
    "kv_windowed_share": 0.0,
    "draft_weight_bytes": 0.0,
    "draft_operations": 0.0,
    "draft_kv_bytes_per_token": 0.0,
}


@pytest.mark.parametrize(
    ("rows", "nodes", "milliseconds"),
    [
        pytest.param(1, 0, 3.1359, id="13.214 GB of weights and 512 tokens of 512 KiB at 4.3 TB/s"),
        pytest.param(1, 4, 3.1359, id="verifying five tokens waits for the same bytes"),
        pytest.param(4, 0, 3.3237, id="four rows share the weights, and none the keys"),
        pytest.param(64, 15, 17.1280 + 3.9953, id="1,024 tokens wait for operations, and for keys"),
    ],
)
def test_the_limit_of_a_verification_is_that_of_its_bytes_or_operations(rows, nodes, milliseconds):
    limit = step_limit(COUNTED, Load(rows, nodes, 512), hardware_of(H200), None)
    # The last: 2 x 6.607e9 x 1,024 operations at 790e12 a second, and 64 x 512 x 524,288 bytes at 4.3e12.
    assert limit.step_s == pytest.approx(milliseconds * 1e-3, rel=1e-3)
    assert limit.draft_s == 0


def test_it_is_the_forward_of_the_same_model_as_its_numbers_tell_it():
    for load in (Load(1, 0, 2048), Load(8, 4, 100), Load(64, 15, 512)):
        work = forward_work(
            LLAMA_2_7B, batch_size=load.rows, query_tokens=1 + load.nodes, context_tokens=load.context_tokens
        )
        assert step_limit(COUNTED, load, A100, None).verify_s == pytest.approx(attainable_s(work, A100))


def test_layers_that_look_back_a_window_read_no_more_than_that():
    windowed = COUNTED | {"kv_window_tokens": 256, "kv_windowed_share": 0.75}
    whole, near = (step_limit(row, Load(1, 0, 1024), A100, None).verify_s for row in (COUNTED, windowed))
    # Of 32 layers 24 read 256 tokens in place of 1024.
    assert whole - near == pytest.approx(0.75 * 768 * 524_288 / 2e12)
    assert step_limit(windowed, Load(1, 0, 200), A100, None) == step_limit(COUNTED, Load(1, 0, 200), A100, None)


def test_a_draft_adds_its_weights_as_often_as_they_are_read_and_its_keys():
    drafting = COUNTED | {
        "batch_size": 4,
        "draft_weight_bytes": 4 * 87e6,
        "draft_operations": 4 * 4 * 87e6,
        "draft_kv_bytes_per_token": 4 * 6144,
    }
    limit = step_limit(drafting, Load(3, 4, 1000), A100, A100)
    assert limit.draft_s == pytest.approx((4 * 87e6 + 4 * 6144 * 3 * 1000) / 2e12)
    assert limit.step_s == pytest.approx(limit.draft_s + limit.verify_s)
    # Where operations are what it waits for, three of four rows have three quarters of them.
    slow = Hardware(bytes_per_s=2.0e12, operations_per_s=1e10)
    computed = step_limit(drafting, Load(3, 4, 0), A100, slow).draft_s
    assert computed == pytest.approx(0.75 * 4 * 4 * 87e6 / 1e10)


def test_a_gpu_is_judged_by_the_faster_of_reading_and_copying_and_a_cpu_by_reading():
    assert hardware_of(H200).bytes_per_s == 4.3e12
    assert hardware_of(H200 | {"read_bytes_per_s": 4.5e12}).bytes_per_s == 4.5e12
    assert hardware_of(H200 | {"device": "cpu AMD EPYC"}).bytes_per_s == 3.9e12


def test_products_between_measured_numbers_of_rows_are_interpolated_and_beyond_them_unknown():
    ceiling = {"product_rows": [1, 2, 4, 8, 16, 32], "products_s": [1.0, 2.0, 3.0, 4.0, 8.0, 16.0]}
    assert [products_s(ceiling, rows) for rows in (1, 3, 12, 32, 33)] == [1.0, 2.5, 6.0, 16.0, None]
