"""specbench.bench.conditions"""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from specbench.bench import conditions
from specbench.bench.conditions import Conditions, Observer, throttle_words


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


def test_masks_are_those_of_nvml():
    """The bits as NVIDIA's own binding names them."""
    nvml = pytest.importorskip("pynvml")
    assert throttle_words(nvml.nvmlClocksEventReasonSwPowerCap) == "power cap"
    assert throttle_words(nvml.nvmlClocksEventReasonSwThermalSlowdown) == "thermal"
    assert throttle_words(nvml.nvmlClocksEventReasonHwSlowdown | nvml.nvmlClocksEventReasonHwThermalSlowdown) == (
        "hardware slowdown,hardware thermal"
    )
    assert throttle_words(nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown) == "power brake"
    assert throttle_words(nvml.nvmlClocksEventReasonSyncBoost) == "sync boost"


def test_an_idle_gpu_and_a_clock_that_the_user_set_are_not_throttled():
    nvml = pytest.importorskip("pynvml")
    assert throttle_words(nvml.nvmlClocksEventReasonGpuIdle) == ""
    assert throttle_words(nvml.nvmlClocksEventReasonApplicationsClocksSetting) == ""


# A binding with one GPU, whose clock is held down by heat.
FAKE_NVML = SimpleNamespace(
    NVMLError=type("NVMLError", (Exception,), {}),
    NVML_CLOCK_SM=1,
    nvmlInit=lambda: None,
    nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
    nvmlDeviceGetClockInfo=lambda handle, clock: 1200,
    nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x20,
)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 3})
    return torch.device("cuda")


def test_a_gpu_tells_its_clock_and_why_it_is_held_down(monkeypatch, gpu):
    monkeypatch.setitem(sys.modules, "pynvml", FAKE_NVML)
    observer = Observer(gpu)
    observer.start()
    found = observer.stop()
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_alloc_retries) == (1200, "thermal", 0)


def test_without_nvml_a_gpu_still_tells_of_its_memory(monkeypatch, gpu):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    observer = Observer(gpu)
    observer.start()
    found = observer.stop()
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_alloc_retries) == (None, None, 0)
