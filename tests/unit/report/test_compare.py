"""specbench.report.compare"""

from dataclasses import replace

import pandas as pd
import pytest

from specbench.errors import ResultsError
from specbench.records.store import Store
from specbench.report import compare as comparing
from specbench.report.compare import compare, interval_words, text_words
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

DRAFT = Arm("draft", alpha=0.75, gamma=4, draft_s=0.001, verify_s=0.011)
PLAN = Plan(arms=(AUTOREGRESSIVE, TWIN, DRAFT), batch_sizes=(1,), repeats=2, max_new_tokens=32)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("before"), PLAN)


def after(tmp_path, change=lambda row: None, **changes):
    """A second run of the plan with another noise, its rows changed on their way to the disk."""
    folder = write_results(tmp_path / "drawn", replace(PLAN, **{"seed": 0, **changes}))
    rows = Store(folder).read("requests").astype(object)
    rows = rows.where(pd.notna(rows), None).to_dict("records")
    for row in rows:
        change(row)
    Store(tmp_path / "after").write_block("all", rows, [])
    return tmp_path / "after"


def changes_by_arm(a, b):
    return {change.arm: change for change in compare(a, b).changes}


def faster(share):
    def change(row):
        if row["arm"] == "draft":
            row["decode_s"], row["row_done_s"] = row["decode_s"] * share, row["row_done_s"] * share

    return change


def test_a_run_against_itself_is_1_and_not_resolved(before):
    found = changes_by_arm(before, before)
    assert [change.found.ratio for change in found.values()] == pytest.approx([1.0] * 3)
    assert {change.resolution for change in found.values()} == {"not resolved"}


def test_an_arm_that_became_faster_is_resolved_and_the_others_are_not(before, tmp_path):
    found = changes_by_arm(before, after(tmp_path, faster(0.8)))
    assert found["draft"].found.ratio == pytest.approx(1.25)
    assert found["draft"].resolution == "resolved"
    assert found["autoregressive"].resolution == "not resolved"
    assert not found["draft"].is_slower(0.0)


def test_an_arm_that_became_slower_fails_only_by_more_than_the_share(before, tmp_path):
    slower = changes_by_arm(before, after(tmp_path, faster(1 / 0.9)))["draft"]
    assert slower.found.ratio == pytest.approx(0.9)
    assert (slower.is_slower(0.05), slower.is_slower(0.15)) == (True, False)


def test_a_difference_below_the_noise_floor_is_not_slower(before):
    change = changes_by_arm(before, before)["draft"]
    hidden = replace(change, found=replace(change.found, ratio=0.9), floor=0.2)
    assert not hidden.is_slower(0.05)
    assert "not resolved" in interval_words(hidden)


def test_the_noise_floor_is_that_of_the_noisier_run(before, tmp_path):
    noisy = after(tmp_path, noise=0.2)
    quiet_floor, noisy_floor = (changes_by_arm(run, run)["draft"].floor for run in (before, noisy))
    assert noisy_floor > quiet_floor
    assert changes_by_arm(before, noisy)["draft"].floor == changes_by_arm(noisy, before)["draft"].floor == noisy_floor


@pytest.mark.parametrize(
    ("column", "value"),
    [("device", "NVIDIA H200"), ("dtype", "float16"), ("target", "other"), ("prompts_sha", "feed"), ("threads", 8)],
)
def test_runs_that_must_not_be_mixed_are_refused_by_the_name_of_the_column(before, tmp_path, column, value):
    other = after(tmp_path, lambda row: row.update({column: value}))
    with pytest.raises(ResultsError, match=f"'{column}'"):
        compare(before, other)
    renamed = lambda row: row.update({column: value, "trial_id": f"new {row['trial_id']}"})  # noqa: E731
    with pytest.raises(ResultsError, match=f"'{column}'"):
        compare(before, after(tmp_path / "renamed", renamed))


def test_arms_of_another_version_are_matched_by_what_they_are(before, tmp_path):
    other = after(tmp_path, lambda row: row.update(trial_id=f"v2 {row['trial_id']}", cell=f"v2 {row['cell']}"))
    assert sorted(changes_by_arm(before, other)) == ["autoregressive", "autoregressive-twin", "draft"]


def test_arms_that_only_one_run_has_are_named(before, tmp_path):
    more = after(tmp_path, arms=(*PLAN.arms, replace(DRAFT, name="new", gamma=2)))
    found = compare(before, more)
    assert (found.only_a, [name.rpartition(": ")[2] for name in found.only_b]) == ([], ["new"])


def test_texts_and_verdicts_that_changed_are_told(before, tmp_path):
    def spoil(row):
        if row["arm"] == "draft" and row["prompt_id"] == "prompt-0":
            row.update(verdict="WRONG", output_ids=[*row["output_ids"][:-1], 999])

    change = changes_by_arm(before, after(tmp_path, spoil))["draft"]
    assert (change.same_texts, change.texts) == (14, 16)
    assert text_words(change) == "same 14 of 16; equal 16 -> WRONG 2, equal 14"


def test_below_four_batches_there_is_no_interval_and_it_says_so(tmp_path):
    few = write_results(tmp_path / "few", replace(PLAN, prompts=2))
    assert interval_words(changes_by_arm(few, few)["draft"]) == "none: 2 of 4 batches"


def test_the_data_are_plain(before):
    import json

    json.dumps([comparing.as_data(change) for change in compare(before, before).changes])
