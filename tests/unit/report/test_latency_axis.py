"""specbench.report.latency_axis"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from specbench.report.composed_arms import COLUMNS as COMPOSED_COLUMNS
from specbench.report.latency_axis import COLUMNS, composed_points, latency_axis
from specbench.report.metrics import load
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

SETTINGS = {"draft": "small", "gamma": 4}
NATURAL = Arm("small gamma=4", alpha=0.7, gamma=4, draft_s=0.001, verify_s=0.011, settings=SETTINGS)


def slowed(latency_ms, **changed):
    return replace(
        NATURAL,
        name=f"small gamma=4 latency={latency_ms:g}",
        draft_s=latency_ms / 1000,
        latency_ms=latency_ms,
        **changed,
    )


PLAN = Plan(arms=(AUTOREGRESSIVE, TWIN, NATURAL, slowed(2.0), slowed(5.0), slowed(10.0)), batch_sizes=(1,), prompts=24)


@pytest.fixture(scope="module")
def axis(tmp_path_factory):
    return latency_axis(load(write_results(tmp_path_factory.mktemp("axis"), PLAN)))


def test_the_closed_form_through_one_arm_holds_for_the_others(axis):
    arms = axis[axis["kind"] == "arm"]
    assert list(arms["draft_latency_ms"].round(1)) == [1.0, 2.0, 5.0, 10.0]
    assert list(arms["fitted"]) == [True, False, False, False]
    assert arms["error"].iloc[0] == pytest.approx(0, abs=1e-9)
    assert arms["error"].abs().max() < 0.03


def test_the_line_is_the_hand_written_one(axis):
    line = axis[axis["kind"] == "line"]
    at, rates = (line[name].to_numpy(float) for name in ("draft_latency_ms", "predicted_tokens_per_s"))
    arms = axis[axis["kind"] == "arm"]
    tokens = arms["tokens_per_s"].iloc[0] * 0.0158  # a step of 4 x 1 + 11 + 0.8 ms
    assert rates == pytest.approx(tokens / (4 * at / 1000 + 0.0118), rel=0.02)
    assert at[0] == 0.0
    assert at[-1] > 10.0


def test_a_latency_below_the_natural_one_is_a_row_with_its_reason(tmp_path):
    below = slowed(0.2, status="unsupported")
    found = latency_axis(load(write_results(tmp_path, replace(PLAN, arms=(*PLAN.arms, below)))))
    row = found[(found["requested_ms"] == 0.2)].iloc[0]
    assert (row["status"], row["kind"], np.isnan(row["tokens_per_s"])) == ("unsupported", "arm", True)
    assert row["predicted_tokens_per_s"] > found["tokens_per_s"].max()  # the closed form answers it


def test_a_point_lies_where_the_run_says_that_latency_was_kept(tmp_path):
    cell, arm = "b1 t0.0", "small gamma=4 latency=5"
    notes = json.dumps({"draft_latency_ms": {cell: {arm: {"requested": 5.0, "median": 5.25}}}})
    found = latency_axis(load(write_results(tmp_path, replace(PLAN, run={"notes": notes}))))
    row = found[found["arm"] == arm].iloc[0]
    assert (row["achieved_ms"], row["draft_latency_ms"]) == (5.25, 5.25)


def test_one_paced_draft_phase_is_told_from_several_paced_forwards(tmp_path):
    """Heads draft four tokens in one phase: the bound is that of the phase."""
    phase = {"gamma": 4, "draft_s": 0.005 / 4}
    arms = (AUTOREGRESSIVE, TWIN, replace(NATURAL, draft_s=0.0005), replace(slowed(5.0), **phase))
    found = latency_axis(load(write_results(tmp_path, replace(PLAN, arms=arms))))
    natural = found[found["fitted"]].iloc[0]
    assert natural["draft_latency_ms"] == pytest.approx(2.0, rel=0.02)
    assert found["error"].abs().max() < 0.03


def test_composed_arms_are_points_of_a_line_if_one_of_them_was_asked_for_a_latency():
    row = dict.fromkeys(COMPOSED_COLUMNS) | {"title": "a", "gamma": 4, "draft_ms": 6.0, "composed_tokens_per_s": 80.0}
    arms = pd.DataFrame(
        [
            row | {"arm": "small gamma=4 latency=composed"},
            row | {"arm": "small gamma=4 latency=0.5ms", "draft_latency_ms": 0.5, "composed_tokens_per_s": 90.0},
            row | {"arm": "large gamma=4 latency=composed"},
        ]
    )
    found = composed_points(arms)
    assert list(found.columns) == list(COLUMNS)
    assert set(found["series"]) == {"small gamma=4"}
    assert list(found["draft_latency_ms"]) == [1.5, 0.5]  # its own: a quarter of the draft phase
    assert list(found["tokens_per_s"]) == [80.0, 90.0]


def test_without_an_injected_latency_there_is_no_axis(tmp_path):
    plan = replace(PLAN, arms=(AUTOREGRESSIVE, TWIN, NATURAL))
    found = latency_axis(load(write_results(tmp_path, plan)))
    assert found.empty
    assert list(found.columns) == list(COLUMNS)
