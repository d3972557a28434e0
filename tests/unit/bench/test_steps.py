"""specbench.bench.steps in a run: what is compiled is compiled while arms warm up, for batches of every size."""

import json

import torch
from torch.utils import _pytree as pytree

from specbench.bench.arms import CoreArm
from specbench.bench.steps import CountingRecorder
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


def test_no_measured_batch_shows_a_form_that_the_warm_up_has_not_shown_not_even_the_last_partial_one(
    tmp_path, family, monkeypatch
):
    (tmp_path / "zoo").symlink_to(family)
    seen, new, rows = set(), set(), []

    def noting(work, **settings):
        def call(*inputs):
            leaves, _ = pytree.tree_flatten(inputs)
            seen.add((id(work.__self__), work.__name__, *map(form, leaves)))
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
    monkeypatch.setattr(CoreArm, "run", watched)
    summary = run(tmp_path, ONE_CELL.replace("device: cpu", "device: cpu, compile: true"))
    assert set(rows) == {1, 2}
    assert seen
    assert new == set()
    [notes] = Store(summary.folder).read("runs")["notes"]
    [steps] = json.loads(notes)["steps"].values()
    assert {frozenset(by_rows) for by_rows in steps.values()} == {frozenset({"1", "2"})}
