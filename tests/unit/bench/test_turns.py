"""specbench.bench.turns, and runs whose models do not fit into memory together"""

import json
from types import SimpleNamespace

import pytest
import torch

from specbench.bench.turns import Turns
from specbench.grid import AUTOREGRESSIVE, TWIN, Arm
from specbench.models.loader import ModelPool
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, run, texts

DRAFTS = """
  - draft_model: {draft: pico-wide, gamma: 2}
  - draft_model: {draft: pico-deep, gamma: 2}
  - prompt_lookup: {gamma: 3}
"""
THREE_ARMS = ONE_CELL[: ONE_CELL.index("\n  - draft_model")] + DRAFTS + ONE_CELL[ONE_CELL.index("measure:") :]


def arm(name, draft=None, *, method="draft_model", twin=False):
    options, model_options = ({"draft": draft}, {"draft": ()}) if draft else ({}, {})
    return Arm(name=name, label=name, method=method, options=options, model_options=model_options, twin=twin)


BASELINE, TWINS = arm(AUTOREGRESSIVE, method=AUTOREGRESSIVE), arm(TWIN, method=AUTOREGRESSIVE, twin=True)


class SmallStage:
    """Has room for some drafts; ``beside`` says of some arms next to how many drafts they have room to run."""

    def __init__(self, room, beside=()):
        self.room, self.beside = room, dict(beside)
        self.loaded, self.there, self.log = set(), {}, []

    def enter(self, arm):
        wanted = set(arm.options.values())
        full = len(self.loaded | wanted) > self.room
        self.loaded |= set() if full else wanted
        self.there[arm.name] = SimpleNamespace(arm=arm, out_of_memory=full, failure="oom" if full else None)
        return self.there[arm.name]

    def reserve(self, live):
        pass

    def warm_up(self, live):
        self.log.append(live.arm.name)
        live.out_of_memory |= len(self.loaded) > self.beside.get(live.arm.name, self.room)

    def leave(self, gone, models):
        for name in gone:
            del self.there[name]
        self.loaded &= models

    def models(self):
        return self.loaded


def names(groups):
    return [[arm.name for arm in group] for group in groups]


def blocks(turns, count):
    """The arms of each turn, block by block."""
    return [[sorted(live) for live in turns.block()] for _ in range(count)]


def test_arms_that_fit_together_are_one_group_that_is_loaded_once():
    stage = SmallStage(room=2)
    with Turns([BASELINE, TWINS, arm("a", "A"), arm("b", "B")], stage) as turns:
        assert [len(block) for block in blocks(turns, 3)] == [1, 1, 1]
    assert sorted(stage.log) == ["a", AUTOREGRESSIVE, TWIN, "b"]


def test_arms_that_do_not_fit_together_alternate_forwards_and_backwards():
    with Turns([BASELINE, TWINS, arm("a", "A"), arm("a2", "A"), arm("b", "B")], SmallStage(room=1)) as turns:
        assert names(turns.groups) == [[AUTOREGRESSIVE, "a", "a2"], ["b", TWIN]]
        first, second = [AUTOREGRESSIVE, "a", "a2"], [TWIN, "b"]
        order = blocks(turns, 3)
    assert order == [[second, sorted(first)], [sorted(first), second], [second, sorted(first)]]


def test_an_arm_that_only_runs_out_of_memory_when_it_runs_is_moved_as_well():
    with Turns([BASELINE, TWINS, arm("a", "A"), arm("b", "B")], SmallStage(room=2, beside={"a": 1, "b": 1})) as turns:
        drafting = [{"a", "b"} & {*group} for group in names(turns.groups)]
    assert sorted(map(sorted, drafting)) == [["a"], ["b"]]


def test_an_arm_that_does_not_fit_alone_fails_and_gets_no_turn_of_its_own():
    stage = SmallStage(room=0)
    with Turns([BASELINE, TWINS, arm("a", "A")], stage) as turns:
        assert len(turns.groups) == 1
        assert stage.there["a"].failure == "oom"


def test_an_arm_that_loses_its_room_later_stays_and_fails():
    stage = SmallStage(room=1)
    failures = {}
    with Turns([BASELINE, TWINS, arm("a", "A"), arm("b", "B")], stage) as turns:
        blocks(turns, 1)
        stage.room = 0
        for group in turns.block():
            failures |= {name: live.failure for name, live in group.items()}
    assert failures.keys() == {AUTOREGRESSIVE, "a", "b", TWIN}
    assert (failures["a"], failures["b"]) == (None, "oom")


def test_a_model_that_an_earlier_cell_has_left_is_dropped_before_an_arm_fails_for_it():
    stage = SmallStage(room=1)
    stage.loaded = {"B"}
    with Turns([BASELINE, TWINS, arm("a", "A")], stage) as turns:
        assert names(turns.groups) == [[AUTOREGRESSIVE], ["a", TWIN]]


def test_the_baseline_is_in_the_first_group_though_it_had_no_room_at_first():
    with Turns([BASELINE, TWINS, arm("a", "A")], SmallStage(room=1, beside={AUTOREGRESSIVE: 0})) as turns:
        assert names(turns.groups) == [[AUTOREGRESSIVE], ["a", TWIN]]
        assert blocks(turns, 2) == [[["a", TWIN], [AUTOREGRESSIVE]], [[AUTOREGRESSIVE], ["a", TWIN]]]


@pytest.fixture
def folder(tmp_path, family):
    """A working folder with a family of a target and two drafts."""
    (tmp_path / "zoo").mkdir()
    for name, model in {"pico": "pico", "pico-wide": "pico-wide", "pico-deep": "pico-wide"}.items():
        (tmp_path / "zoo" / name).symlink_to(family / model)
    return tmp_path


@pytest.fixture
def little_memory(monkeypatch):
    """Memory for a target and one draft."""
    get = ModelPool._get

    def limited(self, reference, where):
        if repr(reference) not in self._loaded and len(self._loaded) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return get(self, reference, where)

    monkeypatch.setattr(ModelPool, "_get", limited)


def test_a_run_with_little_memory_has_the_rows_and_texts_of_one_with_enough(folder, little_memory, monkeypatch):
    crowded = run(folder, THREE_ARMS)
    assert (crowded.finished, crowded.failed, crowded.wrong) == (5, 0, 0)
    (notes,) = Store(crowded.folder).read("runs")["notes"]
    (warning,) = json.loads(notes)["warnings"]
    assert "take turns" in warning
    monkeypatch.undo()
    roomy = run(folder, THREE_ARMS, results=folder / "again")
    assert texts(Store(crowded.folder).read("requests")) == texts(Store(roomy.folder).read("requests"))


def test_a_draft_that_takes_turns_keeps_its_injected_latency(folder, little_memory):
    text = THREE_ARMS.replace("pico-deep, gamma: 2}", "pico-deep, gamma: 2, draft_latency_ms: 30}")
    summary = run(folder, text)
    (notes,) = Store(summary.folder).read("runs")["notes"]
    ((latencies,),) = (found.values() for found in json.loads(notes)["draft_latency_ms"].values())
    assert summary.failed == 0
    assert latencies["least"] >= 30
    assert latencies["count"] > 3 * 2
