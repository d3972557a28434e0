"""specbench.bench.telemetry"""

import sys
import threading
import time
from dataclasses import fields
from types import SimpleNamespace

import pynvml
import pytest
import torch

from specbench.bench.telemetry import Gpu, GpuConditions, Monitor, NoTelemetryError, gpus_of, throttle_words
from tests.unit.bench.nvml import HARDWARE_THERMAL, POWER, THERMAL, FakeGpu, FakeNvml

NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
NO_PERMISSION = pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)


class Clock:
    """A clock that tests move by hand."""

    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns

    def pass_s(self, seconds):
        self.now_ns += round(seconds * 1e9)


def watched(*gpus, seconds=4.0, meanwhile=lambda: None, **nvml):
    """What is told of a batch of so many seconds; no thread runs, so there is the one look at its end."""
    clock, binding = Clock(), FakeNvml(*gpus, **nvml)
    monitor = Monitor([Gpu(binding, gpu, clock) for gpu in binding.gpus], now=clock)
    clock.pass_s(100)
    monitor.start()
    meanwhile()
    clock.pass_s(seconds)
    return monitor.stop()


# --- what is counted


def test_energy_is_what_the_counter_grew_by_and_power_that_over_the_time():
    gpu = FakeGpu(energy_mj=7_000_000, power_mw=1)

    def work():
        gpu.energy_mj += 1_600_000

    found = watched(gpu, seconds=4.0, meanwhile=work)
    assert (found.gpu_energy_j, found.gpu_power_w) == pytest.approx((1600.0, 400.0))


@pytest.mark.parametrize(("seconds", "known"), [(1.9, False), (2.0, True)])
def test_a_short_batch_has_no_energy_power_or_utilisation(seconds, known):
    found = watched(seconds=seconds)
    told = (found.gpu_energy_j, found.gpu_power_w, found.gpu_utilisation)
    assert all((value is not None) == known for value in told)
    assert found.gpu_clock_mean_mhz == 1980


