"""What GPUs do while a batch runs, as NVML tells: energy, power, clocks, heat, throttling, memory, other programs.

Energy and the time for which a clock was held down are counters, read just before and just after a batch: neither
depends on the luck of a sample. What has no counter is looked at twice a second, from a thread that notes how long it
was busy. Every question is guarded by itself; one that is not answered is None, and without a GPU or a driver all are.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

import torch

from specbench.bench.machine import nvml_handle
from specbench.bench.timing import HOST_CLOCK, Nanoseconds

INTERVAL_S = 0.5
"""Time between two looks."""

MIN_WINDOW_S = 2.0
"""Shortest batch whose energy and power are told. The power sensor of an A100 or H100 sees about a quarter of the time
(arXiv 2312.02741), and its counter moves in steps of tens of milliseconds."""

SETTLE_S = 1.0
"""NVML's power and utilisation are averages over up to the last second: before that they tell of what was before."""

# Bits of nvmlClocksEventReasons (nvml.h). An idle GPU and a clock that the user has set are no throttling.
_THROTTLE_BITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}

# Counters of nanoseconds. Those of hardware slowdowns are left to the looks: their numbers differ between drivers that
# are both in use (251 to 253, or 269 to 271), and where they mean something else nothing says so.
_HELD_DOWN_NS = {
    "NVML_FI_DEV_PERF_POLICY_POWER": "power cap",
    "NVML_FI_DEV_PERF_POLICY_THERMAL": "thermal",
    "NVML_FI_DEV_PERF_POLICY_SYNC_BOOST": "sync boost",
    "NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT": "board limit",
}

# Fields of NVML's union of values, in the order of nvmlValueType_t.
_VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_REASONS = {
    "LibraryNotFound": "the driver's library libnvidia-ml is not found; a container needs the capability 'utility'",
    "DriverNotLoaded": "the driver is not loaded",
    "NoPermission": "NVML gives no permission",
    "NotFound": "NVML does not know the GPU",
    "NotSupported": "NVML does not support the GPU",
    "LibRmVersionMismatch": "the driver and its library libnvidia-ml are of different versions; restart the machine",
}


class NoTelemetryError(Exception):
    """NVML cannot be asked about a GPU; the message says why."""


@dataclass(frozen=True)
class GpuConditions:
    """The columns of ``requests`` that NVML answers; None where it does not. Of several GPUs: see each.

    Attributes:
        gpu_clock_mhz: SM clock just after the end; of the slowest GPU.
        gpu_throttle: Why clocks were held down just after the end, in words with commas; empty if they were not.
        gpu_clock_mean_mhz: Mean SM clock; of the slowest GPU.
        gpu_memory_clock_mhz: Mean memory clock; of the slowest GPU.
        gpu_energy_j: Energy of all GPUs; None for a batch shorter than `MIN_WINDOW_S`.
        gpu_power_w: Mean power of all GPUs; None as above.
        gpu_utilisation: Mean share of time in which a kernel ran; None as above.
        gpu_temperature_c: Highest temperature.
        gpu_throttled_share: Share of the batch for which a clock was held down, for the reason that did so longest.
        gpu_throttled_by: Why clocks were held down at any time of the batch, as ``gpu_throttle``.
        gpu_memory_bytes: Highest memory in use on a GPU, by whomever.
        gpu_other_processes: Most programs beside ours that computed on a GPU.
        telemetry_looks: Times that the GPUs were looked at, the one after the end included.
        telemetry_busy_s: How long the thread that looks was busy.
    """

    gpu_clock_mhz: int | None = None
    gpu_throttle: str | None = None
    gpu_clock_mean_mhz: float | None = None
    gpu_memory_clock_mhz: float | None = None
    gpu_energy_j: float | None = None
    gpu_power_w: float | None = None
    gpu_utilisation: float | None = None
    gpu_temperature_c: int | None = None
    gpu_throttled_share: float | None = None
    gpu_throttled_by: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_other_processes: int | None = None
    telemetry_looks: int | None = None
    telemetry_busy_s: float | None = None


@dataclass(frozen=True)
class Look:
    """One look at one GPU, at a time of the host's clock in nanoseconds."""

    at_ns: int
    power_w: float | None
    utilisation: float | None
    clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    throttle_mask: int | None
    memory_bytes: int | None
    other_processes: int | None


@dataclass(frozen=True)
class Counters:
    """What only grows: energy, and seconds for which the clock was held down, by reason."""

    energy_j: float | None
    held_down_s: dict[str, float]


