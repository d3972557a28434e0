"""specbench.report.cautions"""

import pandas as pd
import pytest

from specbench.report.cautions import warnings
from specbench.report.metrics import frames, load
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results


def cautions(folder, *arms, **plan):
    settings = {"batch_sizes": (1,), "prompts": 4, "repeats": 1, "max_new_tokens": 12} | plan
    results = load(write_results(folder, Plan((AUTOREGRESSIVE, TWIN, *arms), **settings)))
    return warnings(results, frames(results))


def test_what_spoils_the_numbers_is_named(odd_results, odd_frames):
    sentences = warnings(odd_results, odd_frames)
    starts = [
        "The target's own text loops (everywhere): up to 70 % of its 4-grams occurred before.",
        "crashed (batch 2, T = 0): 18 of 18 requests have no numbers (oom): out of memory",
        "A last batch with fewer rows than the batch size is left out of speeds.",
        "simulated has simulated acceptance: its speed is a what-if, its text is not the target's.",
        "lossy is lossy: it may change the target's text.",
    ]
    assert [sentence[: len(start)] for sentence, start in zip(sentences, starts, strict=False)] == starts
    assert sentences[-1].startswith("All of it comes from one process: intervals exclude")


def test_several_arms_of_one_fault_are_named_in_one_sentence(tmp_path):
    arms = [Arm(f"arm {index}", status="unsupported") for index in range(2)]
    sentences = cautions(tmp_path, *arms)
    assert any(
        s.startswith("arm 0 and arm 1 (batch 1, T = 0): 8 of 8 requests have no numbers (unsupported)")
        for s in sentences
    )


def test_single_texts_that_loop_are_counted_even_where_the_mean_is_low(odd_results, odd_frames, tmp_path):
    plan = Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=4, repeats=1, max_new_tokens=12, loops=0.1)
    results = load(write_results(tmp_path, plan))
    looping = results.requests["prompt_id"] == "prompt-1"
    results.requests.loc[looping, "repeat_ngram_share"] = 0.9
    found = frames(results)
    assert list(found.loops["prompt_id"].unique()) == ["prompt-1"]
    assert any(s.startswith("1 of 4 texts of the target is mostly a loop") for s in warnings(results, found))


def test_few_batches_and_a_noisy_machine_are_told_with_a_remedy(tmp_path):
    sentences = cautions(tmp_path / "few", prompts=2)
    assert any("at least 4 are needed" in sentence and "Raise prompts.count" in sentence for sentence in sentences)
    assert not any("at least 4" in sentence for sentence in cautions(tmp_path / "enough", prompts=4))


def test_captured_and_uncaptured_arms_of_one_cell_are_flagged(tmp_path):
    results = load(write_results(tmp_path, Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=1, repeats=1, max_new_tokens=4)))
    results.requests.loc[results.requests["arm"] == "autoregressive", "captured_phases"] = "verify"
    assert any("captured CUDA graphs" in sentence for sentence in warnings(results, frames(results)))


def test_a_static_batch_that_runs_half_empty_is_flagged(tmp_path):
    uneven = Arm("uneven", "prompt_lookup", alpha=0.95, gamma=8, drafted_chance=0.15)
    settings = {"batch_sizes": (8,), "prompts": 16, "max_new_tokens": 48}
    results = load(write_results(tmp_path, Plan((AUTOREGRESSIVE, TWIN, uneven), **settings)))
    found = frames(results)
    occupancy = found.summary.set_index("arm").loc["uneven", "occupancy"]
    flagged = any("Rows of a static batch end at different steps: uneven" in s for s in warnings(results, found))
    assert flagged == (occupancy < 0.8)
    assert occupancy < 0.8


def test_more_than_one_process_is_not_called_one(tmp_path):
    plan = Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=1, repeats=2, max_new_tokens=4)
    results = load(write_results(tmp_path, plan))
    found = frames(results)
    assert any("one process" in sentence for sentence in warnings(results, found))
    results.requests["process"] = results.requests["repeat"]
    assert not any("one process" in sentence for sentence in warnings(results, found))


@pytest.mark.parametrize(("dirty", "said"), [(True, True), (False, False)])
def test_uncommitted_code_is_told(tmp_path, dirty, said):
    sentences = cautions(tmp_path, prompts=1, run={"git_dirty": dirty})
    assert ("The code had changes that were not committed." in sentences) == said


def test_a_study_that_could_not_be_made_beside_a_run_is_told(study_folder, study_frames):
    results = load(study_folder)
    row = {"kind": "score", "subject": "far on mmlu", "status": "error", "reason": "no such file"}
    vars(results)["studies"] = pd.DataFrame([row, row | {"subject": "near on mmlu", "status": "ok"}])
    told = [sentence for sentence in warnings(results, study_frames) if "score" in sentence]
    assert told == ["There is no score of far on mmlu (error): no such file."]
