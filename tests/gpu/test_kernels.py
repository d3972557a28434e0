"""Kernels as torch's profiler sees them, launched and replayed, and a step beside the sum of them."""

import json

import pytest
import torch

from specbench.bench.kernels import KernelWatch, main, summed_s
from specbench.bench.timing import HeadlineWatch, timeline
from specbench.decode.graphs import capture
from specbench.testing.cases import PROMPTS, Case
from support import decoding, gpu
from tests.unit.models import tiny

pytestmark = pytest.mark.gpu

KERNELS, ROUNDS = 20, 3


def names_seen(work):
    """What runs in some rounds of it."""
    watch = KernelWatch(timeline(gpu.DEVICE))
    watch.prefilled()
    for _ in range(ROUNDS):
        work()
    watch.finish(0)
    return [piece.name for piece in watch.work]


def test_the_kernels_of_a_graph_are_seen_one_by_one_and_are_those_of_launches():
    numbers = torch.zeros(1 << 20, device=gpu.DEVICE)

    def add():
        for _ in range(KERNELS):
            numbers.add_(1)

    add()
    _, graph = capture(add, gpu.DEVICE)
    launched = names_seen(add)
    assert len(launched) == ROUNDS * KERNELS
    assert names_seen(graph.replay) == launched


def test_the_kernels_of_a_launched_step_take_less_than_the_step(kind):
    step, clock = gpu.step(Case(kind, kind.examples[0])), timeline(gpu.DEVICE)
    decoding.decode(step.target, step.method, PROMPTS, step=step)
    timed, seen = HeadlineWatch(clock), KernelWatch(clock)
    steps = decoding.decode(step.target, step.method, PROMPTS, step=step, watch=timed).steps
    decoding.decode(step.target, step.method, PROMPTS, step=step, watch=seen)
    assert seen.launched in {steps, steps + 1}
    assert 0 < summed_s(seen.work) / seen.launched < timed.timing.decode_s / steps


def test_a_compiled_step_and_the_sum_of_its_kernels_are_printed(tmp_path, capsys):
    zoo, out = tiny.zoo(tmp_path / "zoo"), tmp_path / "kernels.json"
    main(f"--device cuda --compile --zoo {zoo} --set draft=pico-wide --set gamma=4 --units 4 --out {out}".split())
    line, *longest = capsys.readouterr().out.splitlines()
    assert line.startswith("draft_model, batch 1, graphs, compiled: a step takes ")
    assert longest
    [found] = json.loads(out.read_text())["kernels"]
    assert found["preparation"]["not_compiled"] == found["preparation"]["not_captured"] == {}
    assert found["preparation"]["ran_uncaptured"] == 0
    assert found["interval"]["units"] == 4
