"""specbench.report.drafts, forwards, skill and lessons: a study of drafts that was drawn from a known model"""

from dataclasses import replace

import numpy as np
import pytest

from specbench.analysis.replay import replay
from specbench.analysis.stop_rules import Fixed
from specbench.report.drafts import is_composed
from specbench.report.forwards import equal_sizes
from specbench.report.lessons import lessons
from specbench.report.metrics import frames, load
from tests.unit.report.a_study import CONSTANT_MS, DRAFTS, GAMMAS, LAYER_MS, write_study


def of(frame, **values):
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


@pytest.fixture(scope="module")
def measured(study_frames):
    return study_frames.drafts[~is_composed(study_frames.drafts)]


def test_every_draft_that_ran_at_its_own_pace_is_a_row(measured):
    assert {(row.draft, row.gamma) for row in measured.itertuples()} == {
        (draft.name, gamma) for draft in DRAFTS for gamma in GAMMAS
    }
    assert measured["arm"].str.contains("latency").sum() == 0


def test_a_row_says_what_its_arm_says(measured, study_frames):
    row = of(measured, draft="wide", gamma=4).iloc[0]
    arm = of(study_frames.summary, arm="draft_model draft=wide gamma=4").iloc[0]
    assert row["tokens_per_s"] == pytest.approx(arm["batch_tokens_per_s"])
    assert row["block_efficiency"] == pytest.approx(arm["block_efficiency"])
    assert row["forward_ms"] == pytest.approx(CONSTANT_MS + 2 * LAYER_MS, rel=0.02)
    assert row["draft_ms"] + row["verify_ms"] + row["host_ms"] == pytest.approx(1000 * arm["step_s"])


def test_all_that_a_trace_holds_is_composed_also_where_nothing_ran(study_frames, study_results):
    composed = study_frames.drafts[is_composed(study_frames.drafts)]
    assert sorted(of(composed, draft="deep")["gamma"]) == [1, 2, 3, 4, 5, 6]
    row = of(composed, draft="deep", gamma=6).iloc[0]
    [trace] = [trace for trace in study_results.traces if trace.provenance.draft == "deep"]
    assert row["block_efficiency"] == pytest.approx(replay(trace, Fixed(6)).block_efficiency)
    assert row["forward_ms"] == pytest.approx(CONSTANT_MS + 8 * LAYER_MS)
    step_ms = row["draft_ms"] + row["verify_ms"] + row["host_ms"]
    assert row["tokens_per_s"] == pytest.approx(1000 * row["block_efficiency"] / step_ms)


def test_the_best_gamma_is_chosen_on_one_half_and_reported_on_the_other(study_results, study_frames):
    best = of(study_frames.best_drafts, draft="tall", latency_mode="measured").iloc[0]
    assert (best["chosen_on"], best["reported_on"]) == (4, 4)
    whole = of(study_frames.drafts, draft="tall", latency_mode="measured", gamma=best["gamma"]).iloc[0]
    assert best["tokens_per_s"] != pytest.approx(whole["tokens_per_s"], rel=1e-6)
    # The halves that the run's own choice has: what was not reported chose.
    few = study_results.requests[study_results.requests["block"] == 0]
    alone = of(frames(replace(study_results, requests=few)).best_drafts, draft="tall", latency_mode="measured").iloc[0]
    assert (alone["chosen_on"], alone["reported_on"]) == (0, 1)


def test_composed_throughput_is_near_the_measured_one_of_the_same_model(study_frames, measured):
    composed = study_frames.drafts[is_composed(study_frames.drafts)]
    both = measured.merge(composed, on=["draft", "gamma"])
    # Trace and run are two draws of the same acceptance, so only the times must agree.
    ratio = (both["draft_ms_y"] + both["verify_ms_y"] + both["host_ms_y"]) / (
        both["draft_ms_x"] + both["verify_ms_x"] + both["host_ms_x"]
    )
    assert len(both) == len(DRAFTS) * len(GAMMAS)
    assert np.abs(ratio - 1).max() < 0.04


def test_a_forward_time_that_is_missing_leaves_a_draft_out_with_its_reason(study_results):
    rows = study_results.latencies
    results = load(study_results.folder)
    vars(results)["latencies"] = rows[rows["model"] != "deep"]
    found = frames(results)
    assert "deep" not in set(found.drafts[is_composed(found.drafts)]["draft"])
    reasons = of(found.left_out, what="deep")["reason"]
    assert len(reasons) == 1
    assert reasons.iloc[0].startswith("no latency of 'deep' in this table.")


