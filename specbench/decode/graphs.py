"""CUDA graphs: phases that are captured once and replayed. Nobody else knows that they exist.

A graph is a list of kernels with their addresses, run without Python. So all that a phase reads or writes must lie
where it lay when the phase was captured: ``StaticStep`` sees to that, and everything here rests on it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from specbench.decode.cache import SlabCache
from specbench.decode.method import Prefill, RowView
from specbench.decode.static import StaticStep, form, hosted, is_tensor
from specbench.decode.step import Step
from specbench.decode.target import CachedModel
from specbench.decode.trace import PHASES, Phase
from specbench.errors import SpecbenchError, first_line

T = TypeVar("T")

_Key = tuple[Phase, tuple[Hashable, ...]]


class Recorder(Protocol):
    """Records what a device does."""

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Run some work as often as it takes; return its result, and what does it again into the very same tensors."""


# Kernels are loaded, plans are made and workspaces are allocated in the first rounds; none of that may be captured.
_ROUNDS_BEFORE = 3


def capture(
    work: Callable[[], T],
    device: torch.device,
    stream: torch.cuda.Stream | None = None,
    pool: Any = None,
) -> tuple[T, torch.cuda.CUDAGraph]:
    """Some work as a CUDA graph; what the result holds is void until the first replay.

    Unverified until a GPU has run it.

    Args:
        work: Done a few times, then captured.
        device: Where all of it happens.
        stream: Where it is captured; a new one where None.
        pool: Memory that is shared with other graphs, which must never run at the same time.
    """
    stream, before = stream or torch.cuda.Stream(device), torch.cuda.current_stream(device)
    pool = pool or torch.cuda.graph_pool_handle()
    stream.wait_stream(before)
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves torch on its stream: only a context of our own leads back from there.
    with torch.cuda.stream(stream):
        for _ in range(_ROUNDS_BEFORE):
            work()
        stream.synchronize()
        # Products share a workspace by stream, which torch may take away while a graph still holds its address: when
        # another graph of the stream dies, or Inductor captures something. One that the capture itself allots lies in
        # the graph's own memory.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # Thread-local: what telemetry does in its own thread must not spoil a capture.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            with suppress(RuntimeError):  # before 2.13 torch would refuse the pool to all captures that follow
                torch._C._cuda_endAllocateToPool(_index(device), pool)
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    before.wait_stream(stream)
    return result, graph


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


class CudaRecorder:
    """CUDA graphs, all from one pool of memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Capture."""
        result, graph = capture(work, self._device, self._stream, self._pool)
        return result, graph.replay


class _Recording(NamedTuple):
    """A phase for one form of inputs: the tensors that it reads, those that it leaves, and how to run it again."""

    inputs: list[Tensor]
    result: Any
    replay: Callable[[], None]


class _AtHand(NamedTuple):
    """A recording that needs nothing copied for these very inputs; they are kept so that no others get their ids."""

    recording: _Recording
    inputs: tuple[Any, ...]


@dataclass
class RecordingNotes:
    """What could not be recorded.

    Attributes:
        refused: Why a phase runs as it is.
        missed: Phases of measured steps whose inputs had a form that was never recorded, so that they ran as they are.
    """

    refused: dict[Phase, str] = field(default_factory=dict)
    missed: int = 0


class RecordedStep(StaticStep):
    """Phases as recordings of another step's. They are made when it settles, and never afterwards.

    Args:
        inner: Runs the phases; compiled or not.
        recorder: Records them.
        bound_stride: As in `StaticStep`.
        refused: Phases that shall run as they are, and why.
        drafts: The models that the method drafts with. What is recorded reads and writes their slabs too, and is not
            run again once they or the target have others.
    """

    def __init__(
        self,
        inner: Step,
        recorder: Recorder,
        bound_stride: int = 128,
        refused: Mapping[Phase, str] = MappingProxyType({}),
        drafts: Sequence[CachedModel] = (),
    ) -> None:
        super().__init__(inner, bound_stride)
        self._recorder = recorder
        self._recordings: dict[_Key, _Recording] = {}
        self._at_hand: dict[tuple[Hashable, ...], _AtHand] = {}
        self._owned: dict[int, Tensor] = {}
        self._models = (self.target, *drafts)
        self._slabs: list[SlabCache | None] | None = None
        self.notes = RecordingNotes({**hosted(inner), **refused})

    @property
    def captured_phases(self) -> tuple[Phase, ...]:
        """Phases that are replayed; none on slabs other than those that were recorded with."""
        recorded = {phase for phase, _ in self._recordings} if self._slabs_now == self._slabs else set()
        return tuple(phase for phase in PHASES if phase in recorded and phase not in self.notes.refused)

    def adopt(self, values: T) -> T:
        """As before; what lies still is no copy's source."""
        adopted = super().adopt(values)
        self._own(adopted)
        return adopted

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """As before; another batch comes with other inputs."""
        self._at_hand.clear()
        super().begin(view, prefill)

    def settle(self) -> None:
        """Record every form."""
        if not self.is_settled:
            self._slabs = self._slabs_now
        super().settle()

    def _run(self, phase: Phase, work: Callable[..., T], *inputs: Any) -> T:
        # In most steps inputs are the very objects of the step before: to look into them takes longer than a launch.
        ids = (phase, *(given if isinstance(given, int) else id(given) for given in inputs))
        if (found := self._at_hand.get(ids)) is not None:
            found.recording.replay()
            return found.recording.result
        if self._slabs is None or phase in self.notes.refused:
            return work(*inputs)
        leaves, spec = pytree.tree_flatten(inputs)
        key = (phase, (spec, *map(self._signature, leaves)))
        recording = self._recordings.get(key) if self._slabs_now == self._slabs else None
        if recording is None and not self.is_settled:
            recording = self._record(phase, key, work, inputs)
        if recording is None:
            self.notes.missed += self.is_settled
            return work(*inputs)
        pairs = [*zip(recording.inputs, filter(is_tensor, leaves), strict=True)]
        if all(kept is given for kept, given in pairs):
            self._at_hand[ids] = _AtHand(recording, inputs)
        for kept, given in pairs:
            if kept is not given:
                kept.copy_(given)
        recording.replay()
        return recording.result

    @property
    def _slabs_now(self) -> list[SlabCache | None]:
        """What the models decode on; slabs are equal to none but themselves."""
        return [model.slab_cache for model in self._models]

    def _record(self, phase: Phase, key: _Key, work: Callable[..., T], inputs: tuple[Any, ...]) -> _Recording | None:
        leaves, spec = pytree.tree_flatten(inputs)
        kept = [self._kept(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        at_home = pytree.tree_unflatten(kept, spec)
        try:
            result, replay = self._recorder.record(phase, lambda: work(*at_home))
        except SpecbenchError:
            raise
        except Exception as error:  # noqa: BLE001  (what cannot be recorded is run as it is, and says why)
            self.notes.refused[phase] = first_line(error)
            return None
        self._own(result)
        self._recordings[key] = _Recording([*filter(is_tensor, kept)], result, replay)
        return self._recordings[key]

    def _signature(self, leaf: object) -> Hashable:
        """What tells recordings apart: which tensor, if it stays where it is, else of which form; or the value."""
        return id(leaf) if id(leaf) in self._owned else form(leaf)

    def _own(self, values: object) -> None:
        """Keep tensors where they are: recordings read or write them."""
        self._owned |= {id(leaf): leaf for leaf in filter(is_tensor, pytree.tree_leaves(values))}

    def _kept(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it stays where it is, else a copy that does."""
        if id(tensor) not in self._owned:
            tensor = tensor.clone()
            self._own(tensor)
        return tensor
