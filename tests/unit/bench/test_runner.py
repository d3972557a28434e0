"""specbench.bench.runner"""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from methods.draft_model import DraftModel
from specbench import registry
from specbench.analysis.verdicts import stored_checks
from specbench.bench import arms
from specbench.errors import ConfigError, ResultsError
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, TWO_CELLS, run, texts


@pytest.fixture(scope="module")
def finished(tmp_path_factory, family):
    """A run of two cells, and where it lies."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "zoo").symlink_to(family)
    return run(folder, TWO_CELLS)


@pytest.fixture(scope="module")
def once(tmp_path_factory, family):
    """A run of one cell."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "zoo").symlink_to(family)
    return run(folder, ONE_CELL)


@pytest.fixture
def results(folder, once):
    """What that run has left, in the test's own folder."""
    return Path(shutil.copytree(once.folder, folder / "results" / "one-cell" / once.folder.name))


def requests(summary):
    return Store(summary.folder).read("requests")


def with_method(name, kind):
    """The registry with another class under one name."""
    return lambda asked: kind if asked == name else registry.load(asked)


def test_every_arm_has_a_row_for_each_prompt_and_repeat_and_one_for_the_phase_pass(finished):
    counts = requests(finished).groupby(["cell", "arm", "pass"]).size()
    assert len(counts) == 2 * 4 * 2
    assert set(counts.xs("headline", level="pass")) == {5 * 2}
    assert set(counts.xs("phase", level="pass")) == {5}
    assert (finished.finished, finished.failed, finished.wrong) == (8, 0, 0)


def test_greedy_text_is_equal_and_sampled_text_is_not_compared(finished):
    rows = requests(finished)
    others = rows[(rows["arm"] != "autoregressive") | (rows["pass"] == "phase")]
    assert set(others[others["temperature"] == 0]["verdict"]) == {"equal"}
    assert rows[rows["temperature"] > 0]["verdict"].isna().all()


def test_the_autoregressive_arms_text_is_the_reference_and_has_no_verdict(finished):
    rows = requests(finished)
    reference = rows[(rows["arm"] == "autoregressive") & (rows["pass"] == "headline")]
    assert reference["verdict"].isna().all()


def test_the_twins_are_the_same_work_with_names_of_their_own(finished):
    rows = requests(finished)
    assert {"autoregressive", "autoregressive-twin"} <= set(rows["arm"])
    twins = rows[rows["method"] == "autoregressive"]
    assert twins.groupby(["cell", "prompt_id"])["output_ids"].agg(lambda ids: len(set(map(tuple, ids)))).max() == 1


def test_times_belong_to_a_batch_and_only_the_end_of_a_row_is_its_own(finished):
    rows = requests(finished)
    assert rows.groupby("batch_id")[["prefill_s", "decode_s", "ttft_s"]].nunique().to_numpy().max() == 1
    assert (rows["row_done_s"] <= rows["decode_s"] + 1e-12).all()
    assert (rows["ttft_s"] <= rows["prefill_s"]).all()


def test_steps_are_those_of_the_phase_pass_and_add_up(finished):
    steps, rows = Store(finished.folder).read("steps"), requests(finished)
    phase = rows[rows["pass"] == "phase"]
    assert set(steps["batch_id"]) == set(phase["batch_id"])
    assert steps["emitted_tokens"].sum() == (phase["output_tokens"] - 1).sum()
    parts = steps[["draft_s", "verify_s", "accept_s", "update_s", "host_s"]].sum(axis=1)
    assert (parts - steps["step_s"]).abs().max() < 1e-9
    assert steps["launch_s"].between(0, steps["step_s"], inclusive="right").all()


def test_the_record_of_the_run_is_whole(finished):
    (row,) = Store(finished.folder).read("runs").to_dict("records")
    notes = json.loads(row["notes"])
    assert row["status"] == "done"
    assert notes["planned_blocks"] == 12
    assert notes["telemetry"] == "no GPU"
    for model in ("pico", "pico-wide"):
        assert set(notes["models"][model]) >= {"parameters", "weight_bytes", "weights_sha", "self_test_difference"}
    assert all(len(arms_) == 4 for arms_ in notes["warmup_step_s"].values())


