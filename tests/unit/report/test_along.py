"""specbench.report.along"""

import pytest

from specbench.report.metrics import frames, load
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

ARMS = (
    AUTOREGRESSIVE,
    TWIN,
    Arm("draft_model gamma=2 latency=measured", alpha=0.7, gamma=2, draft_s=0.001),
    Arm("draft_model gamma=4 latency=measured", alpha=0.7, gamma=4, draft_s=0.001),
    Arm("draft_model gamma=4 latency=5ms", alpha=0.7, gamma=4, draft_s=0.005, latency_ms=5.0),
    Arm("broken", alpha=0.5, gamma=2, status="oom"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    plan = Plan(
        ARMS, (1, 2), (0.0, 0.8), prompts=10, repeats=1, max_new_tokens=24,
        categories=("code", "prose"), prompt_tokens=(100, 100, 300),
    )  # fmt: skip
    results = load(write_results(tmp_path_factory.mktemp("grid"), plan))
    return results, frames(results)


def axis(built, name):
    return built[1].along[built[1].along["axis"] == name]


def test_every_axis_with_two_values_is_there_and_no_other(built, odd_frames):
    assert set(built[1].along["axis"]) == {
        "batch_size", "temperature", "gamma", "draft_latency_ms", "category", "prompt_tokens",
    }  # fmt: skip
    assert set(odd_frames.along["axis"]) == {"batch_size"}


def test_an_axis_of_the_grid_joins_cells_that_differ_in_it_alone(built):
    found = axis(built, "temperature")
    assert set(found["panel"]) == {"batch 1", "batch 2"}
    one = found[(found["panel"] == "batch 1") & (found["arm"] == ARMS[2].name)].sort_values("x")
    summary = built[1].summary
    expected = [
        float(summary.loc[(summary["title"] == title) & (summary["arm"] == ARMS[2].name), "speedup_core"].iloc[0])
        for title in ("batch 1, T = 0", "batch 1, T = 0.8")
    ]
    assert one["x"].tolist() == [0.0, 0.8]
    assert one["speedup"].tolist() == expected


def test_a_sweep_of_gamma_joins_arms_of_equal_other_options(built):
    found = axis(built, "gamma")
    assert set(found["series"]) == {"draft_model latency=measured"}
    assert sorted(found.loc[found["title"] == "batch 1, T = 0", "x"]) == [2.0, 4.0]


def test_draft_latency_starts_at_what_the_draft_really_took(built):
    found = axis(built, "draft_latency_ms")
    first = found[found["title"] == "batch 1, T = 0"].sort_values("x")
    assert first["arm"].tolist() == [ARMS[3].name, ARMS[4].name]
    assert first["x"].tolist() == pytest.approx([1.0, 5.0], rel=0.05)
    assert first["speedup"].is_monotonic_decreasing


def test_categories_and_lengths_part_the_prompts_and_weigh_to_the_whole(built):
    found = axis(built, "category")
    assert set(found["label"]) == {"code", "prose"}
    lengths = axis(built, "prompt_tokens")
    assert set(lengths["label"]) == {"64 to 127", "256 to 511"}
    row = found[(found["title"] == "batch 1, T = 0") & (found["arm"] == ARMS[2].name)]
    summary = built[1].summary
    whole = summary[(summary["title"] == "batch 1, T = 0") & (summary["arm"] == ARMS[2].name)]["speedup_core"].iloc[0]
    # At batch size 1 a request is a batch, so the parts lie on both sides of the whole.
    assert row["speedup"].min() <= whole <= row["speedup"].max()
    assert row["units"].sum() == 10


def test_what_did_not_finish_is_no_point_and_the_twin_is_none(built):
    assert not {"broken", TWIN.name} & set(built[1].along["arm"])


def test_a_category_of_one_prompt_each_is_no_category(tmp_path):
    plan = Plan(ARMS[:3], (1,), prompts=3, repeats=1, max_new_tokens=8, categories=("a", "b", "c"))
    assert frames(load(write_results(tmp_path, plan))).along.empty


def test_what_is_resolved_has_an_interval_without_1_and_exceeds_the_noise(built):
    found = axis(built, "category")
    resolved = found[found["resolved"]]
    assert len(resolved)
    assert ((resolved["low"] > 1) | (resolved["high"] < 1)).all()
    assert not found.loc[found["units"] < 4, "resolved"].any()
