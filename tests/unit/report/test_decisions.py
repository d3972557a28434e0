"""specbench.report.decisions and contenders: on results drawn from known latencies and a known acceptance"""

import json
from dataclasses import replace

import pandas as pd
import pytest

from specbench.errors import ConfigError, ResultsError
from specbench.records.store import Store
from specbench.report.contenders import NO_DRAFT
from specbench.report.decision_tables import change_table, forecast_table, remarks, sentence
from specbench.report.decisions import (
    GivenDraft,
    WhatIf,
    change_frame,
    decide_by_numbers,
    decisions,
    forecast_frame,
)
from specbench.report.metrics import load
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

HOST_S = 0.0008
"""Accept, update and host of a step of the model."""


def arm(draft, alpha, gamma, draft_s):
    return Arm(
        f"draft_model draft={draft} gamma={gamma}", alpha=alpha, gamma=gamma, draft_s=draft_s,
        verify_s=0.010 + 0.0002 * gamma,
    )  # fmt: skip


FAST = tuple(arm("small", 0.70, gamma, 0.0008) for gamma in (1, 2, 4, 6))
SLOW = tuple(arm("large", 0.80, gamma, 0.0025) for gamma in (1, 2, 4))
TREE = Arm("heads", "medusa", alpha=0.5, gamma=3, draft_s=0.0002, verify_s=0.0125, nodes=10)
PLAN = Plan(arms=(AUTOREGRESSIVE, TWIN, *FAST, *SLOW, TREE), batch_sizes=(1, 4), prompts=24, repeats=1)
SIZES = {"pico": 20_000_000, "small": 1_000_000}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    notes = {"models": {name: {"weight_bytes": size} for name, size in SIZES.items()}}
    plan = replace(PLAN, run={"notes": json.dumps(notes)})
    found = load(write_results(tmp_path_factory.mktemp("decisions") / "grid" / "Example", plan))
    requests = found.requests.assign(draft=found.requests["arm"].str.extract(r"draft=(\w+)")[0])
    return replace(found, requests=requests)


@pytest.fixture(scope="module")
def found(results):
    return decisions(results)


def row(frame, title, **values):
    chosen = frame[frame["title"] == title]
    for name, value in values.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_what_is_predicted_is_what_was_measured(found):
    frame = forecast_frame(found).dropna(subset="arm")
    assert len(frame) == 2 * 8
    assert frame["error"].abs().max() < 0.03


def test_the_steps_of_a_gamma_that_was_not_run_lie_between_those_that_were(found):
    three = row(forecast_frame(found), "batch 1, T = 0", contender="draft_model draft=small", gamma=3)
    assert pd.isna(three["arm"])
    assert three["step_ms"] == pytest.approx(3 * 0.8 + 10.6 + 1000 * HOST_S, rel=0.02)
    two, four = (
        row(forecast_frame(found), "batch 1, T = 0", contender="draft_model draft=small", gamma=gamma)["tokens"]
        for gamma in (2, 4)
    )
    assert two < three["tokens"] < four


def test_the_choice_is_made_on_one_half_and_everything_is_said_of_the_other(results, found):
    for decision in found:
        assert not set(decision.choice.chosen_on) & set(decision.choice.reported_on)
        own = next(forecast for forecast in decision.forecasts if forecast.arm == decision.choice.arm)
        assert own.measured_speedup == decision.choice.speedup.ratio
    assert found[0].best == "draft_model draft=small"


def test_what_would_have_to_change_makes_a_loser_as_fast_as_the_winner(results, found):
    loser = row(change_frame(found), "batch 1, T = 0", contender="draft_model draft=large")
    assert (loser["rival"], bool(loser["is_best"])) == ("draft_model draft=small", False)
    assert 0 < loser["tie_draft_ms"] < loser["draft_ms"] == pytest.approx(2.5, rel=0.02)
    assert loser["tie_alpha"] > loser["alpha"]
    asked = decisions(results, WhatIf(draft_latency_ms={"large": loser["tie_draft_ms"]}))
    frame = change_frame(asked)
    large, small = (row(frame, "batch 1, T = 0", contender=f"draft_model draft={name}") for name in ("large", "small"))
    assert large["predicted_speedup"] == pytest.approx(small["predicted_speedup"], rel=1e-9)
    assert large["gamma"] == loser["tie_draft_gamma"]


def test_the_best_draft_is_set_against_the_next_best(found):
    frame = change_frame(found)
    best = frame[frame["is_best"] & (frame["title"] == "batch 1, T = 0")].iloc[0]
    others = frame[~frame["is_best"] & (frame["title"] == "batch 1, T = 0")]
    assert best["rival"] == others.sort_values("predicted_speedup").iloc[-1]["contender"]
    assert best["tie_draft_ms"] > best["draft_ms"]
    assert best["tie_tokens"] < best["tokens"]


def test_the_memory_bound_speed_up_comes_from_the_bytes_of_both_models(found):
    small = row(change_frame(found), "batch 1, T = 0", contender="draft_model draft=small")
    assert small["memory_bound_speedup"] == pytest.approx(small["tokens"] / (1 + small["gamma"] / 20))
    assert pd.isna(row(change_frame(found), "batch 1, T = 0", contender="heads")["memory_bound_speedup"])
    assert small["target_efficiency"] == pytest.approx(10 / (10 + 0.2 * small["gamma"]), rel=0.02)