def test_without_an_energy_counter_power_is_what_the_sensor_said():
    found = watched(refuses={"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED})
    assert (found.gpu_energy_j, found.gpu_power_w) == (None, 300.0)


def test_throttling_between_two_looks_is_not_missed():
    gpu = FakeGpu()

    def work():
        gpu.held_down_ns[POWER] += 1_000_000_000

    found = watched(gpu, seconds=4.0, meanwhile=work)
    assert found.gpu_throttled_share == pytest.approx(0.25)
    assert (found.gpu_throttled_by, found.gpu_throttle) == ("power cap", "")


def test_what_held_the_clock_down_before_the_batch_is_not_counted():
    found = watched(FakeGpu(held_down_ns={POWER: 10**15, THERMAL: 10**15}))
    assert (found.gpu_throttled_share, found.gpu_throttled_by) == (0.0, "")


def test_a_hardware_slowdown_is_told_by_the_looks_alone():
    found = watched(FakeGpu(mask=HARDWARE_THERMAL))
    assert (found.gpu_throttled_by, found.gpu_throttle) == ("hardware thermal", "hardware thermal")
    assert found.gpu_throttled_share == 0.0


def test_only_counters_are_asked_whose_numbers_no_driver_has_changed():
    binding = FakeNvml()
    Gpu(binding, binding.gpus[0]).counters()
    assert binding.fields == {74, 75, 76, 77}


def test_a_counter_that_one_driver_lacks_leaves_the_others():
    gpu = FakeGpu(held_down_ns={THERMAL: 0})

    def work():
        gpu.held_down_ns[THERMAL] += 400_000_000

    assert watched(gpu, seconds=4.0, meanwhile=work).gpu_throttled_share == pytest.approx(0.1)


# --- what is looked at


def test_the_thread_sees_what_happens_between_start_and_stop():
    gpu = FakeGpu(celsius=50)
    binding = FakeNvml(gpu)
    monitor = Monitor([Gpu(binding, gpu)], interval_s=0.002)
    with monitor:
        gpu.celsius = 99
        _until(lambda: binding.asked.count("nvmlDeviceGetTemperature") > 2)
        gpu.celsius = 50
        monitor.start()
        gpu.celsius, gpu.sm_mhz = 70, 1000
        seen = binding.asked.count("nvmlDeviceGetTemperature")
        _until(lambda: binding.asked.count("nvmlDeviceGetTemperature") > seen + 2)
        gpu.celsius, gpu.sm_mhz = 60, 1980
        found = monitor.stop()
    assert found.gpu_temperature_c == 70
    assert found.gpu_clock_mhz == 1980
    assert 1000 < found.gpu_clock_mean_mhz < 1980
    assert found.telemetry_looks > 2
    assert 0 < found.telemetry_busy_s < 1


def _until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_thread_ends_with_the_context_and_no_gpu_needs_none():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "telemetry"]

    with Monitor([Gpu(FakeNvml(), FakeGpu())], interval_s=60):
        assert len(threads()) == 1
    assert threads() == []
    with Monitor([]) as idle:
        assert threads() == []
        idle.start()
        assert idle.stop() == GpuConditions()


def test_averages_of_the_time_before_the_batch_are_left_out():
    clock, gpu = Clock(), FakeGpu(power_mw=700_000)
    binding = FakeNvml(gpu, refuses={"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED})
    monitor = Monitor([Gpu(binding, gpu, clock)], now=clock)
    monitor.start()
    for seconds, power_mw in ((0.5, 700_000), (1.0, 200_000), (0.5, 100_000)):
        clock.pass_s(seconds)
        gpu.power_mw = power_mw
        monitor._look()
    clock.pass_s(0.5)
    gpu.power_mw = 300_000
    assert monitor.stop().gpu_power_w == pytest.approx(200.0)


def test_programs_beside_ours_are_counted_by_whatever_number_ours_goes():
    assert watched(FakeGpu(pids=[4711])).gpu_other_processes == 0
    assert watched(FakeGpu(pids=[17, 17, 12, 4711])).gpu_other_processes == 2


def test_a_container_that_lists_no_programs_tells_nothing_of_others():
    assert watched(FakeGpu(pids=[])).gpu_other_processes is None


def test_several_gpus_add_up_or_the_one_that_is_worst_off_counts():
    first, second = FakeGpu(), FakeGpu(sm_mhz=1500, celsius=80, pids=[1, 2], mask=HARDWARE_THERMAL, busy_percent=50)

    def work():
        first.energy_mj += 800_000
        second.energy_mj += 400_000
        first.held_down_ns[POWER] += 2_000_000_000

    found = watched(first, second, seconds=4.0, meanwhile=work)
    assert (found.gpu_energy_j, found.gpu_power_w) == pytest.approx((1200.0, 300.0))
    assert (found.gpu_clock_mhz, found.gpu_temperature_c, found.gpu_other_processes) == (1500, 80, 1)
    assert (found.gpu_throttled_by, found.gpu_throttled_share) == ("hardware thermal,power cap", pytest.approx(0.5))
    assert found.gpu_utilisation == pytest.approx(0.7)


# --- what is not answered


QUESTIONS = {
    "nvmlDeviceGetTotalEnergyConsumption": {"gpu_energy_j"},
    "nvmlDeviceGetPowerUsage": set(),
    "nvmlDeviceGetUtilizationRates": {"gpu_utilisation"},
    "nvmlDeviceGetClockInfo": {"gpu_clock_mhz", "gpu_clock_mean_mhz", "gpu_memory_clock_mhz"},
    "nvmlDeviceGetTemperature": {"gpu_temperature_c"},
    "nvmlDeviceGetMemoryInfo": {"gpu_memory_bytes"},
    "nvmlDeviceGetComputeRunningProcesses": {"gpu_other_processes"},
    "nvmlDeviceGetFieldValues": {"gpu_throttled_share"},
    "nvmlDeviceGetCurrentClocksEventReasons": set(),
}


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION], ids=["not supported", "no permission"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_without_an_answer_takes_no_other_with_it(question, error):
    found = watched(refuses={question: error})
    silent = {field.name for field in fields(found) if getattr(found, field.name) is None}
    assert silent == QUESTIONS[question]


def test_a_gpu_that_tells_nothing_breaks_nothing():
    all_of_them = (*QUESTIONS, "nvmlDeviceGetCurrentClocksThrottleReasons")
    found = watched(refuses=dict.fromkeys(all_of_them, NOT_SUPPORTED))
    assert found == GpuConditions(telemetry_looks=1, telemetry_busy_s=0.0)


def test_an_older_binding_without_a_question_leaves_its_columns_empty():
    lacks = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetFieldValues", "NVML_FI_DEV_PERF_POLICY_POWER")
    found = watched(FakeGpu(mask=0x20), lacks=lacks)
    assert (found.gpu_throttled_by, found.gpu_throttled_share) == ("thermal", None)


def test_what_a_gpu_does_not_tell_is_named():
    binding = FakeNvml(refuses={"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED})
    assert Gpu(binding, FakeGpu(pids=[])).silent_on() == ["energy", "other programs"]
    assert Gpu(FakeNvml(), FakeGpu()).silent_on() == []


# --- how a GPU is found


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    return torch.device("cuda", 0)


def test_a_gpu_is_found_by_its_uuid(monkeypatch, a_gpu):
    other, own = FakeGpu(uuid="GPU-other", sm_mhz=1), FakeGpu(uuid="GPU-abc", sm_mhz=2)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(other, own))
    assert Gpu.of(a_gpu).look().clock_mhz == 2


def test_a_slice_of_a_gpu_is_found_as_well(monkeypatch, a_gpu):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(uuid="MIG-abc", sm_mhz=3)))
    assert Gpu.of(a_gpu).look().clock_mhz == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver")
def test_without_a_driver_the_reason_is_told(a_gpu):
    with pytest.raises(NoTelemetryError, match="libnvidia-ml is not found"):
        Gpu.of(a_gpu)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the driver is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "different versions"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML does not answer: "),
    ],
)
def test_a_driver_that_does_not_answer_is_told_with_the_reason(monkeypatch, a_gpu, error, words):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(refuses={"nvmlInit": pynvml.NVMLError(error)}))
    assert words in gpus_of([a_gpu])[1]


