"""Steps whose phases are compiled, or recorded once and replayed. Nobody else knows that there is a difference.

A recording is a CUDA graph: a list of kernels with their addresses, run without Python. So all that a phase reads or
writes must lie where it lay when the phase was recorded. A ``RecordedStep`` sees to that: the state of a batch, its
sampler and what its method carries from step to step live in buffers that all batches share, and phases end by writing
into them. Recordings are made once, when the first batches have shown their forms and no batch is in flight: a phase is
run several times on the way, so all rows are at rest and nothing moves on.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from specbench.decode.cache import SlabCache
from specbench.decode.method import HostReads, Prefill, RowView, StepResult, TokenTree
from specbench.decode.sampling import Sampler
from specbench.decode.step import Accepted, State, Step, Verified
from specbench.decode.target import Output
from specbench.decode.trace import PHASES, Phase
from specbench.decode.tree import Topology
from specbench.errors import SpecbenchError, first_line

T = TypeVar("T")

_Key = tuple[Phase, tuple[Hashable, ...]]
_OF_THE_METHOD: tuple[Phase, ...] = ("draft", "update")

for _kind in (RowView, TokenTree, StepResult, Sampler, Output):
    pytree.register_dataclass(_kind)


class Recorder(Protocol):
    """Records what a device does."""

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Run some work as often as it takes; return its result, and what does it again into the very same tensors."""