def test_a_tree_is_of_one_shape(found):
    heads = row(forecast_frame(found), "batch 1, T = 0", contender="heads")
    assert pd.isna(heads["gamma"])
    assert heads["step_ms"] == pytest.approx(0.6 + 12.5 + 1000 * HOST_S, rel=0.02)
    assert pd.isna(row(change_frame(found), "batch 1, T = 0", contender="heads")["alpha"])


def test_a_batch_size_between_two_that_were_run(results, found):
    (between,) = decisions(results, WhatIf(batch_size=2))
    assert (between.title, between.batch_size, between.choice) == ("T = 0", 2, None)
    assert all(forecast.measured_tokens_per_s is None for forecast in between.forecasts)

    def step_ms(decision):
        return next(f.step_ms for f in decision.forecasts if (f.contender, f.gamma) == ("draft_model draft=small", 4))

    one, four = map(step_ms, found)
    assert step_ms(between) == pytest.approx(one + (four - one) / 3)
    assert sentence(between).startswith("At batch size 2, between those measured: take draft_model draft=small")


def test_a_batch_size_that_was_run_is_its_cell(results, found):
    (asked,) = decisions(results, WhatIf(batch_size=4))
    assert asked == found[1]


def test_a_batch_size_beyond_those_that_were_run_is_one_clear_line(results):
    with pytest.raises(ResultsError, match="batch size 8: measured was 1, 4, and nothing is known beyond"):
        decisions(results, WhatIf(batch_size=8))


def test_a_latency_of_every_draft_leaves_acceptance_to_decide(results):
    asked = decisions(results, WhatIf(draft_latency_ms={None: 0.1}))[0]
    assert asked.best == "draft_model draft=large"
    assert all(forecast.arm is None for forecast in asked.forecasts)
    assert "With 0.1 ms a forward of every draft" in sentence(asked)


def test_a_latency_of_a_draft_that_was_not_run_names_the_nearest(results):
    with pytest.raises(ConfigError, match=r"no draft of that name was run. Did you mean 'large'"):
        decisions(results, WhatIf(draft_latency_ms={"larg": 1.0}))


def test_where_no_draft_pays_none_is_taken(tmp_path):
    plan = replace(PLAN, arms=(AUTOREGRESSIVE, TWIN, arm("bad", 0.1, 2, 0.01)), batch_sizes=(1,), prompts=8)
    (decision,) = decisions(load(write_results(tmp_path, plan)))
    assert (decision.best, decision.best_gamma, decision.predicted_speedup) == (NO_DRAFT, None, 1.0)
    assert sentence(decision).startswith("Do not draft here: no draft was faster than autoregressive decoding")
    (change,) = decision.changes
    assert (change.rival, change.tie_draft_ms) == (NO_DRAFT, change.pays_draft_ms)
    assert change.tie_draft_ms is None or change.tie_draft_ms < change.draft_ms


def test_one_batch_of_prompts_chooses_nothing_and_is_still_predicted(tmp_path):
    (decision,) = decisions(load(write_results(tmp_path, replace(PLAN, batch_sizes=(1,), prompts=1))))
    assert decision.choice is None
    assert sentence(decision).endswith("too few batches of prompts to choose on some of them.")
    assert all(forecast.error is not None for forecast in decision.forecasts if forecast.arm)


def test_a_batch_whose_first_text_is_a_single_token_has_no_full_step_and_is_predicted_all_the_same(results):
    requests = results.requests.copy()
    ends_at_once = (requests["batch_size"] == 4) & (requests["row"] == 0)
    requests.loc[ends_at_once, ["steps", "drafted_tokens", "accepted_tokens"]] = 0
    for name in ("accepted_per_step", "drafted_depth_per_step", "drafted_nodes_per_step"):
        requests.loc[ends_at_once, name] = requests.loc[ends_at_once, name].map(lambda values: values[:0])
    _, four = decisions(replace(results, requests=requests))
    assert four.best in {"draft_model draft=small", "draft_model draft=large"}
    assert all(forecast.predicted_tokens_per_s > 0 for forecast in four.forecasts)


def test_an_arm_with_an_injected_latency_or_without_phases_is_left_out_and_named(tmp_path):
    slowed = replace(FAST[0], name="slowed", latency_ms=5.0)
    outside = Arm("transformers-assisted", "transformers-assisted", alpha=0.5, gamma=2)
    folder = write_results(tmp_path, replace(PLAN, arms=(*PLAN.arms, slowed, outside), batch_sizes=(1,), prompts=8))
    found = load(folder)
    (decision,) = decisions(replace(found, steps=found.steps[found.steps["arm"] != "transformers-assisted"]))
    assert decision.left_out == {
        "slowed": "its draft latency is not its own", "transformers-assisted": "its phases were not timed",
    }  # fmt: skip
    assert "Left out: slowed, since its draft latency is not its own." in remarks(decision)


