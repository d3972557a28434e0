"""specbench.bench.roofline"""

from specbench.bench import arms, roofline
from specbench.bench.ceilings import Ceiling
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, run


def test_a_run_notes_a_limit_for_every_arm_on_the_core_but_the_twin_and_its_ceilings(folder):
    results = Store(run(folder, ONE_CELL).folder)
    limits, ceilings = results.read("limits"), results.read("ceilings").set_index("ceiling_id")
    requests = results.read("requests")
    assert set(limits["arm"]) == set(requests["arm"]) - {"autoregressive-twin"}
    assert set(limits["cell"]) == set(requests["cell"])
    own = limits.set_index("arm")
    draft = own.loc["draft_model"]
    assert draft["draft_forwards"] == 2
    assert ceilings.loc[draft["draft_ceiling"], "working_set_bytes"] < draft["draft_weight_bytes"]
    assert own["verify_ceiling"].nunique() == 1
    verify = ceilings.loc[draft["verify_ceiling"]]
    assert verify["working_set_bytes"] < draft["verify_weight_bytes"]
    assert own["draft_ceiling"].isna().to_dict() == {
        "autoregressive": True,
        "prompt_lookup": True,
        "draft_model": False,
    }
    assert (ceilings[["read_bytes_per_s", "copy_bytes_per_s", "operations_per_s", "launch_s"]] > 0).all(axis=None)
    assert verify["products_s"].shape == (6,)


def test_what_the_folder_holds_is_not_counted_again_and_what_it_lost_is(folder, monkeypatch):
    counted = []

    def noting(*args, **kwargs):
        counted.append(1)
        return count(*args, **kwargs)

    count = arms.count_step
    monkeypatch.setattr(arms, "count_step", noting)
    run(folder, ONE_CELL, limit=2)
    found = run(folder, ONE_CELL, limit=4)
    assert len(counted) == 3
    (found.folder / "ceilings.parquet").rename(found.folder / "gone")
    store = Store(run(folder, ONE_CELL).folder)
    assert len(counted) > 3
    named = store.read("limits")[["verify_ceiling", "draft_ceiling"]].stack().dropna()
    assert set(named) == set(store.read("ceilings")["ceiling_id"])


def test_a_ceiling_is_tried_again_for_other_arms_and_gets_no_worse(folder, monkeypatch):
    paces = iter([3.0, 9.0, 5.0, 5.0])
    monkeypatch.setattr(
        roofline, "measure_ceiling", lambda _: Ceiling((1,), [0.1], next(paces, 1.0), 1.0, 1.0, 1e-6, None)
    )
    monkeypatch.setattr(roofline, "_TRIES", 3)
    found = Store(run(folder, ONE_CELL).folder).read("ceilings")
    assert found["read_bytes_per_s"].max() == 9.0


def test_an_arm_that_cannot_be_counted_runs_all_the_same_and_the_run_says_so(folder, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(arms, "count_step", fails)
    summary = run(folder, ONE_CELL)
    assert summary.failed == 0
    assert "autoregressive: its limit is not known: RuntimeError: no such operation" in (folder / "log.txt").read_text()
    assert not Store(summary.folder).has("limits")
