"""specbench.bench.conditions"""

import sys
import time
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from specbench.bench import conditions
from specbench.bench.conditions import Conditions, Observer, watched_devices
from specbench.models.loader import Placement
from specbench.records.schema import REQUESTS
from tests.unit.bench.nvml import FakeGpu, FakeNvml


def observed(work=lambda: None):
    observer = Observer(torch.device("cpu"))
    observer.start()
    work()
    return observer.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these facts are Linux's")
def test_linux_tells_about_load_waiting_and_memory():
    found = observed(lambda: time.sleep(0.02))
    assert found.load_average >= 0
    assert 0 <= found.cpu_wait_share <= 1
    assert 0 <= found.cpu_steal_share <= 1
    assert found.major_faults >= 0
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_alloc_retries) == (None, None, None)


def test_waiting_for_a_core_is_a_share_of_the_time_that_passed(monkeypatch):
    waits, walls = iter([10.0, 10.5]), iter([100.0, 102.0])
    monkeypatch.setattr(conditions, "_run_queue_wait_s", lambda: next(waits))
    monkeypatch.setattr(conditions, "monotonic_s", lambda: next(walls))
    assert observed().cpu_wait_share == 0.25


def test_a_machine_that_tells_nothing_has_nothing_in_its_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(conditions, "Path", lambda *parts: tmp_path / "missing")
    monkeypatch.setattr(conditions, "_load_average", lambda: None)
    monkeypatch.setattr(conditions, "_major_faults", lambda: None)
    assert observed() == Conditions()


def test_the_hypervisors_share_is_of_all_ticks(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 10 0 5 35 7 0\ncpu0 1 2 3\n")
    monkeypatch.setattr(conditions, "Path", lambda *parts: stat)
    assert conditions._cpu_times() == (35, 1000)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 3})
    return torch.device("cuda")


def looked_at(gpu, **settings):
    with Observer(gpu, **settings) as observer:
        observer.start()
        return observer.stop(), observer.telemetry


def test_a_gpu_tells_its_clock_and_why_it_is_held_down(monkeypatch, gpu):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(sm_mhz=1200, mask=0x20)))
    found, telemetry = looked_at(gpu)
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_alloc_retries) == (1200, "thermal", 0)
    assert (found.telemetry_looks, telemetry) == (1, "on")
    assert found.load_average is not None or not sys.platform.startswith("linux")


def test_without_nvml_a_gpu_still_tells_of_its_memory(monkeypatch, gpu):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found, telemetry = looked_at(gpu)
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_alloc_retries) == (None, None, 0)
    assert telemetry == "the package nvidia-ml-py is not installed"


def test_telemetry_that_is_off_asks_nothing(monkeypatch, gpu):
    binding = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    found, telemetry = looked_at(gpu, telemetry=False)
    assert binding.asked == []
    assert (found.telemetry_looks, telemetry) == (None, "off: measure.telemetry is false")


def test_a_cpu_is_not_asked_for_its_clock():
    assert looked_at(torch.device("cpu"))[1] == "no GPU"


@pytest.mark.parametrize(
    ("device", "parallel", "expected"),
    [
        ("cpu", "none", ["cpu"]),
        ("cpu", "tensor", ["cpu"]),
        ("cuda:1", "none", ["cuda:1"]),
        ("cuda:0", "device_map", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:0", "tensor", ["cuda:0", "cuda:1"]),
    ],
)
def test_a_model_that_is_spread_is_watched_on_every_gpu_that_holds_a_part(monkeypatch, device, parallel, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    where = Placement(torch.device(device), torch.float32, None, parallel)
    assert [str(found) for found in watched_devices(where)] == expected
    monkeypatch.setenv("RANK", "1")
    assert watched_devices(where) == []


def test_every_condition_is_a_column_that_may_be_null():
    columns = {column.name: column.nullable for column in REQUESTS}
    assert all(columns[field.name] for field in fields(Conditions))