def test_a_lossy_arm_is_never_the_one_to_take(tmp_path):
    lossy = replace(FAST[1], name="draft_model draft=lossy gamma=2", alpha=0.95, lossless=False, verdict=None)
    plan = replace(PLAN, arms=(*PLAN.arms, lossy), batch_sizes=(1,), prompts=8)
    (decision,) = decisions(load(write_results(tmp_path, plan)))
    assert "lossy" not in decision.best
    assert not any("lossy" in change.contender for change in decision.changes)
    assert any(forecast.arm == lossy.name for forecast in decision.forecasts)


def test_cells_of_several_targets_are_never_mixed(results, tmp_path):
    """Two targets at two batch sizes: a batch size between them is asked of each apart."""
    folder = tmp_path / "two"
    rows, steps = (Store(results.folder).read(name).astype(object) for name in ("requests", "steps"))
    for target in ("pico", "other"):
        for table in (rows, steps):
            for column in ("cell", "batch_id"):
                table[column] = target + table[column].astype(str).str.removeprefix("pico")
        rows["target"] = target
        whole = (table.where(pd.notna(table), None).to_dict("records") for table in (rows, steps))
        Store(folder).write_block(target, *whole)
    found = decisions(load(folder), WhatIf(batch_size=2))
    assert [decision.title for decision in found] == ["other, T = 0", "pico, T = 0"]


def test_without_phase_times_there_is_one_clear_line(results):
    with pytest.raises(ResultsError, match=r"measure.phase_blocks says in how many blocks"):
        decisions(replace(results, steps=results.steps[:0]))


def test_the_tables_show_every_arm_and_every_draft(found):
    decision = found[0]
    assert forecast_table(decision).row_count >= 8
    assert change_table(decision).row_count == 3
    assert "to be as fast as draft_model draft=small" in str(change_table(decision).title)


def test_a_best_gamma_at_the_end_of_what_was_run_is_said_to_be_one(tmp_path):
    plan = replace(PLAN, arms=(AUTOREGRESSIVE, TWIN, *FAST[:2]), batch_sizes=(1,))
    (decision,) = decisions(load(write_results(tmp_path, plan)))
    assert (decision.best_gamma, decision.largest_gamma) == (2, 2)
    assert any("Gamma 2 is the largest that was run of it" in remark for remark in remarks(decision))


# --- by numbers alone


# Acceptance and cost of a draft -> the best gamma and its speed-up, from the formula of Leviathan et al. (2023).
KNOWN = {(0.6, 0.02): (6, 2.17), (0.7, 0.05): (6, 2.35), (0.8, 0.10): (6, 2.47), (0.9, 0.20): (7, 2.37)}


def given(alpha, cost):
    return GivenDraft(f"{alpha:g} at {cost:g}", alpha, 0.03 * cost)


def test_of_drafts_by_their_numbers_the_one_of_the_highest_closed_form_is_taken():
    found = decide_by_numbers([given(*numbers) for numbers in KNOWN], 0.03)
    assert (found.best, found.best_gamma) == ("0.8 at 0.1", 6)
    assert found.forecasts[0].measured_tokens_per_s is None
    changes = {change.contender: change for change in found.changes}
    for (alpha, cost), (gamma, speedup) in KNOWN.items():
        change = changes[given(alpha, cost).name]
        assert (change.gamma, round(change.predicted_speedup, 2)) == (gamma, speedup)
    assert sentence(found).startswith("By the numbers given: take 0.8 at 0.1 at gamma 6, predicted to reach 2.47 times")


def test_a_draft_that_changes_as_its_numbers_say_is_as_fast_as_the_best():
    best, other = given(0.8, 0.10), given(0.7, 0.10)
    costs = {"verify_slope": 0.03, "overhead": 0.1}
    found = decide_by_numbers([best, other], 0.03, **costs)
    change = next(change for change in found.changes if change.contender == other.name)
    faster = replace(other, name="faster", forward_s=change.tie_draft_ms / 1000)
    surer = replace(other, name="surer", alpha=change.tie_alpha)
    tied = decide_by_numbers([faster, surer], 0.03, **costs).changes
    assert [entry.predicted_speedup for entry in tied] == pytest.approx([found.predicted_speedup] * 2, rel=1e-9)


def test_numbers_with_which_nothing_pays_say_so():
    found = decide_by_numbers([given(0.3, 0.5)], 0.03)
    assert (found.best, found.predicted_speedup) == (NO_DRAFT, 1)
    assert "do not draft" in sentence(found)
    assert found.changes[0].pays_alpha == pytest.approx(0.5)  # there is a gain iff alpha is above the cost


def test_to_verify_costs_what_is_said_and_the_host_is_no_part_of_it():
    found = decide_by_numbers([given(0.8, 0.0)], 0.03, verify_slope=0.1, overhead=0.5)
    (change,) = found.changes
    assert change.target_efficiency == pytest.approx(1 / (1 + 0.1 * change.gamma))
    tokens = (1 - 0.8 ** (change.gamma + 1)) / 0.2
    assert change.predicted_speedup == pytest.approx(tokens / (1.5 + 0.1 * change.gamma))
