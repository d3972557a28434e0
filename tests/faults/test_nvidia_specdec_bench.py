"""Faults found in NVIDIA's specdec_bench, and that specbench does not have them."""

import json

import pytest
import torch

from methods.draft_model import DraftModel
from specbench.analysis.acceptance import block_efficiency
from specbench.analysis.throughput import step_s
from specbench.bench import timing
from specbench.bench.prompts import load_prompts
from specbench.bench.timing import CudaTimeline, HeadlineWatch
from specbench.config import MeasureSettings, PromptSettings
from specbench.records.schema import REAL, REQUESTS, STEPS
from specbench.records.store import Store
from tests.faults.conftest import plan, requests, with_method
from tests.unit.bench.bench_plans import run
from tests.unit.bench.test_timing import FakeClock, decode
from tests.unit.bench.test_timing import headline as watch_on


def test_there_is_a_warm_up_unless_a_user_says_no(summary):
    """It had none: the first requests carried compilation and graph capture."""
    assert MeasureSettings().warmup >= 1
    [row] = Store(summary.folder).read("runs").to_dict("records")
    [arms] = json.loads(row["notes"])["warmup_step_s"].values()
    assert all(len(passes) == 1 for passes in arms.values())


def test_the_time_of_a_step_holds_no_time_to_first_token(rows):
    """Its step times were the differences of all time stamps, the first token's among them."""
    usual = {"batch_id": ["a"], "output_tokens": [11], "steps": [10], "row_done_s": [1.0], "decode_s": [1.0]}
    slow_start = rows(**usual, ttft_s=[50.0], prefill_s=[50.0])
    assert step_s(slow_start) == step_s(rows(**usual)) == pytest.approx(0.1)


def test_numbers_are_stored_as_numbers():
    """Its statistics were strings of four decimals."""
    seconds = [column for column in (*REQUESTS, *STEPS) if column.name.endswith("_s")]
    assert len(seconds) > 8
    assert all(column.type == REAL for column in seconds)


def test_the_token_of_the_prefill_is_no_step(headline):
    """It counted as a step of length one and lowered every mean."""
    baseline = headline[headline["method"] == "autoregressive"]
    assert (baseline["steps"] == baseline["output_tokens"] - 1).all()
    assert block_efficiency(baseline) == 1.0


def test_the_mean_over_steps_weighs_steps_and_not_requests(rows):
    """Its acceptance length was a mean over requests: here 3.0 instead of 2.2."""
    two = rows(batch_id=["a", "b"], output_tokens=[6, 7], steps=[1, 4], decode_s=[1.0, 4.0])
    assert block_efficiency(two) == pytest.approx(11 / 5)


def test_no_step_emits_more_than_the_draft_and_one(headline):
    """Its stream joined two steps in a chunk, and lengths above K + 1 appeared."""
    for gamma, label in ((3, "small draft"), (4, "prompt_lookup")):
        accepted = headline[headline["label"] == label]["accepted_per_step"].explode()
        assert accepted.max() <= gamma


def test_a_draft_longer_than_promised_breaks_the_contract_and_is_no_number(place):
    """Nothing refused a step of K + 2 tokens."""

    class Generous(DraftModel):
        def caps(self):
            caps = super().caps()
            return type(caps)(max_nodes=caps.max_nodes - 1, max_depth=caps.max_depth - 1)

    kind = with_method("draft_model", Generous)
    summary = run(place, plan(place), results=place / "generous", limit=2, method_class=kind)
    rows = requests(summary)
    assert summary.broke_contract
    assert set(rows[rows["method"] == "draft_model"]["status"]) == {"error"}
    assert rows[rows["method"] == "draft_model"]["output_tokens"].isna().all()


def test_one_failed_request_does_not_take_the_others_with_it(half_failed):
    """One exception in its gather, and no metric file was written at all."""
    assert (half_failed["status"] == "ok").sum() == 5 * 3 + 2
    assert (half_failed["status"] == "oom").sum() == 3


def test_writing_a_second_time_adds_nothing(place, finished):
    """Its writer appended to the file that was there."""
    again = run(place, plan(place))
    assert (again.blocks_run, again.blocks_kept) == (0, 6)
    assert len(requests(again)) == len(finished)


def test_a_watch_forgets_all_of_the_batch_before():
    """Its timer, cleared, still held the tokens of the requests before."""
    clock = FakeClock()
    used = watch_on(clock)
    decode(used, clock, [2, 3, 4])
    fresh_clock = FakeClock()
    assert decode(used, clock, [7]) == decode(watch_on(fresh_clock), fresh_clock, [7])


def test_the_category_of_a_prompt_stands_in_its_own_row(target, tmp_path):
    """It took the topic from the question's number, so that another order gave other topics."""
    questions = [{"question_id": i, "category": f"topic {i}", "turns": [f"x = {i}"]} for i in (95, 12, 81, 3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    settings = PromptSettings(source=str(tmp_path / "q.jsonl"), count=4)
    found = load_prompts(settings, target, max_new_tokens=4).prompts
    assert {prompt.text: prompt.category for prompt in found} == {f"x = {i}": f"topic {i}" for i in (95, 12, 81, 3)}


def test_on_a_gpu_the_clock_is_read_after_a_synchronisation_and_not_inside_a_step(monkeypatch):
    """One of its ports read the host's clock while the GPU was still at work."""
    order = []
    timeline = CudaTimeline(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: order.append("synchronise"))
    monkeypatch.setattr(timing, "HOST_CLOCK", lambda: order.append("clock") or len(order))
    monkeypatch.setattr(timeline, "mark", lambda: None)
    watch = HeadlineWatch(timeline)
    for moment in (watch.start, watch.first_token, watch.prefilled):
        order.clear()
        moment()
        assert "clock" in order
        assert order.index("synchronise") < order.index("clock")
    order.clear()
    with watch.phase("draft"):
        pass
    watch.step()
    assert "synchronise" not in order
