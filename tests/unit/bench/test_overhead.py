"""specbench.bench.overhead"""

import json
from collections import Counter
from itertools import pairwise

import pytest

from specbench.analysis.intervals import Totals
from specbench.bench import overhead
from specbench.bench.floor import Setting
from specbench.bench.overhead import _cost, _orders, in_words, main, measure
from specbench.bench.telemetry import Gpu
from specbench.config import MachineSettings
from specbench.models.loader import ModelPool, placement
from tests.unit.bench.nvml import FakeGpu, FakeNvml


@pytest.fixture
def pool(family):
    return ModelPool(placement(MachineSettings(device="cpu")), family)


def setting(**changes):
    return Setting("pico", "autoregressive", {}, **({"batch_size": 1, "prompt_tokens": 32, "units": 4} | changes))


def test_each_way_comes_as_often_early_as_late_and_behind_each_other_as_often_as_before_it():
    ways = ("bare loop", "headline pass", "phase pass", "telemetry")
    orders = _orders(ways)
    for place in range(4):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    pairs = Counter(pair for order in orders for pair in pairwise(order))
    assert all(pairs[first, second] == pairs[second, first] for first, second in pairs)


def test_a_cost_is_the_share_that_it_adds():
    steps = [64.0] * 4
    bare_s = [1.0, 2.0, 1.0, 1.0]
    dear_s = [1.01 * seconds for seconds in bare_s]
    totals = {"bare loop": Totals(bare_s, steps), "headline pass": Totals(dear_s, steps)}
    found = _cost("headline pass", "bare loop", totals)
    assert found.share == pytest.approx(0.01)
    assert (found.interval.low, found.interval.high) == pytest.approx((1.01, 1.01))


def test_a_watch_that_takes_its_time_is_found_out(pool, monkeypatch):
    """A headline watch that dawdles in every step, by about as much again as the step takes."""

    class Slow(overhead.HeadlineWatch):
        def step(self):
            super().step()
            begin = self._time.host()
            while self._time.host() - begin < 3e6:
                pass

    monkeypatch.setattr(overhead, "HeadlineWatch", Slow)
    found = measure(setting(max_new_tokens=16), pool, rounds=1)
    headline, phase = found.costs
    assert (headline.way, headline.against, phase.way) == ("headline pass", "bare loop", "phase pass")
    assert headline.share * found.request_ms > 0.5 * 3 * found.steps
    assert phase.share < 0
    assert found.steps == 15
    assert found.without_telemetry == "no GPU"


def test_telemetry_runs_its_thread_while_it_is_measured_and_only_then(pool, monkeypatch):
    binding = FakeNvml()
    watched = []

    class Watching(overhead.Monitor):
        def __enter__(self):
            watched.append("thread")
            return super().__enter__()

    monkeypatch.setattr(overhead, "gpus_of", lambda devices: ([Gpu(binding, FakeGpu())], ""))
    monkeypatch.setattr(overhead, "Monitor", Watching)
    found = measure(setting(max_new_tokens=4), pool, rounds=2)
    assert [cost.way for cost in found.costs] == ["headline pass", "phase pass", "telemetry"]
    assert len(watched) == 1 + 2 * 4
    assert found.telemetry_busy_share >= 0
    assert in_words(found)[-1].startswith("  its thread was busy for ")


def test_it_prints_a_line_for_each_cost_and_writes_json(family, tmp_path, capsys):
    out = tmp_path / "overhead.json"
    said = {"--zoo": family, "--device": "cpu", "--units": 4, "--batch-size": 1, "--rounds": 1, "--out": out}
    main([str(word) for pair in said.items() for word in pair])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("autoregressive, batch 1: ")
    assert lines[1].startswith("  headline pass against bare loop: ")
    assert lines[1].endswith("over 4 batches")
    assert lines[3] == "  telemetry: not measured: no GPU"
    (found,) = json.loads(out.read_text())["overheads"]
    assert [cost["way"] for cost in found["costs"]] == ["headline pass", "phase pass"]
    assert found["setting"]["prompt_tokens"] == 32
