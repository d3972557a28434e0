"""specbench.report.composed_arms and contents, on a run that measured the same arms"""

import json

import pytest

from specbench.records.store import Store
from specbench.report.cells import load
from specbench.report.composed_arms import composed_arms, terminal
from specbench.report.contents import contents
from tests.unit.bench import bench_plans
from tests.unit.models import tiny

BOTH = """
name: both
targets: [pico]
prompts: {source: stdlib, count: 6, max_prompt_tokens: 24}
decode: {max_new_tokens: 10, batch_size: 2, temperature: 0.8, rule: match, top_k: 50}
methods:
  - draft_model: {draft: pico-wide, gamma: [1, 3], latency_mode: [measured, composed]}
  - draft_model: {draft: pico-wide, gamma: 2, latency_mode: composed, draft_latency_ms: [0.001, 50], label: slow}
traces: {gamma: 3}
latencies: {rounds: 6, burst: 1}
measure: {repeats: 1, warmup: 0}
machine: {device: cpu}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of a run in which two arms are measured as well as composed."""
    place = tmp_path_factory.mktemp("both")
    tiny.zoo(place / "zoo")
    return bench_plans.run(place, BOTH).folder


def test_a_composed_arm_takes_the_steps_that_the_measured_one_took(folder):
    results = load(folder)
    found, left_out = composed_arms(results)
    assert left_out.empty
    (arms,) = results.timed.values()
    for gamma in (1, 3):
        (row,) = found[(found["gamma"] == gamma)].to_dict("records")
        own = arms[f"draft_model gamma={gamma} latency=measured"]
        batches = own.groupby("batch_id").agg(
            tokens=("output_tokens", "sum"), rows=("row", "size"), steps=("steps", "max")
        )
        emitted = (batches["tokens"] - batches["rows"]).sum()
        assert row["tokens_per_step"] == pytest.approx(emitted / batches["steps"].sum())
        assert row["arm"] == f"draft_model gamma={gamma} latency=composed"


def test_a_draft_latency_that_was_asked_for_is_the_draft_phase(folder):
    found, _ = composed_arms(load(folder))
    slow = found[found["arm"].str.startswith("slow")].set_index("draft_latency_ms")
    times = Store(folder).read("choosing").set_index(["model", "kind", "query_tokens"])["choice_s"]
    draws_ms = 2 * 1000 * times["pico-wide", "draw", 1]
    assert slow["draft_ms"].to_dict() == pytest.approx({0.001: 0.002 + draws_ms, 50.0: 100.0 + draws_ms})
    assert found["lacks"].isna().all()
    assert slow.loc[0.001, "composed_tokens_per_s"] > slow.loc[50.0, "composed_tokens_per_s"]
    assert set(found["latency_mode"]) == {"composed"}


def test_an_arm_without_its_trace_is_left_out_with_the_reason(folder, tmp_path):
    store = Store(folder)
    copy = Store(tmp_path / "x" / "y")
    for key in store.block_keys():
        copy.write_block(key, store.read_part("requests", key), store.read_part("steps", key))
    for run in store.read("runs").dropna(subset=["notes"]).to_dict("records"):
        copy.write_run(run)
    for row in store.read("latencies").to_dict("records"):
        copy.write_part("latencies", row["point_id"], [row | {"reason": None}])
    found, left_out = composed_arms(load(copy.folder))
    assert found.empty
    assert set(left_out["reason"]) == {"there is no trace here; specbench trace records one"}
    assert len(left_out) == 4


def test_a_table_for_people_has_a_row_an_arm(folder):
    found, _ = composed_arms(load(folder))
    assert terminal(found).row_count == 4


def test_what_a_folder_holds_beside_its_texts_is_listed(folder):
    assert list(contents(Store(folder))) == [
        "trace: pico with pico-wide, T=0.8, 6 prompts, gamma up to 3",
        "forward times: pico, eager, 8 points",
        "forward times: pico-wide, eager, 8 points",
        "choice times: pico, eager, T=0.8, match, 5 points",
        "choice times: pico-wide, eager, T=0.8, match, 5 points",
    ]


def test_what_could_not_be_made_is_listed_with_its_reason(tmp_path):
    store = Store(tmp_path)
    row = {"kind": "trace", "subject": "a with b", "status": "oom", "reason": "full", "ended_at": "now"}
    store.write_part("studies", "trace a with b", [row])
    store.write_part("studies", "trace a with c", [row | {"subject": "a with c", "status": "ok", "reason": None}])
    assert list(contents(store)) == ["no trace: a with b: oom: full"]


def test_the_notes_are_those_of_the_last_run(folder):
    (notes,) = Store(folder).read("runs")["notes"].dropna()
    (arms,) = json.loads(notes)["composed"].values()
    assert [arm["arm"] for arm in arms][2:] == ["slow latency=composed 0.001ms", "slow latency=composed 50ms"]