class CudaRecorder:
    """CUDA graphs, all from one pool of memory: they never run at the same time.

    Unverified until a GPU has run it.
    """

    # Kernels are loaded, plans are made and workspaces are allocated in the first rounds; none of that may be captured.
    _ROUNDS_BEFORE = 3

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Capture; what the result holds is void until the first replay."""
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self._ROUNDS_BEFORE):
                work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: what telemetry does in its own thread must not spoil a capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
        torch.cuda.current_stream().wait_stream(stream)
        return result, graph.replay


class _Recording(NamedTuple):
    """A phase for one shape of inputs: the tensors that it reads, those that it leaves, and how to run it again."""

    inputs: list[Tensor]
    result: Any
    replay: Callable[[], None]


class _Walk(NamedTuple):
    """What a step began with, and what was drafted."""

    view: RowView
    tree: TokenTree
    state: State


@dataclass
class RecordingNotes:
    """What could not be recorded.

    Attributes:
        refused: Why a phase runs as it is.
        missed: Phases of measured steps whose inputs had a shape that was never recorded, so that they ran as they are.
    """

    refused: dict[Phase, str] = field(default_factory=dict)
    missed: int = 0


class RecordedStep(Step):
    """Phases as recordings of another step's.

    Args:
        inner: Runs the phases; compiled or not.
        recorder: Records them.
        bound_stride: Row lengths are told to phases rounded up to a multiple of it. As soon as a batch has rows longer
            than before, another recording is used.
        refused: Phases that shall run as they are, and why.
    """

    def __init__(
        self,
        inner: Step,
        recorder: Recorder,
        bound_stride: int = 128,
        refused: Mapping[Phase, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(inner.target, inner.method, inner.decoding)
        self.host = HostReads(is_free=False)
        self._inner, self._recorder, self._stride = inner, recorder, bound_stride
        self._recordings: dict[_Key, _Recording] = {}
        self._buffers: dict[Hashable, list[Tensor]] = {}
        self._owned: dict[int, Tensor] = {}
        self._last: _Walk | None = None
        self._slab: SlabCache | None = None
        self._stage: Literal["before", "recording", "after"] = "before"
        self._carried = inner.method.carries()
        hosted = dict.fromkeys(_OF_THE_METHOD, f"{self.method.name} looks at the host") if self._carried is None else {}
        self.notes = RecordingNotes({**hosted, **refused})

    @property
    def captured_phases(self) -> tuple[Phase, ...]:
        """Phases that are replayed."""
        recorded = {key[0] for key in self._recordings}
        return tuple(phase for phase in PHASES if phase in recorded and phase not in self.notes.refused)

    @property
    def compiled_phases(self) -> tuple[Phase, ...]:
        """Those of the step that was recorded."""
        return self._inner.compiled_phases

    def bound(self, longest: int) -> int:
        """The next multiple of the stride."""
        return min(-(-longest // self._stride) * self._stride, self.target.cache.slots)

    def adopt(self, values: T) -> T:
        """Values of a new batch, in the buffers that earlier batches of that shape have used."""
        leaves, spec = pytree.tree_flatten(values)
        tensors = [*filter(_is_tensor, leaves)]
        kept = self._buffers.setdefault((spec, *map(_form, leaves)), [])
        if not kept:
            kept += [self._own(tensor.clone()) for tensor in tensors]
        for buffer, tensor in zip(kept, tensors, strict=True):
            buffer.copy_(tensor)
        buffers = iter(kept)
        return pytree.tree_unflatten([next(buffers) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """As it is, since prompts have any length; then what the method carries gets its place."""
        self._inner.begin(view, prefill)
        for name, tensor in self.adopt({name: getattr(self.method, name) for name in self._carried or ()}).items():
            setattr(self.method, name, tensor)

    def draft(self, view: RowView) -> TokenTree:
        """Replayed if the method can be; else its draft is brought to a width for which the other phases are."""
        self._view = self._steady(view)
        tree = self._run("draft", self._draft_in_place, self._view)
        return self._to_width(tree) if "draft" in self.notes.refused else tree

    def verify(self, tree: TokenTree, root: Tensor, lengths: Tensor, longest: int) -> Verified:
        """Replayed."""
        return self._run("verify", self._inner.verify, tree, root, lengths, longest)

    def accept(self, tree: TokenTree, verified: Verified, state: State, sampler: Sampler) -> Accepted:
        """Replayed; the new state takes the place of the old."""
        self._last = _Walk(self._view, tree, state)
        return self._run("accept", self._accept_in_place, tree, verified, state, sampler)

    def update(self, view: RowView, result: StepResult) -> None:
        """Replayed if the method can be."""
        self._run("update", self._update_in_place, self._steady(view), result)

    def _accept_in_place(self, tree: TokenTree, verified: Verified, state: State, sampler: Sampler) -> Accepted:
        accepted = self._inner.accept(tree, verified, state, sampler)
        result = replace(accepted.result, lengths_before=state.lengths.clone())
        for old, new in zip(state, accepted.state, strict=True):
            if new is not old:
                old.copy_(new)
        return Accepted(state, result, accepted.report)

    def _draft_in_place(self, view: RowView) -> TokenTree:
        return self._leaving_carried(self._inner.draft, view)

    def _update_in_place(self, view: RowView, result: StepResult) -> None:
        self._leaving_carried(self._inner.update, view, result)

    def _leaving_carried(self, work: Callable[..., T], *inputs: Any) -> T:
        """Do the work, and leave what the method carries in the buffers where it was found."""
        buffers = {name: getattr(self.method, name) for name in self._carried or ()}
        result = work(*inputs)
        for name, buffer in buffers.items():
            new = getattr(self.method, name)
            if new is not buffer:
                setattr(self.method, name, buffer.copy_(new))
        return result

    def _steady(self, view: RowView) -> RowView:
        """A view without the numbers that differ from batch to batch; only ``begin`` has a use for them."""
        slots = self.target.cache.slots
        return replace(view, capacity=slots, text_limit=slots)

    # --- recordings

    @torch.inference_mode()
    def settle(self) -> None:
        """Record what batches like those so far may ask for; from now on nothing is recorded.

        Texts of other lengths ask for other bounds, and a method that drafts on the host for other widths.
        """
        if self._stage == "before" and self._last is not None:
            self._stage, self._slab = "recording", self.target.cache
            view, tree, state = self._last
            state.lengths.fill_(1)  # within every bound
            state.active.zero_()
            for bound in range(self._stride, self.target.cache.slots + self._stride, self._stride):
                self._walk_widths(_Walk(replace(view, longest=self.bound(bound)), tree, state))
        self._stage = "after"

    def _walk_widths(self, last: _Walk) -> None:
        if "draft" not in self.notes.refused:
            self._walk(last._replace(tree=self.draft(last.view)))
        elif isinstance(last.tree.parents, Topology):
            self._walk(last)
        else:
            for nodes in _widths(self.caps.max_nodes):
                self._walk(last._replace(tree=_resized(last.tree, nodes)))

    def _walk(self, step: _Walk) -> None:
        """A step in which no row decodes."""
        view, tree, state = step
        verified = self.verify(tree, state.root, state.lengths, view.longest)
        accepted = self.accept(tree, verified, state, view.sampler)
        if "update" not in self.notes.refused:  # else it is a method that knows of no walk
            self.update(view, accepted.result)

    def _to_width(self, tree: TokenTree) -> TokenTree:
        if isinstance(tree.parents, Topology):
            return tree
        nodes = tree.tokens.shape[1]
        return _resized(tree, next(width for width in _widths(self.caps.max_nodes) if width >= nodes))

    def _run(self, phase: Phase, work: Callable[..., T], *inputs: Any) -> T:
        leaves, spec = pytree.tree_flatten(inputs)
        key = (phase, (spec, *map(self._signature, leaves)))
        recording = self._recordings.get(key) if self.target.cache is self._slab else None
        if recording is None and self._stage == "recording" and phase not in self.notes.refused:
            recording = self._record(phase, key, work, inputs)
        if recording is None:
            self.notes.missed += self._stage == "after" and phase not in self.notes.refused
            return work(*inputs)
        for kept, tensor in zip(recording.inputs, filter(_is_tensor, leaves), strict=True):
            if kept is not tensor:
                kept.copy_(tensor)
        recording.replay()
        return recording.result  # type: ignore[no-any-return]

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
        for tensor in filter(_is_tensor, pytree.tree_leaves(result)):
            self._own(tensor)
        self._recordings[key] = _Recording([*filter(_is_tensor, kept)], result, replay)
        return self._recordings[key]

    def _signature(self, leaf: object) -> Hashable:
        """What tells recordings apart: which tensor, if it stays where it is, else of which form; or the value."""
        if not isinstance(leaf, Tensor):
            return leaf
        return id(leaf) if id(leaf) in self._owned else _form(leaf)

    def _own(self, tensor: Tensor) -> Tensor:
        """Keep a tensor where it is: recordings write or read it."""
        self._owned[id(tensor)] = tensor
        return tensor

    def _kept(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it stays where it is, else a copy that does."""
        return tensor if id(tensor) in self._owned else self._own(tensor.clone())


