"""What the machine did while a batch ran: other load, memory, and what its GPUs tell. Read outside of the timed part.

What cannot be read on a machine is None.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch

from specbench.bench.telemetry import GpuConditions, Monitor, gpus_of
from specbench.bench.timing import monotonic_s
from specbench.models.loader import Placement
from specbench.models.ranks import leads, world


@dataclass(frozen=True)
class Conditions(GpuConditions):
    """The columns of ``requests`` that say under what conditions a batch ran; None where a machine does not tell."""

    load_average: float | None = None
    cpu_wait_share: float | None = None
    cpu_steal_share: float | None = None
    major_faults: int | None = None
    gpu_alloc_retries: int | None = None


class Observer:
    """Looks at the machine before and after a batch; as a context, at its GPUs in between as well.

    Args:
        devices: Where the batch runs; GPUs are asked by NVML where that is installed.
        telemetry: Whether NVML is asked.

    Attributes:
        telemetry: ``on``, or why GPUs are not asked.
    """

    def __init__(self, *devices: torch.device, telemetry: bool = True) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]
        asked, reason = gpus_of(devices) if telemetry else ([], "off: measure.telemetry is false")
        self.telemetry = reason or "on"
        self._monitor = Monitor(asked)

    def __enter__(self) -> Self:
        self._monitor.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._monitor.__exit__(*exception)

    def start(self) -> None:
        """The batch is about to begin."""
        self._before = self._counters()
        self._monitor.start()

    def stop(self) -> Conditions:
        """The batch has just ended; a GPU's clock has not fallen yet."""
        gpu, after = self._monitor.stop(), self._counters()
        passed = {name: _difference(self._before[name], after[name]) for name in after}
        return Conditions(
            **asdict(gpu),
            load_average=_load_average(),
            cpu_wait_share=_quotient(passed["wait_s"], passed["wall_s"]),
            cpu_steal_share=_quotient(passed["steal"], passed["cpu"]),
            major_faults=_whole(passed["major_faults"]),
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
            "alloc_retries": sum(map(_alloc_retries, self._gpus)) if self._gpus else None,
        }


def watched_devices(where: Placement) -> list[torch.device]:
    """The devices that a run notes the conditions of: all that models are spread over; none but in the leading process.

    A model that is spread over layers takes every GPU that is visible; one that is spread over processes, one for each.
    """
    if not leads():
        return []
    if where.device.type != "cuda" or where.parallel == "none":
        return [where.device]
    count = torch.cuda.device_count() if where.parallel == "device_map" else world()
    return [torch.device("cuda", index) for index in range(count)]


def _alloc_retries(device: torch.device) -> int:
    """How often torch found GPU memory full and freed its cache."""
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


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
