"""What the machine did while a batch ran: other load, memory, and the GPU's clock. Read outside of the timed part.

What cannot be read on a machine is None.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specbench.bench.timing import monotonic_s


@dataclass(frozen=True)
class Conditions:
    """The columns of ``requests`` that say under what conditions a batch ran; None where a machine does not tell."""

    load_average: float | None = None
    cpu_wait_share: float | None = None
    cpu_steal_share: float | None = None
    major_faults: int | None = None
    gpu_clock_mhz: int | None = None
    gpu_throttle: str | None = None
    gpu_alloc_retries: int | None = None


class Observer:
    """Looks at the machine before and after a batch.

    Args:
        device: Where the batch runs; a GPU is asked for its clock by NVML where that is installed.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = _Gpu(device) if device.type == "cuda" else None

    def start(self) -> None:
        """The batch is about to begin."""
        self._before = self._counters()

    def stop(self) -> Conditions:
        """The batch has just ended; a GPU's clock has not fallen yet."""
        after = self._counters()
        clock_mhz, throttle = self._gpu.state() if self._gpu else (None, None)
        passed = {name: _difference(self._before[name], after[name]) for name in after}
        return Conditions(
            load_average=_load_average(),
            cpu_wait_share=_quotient(passed["wait_s"], passed["wall_s"]),
            cpu_steal_share=_quotient(passed["steal"], passed["cpu"]),
            major_faults=_whole(passed["major_faults"]),
            gpu_clock_mhz=clock_mhz,
            gpu_throttle=throttle,
            gpu_alloc_retries=_whole(passed["alloc_retries"]),
        )

    def _counters(self) -> dict[str, float | None]:
        """Everything that only grows."""
        steal, cpu = _cpu_times()
        return {
            "wall_s": monotonic_s(),
            "wait_s": _run_queue_wait_s(),
            "steal": steal,
            "cpu": cpu,
            "major_faults": _major_faults(),
            "alloc_retries": self._gpu.alloc_retries() if self._gpu else None,
        }


class _Gpu:
    """One GPU, by NVML; everything is None where NVML is missing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml: Any = None
        try:
            import pynvml
        except ImportError:
            return
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)  # torch's numbering need not be NVML's
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}".encode())
            self._nvml = pynvml

    def alloc_retries(self) -> int:
        """How often torch found GPU memory full and freed its cache."""
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def state(self) -> tuple[int | None, str | None]:
        """The clock in MHz, and why it is held down: words separated by commas, none if it is not."""
        if self._nvml is None:
            return None, None
        try:
            clock = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
            mask = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        except self._nvml.NVMLError:
            return None, None
        return int(clock), throttle_words(int(mask))


# Bits of nvmlClocksEventReasons (nvml.h). An idle GPU and a clock that the user has set are no throttling.
_THROTTLE_BITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


def throttle_words(mask: int) -> str:
    """NVML's mask of reasons in words, separated by commas; empty if the clock is free."""
    return ",".join(word for bit, word in _THROTTLE_BITS.items() if mask & bit)


def _load_average() -> float | None:
    """Runnable programs over the last minute, ours included."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _run_queue_wait_s() -> float | None:
    """Seconds for which this process was ready and had to wait for a core (Linux)."""
    try:
        return int(Path("/proc/self/schedstat").read_text("ascii").split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return None


def _cpu_times() -> tuple[float | None, float | None]:
    """Ticks that the hypervisor took, and ticks of all kinds (Linux)."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text("ascii").partition("\n")[0].split()[1:]]
        return ticks[7], sum(ticks[:8])  # what guests used is counted as user time already
    except (OSError, IndexError, ValueError):
        return None, None


def _major_faults() -> int | None:
    """Pages of this process that had to be read from disk."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _quotient(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
