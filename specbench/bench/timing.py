"""The only clock. Watches that the decode loop tells where it is, and a few plain readings for everyone else.

A headline watch synchronises at the start of a request, after each half of the prefill and at the end, and nowhere in
between. Steps leave a mark as they pass: the host's clock on a CPU, a timing event on a GPU that is read after the end.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch

from specbench.decode.trace import PHASES, Phase

Nanoseconds = Callable[[], int]
"""A monotonic clock."""

HOST_CLOCK: Nanoseconds = time.perf_counter_ns
"""The host's clock, which every other reading comes from."""

_NOTHING: AbstractContextManager[None] = nullcontext()
_NS = 1e-9
_freezing = Lock()


class BatchTimeoutError(Exception):
    """A batch has taken longer than it was given."""


@dataclass(frozen=True)
class StepTimes:
    """One step of the phase pass, in seconds.

    Attributes:
        draft_s: Time in which the device drafted, or waited for the host to say how.
        verify_s: The same of the target's forward.
        accept_s: The same of acceptance and compaction.
        update_s: The same of the method's update.
        host_s: Host and other: what is left of ``step_s`` beside the four phases.
        step_s: From the end of the step before to the end of this one, as the device saw them.
        launch_s: The host's own time in the four phases: what it takes to enqueue their work on a GPU, and to do it on
            a CPU. Where it comes near ``step_s`` on a GPU, the device waits for the host.
    """

    draft_s: float
    verify_s: float
    accept_s: float
    update_s: float
    host_s: float
    step_s: float
    launch_s: float


@dataclass(frozen=True)
class Timing:
    """When a batch was where, in seconds.

    Attributes:
        prefill_s: From the start of the request to the end of the prefill, the method's own included.
        ttft_s: From the start to the first token.
        decode_s: From the end of the prefill to the end of the last step that counts; 0 where no step was needed.
        step_end_s: When each step ended, after the end of the prefill; only steps that count.
        steps: Phase times, from a phase watch only.
    """

    prefill_s: float
    ttft_s: float
    decode_s: float
    step_end_s: list[float]
    steps: list[StepTimes] = field(default_factory=list)

    def row_done_s(self, steps: int) -> float:
        """When a row that took part in ``steps`` steps was done, after the end of the prefill."""
        return self.step_end_s[steps - 1] if steps else 0.0


class Timeline(Protocol):
    """How time is read on one kind of device."""

    def host(self) -> int:
        """Nanoseconds of the host's clock, at once."""

    def wall(self) -> int:
        """Nanoseconds of the host's clock, once the device has nothing left to do."""

    def mark(self) -> Any:
        """A mark at the end of all work enqueued so far; costs no waiting."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks, to be asked after a later ``wall``."""


class HostTimeline:
    """A CPU: work is done when the call returns."""

    def __init__(self, now: Nanoseconds = HOST_CLOCK) -> None:
        self._now = now

    def host(self) -> int:
        """The clock."""
        return self._now()

    def wall(self) -> int:
        """The clock."""
        return self._now()

    def mark(self) -> int:
        """The clock."""
        return self._now()

    def seconds(self, start: int, end: int) -> float:
        """Their difference."""
        return (end - start) * _NS


class CudaTimeline:
    """A GPU: marks are events on its current stream, between the graphs that are replayed there and never inside one.

    An event takes its time when the device gets there. So what the host does while the device is still busy costs
    nothing, and what the device has to wait for counts in the phase in which it waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def host(self) -> int:
        """The host's clock; the device may be behind."""
        return HOST_CLOCK()

    def wall(self) -> int:
        """The host's clock after a synchronisation."""
        torch.cuda.synchronize(self._device)
        return HOST_CLOCK()

    def mark(self) -> torch.cuda.Event:
        """A timing event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # the current device need not be this one
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Elapsed device time; about half a microsecond fine."""
        return float(start.elapsed_time(end)) * 1e-3


def timeline(device: torch.device) -> Timeline:
    """The timeline of a device."""
    return CudaTimeline(device) if device.type == "cuda" else HostTimeline()


