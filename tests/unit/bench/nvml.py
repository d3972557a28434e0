"""NVIDIA's own binding in front of GPUs that exist here only: its constants, structures and errors are real."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml

POWER, THERMAL = pynvml.NVML_FI_DEV_PERF_POLICY_POWER, pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL
HARDWARE_THERMAL = pynvml.nvmlClocksEventReasonHwThermalSlowdown


@dataclass
class FakeGpu:
    """A GPU that does what a test says."""

    uuid: str = "GPU-abc"
    energy_mj: int = 1_000_000
    power_mw: int = 300_000
    busy_percent: int = 90
    sm_mhz: int = 1980
    memory_mhz: int = 2619
    celsius: int = 50
    mask: int = 0
    used_bytes: int = 20 * 2**30
    pids: list[int] = field(default_factory=lambda: [4711])
    held_down_ns: dict[int, int] = field(default_factory=lambda: {POWER: 5_000_000, THERMAL: 0})


class FakeNvml:
    """The binding, as far as it is used.

    Args:
        gpus: What there is.
        refuses: Error by the name of the function that raises it.
        lacks: Functions that an older binding has not.
    """

    def __init__(self, *gpus, refuses=None, lacks=()):
        self.gpus, self.refuses, self.lacks = gpus or (FakeGpu(),), refuses or {}, lacks
        self.asked, self.fields = [], set()

    def __getattr__(self, name):
        if name in self.lacks:
            raise AttributeError(name)
        if not name.startswith("nvml") or not hasattr(FakeNvml, f"_{name}"):
            return getattr(pynvml, name)

        def question(*arguments):
            self.asked.append(name)
            if name in self.refuses:
                raise self.refuses[name]
            return getattr(self, f"_{name}")(*arguments)

        return question

    def _nvmlInit(self):  # noqa: N802
        pass

    def _nvmlShutdown(self):  # noqa: N802
        pass

    def _nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        for gpu in self.gpus:
            if gpu.uuid.encode() == uuid:
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _nvmlDeviceGetTotalEnergyConsumption(self, gpu):  # noqa: N802
        return gpu.energy_mj

    def _nvmlDeviceGetPowerUsage(self, gpu):  # noqa: N802
        return gpu.power_mw

    def _nvmlDeviceGetUtilizationRates(self, gpu):  # noqa: N802
        return SimpleNamespace(gpu=gpu.busy_percent, memory=10)

    def _nvmlDeviceGetClockInfo(self, gpu, clock):  # noqa: N802
        return {pynvml.NVML_CLOCK_SM: gpu.sm_mhz, pynvml.NVML_CLOCK_MEM: gpu.memory_mhz}[clock]

    def _nvmlDeviceGetTemperature(self, gpu, sensor):  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return gpu.celsius

    def _nvmlDeviceGetCurrentClocksEventReasons(self, gpu):  # noqa: N802
        return gpu.mask

    def _nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):  # noqa: N802
        return gpu.mask

    def _nvmlDeviceGetMemoryInfo(self, gpu):  # noqa: N802
        return SimpleNamespace(total=80 * 2**30, used=gpu.used_bytes, free=0)

    def _nvmlDeviceGetComputeRunningProcesses(self, gpu):  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in gpu.pids]

    def _nvmlDeviceGetFieldValues(self, gpu, ids):  # noqa: N802
        self.fields |= set(ids)
        values = (pynvml.c_nvmlFieldValue_t * len(ids))()
        for value, number in zip(values, ids, strict=True):
            value.fieldId = number
            value.nvmlReturn = pynvml.NVML_SUCCESS if number in gpu.held_down_ns else pynvml.NVML_ERROR_NOT_SUPPORTED
            value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
            value.value.ullVal = gpu.held_down_ns.get(number, 10**9 * len(self.asked))  # what is not supported is noise
        return values
