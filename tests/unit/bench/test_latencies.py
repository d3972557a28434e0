"""specbench.bench.latencies"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from itertools import groupby
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from specbench.analysis.choosing import Choosing
from specbench.bench import latencies
from specbench.bench.latencies import Point, Study, Subject, Unit, groups, measure
from specbench.config import RandomModel
from specbench.decode.target import Nodes
from specbench.errors import ConfigError
from specbench.models.loader import load, placement
from specbench.models.source import locate
from specbench.records.store import Store

TWO = RandomModel(shape="2x32x2x64,vocab=100,context=256")
THREE = RandomModel(shape="3x32x2x64,vocab=100,context=256")


class Layers(int):
    """What the machine takes for a model: its layers."""

    is_spread = False
    attention = SimpleNamespace(name="split-kv")


class Machine:
    """A machine on which a forward takes what a law says: a clock, a pool of models and their forwards in one.

    Attributes:
        calls: Layers, tokens, rows and context of every forward, in order.
        choices: Every choice, in order.
        fails: Raises what a forward raises, if it does.
        loads: Raises what loading a model raises, if it does.
        compiles: Raises what compiling raises, if it does.
        slower: Factor by which each forward takes longer than the one before.
        recorder: What records graphs, if anything does.
    """

    def __init__(self):
        self.ns = 0.0
        self.calls, self.choices = [], []
        self.fails = lambda *call: None
        self.loads = lambda reference: None
        self.compiles = lambda: None
        self.slower = 1.0
        self.recorder = None

    def law_s(self, layers, tokens, rows, context):
        return 1e-3 * layers + 1e-4 * tokens + 1e-5 * rows + 1e-6 * context

    def wall(self):
        return round(self.ns)

    def mark(self):
        return self.ns

    def seconds(self, start, end):
        return (end - start) / 1e9

    def get(self, reference):
        self.loads(reference)
        layers = int(reference.shape.partition("x")[0])
        return SimpleNamespace(model=SimpleNamespace(sharing_weights=lambda: Layers(layers)))

    def keep_only(self, references):
        pass

    def forward(self, layers, point, seed):
        def run():
            if point.is_compiled:
                self.compiles()
            call = (layers, point.query_tokens, point.batch_size, point.context_tokens)
            self.calls.append(call)
            self.fails(*call)
            self.ns += 1e9 * self.law_s(*call) * self.slower ** len(self.calls)

        return run

    def chooser(self, layers, choice, seed):
        def choose(output):
            self.choices.append(choice)
            self.ns += 1e9 * self.choice_s(layers, choice)

        return choose

    def choice_s(self, layers, choice):
        return 1e-4 * layers + 1e-5 * choice.query_tokens + 1e-6 * choice.batch_size + 1e-3 * choice.how.temperature

    def measure(self, folder, models=(TWO, THREE), room_bytes=1e9, **settings):
        return self.measured(folder, models, room_bytes, **settings).forwards

    def measured(self, folder, models=(TWO, THREE), room_bytes=1e9, **settings):
        study = Study(models, **{"rounds": 6, "burst": 3, **settings})
        return measure(study, folder, clock=self, room_bytes=room_bytes, recorder=self.recorder)


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(latencies, "_forward", made.forward)
    monkeypatch.setattr(latencies, "chooser", made.chooser)
    monkeypatch.setattr(latencies, "ModelPool", lambda where, zoo: made)
    for slow in ("frozen_objects", "no_garbage_collection"):
        monkeypatch.setattr(latencies, slow, nullcontext)
    return made


GRID = {"query_tokens": (1, 5), "batch_sizes": (1, 3), "context_tokens": (0, 64)}


def test_every_point_gets_its_own_time_however_they_are_shuffled(machine, tmp_path):
    rows = machine.measure(tmp_path, **GRID)
    assert len(rows) == 16
    for row in rows.itertuples():
        law = machine.law_s(row.layers, row.query_tokens, row.batch_size, row.context_tokens)
        assert (row.forward_s, row.forward_low_s, row.forward_high_s) == pytest.approx((law, law, law), rel=1e-6)
    assert list(rows["model"]) == [TWO.shape] * 8 + [THREE.shape] * 8
    assert set(rows["status"]) == {"ok"}


def test_a_row_names_the_attention_that_ran_not_the_one_that_was_foreseen(machine, tmp_path):
    assert set(machine.measure(tmp_path, (TWO,))["attention"]) == {"split-kv"}


def test_all_points_are_warmed_up_first_and_then_visited_in_rounds_of_changing_order(machine, tmp_path):
    machine.measure(tmp_path, **GRID)
    points = {(layers, *rest) for layers, *rest in machine.calls}
    warm_up, timed = machine.calls[:48], machine.calls[48:]
    assert len(points) == 16
    assert set(warm_up) == points
    visits = [point for point, calls in groupby(timed) for _ in range(len(list(calls)) // 3)]
    rounds = [visits[start : start + 16] for start in range(0, len(visits), 16)]
    assert [set(one) for one in rounds] == [points] * 6
    assert len(set(map(tuple, rounds))) == 6


def test_a_machine_that_gets_slower_counts_against_no_point(machine, tmp_path):
    """Slower by half from end to end: measured each in one go, the first point and the last would be far apart."""
    machine.slower = 1.5 ** (1 / 1000)
    rows = machine.measure(tmp_path, (TWO,), query_tokens=tuple(range(1, 17)), rounds=20)
    law = [machine.law_s(2, row.query_tokens, 1, 128) for row in rows.itertuples()]
    ratio = rows["forward_s"] / law
    assert ratio.max() / ratio.min() < 1.06
    assert ratio.min() > 1.1


def test_what_the_table_holds_is_not_measured_again(machine, tmp_path):
    first = machine.measure(tmp_path, query_tokens=(1, 5))
    machine.calls.clear()
    again = machine.measure(tmp_path, query_tokens=(1, 5), rounds=5)
    assert machine.calls == []
    pd.testing.assert_frame_equal(first, again)
    more = machine.measure(tmp_path, query_tokens=(1, 5, 9))
    assert {tokens for _, tokens, _, _ in machine.calls} == {9}
    assert list(more["query_tokens"]) == [1, 5, 9] * 2


@pytest.mark.parametrize(("change", "kept"), [({"rounds": 7}, [7]), ({"burst": 2}, [6, 6])], ids=["rounds", "burst"])
def test_more_rounds_replace_a_point_and_another_burst_is_another_one(machine, tmp_path, change, kept):
    machine.measure(tmp_path, (TWO,))
    machine.calls.clear()
    rows = machine.measure(tmp_path, (TWO,), **change)
    assert machine.calls
    assert {name: rows[name].tolist() for name in change} == {name: [value] for name, value in change.items()}
    assert list(Store(tmp_path).read("latencies")["rounds"]) == kept


def test_a_point_that_failed_is_tried_again(machine, tmp_path):
    def fails(*call):
        raise RuntimeError("the fan fell off")

    machine.fails = fails
    failed = machine.measure(tmp_path, (TWO,))
    assert list(failed["status"]) == ["error"]
    machine.fails = lambda *call: None
    assert list(machine.measure(tmp_path, (TWO,))["status"]) == ["ok"]


def test_a_point_beyond_the_models_positions_is_a_row_with_the_reason(machine, tmp_path):
    rows = machine.measure(tmp_path, (TWO,), query_tokens=(1, 5), context_tokens=(252, 256))
    found = {(row.query_tokens, row.context_tokens): row for row in rows.itertuples()}
    assert {at for at, row in found.items() if row.status == "ok"} == {(1, 252)}
    assert found[5, 252].status == "unsupported"
    assert found[5, 252].reason == "a context of 252 and 5 more exceed its 256 positions"
    assert pd.isna(found[5, 252].forward_s)


def test_a_point_that_memory_cannot_hold_is_a_row_and_is_not_tried(machine, tmp_path):
    rows = machine.measure(tmp_path, (TWO,), room_bytes=10e6, batch_sizes=(1, 1000))
    assert list(rows["status"]) == ["ok", "oom"]
    assert rows["reason"][1].startswith("it needs ")
    assert rows["reason"][1].endswith(" GB, and 0.01 GB are free for it")
    assert {rows for _, _, rows, _ in machine.calls} == {1}


@pytest.mark.parametrize("at_call", [1, 30], ids=["as it warms up", "in the rounds"])
def test_one_points_fault_ends_no_other(machine, tmp_path, at_call):
    def fails(layers, tokens, rows, context):
        if tokens == 5 and len(machine.calls) >= at_call:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nand more lines")

    machine.fails = fails
    rows = machine.measure(tmp_path, (TWO,), query_tokens=(1, 5, 7))
    assert list(rows["status"]) == ["ok", "oom", "ok"]
    assert rows["reason"][1] == "CUDA out of memory. Tried to allocate 2 GiB"
    assert rows["rounds"][1] == 0
    assert rows["forward_s"][2] == pytest.approx(machine.law_s(2, 7, 1, 128))


def test_a_model_that_cannot_be_loaded_is_rows_of_all_its_points(machine, tmp_path):
    def loads(reference):
        if reference == THREE:
            raise MemoryError("no room for it")

    machine.loads = loads
    rows = machine.measure(tmp_path, query_tokens=(1, 5))
    assert list(rows["status"]) == ["ok", "ok", "oom", "oom"]
    assert set(rows["layers"]) == {2, 3}
    assert set(rows["reason"].dropna()) == {"no room for it"}


def test_where_the_compiler_is_missing_its_points_are_unsupported(machine, tmp_path, monkeypatch):
    def compiles():
        raise OSError("InvalidCxxCompiler: No working C++ compiler found\nin the usual places")

    machine.compiles = compiles
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    rows = machine.measure(tmp_path, (TWO,), modes=("eager", "compiled"))
    assert list(rows["status"]) == ["ok", "unsupported"]
    assert rows["reason"][1] == "torch.compile: OSError: InvalidCxxCompiler: No working C++ compiler found"


# --- choosing tokens

DRAWN, CERTAIN = Choosing(0.8, "rejection", "sample", top_k=50), Choosing(0.0, "greedy", "argmax")


def test_choices_are_timed_without_the_forwards_that_they_stand_behind(machine, tmp_path):
    found = machine.measured(tmp_path, **GRID, choosing=(DRAWN, CERTAIN))
    assert len(found.forwards) == 16
    # Of each model, way and batch size: a draw, and accepting behind one token and five.
    assert len(found.choices) == 2 * 2 * 2 * 3
    assert set(found.choices["context_tokens"]) == {0}
    for row in found.choices.itertuples():
        layers = 2 if row.model == TWO.shape else 3
        law = 1e-4 * layers + 1e-5 * row.query_tokens + 1e-6 * row.batch_size + 1e-3 * row.temperature
        assert (row.choice_s, row.choice_low_s, row.choice_high_s) == pytest.approx((law, law, law), rel=1e-6)
    assert set(found.choices.loc[found.choices["kind"] == "draw", "query_tokens"]) == {1}
    drawn = found.choices[found.choices["temperature"] == 0.8]
    assert (set(drawn["rule"]), set(drawn["proposal"]), set(drawn["top_k"])) == ({"rejection"}, {"sample"}, {50})


def test_choices_take_turns_with_forwards_and_each_stands_behind_one_of_its_own(machine, tmp_path):
    machine.measured(tmp_path, (TWO,), choosing=(DRAWN,))
    # Of one forward and three choices (query 1: a draw and one way to accept): three rounds of warm-up, six of three.
    assert len(machine.choices) == 2 * (3 + 6 * 3)
    assert len(machine.calls) == 3 * (3 + 6 * 3)


def test_what_choosing_takes_is_not_measured_again_and_nothing_else_is_for_its_sake(machine, tmp_path):
    first = machine.measured(tmp_path, (TWO,))
    machine.calls.clear()
    more = machine.measured(tmp_path, (TWO,), choosing=(DRAWN,))
    assert len(machine.choices) == len(machine.calls)
    pd.testing.assert_frame_equal(first.forwards, more.forwards)
    machine.choices.clear()
    again = machine.measured(tmp_path, (TWO,), choosing=(DRAWN,))
    assert machine.choices == []
    pd.testing.assert_frame_equal(more.choices, again.choices)
    assert first.choices.empty
    assert list(first.choices.columns) == list(more.choices.columns)


def test_a_rule_that_does_not_fit_its_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"rule greedy needs temperature 0, got 0\.8"):
        Study((TWO,), choosing=(Choosing(0.8, "greedy", "sample"),))


# --- graphs


class Counting:
    """A recorder that counts what it records, and what is replayed of it."""

    def __init__(self):
        self.recorded, self.replayed = Counter(), Counter()

    def record(self, phase, work):
        self.recorded[phase] += 1

        def replay():
            self.replayed[phase] += 1
            work()

        return work(), replay


def test_without_graphs_their_points_are_unsupported_and_the_others_run(machine, tmp_path):
    found = machine.measured(tmp_path, (TWO,), modes=("eager", "graphs", "graphs, compiled"), choosing=(CERTAIN,))
    for rows in found:
        by_mode = rows.groupby("mode")["status"].unique().map(list).to_dict()
        assert by_mode == {"eager": ["ok"], "graphs": ["unsupported"], "graphs, compiled": ["unsupported"]}
        assert set(rows["reason"].dropna()) == {"CUDA graphs are captured on a GPU, and cpu is none"}


def test_a_point_in_graphs_is_recorded_once_and_replayed_ever_after(machine, tmp_path):
    machine.recorder = Counting()
    found = machine.measured(tmp_path, (TWO,), modes=("graphs",), choosing=(DRAWN,))
    assert set(found.forwards["status"]) == set(found.choices["status"]) == {"ok"}
    assert machine.recorder.recorded == {"verify": 3, "draft": 1, "accept": 1}
    runs = 3 + 6 * 3
    # Each choice has a forward of its own, and one more whose logits were recorded with.
    assert machine.recorder.replayed == {"verify": 3 * runs + 2, "draft": runs, "accept": runs}
    assert found.forwards["forward_s"][0] == pytest.approx(machine.law_s(2, 1, 1, 128))
    assert set(found.choices["mode"]) == {"graphs"}


def test_weights_on_several_devices_are_in_no_graph(machine, tmp_path):
    machine.recorder = Counting()
    spread = Layers(2)
    spread.is_spread = True
    machine.get = lambda reference: SimpleNamespace(model=SimpleNamespace(sharing_weights=lambda: spread))
    rows = machine.measure(tmp_path, (TWO,), modes=("eager", "graphs"))
    assert list(rows["status"]) == ["ok", "unsupported"]
    assert rows["reason"][1] == "one graph is of one device, and the weights are spread"


def test_what_cannot_be_captured_is_unsupported_with_the_reason(machine, tmp_path):
    class Refusing(Counting):
        def record(self, phase, work):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    machine.recorder = Refusing()
    rows = machine.measure(tmp_path, (TWO,), modes=("graphs",))
    assert list(rows["status"]) == ["unsupported"]
    assert rows["reason"][0] == "CUDA graphs: RuntimeError: operation not permitted when stream is capturing"


def subject(model, **settings):
    study = Study((model,), **settings)
    return Subject(model, study, placement(study.machine), latencies.ZOO)


def units(*models, batch_sizes=(1,)):
    made = [subject(model) for model in models]
    return [Unit(own, (Point(1, size, 64),)) for own in made for size in batch_sizes]


def test_units_stand_together_as_long_as_memory_holds_them():
    two, three = units(TWO, THREE)
    both = two.subject.bytes_of(two.points[0]) + three.subject.size.weights + three.slab_bytes
    assert groups([two, three], both) == [[two, three]]
    assert groups([two, three], both - 1) == [[two], [three]]


def test_two_slabs_of_one_model_count_its_weights_once():
    one, four = units(TWO, batch_sizes=(1, 4))
    needed = one.subject.size.weights + one.slab_bytes + four.slab_bytes + four.scratch_bytes
    assert groups([one, four], needed) == [[one, four]]
    assert groups([one, four], needed - 1) == [[one], [four]]


def test_models_that_do_not_fit_together_are_measured_group_by_group(machine, tmp_path):
    room = max(own.subject.bytes_of(own.points[0]) for own in units(TWO, THREE)) + 200_000
    rows = machine.measure(tmp_path, room_bytes=room)
    layers = [call[0] for call in machine.calls]
    assert layers == sorted(layers)
    assert set(rows["status"]) == {"ok"}


def test_a_model_that_runs_out_of_memory_beside_others_is_tried_alone(machine, tmp_path):
    def fails(layers, *_):
        if layers == 3 and machine.calls.count((3, 1, 1, 128)) == 1:
            raise MemoryError("no room beside the other")

    machine.fails = fails
    rows = machine.measure(tmp_path)
    assert list(rows["status"]) == ["ok", "ok"]
    layers = [call[0] for call in machine.calls]
    assert layers[layers.index(3) + 1 :].count(3) == 3 + 6 * 3
    assert layers[-3 * 6 :] == [3] * 18


def test_the_run_is_on_record(machine, tmp_path):
    study = Study((TWO, THREE), rounds=6)
    rows, _ = measure(study, tmp_path, argv=["latency", "--hub-token", "hf_x"], clock=machine, room_bytes=1e9)
    (run,) = Store(tmp_path).read("runs").to_dict("records")
    assert set(rows["run_id"]) == {run["run_id"]}
    assert run["status"] == "done"
    assert json.loads(run["argv"]) == ["latency", "--hub-token", "[redacted]"]
    assert "context=256" in run["experiment"]
    assert "burst: 4" in run["experiment"]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (ZeroDivisionError, "failed")], ids=["a", "b"]
)
def test_a_run_that_is_cut_says_so_and_keeps_no_half_group(machine, tmp_path, error, status):
    def say(words):
        if words.startswith("round 3"):
            raise error

    with pytest.raises(error):
        measure(Study((TWO,), rounds=6), tmp_path, clock=machine, room_bytes=1e9, say=say)
    assert list(Store(tmp_path).read("runs")["status"]) == [status]
    assert not (tmp_path / "latencies.parquet").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": ()}, "models: give at least one"),
        ({"query_tokens": (1, 0)}, "query_tokens: must be at least 1, got 0"),
        ({"context_tokens": (-1,)}, "context_tokens: must be at least 0, got -1"),
        ({"modes": ("compield",)}, r"modes: unknown mode 'compield'\. Did you mean 'compiled'"),
        ({"rounds": 0}, "rounds: must be at least 1, got 0"),
    ],
)
def test_a_study_of_nothing_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Study(**{"models": (TWO,), **settings})


# --- real forwards


def test_models_of_random_weights_and_the_familys_really_run(family, tmp_path):
    study = Study(("pico", TWO), query_tokens=(1, 4), batch_sizes=(1, 2), context_tokens=(0, 20), rounds=6)
    rows = measure(study, tmp_path, zoo=family).forwards
    assert set(rows["status"]) == {"ok"}
    assert (rows["forward_s"] > 0).all()
    assert (rows["forward_low_s"] <= rows["forward_s"]).all()
    assert (rows["forward_s"] <= rows["forward_high_s"]).all()
    trained, random = rows.iloc[0], rows.iloc[-1]
    assert (trained["model"], trained["random_weights"], random["random_weights"]) == ("pico", False, True)
    assert trained["parameters"] == locate("pico", family).parameters
    assert random["weight_bytes"] == 4 * random["parameters"]
    assert (random["feed_forward"], random["kv_heads"], random["dtype"], random["attention"]) == (
        64, 2, "float32", "grouped",
    )  # fmt: skip


def test_the_forward_that_is_timed_is_the_cores_over_a_full_cache():
    """A query of four tokens behind seven: its logits are those of the slab's keys and values, which are not zero."""
    study = Study((TWO,))
    model = load(locate(TWO), placement(study.machine)).model
    found = latencies._forward(model, Point(4, 2, 7), seed=0)()
    assert found.logits.shape == (2, 4, 100)
    assert (model.cache.slab[:, :, :, :7] != 0).all()
    nodes = latencies._nodes(model, Point(4, 2, 7), 0)
    alone = [Nodes(nodes.tokens[:, : i + 1], nodes.base) for i in range(4)]
    one_by_one = [model.forward(own, 7).logits[:, -1] for own in alone]
    assert torch.allclose(found.logits, torch.stack(one_by_one, dim=1), atol=1e-5)
    model.cache.slab[:, :, :, :7] = 0
    assert not torch.allclose(model.forward(nodes, 7).logits, found.logits, atol=1e-3)