class HeadlineWatch:
    """Times a batch from outside: nothing in a step is wrapped, nothing in the loop is waited for.

    Args:
        time_line: How time is read.
        limit_s: A batch that takes longer is stopped, at the end of a step; None for no limit.
    """

    def __init__(self, time_line: Timeline, limit_s: float | None = None) -> None:
        self._time = time_line
        self._limit_s = limit_s
        self._ends: list[Any] = []
        self._timing: Timing | None = None

    @property
    def timing(self) -> Timing:
        """What was measured."""
        assert self._timing is not None, "finish() comes first"
        return self._timing

    def start(self) -> None:
        """Read the clock."""
        self._ends = []
        self._timing = None
        self._start = self._time.wall()

    def first_token(self) -> None:
        """Read the clock."""
        self._first = self._time.wall()

    def prefilled(self) -> None:
        """Read the clock, and leave the mark that steps are counted from."""
        self._prefilled = self._time.wall()
        self._anchor = self._time.mark()

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Wrap nothing."""
        return _NOTHING

    def step(self) -> None:
        """Leave a mark.

        Raises:
            BatchTimeoutError: The batch has used up its time.
        """
        self._ends.append(self._time.mark())
        if self._limit_s is not None and (self._time.host() - self._start) * _NS > self._limit_s:
            raise BatchTimeoutError(f"it took longer than {self._limit_s:g} s")

    def finish(self, steps: int) -> None:
        """Resolve the marks of the first ``steps`` steps; later steps were none of the batch's business."""
        self._time.wall()
        ends = [self._time.seconds(self._anchor, end) for end in self._ends[:steps]]
        self._timing = Timing(
            prefill_s=(self._prefilled - self._start) * _NS,
            ttft_s=(self._first - self._start) * _NS,
            decode_s=ends[-1] if ends else 0.0,
            step_end_s=ends,
            steps=self._phases(steps),
        )

    def _phases(self, steps: int) -> list[StepTimes]:
        return []


class _Lap(NamedTuple):
    """One phase: marks at both ends, and what the host took between them."""

    name: Phase
    begin: Any
    end: Any
    launch_ns: int


class PhaseWatch(HeadlineWatch):
    """Also times the four phases of every step, which costs a little: it is for shares of a step, not for headlines."""

    def start(self) -> None:
        """Read the clock."""
        self._laps: list[list[_Lap]] = [[]]
        super().start()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Mark both ends of a phase."""
        begin, begin_ns = self._time.mark(), self._time.host()
        yield
        launch_ns = self._time.host() - begin_ns
        self._laps[-1].append(_Lap(name, begin, self._time.mark(), launch_ns))

    def step(self) -> None:
        """Leave a mark, and begin the next step."""
        super().step()
        self._laps.append([])

    def _phases(self, steps: int) -> list[StepTimes]:
        starts = [self._anchor, *self._ends]
        return [self._step_times(starts[i], self._ends[i], self._laps[i]) for i in range(steps)]

    def _step_times(self, begin: Any, end: Any, laps: list[_Lap]) -> StepTimes:
        spent = dict.fromkeys(PHASES, 0.0)
        for lap in laps:
            spent[lap.name] += self._time.seconds(lap.begin, lap.end)
        whole = self._time.seconds(begin, end)
        rest = max(0.0, whole - sum(spent.values()))  # events are rounded, so the rest may fall below 0 by a hair
        return StepTimes(
            spent["draft"],
            spent["verify"],
            spent["accept"],
            spent["update"],
            host_s=rest,
            step_s=whole,
            launch_s=sum(lap.launch_ns for lap in laps) * _NS,
        )


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Let the collector forget what lives now: models and modules are then not looked through again and again.

    Inside another one nothing more is frozen: Python can only thaw all at once.
    """
    gc.collect()
    if not _freezing.acquire(blocking=False):
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _freezing.release()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and keep the collector out of a timed region."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def seconds_of(work: Callable[[], object], time_line: Timeline) -> float:
    """Wall time of one call, in seconds, the device synchronised before and after."""
    start = time_line.wall()
    work()
    return (time_line.wall() - start) * _NS


def monotonic_s() -> float:
    """Seconds of a clock that never goes back: for progress, never for results."""
    return time.monotonic()


def utc_now() -> str:
    """The time of day in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
