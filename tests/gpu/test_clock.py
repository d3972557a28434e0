"""The clock of a GPU: events against the wall, and phases against the step."""

import pytest
import torch

from specbench.bench.timing import PhaseWatch, seconds_of, timeline
from specbench.testing.cases import PROMPTS, Case
from support import decoding, gpu

pytestmark = pytest.mark.gpu


def busy(rounds):
    """Work of some tens of milliseconds, launched faster than it is done."""
    matrix = torch.randn(4096, 4096, device=gpu.DEVICE, dtype=torch.bfloat16)

    def work():
        for _ in range(rounds):
            torch.mm(matrix, matrix)

    work()
    torch.cuda.synchronize()
    return work


def test_events_and_the_wall_agree_on_work_that_keeps_the_device_busy():
    clock, work = timeline(gpu.DEVICE), busy(200)
    begin_ns, begin = clock.wall(), clock.mark()
    work()
    end = clock.mark()
    wall_s = (clock.wall() - begin_ns) * 1e-9
    assert clock.seconds(begin, end) == pytest.approx(wall_s, rel=0.05)


def test_a_mark_waits_for_nothing():
    clock, work = timeline(gpu.DEVICE), busy(200)
    begin_ns, begin = clock.host(), clock.mark()
    work()
    end = clock.mark()
    launched_s = (clock.host() - begin_ns) * 1e-9
    clock.wall()
    assert launched_s < 0.5 * clock.seconds(begin, end)


@pytest.mark.parametrize("make", [gpu.step, lambda case: gpu.captured(case)[0]], ids=["launched", "replayed"])
def test_phases_and_the_rest_make_the_step_and_steps_make_the_wall(kind, make):
    step, clock = make(Case(kind, kind.examples[0])), timeline(gpu.DEVICE)
    decoding.decode(step.target, step.method, PROMPTS, step=step)
    watch = PhaseWatch(clock)
    wall_s = seconds_of(lambda: decoding.decode(step.target, step.method, PROMPTS, step=step, watch=watch), clock)
    timing = watch.timing
    for times in timing.steps:
        phases_s = times.draft_s + times.verify_s + times.accept_s + times.update_s
        assert phases_s + times.host_s == pytest.approx(times.step_s, abs=2e-6)
    assert sum(times.step_s for times in timing.steps) == pytest.approx(timing.decode_s, rel=0.01)
    # Beside them stand the preparation of a batch and the one step too many.
    assert timing.prefill_s + timing.decode_s < wall_s