_COMPILED = """
import torch
from pathlib import Path
from specbench.analysis.choosing import Choosing
from specbench.bench import latencies
from specbench.config import RandomModel
from specbench.models.loader import load, placement
from specbench.models.source import locate

study = latencies.Study(
    (RandomModel(shape="2x32x2x64,vocab=100,context=256"),), modes=("eager", "compiled"), rounds=6,
    choosing=(Choosing(0.8, "rejection", "sample"),), query_tokens=(1, 3),
)
model = load(locate(study.models[0]), placement(study.machine)).model
point = latencies.Point(3, 2, 9, "compiled")
with torch.inference_mode():
    found = latencies._forward(model, point, seed=1)().logits
    reference = model.forward(latencies._nodes(model, point, 1), 9).logits
assert torch.allclose(found, reference, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
rows, choices = latencies.measure(study, Path({folder!r}))
assert list(rows["mode"]) == ["eager", "compiled"] * 2
assert set(rows["status"]) == {{"ok"}}, list(rows["reason"])
assert list(choices["mode"]) == ["eager", "compiled"] * 3
assert set(choices["status"]) == {{"ok"}}, list(choices["reason"])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_forward_is_one_graph_of_the_same_logits_and_is_measured_beside_the_eager_one(tmp_path):
    """In a process of its own: the checks of shapes that tests hang into the cache cannot be compiled."""
    script = _COMPILED.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
