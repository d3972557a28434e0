"""Faults found in vLLM's bench commands, and that specbench does not have them."""

import json

import pytest

from specbench.analysis.throughput import tpot_s
from specbench.config import PROMPT_SOURCES, DecodeSettings
from specbench.records.store import Store
from specbench.testing import decoding, models
from tests.faults.conftest import plan, requests
from tests.unit.bench.bench_plans import run


def test_a_prompt_that_was_seen_before_is_read_again_whole():
    """A second run against the same server found its prompts in the prefix cache."""
    target = decoding.family("llama")
    read = []
    handle = target.module.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        for _ in range(2):
            decoding.decode(target, decoding.autoregressive(), models.PROMPTS[:3], 4)
    finally:
        handle.remove()
    half = len(read) // 2
    assert read[:half] == read[half:]
    assert read[0] >= sum(map(len, models.PROMPTS[:3]))


def test_time_per_token_divides_by_tokens_and_not_by_chunks(rows):
    """Its inter-token latency is a gap between chunks, and with drafts a chunk holds several tokens."""
    drafted = rows(batch_id=["a"], output_tokens=[101], steps=[25], row_done_s=[1.0], decode_s=[1.0])
    assert tpot_s(drafted) == pytest.approx(0.01)


def test_no_prompt_source_is_made_of_random_ids(finished, target):
    """Its latency bench reads random ids, on which acceptance means nothing."""
    assert not [name for name in PROMPT_SOURCES if "random" in name]
    prompts = finished.drop_duplicates("prompt_id")
    from tests.faults.conftest import PROMPTS

    expected = sorted(len(target.tokenizer(text)["input_ids"]) for text in PROMPTS)
    assert sorted(prompts["prompt_tokens"]) == expected


def test_simulated_acceptance_says_so_in_every_row(place):
    """Simulated figures look like measured ones once they have left its server."""
    text = plan(place).replace("batch_size: 2", "batch_size: 2, rule: {synthetic: {mean_length: 2.0}}")
    rows = requests(run(place, text.replace("repeats: 2", "repeats: 1"), results=place / "simulated"))
    assert rows["simulated_acceptance"].all()
    assert rows["verdict"].isna().all()
    assert not rows["lossless"].any()


def test_later_turns_are_asked_when_an_experiment_asks_for_them(place, tmp_path):
    """It asks the first turn of MT-bench only, and does not say so."""
    turns = [{"question_id": i, "turns": [f"x = {i}\n", "y = x\n"]} for i in (1, 2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, turns)))
    text = f"""
name: turns
targets: [{{model: pico}}]
prompts: {{source: {tmp_path / "q.jsonl"}, count: 2}}
decode: {{max_new_tokens: 6, turns: 2}}
measure: {{repeats: 1, warmup: 0, phase_blocks: 0}}
machine: {{device: cpu}}
"""
    rows = requests(run(place, text, results=tmp_path / "results"))
    assert rows.groupby("turn")["prompt_id"].nunique().to_dict() == {1: 2, 2: 2}
    assert DecodeSettings().turns == 1


def test_autoregressive_is_in_every_block_though_no_experiment_names_it(summary, finished):
    """It measures one configuration a run, and the user divides two files."""
    assert "autoregressive" not in Store(summary.folder).read("runs")["experiment"].iloc[0]
    assert set(finished[finished["method"] == "autoregressive"]["arm"]) == {"autoregressive", "autoregressive-twin"}
    batches = finished.drop_duplicates("batch_id").groupby(["repeat", "block", "pass"])["arm"].agg(list)
    assert all(sorted(arms) == sorted(set(arms)) and len(arms) == 4 for arms in batches)
