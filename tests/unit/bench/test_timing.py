"""specbench.bench.timing"""

import gc

import pytest

from specbench.bench.timing import BatchTimeoutError, HeadlineWatch, HostTimeline, PhaseWatch, no_garbage_collection


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