def test_a_finished_run_is_not_run_again(folder, results):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet") if "runs" not in path.name}
    second = run(folder, ONE_CELL)
    assert (second.blocks_run, second.blocks_kept, second.finished) == (0, 3, 4)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_limited_run_is_the_beginning_of_the_whole_one(folder):
    assert run(folder, ONE_CELL, limit=1).blocks_run == 1
    whole = run(folder, ONE_CELL)
    assert (whole.blocks_run, whole.blocks_kept) == (2, 1)


def test_a_changed_setting_is_a_new_cell_and_old_rows_stay_apart(folder, results):
    again = run(folder, ONE_CELL.replace("gamma: 2", "gamma: 1"))
    assert (again.folder, again.blocks_run) == (results, 3)
    assert requests(again)["cell"].nunique() == 2


class Failing(DraftModel):
    """Breaks in its third step of the second batch that is measured."""

    batches = 0

    def begin(self, view, prefill):
        super().begin(view, prefill)
        type(self).batches += 1
        self.steps = 0

    def draft(self, view):
        self.steps += 1
        if type(self).batches == self.breaks_in and self.steps == 2:
            raise self.fault
        return super().draft(view)


def failing(fault, breaks_in):
    return type("Failing", (Failing,), {"batches": 0, "fault": fault, "breaks_in": breaks_in})


def test_an_arm_that_breaks_becomes_rows_and_the_others_stay(folder):
    kind = failing(ValueError("a broken draft\nwith a second line"), breaks_in=3)  # one warms up, one is counted
    summary = run(folder, ONE_CELL, method_class=with_method("draft_model", kind))
    rows = requests(summary)
    broken = rows[rows["status"] != "ok"]
    assert set(broken["arm"]) == {"draft_model"}
    assert set(broken["status"]) == {"error"}
    assert set(broken["reason"]) == {"ValueError: a broken draft"}
    assert set(broken["pass"]) == {"headline", "phase"}
    assert broken["block"].nunique() == 1
    assert broken[["decode_s", "output_tokens", "verdict", "accepted_tokens"]].isna().all().all()
    assert len(rows) == 4 * 5 * 2
    assert (summary.finished, summary.failed) == (3, 1)
    assert Store(summary.folder).read("runs")["status"].tolist() == ["failed"]


def test_a_block_with_a_failure_is_run_again_when_asked_for_and_its_rows_are_replaced(folder):
    broken = run(folder, ONE_CELL, method_class=with_method("draft_model", failing(ValueError("broken"), breaks_in=3)))
    kept = run(folder, ONE_CELL)
    assert (kept.blocks_run, kept.failed) == (0, 1)
    mended = run(folder, ONE_CELL, retry_failed=True)
    assert (mended.blocks_run, mended.blocks_kept, mended.failed) == (1, 2, 0)
    rows = requests(mended)
    assert set(rows["status"]) == {"ok"}
    assert len(rows) == len(rows.drop_duplicates(["batch_id", "row"])) == 4 * 5 * 2
    assert broken.failed == 1


def test_what_is_unsupported_is_not_tried_again(folder):
    kind = type("Picky", (DraftModel,), {"unsupported": lambda self, batch_size, rule: "never"})
    run(folder, ONE_CELL, method_class=with_method("draft_model", kind))
    assert run(folder, ONE_CELL, retry_failed=True).blocks_run == 0


def test_a_retry_forgets_that_memory_was_short(folder):
    text = ONE_CELL.replace("batch_size: 2", "batch_size: [1, 2]").replace("count: 5", "count: 2")
    kind = failing(torch.cuda.OutOfMemoryError("CUDA out of memory"), breaks_in=3)
    run(folder, text, method_class=with_method("draft_model", kind))
    mended = run(folder, text, retry_failed=True)
    assert (mended.blocks_run, mended.failed, mended.skipped) == (2, 0, 0)


def test_what_the_machine_did_meanwhile_is_stored_with_every_batch(finished):
    rows = requests(finished)
    assert (rows["load_average"] >= 0).all()
    assert rows["cpu_wait_share"].between(0, 1).all()
    assert (rows["major_faults"] >= 0).all()
    assert rows["gpu_clock_mhz"].isna().all()
    assert rows["telemetry_looks"].isna().all()
    assert rows.groupby("batch_id")["cpu_wait_share"].nunique().max() == 1


def test_what_is_unstable_is_told_at_the_end(once):
    assert "few units" in {caution.kind for caution in once.cautions}
    log = (once.folder.parents[2] / "log.txt").read_text()
    assert "2 full batches of prompts, at least 4 are needed. No interval can be given" in log