def test_without_the_binding_and_without_a_gpu_nothing_is_asked(monkeypatch, a_gpu):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus_of([a_gpu]) == ([], "the package nvidia-ml-py is not installed")
    assert gpus_of([torch.device("cpu")]) == ([], "no GPU")


# --- words


def test_masks_are_those_of_nvml():
    """The bits as NVIDIA's own binding names them."""
    assert throttle_words(pynvml.nvmlClocksEventReasonSwPowerCap) == "power cap"
    assert throttle_words(pynvml.nvmlClocksEventReasonSwThermalSlowdown) == "thermal"
    assert throttle_words(pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown) == (
        "hardware slowdown,hardware thermal"
    )
    assert throttle_words(pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown) == "power brake"
    assert throttle_words(pynvml.nvmlClocksEventReasonSyncBoost) == "sync boost"


def test_an_idle_gpu_and_a_clock_that_the_user_set_are_not_throttled():
    assert throttle_words(pynvml.nvmlClocksEventReasonGpuIdle) == ""
    assert throttle_words(pynvml.nvmlClocksEventReasonApplicationsClocksSetting) == ""


# --- the real thing


@pytest.mark.gpu
def test_a_real_gpu_under_load_tells_its_power_clock_and_energy():
    device = torch.device("cuda", torch.cuda.current_device())
    matrix = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    gpus, reason = gpus_of([device])
    if reason:
        pytest.skip(reason)
    with Monitor(gpus) as monitor:
        monitor.start()
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            for _ in range(50):
                matrix @ matrix
            torch.cuda.synchronize(device)
        found = monitor.stop()
    assert found.telemetry_looks >= 4
    assert found.telemetry_busy_s < 0.05 * 2.5
    silent = gpus[0].silent_on()
    assert "clocks" in silent or found.gpu_clock_mean_mhz > 300
    assert "utilisation" in silent or found.gpu_utilisation > 0.5
    assert "power" in silent or 30 < found.gpu_power_w < 2000
    assert "energy" in silent or found.gpu_energy_j == pytest.approx(found.gpu_power_w * 2.5, rel=0.1)
