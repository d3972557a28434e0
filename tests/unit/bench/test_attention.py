"""specbench.bench.attention: which forwards of a run are timed, and that a choice is made where it should be."""

import copy
import math

import pytest
import torch

from specbench.bench import attention
from specbench.bench.attention import settle, shapes_of
from specbench.bench.timing import HostTimeline, timeline
from specbench.decode.attention.choice import choose
from specbench.decode.target import CachedModel
from support import decoding, models


def test_single_tokens_chains_and_trees_of_the_run_s_size_are_timed():
    shapes = shapes_of(batch_size=8, context=500)
    assert {(shape.batch, shape.context) for shape in shapes} == {(8, 500)}
    assert [shape.queries for shape in shapes if not shape.is_tree] == [1, 5, 64]
    assert [shape.queries for shape in shapes if shape.is_tree] == [5, 64]


def test_on_a_cpu_the_choice_does_not_hang_on_the_machine_s_mood(monkeypatch):
    monkeypatch.setattr("specbench.bench.attention.choose", lambda *_: pytest.fail("it was timed"))
    model = decoding.family("llama")
    before = model.attention
    settle(model, shapes_of(1, 20), timeline(model.device))
    assert model.attention is before


def test_the_best_of_several_calls_counts_and_what_fails_takes_for_ever():
    ticks = iter([0, 30, 100, 107, 200, 220, 300, 311, 400, 450])
    clock = HostTimeline(lambda: next(ticks, 0))
    assert attention._best_seconds(lambda: None, clock, captured_on=None) == pytest.approx(7e-9)
    assert attention._best_seconds(lambda: 1 / 0, clock, captured_on=None) == math.inf


def test_a_try_that_memory_does_not_hold_leaves_the_attention_as_it_was(monkeypatch):
    model = decoding.family("llama")
    before, model.device = model.attention, torch.device("cuda")

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("specbench.bench.attention.choose", full)
    settle(model, shapes_of(1, 20), HostTimeline())
    assert model.attention is before


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [True, False])
def test_on_a_gpu_every_backend_is_timed_and_the_fastest_taken(captured: bool):
    module = copy.deepcopy(models.target("llama")).to("cuda", torch.bfloat16)
    model = CachedModel(module, "llama")
    settle(model, shapes_of(2, 300), timeline(model.device), captured=captured)
    lines, trees = model.attention.seconds
    assert lines[model.attention.lines.name] <= min(lines.values()) / 0.9
    assert trees[model.attention.trees.name] <= min(trees.values()) / 0.9
    assert {"split-kv", "grouped"} <= set(trees)


@pytest.mark.gpu
def test_on_a_gpu_what_was_asked_for_stays():
    module = copy.deepcopy(models.target("llama")).to("cuda", torch.bfloat16)
    model = CachedModel(module, "llama", attention="grouped")
    settle(model, shapes_of(2, 300), timeline(model.device))
    assert model.attention.name == choose(module, [None, None], "grouped").name
