"""specbench.bench.steps in a run: what is compiled is compiled while arms warm up, for batches of every size."""

import json
from weakref import WeakValueDictionary

import pytest
import torch
from torch.utils import _pytree as pytree

from specbench.bench.arms import CoreArm
from specbench.bench.steps import CountingRecorder
from specbench.decode import pieces
from specbench.decode.static import form
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, run


def test_what_a_capture_takes_is_counted_behind_what_the_allocator_gives_back(monkeypatch):
    reserved = [100]
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved[0])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: reserved.__setitem__(0, 20))

    class Capturing:
        def record(self, phase, work):
            torch.cuda.empty_cache()
            reserved[0] += 10
            return work(), lambda: None

    recorder = CountingRecorder(Capturing(), torch.device("cuda"))
    recorder.record("verify", lambda: None)
    assert recorder.captures.reserved_bytes == 10


@pytest.mark.parametrize("compiles", ["true", "pieces"])
def test_no_measured_batch_shows_a_form_that_the_warm_up_has_not_shown_not_even_the_last_partial_one(
    tmp_path, family, monkeypatch, compiles
):
    (tmp_path / "zoo").symlink_to(family)
    seen, new, rows = set(), set(), []

    def noting(work, **settings):
        def call(*inputs):
            leaves, _ = pytree.tree_flatten(inputs)
            seen.add((id(getattr(work, "__self__", work)), work.__name__, *map(form, leaves)))
            return work(*inputs)

        return call

    measured = CoreArm.run

    def watched(arm, block, which):
        before = set(seen)
        outcome = measured(arm, block, which)
        rows.append(len(block.prompts))
        new.update(seen - before)
        return outcome

    monkeypatch.setattr(torch, "compile", noting)
    monkeypatch.setattr(pieces, "_kinds", WeakValueDictionary())
    monkeypatch.setattr(CoreArm, "run", watched)
    summary = run(tmp_path, ONE_CELL.replace("device: cpu", f"device: cpu, compile: {compiles}"))
    assert set(rows) == {1, 2}
    assert seen
    assert new == set()
    rows_of_arms = Store(summary.folder).read("requests")
    is_whole = compiles == "true"
    assert set(rows_of_arms["execution"]) == {"compiled" if is_whole else "compiled pieces"}
    assert ("verify" in set(",".join(rows_of_arms["compiled_phases"]).split(","))) == is_whole
    [notes] = Store(summary.folder).read("runs")["notes"]
    [steps] = json.loads(notes)["steps"].values()
    assert {frozenset(by_rows) for by_rows in steps.values()} == {frozenset({"1", "2"})}
    if not is_whole:
        counts = {sum(noted["compiled_pieces"].values()) for by_rows in steps.values() for noted in by_rows.values()}
        assert len(counts) == 2, "those of the target, and with them those of a draft"
