"""Memory: what an arm holds, what a batch needs beyond that, and what a plan will need before a weight is loaded.

Before a run, its arms decode one step on tensors that have shapes and no storage. So the estimate is of the code that
will run, with its slabs, logits and activations; what a library's kernels allocate inside and what captured graphs keep
is not in it.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from specbench.decode.loop import Requests, generate
from specbench.decode.method import Method
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel, local_part
from specbench.decode.trace import NullWatch

META = torch.device("meta")
_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
_READS = (_ATEN._local_scalar_dense.default, _ATEN.item.default, _ATEN.is_nonzero.default)


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Parameters and buffers of some modules as this process holds them; what they share counts once."""
    together = nn.ModuleList(dict.fromkeys(modules))
    return sum(local_part(tensor).nbytes for tensor in (*together.parameters(), *together.buffers()))


# --- while a batch runs


@dataclass(frozen=True)
class Holdings:
    """What an arm keeps between batches.

    Attributes:
        modules: Target, drafts and trained weights of the method's own.
        models: Target and drafts, with their slabs.
    """

    modules: Sequence[nn.Module]
    models: Sequence[CachedModel]

    @property
    def devices(self) -> set[torch.device]:
        """Where all of that lives."""
        return {parameter.device for module in self.modules for parameter in module.parameters()}

    @property
    def cache_bytes(self) -> int:
        """Slabs of keys and values."""
        return sum(model.kv_bytes for model in self.models)


@dataclass(frozen=True)
class MemoryUse:
    """The columns of ``requests`` that say what memory a batch took, in bytes; None where a machine does not tell."""

    weight_bytes: int | None = None
    cache_bytes: int | None = None
    graph_bytes: int | None = None
    steady_bytes: int | None = None
    peak_bytes: int | None = None
    peak_rss_bytes: int | None = None


class MemoryObserver:
    """Looks at memory before and after a batch, outside of the timed part.

    Args:
        holdings: What the arm keeps; None where it could not be loaded.
    """

    def __init__(self, holdings: Holdings | None) -> None:
        self._holdings = holdings
        devices = set() if holdings is None else holdings.devices
        self._gpus = sorted((device for device in devices if device.type == "cuda"), key=str)
        self._counts_rss = bool(devices) and not self._gpus and _forget_highest_rss()
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def stop(self) -> MemoryUse:
        """The batch has just ended."""
        if self._holdings is None:
            return MemoryUse()
        weights, caches = weight_bytes(self._holdings.modules), self._holdings.cache_bytes
        if not self._gpus:
            peak = _highest_rss() if self._counts_rss else None
            return MemoryUse(weights, caches, steady_bytes=weights + caches, peak_rss_bytes=peak)
        stats = [torch.cuda.memory_stats(gpu) for gpu in self._gpus]
        return MemoryUse(
            weights,
            caches,
            graph_bytes=graph_bytes(self._gpus, torch.cuda.memory_snapshot()),
            steady_bytes=sum(int(own["allocated_bytes.all.current"]) for own in stats),
            peak_bytes=sum(int(own["allocated_bytes.all.peak"]) for own in stats),
        )


_COMMON_POOL = (0, 0)


def graph_bytes(gpus: Sequence[torch.device], segments: Iterable[Mapping[str, Any]]) -> int:
    """What pools of captured graphs hold on some GPUs, of the segments that ``torch.cuda.memory_snapshot`` lists."""
    indices = {gpu.index for gpu in gpus}
    pooled = (
        segment
        for segment in segments
        if segment["device"] in indices and tuple(segment.get("segment_pool_id", _COMMON_POOL)) != _COMMON_POOL
    )
    return sum(int(segment["total_size"]) for segment in pooled)


def _forget_highest_rss() -> bool:
    """Let the high-water mark of resident memory begin anew (Linux); False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def _highest_rss() -> int | None:
    """The high-water mark of this process's resident memory."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return None


# --- before a run


class LiveBytes(TorchDispatchMode):
    """Counts the storage of every tensor that is made, until nobody refers to it any more.

    Tensors without storage count by their shape. They have no values: a number that is read off one is the largest that
    fits, and a copy on the host is full of ones. So code that reads flags goes on, and one that reads sizes makes the
    largest. An operation whose output has a size that depends on values runs on ones, on the host.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it makes."""
        output = _run(func, args, kwargs or {})
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._count(made)
        return output

    def _count(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        if id(storage) in self._alive:
            return
        self._alive[id(storage)] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, id(storage)).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def _run(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    if not (args and isinstance(args[0], Tensor) and args[0].device == META):
        return func(*args, **given)
    output = _unread(func, args, given)
    if output is not None:
        return output
    try:
        return func(*args, **given)
    except NotImplementedError:
        return func(*tree_map_only(Tensor, _ones, args), **tree_map_only(Tensor, _ones, given))


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.device == META else tensor


def _unread(func: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """What a read of a tensor without values answers; None for an operation that reads none."""
    (tensor, *_), wanted = args, given.get("dtype") or args[0].dtype
    if func in _READS:
        return True if wanted == torch.bool else torch.iinfo(torch.int32).max
    if torch.device(given.get("device") or META) == _CPU:
        return _ones(tensor).to(wanted)
    return None


class _EnoughError(Exception):
    """A step has been seen, and that is all that was wanted."""


class _OneStep(NullWatch):
    def step(self) -> None:
        raise _EnoughError


class StepMemory(NamedTuple):
    """What decoding a batch takes beside weights, in bytes.

    Attributes:
        target_cache: The target's slab.
        draft_caches: Those of the drafts.
        transient: The most that lives beside them during prefill and a step: logits, activations, buffers.
    """

    target_cache: int
    draft_caches: int
    transient: int


def step_memory(
    target: CachedModel, method: Method, drafts: Sequence[CachedModel], requests: Requests, decoding: Decoding
) -> StepMemory:
    """Decode the prefill and one step, and count.

    Args:
        target: On ``META``, nothing is computed; a slab that it has is let go of.
        method: Loaded on that target.
        drafts: The draft models that it has been given, likewise.
        requests: The prompts.
        decoding: How.
    """
    for model in (target, *drafts):
        model.release()
    with LiveBytes() as live, suppress(_EnoughError):
        generate(target, method, requests, decoding, _OneStep())
    own, others = target.kv_bytes, sum(draft.kv_bytes for draft in drafts)
    return StepMemory(own, others, live.peak - own - others)
