"""specbench.bench.ceilings"""

from dataclasses import asdict, replace

import pytest
import torch

from specbench.bench import ceilings
from specbench.bench.ceilings import Ceiling, best_of, measure_ceiling

CEILING = Ceiling((1, 2), [1.0, 2.0], 8.0, 5.0, 7.0, 1e-6, None)


class Clock:
    """Rounds take what a list says, in milliseconds; the clock is read before and after each."""

    def __init__(self, *rounds_ms):
        self.ns, self.rounds_ms, self.is_inside = 0, [*rounds_ms], False

    def wall(self):
        if self.is_inside:
            self.ns += round(1e6 * (self.rounds_ms.pop(0) if len(self.rounds_ms) > 1 else self.rounds_ms[0]))
        self.is_inside = not self.is_inside
        return self.ns


def test_the_best_round_counts_whatever_disturbed_the_others(monkeypatch):
    monkeypatch.setattr(ceilings, "_BUDGET_S", 0.75)
    assert ceilings._best_s(lambda: None, torch.device("cpu"), Clock(9, 40, 3, 700, 5)) == pytest.approx(3e-3)


def test_rounds_end_with_their_budget_and_there_are_two_of_the_longest(monkeypatch):
    monkeypatch.setattr(ceilings, "_BUDGET_S", 0.1)
    for milliseconds, rounds in ((60, 2), (1, 100)):
        calls = []
        ceilings._best_s(lambda calls=calls: calls.append(1), torch.device("cpu"), Clock(milliseconds))
        assert len(calls) - 1 == min(rounds, ceilings._MOST)


def test_the_pace_of_reading_is_all_matrices_over_the_fastest_pass_of_them(monkeypatch):
    monkeypatch.setitem(ceilings._SQUARE, "cpu", 32)
    matrices = [torch.ones(16, 8), torch.ones(3, 8, 4)]
    found = measure_ceiling(matrices, Clock(80.0))
    assert found.products_s == pytest.approx([80e-3] * 6)
    assert found.read_bytes_per_s == pytest.approx(4 * (16 * 8 + 3 * 8 * 4) / 80e-3)
    assert found.copy_bytes_per_s == pytest.approx(4 * (16 * 8 + 3 * 8 * 4) / 80e-3)
    assert found.operations_per_s == pytest.approx(2 * 32**3 / 80e-3)
    assert found.launch_s == pytest.approx(80e-3 / 200)
    assert found.captured_launch_s is None


def test_it_leaves_the_global_state_of_chance_alone():
    before = torch.get_rng_state()
    measure_ceiling([torch.ones(4, 4)], Clock(80.0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("field", ["read_bytes_per_s", "copy_bytes_per_s", "operations_per_s"])
def test_of_two_tries_the_faster_pace_is_kept(field):
    better, worse = (replace(CEILING, **{field: value}) for value in (9.5, 1.5))
    for one, other in ((better, worse), (worse, better)):
        assert getattr(best_of(one, asdict(other)), field) == 9.5


def test_of_two_tries_the_shorter_times_are_kept():
    found = best_of(
        replace(CEILING, products_s=[3.0, 1.5], launch_s=2e-6, captured_launch_s=5e-6),
        asdict(replace(CEILING, captured_launch_s=4e-6)),
    )
    assert (found.products_s, found.launch_s, found.captured_launch_s) == ([1.0, 1.5], 1e-6, 4e-6)


@pytest.mark.gpu
def test_on_a_gpu_a_captured_pass_is_no_slower_than_launches_from_python():
    matrices = [torch.randn(512, 512, device="cuda", dtype=torch.bfloat16) for _ in range(64)]
    found = measure_ceiling(matrices)
    assert found.captured_launch_s is not None
    assert found.captured_launch_s < 1.2 * found.launch_s
    assert found.read_bytes_per_s > 0