class Gpu:
    """One GPU, by NVML.

    Args:
        nvml: The binding, initialised.
        handle: The device's.
        now: The clock that looks are dated by.
    """

    def __init__(self, nvml: Any, handle: Any, now: Nanoseconds = HOST_CLOCK) -> None:
        self._nvml, self._handle, self._now = nvml, handle, now

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """The GPU that torch calls so; by its UUID, since torch's numbering need not be NVML's.

        Raises:
            NoTelemetryError: NVML is missing, or does not know the GPU.
        """
        if device.type != "cuda":
            raise NoTelemetryError("no GPU")
        try:
            import pynvml
        except ImportError:
            raise NoTelemetryError("the package nvidia-ml-py is not installed") from None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, nvml_handle(pynvml, device))
        except pynvml.NVMLError as error:
            kind = type(error).__name__.removeprefix("NVMLError_")
            raise NoTelemetryError(_REASONS.get(kind, f"NVML does not answer: {error}")) from None

    def look(self) -> Look:
        """What it does now."""
        now_ns, power_mw = self._now(), self._ask("nvmlDeviceGetPowerUsage")
        rates, memory = self._ask("nvmlDeviceGetUtilizationRates"), self._ask("nvmlDeviceGetMemoryInfo")
        return Look(
            at_ns=now_ns,
            power_w=None if power_mw is None else power_mw / 1000,
            utilisation=None if rates is None else rates.gpu / 100,
            clock_mhz=self._ask("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
            temperature_c=self._ask("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
            throttle_mask=self._throttle_mask(),
            memory_bytes=None if memory is None else int(memory.used),
            other_processes=self._other_processes(),
        )

    def counters(self) -> Counters:
        """What has come together since the driver was loaded."""
        energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return Counters(None if energy_mj is None else energy_mj / 1000, dict(self._held_down_s()))

    def silent_on(self) -> list[str]:
        """What it does not tell, in words; empty where all is answered."""
        look, counters = self.look(), self.counters()
        answers = {
            "energy": counters.energy_j,
            "power": look.power_w,
            "utilisation": look.utilisation,
            "clocks": look.clock_mhz,
            "temperature": look.temperature_c,
            "throttling": look.throttle_mask if look.throttle_mask is not None else counters.held_down_s or None,
            "memory": look.memory_bytes,
            "other programs": look.other_processes,
        }
        return [name for name, answer in answers.items() if answer is None]

    def _ask(self, question: str, *constants: str) -> Any:
        """The answer; None where the driver, the device or an older binding has none."""
        nvml = self._nvml
        if not all(hasattr(nvml, name) for name in (question, *constants)):
            return None
        try:
            return getattr(nvml, question)(self._handle, *(getattr(nvml, name) for name in constants))
        except nvml.NVMLError:
            return None

    def _throttle_mask(self) -> int | None:
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        # Drivers before 535 know it by its old name.
        return self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") if mask is None else mask

    def _other_processes(self) -> int | None:
        """One of those listed is ours, though in a container it may go by another number; an empty list hides it."""
        listed = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return len({process.pid for process in listed}) - 1 if listed else None

    def _held_down_s(self) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        known = {getattr(nvml, name): reason for name, reason in _HELD_DOWN_NS.items() if hasattr(nvml, name)}
        try:
            values = nvml.nvmlDeviceGetFieldValues(self._handle, list(known))
        except (nvml.NVMLError, AttributeError):
            return
        for value in values:
            if value.nvmlReturn == 0:
                yield known[value.fieldId], getattr(value.value, _VALUES[value.valueType]) * 1e-9


def gpus_of(devices: Iterable[torch.device]) -> tuple[list[Gpu], str]:
    """Every GPU among the devices, and why there are none; all or none of them, since a part would mislead."""
    try:
        return [Gpu.of(device) for device in devices], ""
    except NoTelemetryError as error:
        return [], str(error)


@dataclass
class _Seen:
    """What the thread has seen of the GPUs since the batch began: looks in order, one a GPU each time."""

    looks: list[list[Look]] = field(default_factory=list)
    busy_ns: int = 0


class Monitor:
    """Watches GPUs over one batch after the other; as a context, also from a thread in between.

    Args:
        gpus: Which; without any, nothing is asked and no thread runs.
        interval_s: Time between two looks of the thread.
        now: The clock that windows are measured by.
    """

    def __init__(self, gpus: Sequence[Gpu], interval_s: float = INTERVAL_S, now: Nanoseconds = HOST_CLOCK) -> None:
        self._gpus, self._interval_s, self._now = gpus, interval_s, now
        self._seen = _Seen()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._gpus:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def start(self) -> None:
        """A batch is about to begin."""
        self._begin_ns = self._now()
        self._before = [gpu.counters() for gpu in self._gpus]
        self._take()

    def stop(self) -> GpuConditions:
        """The batch has just ended; the GPUs' clocks have not fallen yet."""
        if not self._gpus:
            return GpuConditions()
        window_s = (self._now() - self._begin_ns) * 1e-9
        after = [gpu.counters() for gpu in self._gpus]
        seen, last = self._take(), [gpu.look() for gpu in self._gpus]
        # One that was under way when the batch began tells of what was before.
        looks = [*(look for look in seen.looks if look[0].at_ns >= self._begin_ns), last]
        windows = [
            _Window(window_s, self._begin_ns, before, end, [look[index] for look in looks])
            for index, (before, end) in enumerate(zip(self._before, after, strict=True))
        ]
        return GpuConditions(**_together(windows), telemetry_looks=len(looks), telemetry_busy_s=seen.busy_ns * 1e-9)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        begin = self._now()
        looks = [gpu.look() for gpu in self._gpus]
        with self._lock:
            self._seen.looks.append(looks)
            self._seen.busy_ns += self._now() - begin

    def _take(self) -> _Seen:
        """What was seen since it was taken last."""
        with self._lock:
            seen, self._seen = self._seen, _Seen()
        return seen


@dataclass(frozen=True)
class _Window:
    """One GPU over one batch."""

    window_s: float
    begin_ns: int
    before: Counters
    after: Counters
    looks: list[Look]

    def known(self, name: str) -> list[Any]:
        """The answers of all looks to one question."""
        return [value for look in self.looks if (value := getattr(look, name)) is not None]

    def settled(self, name: str) -> float | None:
        """Mean of an average that NVML takes, over the looks in which it tells of this batch alone."""
        if self.window_s < MIN_WINDOW_S:
            return None
        earliest = self.begin_ns + SETTLE_S * 1e9
        values = [getattr(look, name) for look in self.looks if look.at_ns >= earliest]
        return _or_none(fmean, [value for value in values if value is not None])

    @property
    def energy_j(self) -> float | None:
        if self.before.energy_j is None or self.after.energy_j is None or self.window_s < MIN_WINDOW_S:
            return None
        return self.after.energy_j - self.before.energy_j

    @property
    def power_w(self) -> float | None:
        """From the counter, which misses no peak; from looks where there is none."""
        energy_j = self.energy_j
        return self.settled("power_w") if energy_j is None else energy_j / self.window_s

    @property
    def held_down_share(self) -> dict[str, float]:
        """By reason, as the counters have it."""
        before, after = self.before.held_down_s, self.after.held_down_s
        return {
            reason: min(1.0, (after[reason] - seconds) / self.window_s)
            for reason, seconds in before.items()
            if reason in after
        }

    @property
    def throttled_by(self) -> set[str] | None:
        """Reasons that a counter or a look names; None where neither can."""
        shares, masks = self.held_down_share, self.known("throttle_mask")
        if not shares and not masks:
            return None
        return {*_words(masks), *(reason for reason, share in shares.items() if share > 0)}


def _together(windows: Sequence[_Window]) -> dict[str, Any]:
    """Several GPUs as one: sums of what adds up, else of the GPU that is worst off."""
    last = [window.looks[-1] for window in windows]
    masks = [look.throttle_mask for look in last if look.throttle_mask is not None]
    reasons = [found for window in windows if (found := window.throttled_by) is not None]
    shares = [share for window in windows for share in window.held_down_share.values()]
    return {
        "gpu_clock_mhz": _least([look.clock_mhz for look in last]),
        "gpu_throttle": throttle_words(*masks) if masks else None,
        "gpu_clock_mean_mhz": _least([_or_none(fmean, window.known("clock_mhz")) for window in windows]),
        "gpu_memory_clock_mhz": _least([_or_none(fmean, window.known("memory_clock_mhz")) for window in windows]),
        "gpu_energy_j": _total([window.energy_j for window in windows]),
        "gpu_power_w": _total([window.power_w for window in windows]),
        "gpu_utilisation": _or_none(fmean, _known([window.settled("utilisation") for window in windows])),
        "gpu_temperature_c": _most(windows, "temperature_c"),
        "gpu_throttled_share": _or_none(max, shares),
        "gpu_throttled_by": ",".join(sorted(set().union(*reasons))) if reasons else None,
        "gpu_memory_bytes": _most(windows, "memory_bytes"),
        "gpu_other_processes": _most(windows, "other_processes"),
    }


def throttle_words(*masks: int) -> str:
    """NVML's masks of reasons in words, separated by commas; empty if no clock is held down."""
    return ",".join(_words(masks))


def _words(masks: Sequence[int]) -> list[str]:
    return [word for bit, word in _THROTTLE_BITS.items() if any(mask & bit for mask in masks)]


def _known(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _or_none(reduce: Any, values: Sequence[Any]) -> Any:
    return reduce(values) if values else None


def _least(values: Sequence[Any]) -> Any:
    return _or_none(min, _known(values))


def _most(windows: Sequence[_Window], name: str) -> Any:
    return _or_none(max, [value for window in windows for value in window.known(name)])


def _total(values: Sequence[float | None]) -> float | None:
    """The sum; None where one is missing, since a part would look like the whole."""
    return None if None in values else sum(_known(values))
