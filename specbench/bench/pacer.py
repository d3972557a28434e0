"""Keeps a lower bound on the time of a draft forward, so that a draft's latency becomes an axis of the grid.

The text stays the model's own: only time is added, by spinning, which keeps clocks as high as real work does. A method
cannot see it: the bench hangs the pacer into the handle through which the method runs its draft.
"""

from contextlib import AbstractContextManager
from types import TracebackType

import torch

from specbench.bench.timing import HOST_CLOCK, CudaTimeline, Nanoseconds


class Pacer(AbstractContextManager[None]):
    """Stretches what it wraps to at least ``floor_s`` seconds, and remembers what came of it.

    Attributes:
        floor_s: The lower bound; 0 only measures.
    """

    floor_s: float

    def achieved_s(self) -> list[float]:
        """What every wrapped call took, in seconds; asked after the device has been synchronised."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget what was measured."""
        raise NotImplementedError


class HostPacer(Pacer):
    """On a CPU: spin until the time has come."""

    def __init__(self, floor_s: float, now: Nanoseconds = HOST_CLOCK) -> None:
        self.floor_s = floor_s
        self._floor_ns = round(floor_s * 1e9)
        self._now = now
        self._achieved: list[int] = []

    def __enter__(self) -> None:
        """Read the clock."""
        self._start = self._now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Spin for the rest of the bound."""
        if kind is not None:
            return
        while (passed := self._now() - self._start) < self._floor_ns:
            pass
        self._achieved.append(passed)

    def achieved_s(self) -> list[float]:
        """Of every call so far, in seconds."""
        return [passed * 1e-9 for passed in self._achieved]

    def clear(self) -> None:
        """Forget them."""
        self._achieved = []


class CudaPacer(Pacer):
    """On a GPU: a kernel spins on a stream of its own beside the forward, and the forward's stream waits for it.

    The host never waits, and the two streams fork and join, so the pair can be captured in a graph. Unverified until a
    GPU has run it.
    """

    def __init__(self, floor_s: float, device: torch.device) -> None:
        self.floor_s = floor_s
        self._device, self._time = device, CudaTimeline(device)
        self._side = torch.cuda.Stream(device)
        self._cycles = round(floor_s * _cycles_per_s(device)) if floor_s else 0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        """Start the spinning kernel at the moment at which the forward can start."""
        self._begin = self._time.mark()
        if self._cycles:
            self._side.wait_event(self._begin)
            with torch.cuda.stream(self._side):
                torch.cuda._sleep(self._cycles)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the forward's stream wait for the kernel."""
        if self._cycles:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        if kind is None:
            self._marks.append((self._begin, self._time.mark()))

    def achieved_s(self) -> list[float]:
        """Of every call so far, in seconds."""
        return [self._time.seconds(begin, end) for begin, end in self._marks]

    def clear(self) -> None:
        """Forget them."""
        self._marks = []


def pacer(floor_s: float, device: torch.device) -> Pacer:
    """A pacer for that device.

    Args:
        floor_s: Lower bound in seconds; 0 only measures.
        device: Where the wrapped forward runs.
    """
    return CudaPacer(floor_s, device) if device.type == "cuda" else HostPacer(floor_s)


def _cycles_per_s(device: torch.device) -> float:
    """How many cycles of the spinning kernel pass in a second, at the clock that the GPU holds under load."""
    time_line, cycles = CudaTimeline(device), 20_000_000
    rates = []
    for _ in range(5):  # the first rounds bring the clock up, the last one counts
        begin = time_line.mark()
        with torch.cuda.device(device):  # the current device need not be this one
            torch.cuda._sleep(cycles)
        end = time_line.mark()
        time_line.wall()
        rates.append(cycles / time_line.seconds(begin, end))
    return rates[-1]
