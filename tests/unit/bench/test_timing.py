"""specbench.bench.timing"""

import gc
from threading import Lock

import pytest
import torch

from specbench.bench import timing
from specbench.bench.timing import (
    BatchTimeoutError,
    CudaTimeline,
    HeadlineWatch,
    HostTimeline,
    PhaseWatch,
    frozen_objects,
    no_garbage_collection,
)
from specbench.decode import loop
from specbench.decode.loop import Decoding, Requests, generate
from specbench.decode.target import CachedModel
from support import decoding, models


class FakeClock:
    """A clock that tests move by hand, in milliseconds."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def pass_ms(self, milliseconds):
        self.now += round(milliseconds * 1e6)


def headline(clock, **options):
    return HeadlineWatch(HostTimeline(clock), **options)


def decode(watch, clock, step_ms, *, needed=None):
    """Start at 5 ms, 10 ms to the first token, 4 ms more of prefill, then the steps."""
    clock.pass_ms(5)
    watch.start()
    clock.pass_ms(10)
    watch.first_token()
    clock.pass_ms(4)
    watch.prefilled()
    for milliseconds in step_ms:
        clock.pass_ms(milliseconds)
        watch.step()
    clock.pass_ms(100)
    watch.finish(len(step_ms) if needed is None else needed)
    return watch.timing


def test_prefill_holds_the_methods_own_prefill_and_ttft_does_not():
    timing = decode(headline(clock := FakeClock()), clock, [1, 1])
    assert timing.prefill_s == pytest.approx(0.014)
    assert timing.ttft_s == pytest.approx(0.010)


def test_decode_ends_with_the_last_step_and_not_with_what_comes_after_it():
    timing = decode(headline(clock := FakeClock()), clock, [2, 3, 4])
    assert timing.step_end_s == pytest.approx([0.002, 0.005, 0.009])
    assert timing.decode_s == pytest.approx(0.009)


def test_a_step_too_many_is_not_charged():
    timing = decode(headline(clock := FakeClock()), clock, [2, 3, 50], needed=2)
    assert timing.decode_s == pytest.approx(0.005)
    assert len(timing.step_end_s) == 2


def test_a_batch_that_ends_with_its_prefill_decodes_for_no_time():
    timing = decode(headline(clock := FakeClock()), clock, [])
    assert (timing.decode_s, timing.step_end_s, timing.row_done_s(0)) == (0.0, [], 0.0)


def test_a_row_is_done_when_its_own_last_step_ends():
    timing = decode(headline(clock := FakeClock()), clock, [2, 3, 4])
    assert timing.row_done_s(2) == pytest.approx(0.005)


def test_a_watch_can_be_used_for_the_next_batch():
    watch, clock = headline(FakeClock()), FakeClock()
    watch = headline(clock)
    decode(watch, clock, [2, 3, 4])
    assert decode(watch, clock, [7]).step_end_s == pytest.approx([0.007])


def test_a_batch_that_takes_too_long_is_stopped_at_the_end_of_a_step():
    watch = headline(clock := FakeClock(), limit_s=0.1)
    with pytest.raises(BatchTimeoutError, match=r"longer than 0\.1 s"):
        decode(watch, clock, [10, 200, 10])


def test_the_headline_watch_reads_no_clock_inside_a_step():
    clock = FakeClock()
    watch = headline(clock)
    assert watch.phase("draft") is watch.phase("verify")


def test_phase_times_are_summed_by_phase_and_the_rest_is_the_hosts():
    clock = FakeClock()
    watch = PhaseWatch(HostTimeline(clock))
    watch.start()
    watch.first_token()
    watch.prefilled()
    for draft_ms in (2, 6):
        with watch.phase("draft"):
            clock.pass_ms(draft_ms)
        clock.pass_ms(0.5)
        with watch.phase("verify"):
            clock.pass_ms(3)
        with watch.phase("accept"):
            clock.pass_ms(1)
        with watch.phase("update"):
            clock.pass_ms(0.25)
        watch.step()
    watch.finish(2)
    first, second = watch.timing.steps
    assert (first.draft_s, first.verify_s, first.accept_s) == pytest.approx((0.002, 0.003, 0.001))
    assert (first.update_s, first.host_s, first.step_s) == pytest.approx((0.00025, 0.0005, 0.00675))
    assert (second.draft_s, second.step_s) == pytest.approx((0.006, 0.01075))
    assert (first.launch_s, second.launch_s) == pytest.approx((0.00625, 0.01025))


def test_phases_of_a_step_too_many_are_dropped():
    clock = FakeClock()
    watch = PhaseWatch(HostTimeline(clock))
    watch.start()
    watch.first_token()
    watch.prefilled()
    for _ in range(3):
        with watch.phase("draft"):
            clock.pass_ms(1)
        watch.step()
    watch.finish(2)
    assert len(watch.timing.steps) == 2


def test_the_collector_stays_out_of_a_timed_region_and_comes_back():
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_objects_are_frozen_while_asked_for_and_thawed_by_the_outermost_alone(monkeypatch):
    monkeypatch.setattr(timing, "_freezing", Lock())  # what runs the tests has frozen objects as well
    gc.unfreeze()
    with frozen_objects():
        before = gc.get_freeze_count()
        with frozen_objects():
            pass
        assert gc.get_freeze_count() == before > 10_000
    assert gc.get_freeze_count() == 0
    gc.freeze()


# --- a device that works on while the host is ahead


class FakeDevice:
    """A timeline of a GPU that works through what the host enqueues: a mark is dated when the device gets there."""

    def __init__(self):
        self.host_ms = self.done_ms = 0.0

    def launch(self, host_ms, device_ms):
        """The host takes its time to enqueue work, and the device its own from when it is free."""
        self.host_ms += host_ms
        self.done_ms = self.mark() + device_ms

    def host(self):
        return round(self.host_ms * 1e6)

    def wall(self):
        self.wait_for(self.done_ms)
        return self.host()

    def mark(self):
        return max(self.host_ms, self.done_ms)

    def wait_for(self, mark):
        self.host_ms = max(self.host_ms, mark)

    def seconds(self, start, end):
        return (end - start) * 1e-3


def lagged(device, phases, *, steps, between_ms=0.0):
    """A loop that reads the outcome of a step once the next is enqueued, so that it takes one step too many."""
    watch, outcome = PhaseWatch(device), 0.0
    watch.start()
    device.launch(1, 5)
    watch.first_token()
    watch.prefilled()
    for _ in range(steps + 1):
        for name, (host_ms, device_ms) in phases.items():
            with watch.phase(name):
                device.launch(host_ms, device_ms)
            device.host_ms += between_ms
        device.wait_for(outcome)
        outcome = device.mark()
        watch.step()
    watch.finish(steps)
    return watch.timing


def test_a_device_that_never_waits_is_busy_in_the_phases_and_the_host_costs_nothing():
    phases = {"draft": (0.1, 2), "verify": (0.2, 6), "accept": (0.1, 1), "update": (0.1, 0.5)}
    timing = lagged(FakeDevice(), phases, steps=5, between_ms=0.05)
    assert len(timing.steps) == len(timing.step_end_s) == 5
    for step in timing.steps[1:]:
        assert (step.draft_s, step.verify_s, step.accept_s, step.update_s) == pytest.approx((2e-3, 6e-3, 1e-3, 5e-4))
        assert (step.host_s, step.step_s, step.launch_s) == pytest.approx((0.0, 9.5e-3, 5e-4), abs=5e-9)
    assert timing.decode_s == pytest.approx(sum(step.step_s for step in timing.steps))
    assert timing.decode_s < 5 * 9.5e-3 + 1e-3


def test_a_device_that_waits_for_launches_shows_it():
    phases = {"verify": (8, 1), "accept": (1, 0.1)}
    timing = lagged(FakeDevice(), phases, steps=4, between_ms=0.5)
    for step in timing.steps[1:]:
        assert step.launch_s == pytest.approx(9e-3)
        assert step.step_s == pytest.approx(10e-3)
        assert step.launch_s > 0.85 * step.step_s
        assert step.verify_s + step.accept_s + step.host_s == pytest.approx(step.step_s)


def test_what_the_device_waits_for_between_phases_is_host_and_other():
    timing = lagged(FakeDevice(), {"verify": (0.1, 1)}, steps=4, between_ms=3)
    for step in timing.steps[1:]:
        assert step.verify_s == pytest.approx(1.1e-3)
        assert step.host_s == pytest.approx(step.step_s - 1.1e-3)
        assert step.host_s == pytest.approx(2e-3)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_parts_of_every_step_add_up_in_the_real_loop(monkeypatch, lag):
    monkeypatch.setattr(loop, "read_lag", lambda device: lag)
    target = CachedModel(models.target("llama"), "llama")
    method = decoding.prompt_lookup(gamma=2)
    watch = PhaseWatch(HostTimeline())
    trace = generate(target, method, Requests([[1, 2, 3, 1, 2], [5]], [0, 1]), Decoding(max_new_tokens=9), watch)
    steps = watch.timing.steps
    assert len(steps) == trace.steps == len(watch.timing.step_end_s)
    for step in steps:
        parts = (step.draft_s, step.verify_s, step.accept_s, step.update_s)
        assert all(part > 0 for part in parts)
        assert sum(parts) + step.host_s == pytest.approx(step.step_s)
        assert step.launch_s <= sum(parts) * 1.0001
    assert sum(step.step_s for step in steps) == pytest.approx(watch.timing.decode_s)


def test_a_mark_is_made_on_the_timelines_device_whichever_is_current(monkeypatch):
    recorded = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            recorded.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    CudaTimeline(torch.device("cuda", 1)).mark()
    assert recorded == ["stream of cuda:1"]


# --- with a GPU


@pytest.mark.gpu
def test_events_around_work_agree_with_the_wall():
    device = torch.device("cuda", torch.cuda.current_device())
    clock = CudaTimeline(device)
    watch = PhaseWatch(clock)
    matrix = torch.randn(4096, 4096, device=device)
    matrix @ matrix
    watch.start()
    watch.first_token()
    watch.prefilled()
    begin_ns = clock.wall()
    for _ in range(10):
        with watch.phase("verify"):
            for _ in range(5):
                matrix @ matrix
        watch.step()
    wall_s = (clock.wall() - begin_ns) * 1e-9
    watch.finish(10)
    assert watch.timing.decode_s == pytest.approx(wall_s, rel=0.03, abs=2e-4)
    for step in watch.timing.steps:
        assert step.verify_s + step.host_s == pytest.approx(
            step.step_s, abs=4e-6
        )  # five events of half a microsecond each
        assert step.verify_s > 0.9 * step.step_s


@pytest.mark.gpu
def test_graphs_are_timed_by_marks_around_them():
    device = torch.device("cuda", torch.cuda.current_device())
    matrix, out = torch.randn(2048, 2048, device=device), torch.empty(2048, 2048, device=device)
    torch.matmul(matrix, matrix, out=out)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            torch.matmul(matrix, matrix, out=out)
    watch = PhaseWatch(CudaTimeline(device))
    watch.start()
    watch.first_token()
    watch.prefilled()
    for _ in range(6):
        with watch.phase("verify"):
            graph.replay()
        watch.step()
    watch.finish(6)
    for step in watch.timing.steps[1:]:
        assert step.verify_s > 0.8 * step.step_s
        assert step.launch_s < step.verify_s  # a replay is one launch