def test_a_draft_without_memory_is_skipped_at_larger_batches(folder):
    text = ONE_CELL.replace("batch_size: 2", "batch_size: [1, 2]").replace("count: 5", "count: 2")
    kind = failing(torch.cuda.OutOfMemoryError("CUDA out of memory"), breaks_in=3)
    summary = run(folder, text, method_class=with_method("draft_model", kind))
    rows = requests(summary)
    rows = rows[rows["arm"] == "draft_model"]
    assert set(rows[rows["batch_size"] == 1]["status"]) == {"ok", "oom"}
    assert set(rows[rows["batch_size"] == 2]["status"]) == {"skipped"}
    assert set(rows[rows["batch_size"] == 2]["reason"]) == {"it ran out of memory at batch size 1"}
    assert (summary.failed, summary.skipped) == (1, 1)


def test_a_method_that_refuses_a_setting_is_unsupported_rows(folder):
    kind = type("Picky", (DraftModel,), {"unsupported": lambda self, batch_size, rule: f"not at {batch_size}"})
    summary = run(folder, ONE_CELL, method_class=with_method("draft_model", kind))
    rows = requests(summary)
    assert set(rows[rows["arm"] == "draft_model"]["status"]) == {"unsupported"}
    assert set(rows[rows["arm"] == "draft_model"]["reason"]) == {"not at 2"}
    assert summary.unsupported == 1


def test_a_method_that_breaks_the_contract_is_told_apart(folder):
    from specbench.decode.method import Caps

    kind = type("Liar", (DraftModel,), {"caps": lambda self: Caps(max_nodes=1, max_depth=1)})
    summary = run(folder, ONE_CELL, method_class=with_method("draft_model", kind))
    assert summary.broke_contract
    assert summary.failed == 1


def test_a_batch_that_takes_too_long_is_a_timeout(folder):
    summary = run(folder, ONE_CELL, batch_limit_s=1e-9)
    assert set(requests(summary)["status"]) == {"timeout"}
    assert summary.failed == 4


def test_a_latency_below_the_natural_one_is_unsupported(folder):
    text = ONE_CELL.replace("gamma: 2", "gamma: 2, draft_latency_ms: 0.000001")
    rows = requests(run(folder, text))
    paced = rows[rows["method"] == "draft_model"]
    assert set(paced["status"]) == {"unsupported"}
    assert paced["reason"].str.contains("1e-06 ms is asked for, and a draft forward takes").all()


def test_a_latency_is_kept_and_noted_and_leaves_the_text_alone(folder):
    text = ONE_CELL.replace("gamma: 2", "gamma: 2, draft_latency_ms: [null, 30.0]").replace("count: 5", "count: 2")
    summary = run(folder, text)
    rows = requests(summary)
    paced = rows[rows["draft_latency_ms"] == 30.0]
    assert set(paced["latency_mode"]) == {"injected"}
    assert set(paced["verdict"]) == {"equal"}
    (noted,) = json.loads(Store(summary.folder).read("runs")["notes"][0])["draft_latency_ms"].values()
    (achieved,) = noted.values()
    assert achieved["least"] >= 30.0
    assert achieved["count"] == int(2 * paced.groupby("batch_id")["steps"].max().sum())


def test_simulated_acceptance_is_marked_and_not_compared(folder):
    text = ONE_CELL.replace("batch_size: 2", "batch_size: 2, rule: {synthetic: {mean_length: 2.0}}")
    rows = requests(run(folder, text))
    assert rows["simulated_acceptance"].all()
    assert not rows["lossless"].any()
    assert rows["verdict"].isna().all()
    assert set(rows["output_tokens"]) == {10}


def test_a_lossy_rule_marks_what_drafts_and_a_method_that_it_cannot_judge_is_unsupported(folder):
    text = ONE_CELL.replace("temperature: 0.0", "temperature: 0.8, rule: [typical, redrafter_paper]")
    summary = run(folder, text)
    rows = requests(summary)
    assert not rows.loc[rows["method"] != "autoregressive", "lossless"].any()
    assert rows.loc[rows["method"] == "autoregressive", "lossless"].all()
    assert set(rows.groupby("cell")["rule"].unique().map(tuple)) == {("typical",), ("redrafter_paper",)}
    refused = rows[rows["status"] != "ok"]
    assert set(zip(refused["status"], refused["arm"], refused["rule"], strict=True)) == {
        ("unsupported", "prompt_lookup", "redrafter_paper")
    }
    assert set(refused["reason"]) == {
        "method prompt_lookup gives no draft_probs for its drafts, and the rule redrafter_paper needs them"
    }
    assert (summary.finished, summary.unsupported, summary.failed) == (7, 1, 0)