def _is_tensor(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor)


def _form(leaf: object) -> Hashable:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _widths(most: int) -> list[int]:
    """Draft nodes for which recordings are made: with the root a power of two, as matrix products like it."""
    widths = [0]
    while widths[-1] < most:
        widths.append(min(2 * widths[-1] + 1, most))
    return widths


def _resized(tree: TokenTree, nodes: int) -> TokenTree:
    """A draft cut off, or filled up with padding, at so many nodes; it keeps its first ones."""
    batch, more = len(tree.tokens), nodes - tree.tokens.shape[1]
    drafted, parents, probs = tree.drafted, tree.parents, tree.draft_probs
    if parents is None:
        drafted = torch.ones_like(tree.tokens, dtype=torch.bool) if drafted is None else drafted
        drafted = F.pad(drafted, (0, more))
    if isinstance(parents, Tensor):
        parents = F.pad(parents.expand(batch, -1), (0, more), value=-2)
    if probs is not None and tree.draft_rows is None:
        probs = F.pad(probs, (0, 0, 0, max(1, nodes) - probs.shape[1]))
    return replace(
        tree,
        tokens=F.pad(tree.tokens, (0, more)),
        parents=parents,
        drafted=drafted,
        draft_probs=probs,
        draft_rows=None if tree.draft_rows is None else F.pad(tree.draft_rows, (0, more)),
        probe=None if tree.probe is None else F.pad(tree.probe, (0, more)),
    )
