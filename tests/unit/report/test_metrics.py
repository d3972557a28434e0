"""specbench.report.metrics"""

import math

import pytest

from specbench.analysis.intervals import Interval
from specbench.analysis.speedup import Speedup
from specbench.errors import ResultsError
from specbench.records.store import Store
from specbench.report.cells import missing_blocks
from specbench.report.metrics import frames, load
from specbench.report.resolution import resolution
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results


def row(frames_, title, arm):
    found = frames_.summary.set_index(["title", "arm"]).loc[(title, arm)]
    return found.to_dict()


def test_there_is_one_row_per_cell_and_arm_from_fast_to_slow(odd_frames):
    summary = odd_frames.summary
    assert list(summary["title"].unique()) == ["batch 1, T = 0", "batch 2, T = 0"]
    assert len(summary) == 16
    first = summary[summary["title"] == "batch 1, T = 0"]["speedup_core"]
    assert first.is_monotonic_decreasing


def test_the_speed_up_is_that_of_the_model_it_was_drawn_from(tmp_path):
    # Every draft of 3 is accepted whole: 4 tokens a step of .0008 (accept, update, host) + 3 x .001 + .0102
    # s, against 1 token a step of .0108 s.
    arms = (AUTOREGRESSIVE, TWIN, Arm("whole", alpha=9.0, gamma=3, draft_s=0.001, verify_s=0.0102))
    plan = Plan(arms=arms, batch_sizes=(1,), prompts=6, max_new_tokens=201, noise=0.002)
    found = row(frames(load(write_results(tmp_path, plan))), "batch 1, T = 0", "whole")
    # The model clips alpha at .98, so that a step emits 1 + .98 + .98^2 + .98^3 tokens.
    expected = (1 + 0.98 + 0.98**2 + 0.98**3) * 0.0108 / 0.0140
    assert found["speedup_core"] == pytest.approx(expected, rel=0.03)
    assert found["low"] < expected < found["high"]
    assert found["draft_ms"] == pytest.approx(3.0, rel=0.02)
    assert found["step_s"] == pytest.approx(0.0140, rel=0.02)


def test_a_failed_arm_shows_its_status_and_no_number(odd_frames):
    failed = row(odd_frames, "batch 2, T = 0", "crashed")
    assert failed["status"] == "oom 18"
    assert failed["reason"] == "out of memory: tried to allocate 2.0 GiB"
    for name in (
        "speedup_core",
        "decode_tokens_per_s",
        "block_efficiency",
        "ttft_s",
        "acceptance_rate",
        "draft_ms",
    ):
        assert math.isnan(failed[name]), name
    assert row(odd_frames, "batch 1, T = 0", "crashed")["status"] == "ok"


def test_what_is_not_the_targets_text_is_flagged(odd_frames):
    summary = odd_frames.summary
    assert set(summary.loc[~summary["lossless"], "arm"]) == {"lossy"}
    assert set(summary.loc[summary["simulated"], "arm"]) == {"simulated"}


def test_verdicts_are_counted_once_and_in_the_headline_pass_only(odd_frames):
    assert row(odd_frames, "batch 1, T = 0", "tied")["near_tie"] == 18
    assert row(odd_frames, "batch 1, T = 0", "fast")["equal"] == 18
    assert row(odd_frames, "batch 1, T = 0", "autoregressive")["equal"] == 0


def test_a_last_partial_batch_is_left_out_of_speeds_only(odd_frames):
    # Nine prompts in batches of two: the ninth is alone, in each of two repeats.
    found = row(odd_frames, "batch 2, T = 0", "fast")
    assert found["partial_batches_left_out"] == 2
    assert found["units"] == 4
    assert found["requests"] == 18
    assert row(odd_frames, "batch 1, T = 0", "fast")["partial_batches_left_out"] == 0


def test_the_phase_pass_is_no_part_of_a_speed_but_its_cost_is_told(odd_frames):
    # The model makes the phase pass 1 % slower.
    assert row(odd_frames, "batch 1, T = 0", "fast")["phase_pass_slowdown"] == pytest.approx(0.01, abs=0.01)
    assert row(odd_frames, "batch 1, T = 0", "fast")["baseline_tokens"] == 9 * 2 * 31


def test_the_baseline_of_speedup_is_the_one_that_the_run_chose_on_its_warm_up(tmp_path):
    notes = {"notes": '{"fastest_autoregressive": {"b1 t0.0": "quick"}}'}
    arms = (AUTOREGRESSIVE, TWIN, Arm("quick", "transformers-generate", verify_s=0.005))
    plan = Plan(arms=arms, batch_sizes=(1,), prompts=4, repeats=1, max_new_tokens=16, run=notes)
    found = row(frames(load(write_results(tmp_path, plan))), "batch 1, T = 0", "autoregressive")
    assert found["fastest_autoregressive"] == "quick"
    assert found["speedup_core"] == 1.0
    # 5.8 ms a step against 10.8 ms.
    assert found["speedup"] == pytest.approx(5.8 / 10.8, rel=0.05)


@pytest.mark.parametrize(
    ("ratio", "interval", "floor", "word"),
    [
        pytest.param(1.5, (1.4, 1.6), 0.01, "resolved", id="clear of 1 and of the floor"),
        pytest.param(1.5, (0.9, 2.4), 0.01, "not resolved", id="an interval that holds 1"),
        pytest.param(1.005, (1.001, 1.009), 0.01, "not resolved", id="below the noise floor"),
        pytest.param(1.5, None, 0.01, "no interval", id="too few batches"),
        pytest.param(1.005, None, 0.01, "not resolved", id="too few batches and below the floor"),
        pytest.param(1.5, (1.4, 1.6), None, "resolved", id="no twins"),
        pytest.param(None, None, 0.01, None, id="nothing measured"),
    ],
)
def test_a_difference_is_resolved_or_not(ratio, interval, floor, word):
    bounds = Interval(*interval, units=4) if interval else None
    assert resolution(Speedup(ratio, bounds, 4, 4, 1, 1), floor) == word


def test_missing_blocks_are_counted(tmp_path):
    write_results(tmp_path, Plan(arms=(AUTOREGRESSIVE, TWIN), batch_sizes=(1,), prompts=3, repeats=2))
    next((tmp_path / "requests.parquet").iterdir()).unlink()
    assert missing_blocks(load(tmp_path)) == 1


def test_the_plan_of_the_run_tells_of_blocks_that_no_row_hints_at(tmp_path):
    plan = Plan((AUTOREGRESSIVE,), (1,), prompts=2, repeats=1, run={"notes": '{"planned_blocks": 5}'})
    assert missing_blocks(load(write_results(tmp_path, plan))) == 3


def test_an_edited_experiment_makes_cells_of_their_own_and_mixes_nothing(tmp_path):
    write_results(tmp_path, Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=2, repeats=1, max_new_tokens=8))
    longer = Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=2, repeats=1, max_new_tokens=16)
    write_results(tmp_path / "other", longer)
    for part in (tmp_path / "other" / "requests.parquet").iterdir():
        part.rename(tmp_path / "requests.parquet" / f"second-{part.name}")
    titles = list(load(tmp_path).requests["title"].unique())
    assert titles == ["8 new tokens, batch 1, T = 0", "16 new tokens, batch 1, T = 0"]


def test_a_folder_without_a_finished_block_is_refused(tmp_path):
    Store(tmp_path).write_block("a", [], [])
    with pytest.raises(ResultsError, match="no finished block in it"):
        load(tmp_path)
