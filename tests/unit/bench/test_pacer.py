"""specbench.bench.pacer"""

import pytest

from specbench.bench.pacer import HostPacer


class TickingClock:
    """Moves on by itself at every reading, as real time does while somebody spins; and by hand, as work does."""

    def __init__(self, tick_ns=1000):
        self.now, self.tick = 0, tick_ns

    def __call__(self):
        self.now += self.tick
        return self.now

    def work_ms(self, milliseconds):
        self.now += round(milliseconds * 1e6)


def paced(floor_s, work_ms):
    clock = TickingClock()
    keeper = HostPacer(floor_s, clock)
    for milliseconds in work_ms:
        with keeper:
            clock.work_ms(milliseconds)
    return keeper


def test_a_short_forward_is_stretched_to_the_bound():
    assert paced(0.005, [1, 2]).achieved_s() == pytest.approx([0.005, 0.005], abs=2e-6)


def test_the_bound_is_a_lower_one():
    assert min(paced(0.005, [0, 1, 4.9999, 5, 9]).achieved_s()) >= 0.005


def test_a_long_forward_is_left_as_it_is():
    assert paced(0.005, [9]).achieved_s() == pytest.approx([0.009], abs=2e-6)


def test_a_bound_of_zero_only_measures():
    assert paced(0.0, [3]).achieved_s() == pytest.approx([0.003], abs=2e-6)


def test_a_forward_that_fails_is_neither_stretched_nor_counted():
    clock = TickingClock()
    keeper = HostPacer(0.005, clock)
    with pytest.raises(ValueError, match="broken"), keeper:
        raise ValueError("broken")
    assert keeper.achieved_s() == []
    assert clock.now < 5e6


def test_what_was_measured_can_be_forgotten():
    keeper = paced(0.001, [1, 1])
    keeper.clear()
    assert keeper.achieved_s() == []