def test_at_temperature_zero_the_autoregressive_twin_is_compared_under_a_lossy_rule_as_well(folder):
    rows = requests(run(folder, ONE_CELL.replace("batch_size: 2", "batch_size: 2, rule: typical")))
    assert set(rows[rows["arm"] == "autoregressive-twin"]["verdict"]) == {"equal"}
    assert rows[rows["arm"] == "draft_model"]["verdict"].isna().all()
    assert [list(ids) for ids in rows[rows["arm"] == "draft_model"]["output_ids"]] == [
        list(ids) for ids in rows[rows["arm"] == "autoregressive"]["output_ids"]
    ]
    checks = {check.arm: check for check in stored_checks(rows)}
    assert all(not check.faults for check in checks.values())
    assert "lossy: the rule typical" in checks["draft_model"].note


def test_a_full_disk_ends_the_run_and_leaves_no_half_written_part(folder, monkeypatch):
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match="No space left on device"):
        run(folder, ONE_CELL)
    monkeypatch.undo()
    results = next((folder / "results" / "one-cell").iterdir())
    assert not list(results.rglob("*.tmp"))
    stored = Store(results)
    keys = stored.block_keys() if (results / "requests.parquet").exists() else set()
    assert len(keys) < 3
    summary = run(folder, ONE_CELL)
    assert summary.blocks_kept == len(keys)
    assert len(requests(summary)) == 4 * 5 * 2


def test_an_interrupted_run_says_so_and_goes_on(folder):
    kind = failing(KeyboardInterrupt(), breaks_in=5)
    with pytest.raises(KeyboardInterrupt):
        run(folder, ONE_CELL, method_class=with_method("draft_model", kind))
    results = next((folder / "results" / "one-cell").iterdir())
    assert Store(results).read("runs")["status"].tolist() == ["interrupted"]
    assert run(folder, ONE_CELL).blocks_kept == 1


def test_a_run_that_was_killed_is_marked_by_the_next_one(folder, results):
    store = Store(results)
    (row,) = store.read("runs").to_dict("records")
    store.write_run({**row, "status": "running"})
    run(folder, ONE_CELL)
    assert sorted(store.read("runs")["status"]) == ["done", "interrupted"]


def test_two_runs_do_not_write_to_one_folder(folder):
    seen = []

    class Nosy(DraftModel):
        def load(self, context):
            super().load(context)
            if not seen:
                seen.append(1)
                with pytest.raises(ConfigError, match="another run is writing to it"):
                    run(folder, ONE_CELL)

    run(folder, ONE_CELL, method_class=with_method("draft_model", Nosy))
    assert seen


def test_a_corrupt_part_is_named_and_nothing_is_run(folder, results):
    part = sorted((results / "requests.parquet").glob("*.parquet"))[0]
    part.write_bytes(b"not parquet")
    with pytest.raises(ResultsError, match=r"not a whole Parquet file\. Delete it and run again"):
        run(folder, ONE_CELL)
    part.unlink()
    assert run(folder, ONE_CELL).blocks_run == 1


def test_nothing_is_written_where_a_prompt_is_too_long(folder):
    with pytest.raises(ConfigError, match="exceed the 256 positions of pico"):
        run(folder, ONE_CELL.replace("max_prompt_tokens: 24", "max_prompt_tokens: 250"))
    assert not (folder / "results").exists()


def test_a_target_that_cannot_be_loaded_is_rows_of_every_arm(folder, monkeypatch):
    from specbench.bench import runner
    from specbench.errors import ModelRefusedError

    def refuse(self, reference):
        raise ModelRefusedError("pico: it ignores positions")

    monkeypatch.setattr(runner.ModelPool, "get", refuse)
    summary = run(folder, ONE_CELL)
    assert set(requests(summary)["status"]) == {"unsupported"}
    assert (summary.finished, summary.unsupported) == (0, 4)


def test_two_runs_of_one_plan_give_the_same_rows_and_texts(finished, folder):
    assert texts(requests(finished)) == texts(requests(run(folder, TWO_CELLS)))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("shapes differ"), "error"),
    ],
)
def test_an_exception_becomes_a_status(error, status):
    assert arms.failure_of(error).status == status