# --- depth


def test_drafts_of_equal_size_are_compared_with_the_fastest_of_them(study_frames, study_results):
    own = of(study_frames.depths, latency_mode="measured")
    assert set(own["draft"]) == {"flat", "wide", "tall", "deep"}
    fastest = own.loc[own["tokens_per_s"].astype(float).idxmax()]
    assert fastest["ratio"] == 1.0
    deep = of(own, draft="deep").iloc[0]
    assert deep["ratio"] == pytest.approx(fastest["tokens_per_s"] / deep["tokens_per_s"], rel=1e-6)
    assert deep["ratio_low"] < deep["ratio"] < deep["ratio_high"]
    assert deep["units"] == 4


def test_sizes_are_equal_within_five_per_cent_of_the_smallest(study_frames):
    sizes = study_frames.sizes
    groups = [list(group["model"]) for group in equal_sizes(sizes[sizes["model"].isin(draft.name for draft in DRAFTS)])]
    assert [set(group) for group in groups] == [{"small"}, {"flat", "wide", "tall", "deep"}, {"large"}]
    further = sizes.assign(parameters=sizes["parameters"].mask(sizes["model"] == "deep", 3_200_000))
    assert len(equal_sizes(further[further["model"].isin(["deep", "flat"])])) == 2


# --- forward times


def test_a_line_over_depth_has_the_slope_that_it_was_drawn_with(study_frames):
    lines = of(study_frames.forward_lines, along="depth", mode="eager")
    assert list(lines["x"]) == [1, 2, 4, 8]
    slope = of(study_frames.forward_slopes, along="depth", mode="eager").iloc[0]
    assert (slope["slope_ms"], slope["constant_ms"]) == (pytest.approx(LAYER_MS), pytest.approx(CONSTANT_MS))
    compiled = of(study_frames.forward_slopes, along="depth", mode="compiled").iloc[0]
    assert compiled["slope_ms"] == pytest.approx(LAYER_MS / 2)


def test_a_line_over_width_has_models_of_one_depth(study_frames):
    lines = of(study_frames.forward_lines, along="width", mode="eager")
    assert list(lines["model"]) == ["2x128", "wide", "2x512"]
    assert set(lines["title"]) == {"2 layers each"}


# --- skill


def test_skill_stands_beside_tokens_per_step_of_the_longest_shared_gamma(study_frames):
    own = of(study_frames.skill, metric="perplexity")
    assert list(own["draft"]) == [draft.name for draft in sorted(DRAFTS, key=lambda draft: draft.name)]
    assert set(own["gamma"]) == {6}
    found = of(study_frames.correlations, metric="perplexity", kind="spearman").iloc[0]
    ranks = [own.set_index("draft")[name].rank() for name in ("skill", "block_efficiency")]
    assert found["value"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["drafts"] == 6


def test_five_drafts_have_points_and_no_correlation(tmp_path):
    found = frames(load(write_study(tmp_path, drafts=DRAFTS[:5], prompts=4, max_new_tokens=12)))
    assert len(of(found.skill, metric="top1")) == 5
    assert found.correlations.empty


# --- in words


def test_the_summary_says_who_wins_what_a_layer_costs_and_whether_skill_tells(study_frames):
    said = lessons(study_frames)
    [depth] = [line for line in said if line.startswith("Of 4 drafts of ") and "is fastest, with" in line]
    assert depth.count(" times as fast as ") == 3
    assert "95 % interval" in depth
    assert any("one more layer adds 0.250 ms (0.250 to 0.250) eager" in line for line in said)
    assert any(line.startswith("Over 6 drafts, perplexity on stdlib") for line in said)
    assert any(line.startswith("Composed throughput is within 10 %") for line in said)


def test_of_many_cells_that_are_missed_the_first_are_named_and_the_others_counted(study_frames):
    worse = study_frames.composed.assign(is_met=False, error=0.3)
    said = lessons(replace(study_frames, composed=worse))
    missed = [line for line in said if "30 % above what was measured" in line]
    assert len(missed) == 4
    count = len(worse)
    assert f"Composed throughput is within 10 % of the measured one in 0 of {count} cells." in said
    assert f"The other {count - 4} that miss it stand in tables/composed.csv, with their parts." in said


def test_forward_times_and_scores_alone_have_a_report_of_their_own(tmp_path):
    found = frames(load(write_study(tmp_path, run=False)))
    assert found.summary.empty
    assert len(found.models) == 1 + len(DRAFTS) + 2
    assert len(of(found.forward_slopes, along="depth")) == 2
