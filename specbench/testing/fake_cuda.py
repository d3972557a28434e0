"""A GPU that is not there: a batch is decoded on CUDA tensors that have a shape, a type and a place, and no values.

Three faults that only a GPU would show are seen so on any machine: a tensor on the wrong device; a host that waits for
a value; and a copy from the host, which waits too. No CUDA graph can hold the latter two. What kernels compute, and
whether their own code waits, is not seen.
"""

import ctypes
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from specbench.decode.attention.choice import Attention
from specbench.decode.attention.flash import FlashVarlen
from specbench.decode.attention.hook import hook
from specbench.decode.attention.masked import Grouped
from specbench.decode.target import CachedModel
from specbench.decode.trace import Phase

from . import decoding, models
from .cases import FAMILY
from .devices import moved
from .tape import HostReadError

T = TypeVar("T")

DEVICE = torch.device("cuda", 0)
NO_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
"""What code raises that goes by values in a way that nobody can make up."""

_aten = torch.ops.aten
_TORCH = str(Path(torch.__file__).parent)
# Single numbers of the host are arguments of a kernel, but for these, which bring them to the device first.
_COPIES = ("_to_copy", "copy_", "where")
# What the host reads of the device is true, a token, and more than one of whatever is counted. What it has brought to
# its own memory before it reads is what the loop goes by: no row decodes any more.
_MADE_UP, _HAS_ENDED = 3, 0


class HostCopyError(RuntimeError):
    """Something of the host's is copied to the device, or the other way round."""


class FakeCuda:
    """While it is entered, ``cuda:0`` can be decoded on, and this object is the ``Recorder`` of what is decoded there.

    A value that the host reads outside of a recording is made up. The loop is told that no row decodes any more, so
    that a batch takes one step.
    """

    def __init__(self) -> None:
        self._eyes = _Eyes()
        self._places = ExitStack()

    @staticmethod
    def unavailable() -> str | None:
        """Why this machine cannot do so; None when it can."""
        if torch.cuda.is_available():
            return "there is a GPU here, and no need to make one up"
        return None if _guards() is not None else "this build of torch does not let its table of devices be seen"

    def __enter__(self) -> Self:
        """Put everything in place; what all tests share has been made before, with values."""
        decoding.drafts_of(FAMILY)
        runtime, numpy = mock.patch.multiple(torch.cuda, **_RUNTIME), mock.patch.object(torch.Tensor, "numpy", _numpy)
        for place in (_guarded(), runtime, numpy, _tensors(), self._eyes):
            self._places.enter_context(place)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""
        self._places.close()

    def model(self, module: nn.Module, name: str) -> CachedModel:
        """A copy of a model there, in half precision, attending as GPUs without a kernel of ours do."""
        there = moved(module, DEVICE, torch.bfloat16)
        hook(there)
        return CachedModel(there, name, attention=Attention("sdpa", FlashVarlen(), Grouped()))

    def target(self) -> CachedModel:
        """The tiny Llama there."""
        return self.model(models.target(FAMILY), FAMILY)

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Do the work under the eyes of a capture; without values there is nothing to do again.

        Raises:
            HostReadError: The host asks for a value.
            HostCopyError: Something is copied between host and device.
        """
        self._eyes.are_strict = True
        try:
            return work(), lambda: None
        finally:
            self._eyes.are_strict = False


class _Eyes(TorchDispatchMode):
    """Sees every operation, those of compiled code too.

    Attributes:
        are_strict: Whether what no graph can hold is refused, or made up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.are_strict = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """The compiler need not stand back: what it has made is seen when it runs."""
        return True

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation.namespace == "aten" and operation._can_decompose():
            with self:  # what it is composed of may be what is refused
                return operation.decompose(*args, **kwargs)
        try:
            result = operation(*args, **kwargs)
        except NO_VALUES as error:
            if self.are_strict:
                raise HostReadError(f"{_name(operation)} makes the host wait for a value, {_place()}") from error
            if operation is _aten._local_scalar_dense.default:
                return _MADE_UP if args[0].is_cuda else _HAS_ENDED
            raise
        if self.are_strict:
            _refuse_copies(operation, args, pytree.tree_leaves((args, kwargs, result)))
        return result


def _refuse_copies(operation: OpOverload, args: Any, leaves: list[Any]) -> None:
    """Hold an operation to what a capture allows."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not any(tensor.is_cuda for tensor in tensors):
        return
    name = _name(operation)
    on_host = [tensor for tensor in tensors if not tensor.is_cuda and tensor.numel()]
    if name in {"index_put", "index_put_", "_index_put_impl_"}:
        # Where a mask says, one number of the host's is filled in; a tensor waits for the mask to be counted.
        is_masked = any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
        if is_masked and not on_host:
            raise HostReadError(f"{name} by a mask makes the host wait for a count, {_place()}")
        is_copy = bool(on_host) and not is_masked
    else:
        is_copy = bool(on_host) and name in _COPIES
    if is_copy or any(tensor.dim() for tensor in on_host):
        raise HostCopyError(f"{name} takes a tensor of the host's to the device, or back, {_place()}")


def _name(operation: OpOverload) -> str:
    return str(operation.__name__).split(".")[0]


def _place() -> str:
    """The innermost line that is neither torch's nor of this file."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((_TORCH, __file__, "<")):
            return f"at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
    return "somewhere"


class _Event:
    """A CUDA event without a GPU."""

    def __init__(self, **_: object) -> None:
        """Nothing to make."""

    def record(self, _: object) -> None:
        """Nothing to note."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, _: object) -> float:
        """No time passes."""
        return 0.0


_RUNTIME: dict[str, Any] = {
    "Event": _Event,
    "current_device": lambda: DEVICE.index,
    "current_stream": lambda *_: None,
    "memory_reserved": lambda *_: 0,
    "synchronize": lambda *_: None,
}


def _numpy(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """What the host would see of its own memory."""
    assert not tensor.is_cuda, "numpy reads the host's memory alone"
    return np.full(tuple(tensor.shape), _HAS_ENDED, dtype=str(tensor.dtype).removeprefix("torch."))


@cache
def _tensors() -> FakeTensorMode:
    """One for all: what decoding makes once a device and keeps must suit whoever comes next."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _guards() -> "ctypes.Array[ctypes.c_void_p] | None":
    """How torch switches to another device: an entry for CPUs, and one for CUDA."""
    library = Path(_TORCH, "lib", "libc10.dylib" if sys.platform == "darwin" else "libc10.so")
    try:
        return (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError):
        return None


@contextmanager
def _guarded() -> Iterator[None]:
    """Indexing switches to a tensor's device first, and a build without CUDA cannot: here it does as with the CPU.

    In builds with CUDA, on machines without a GPU, torch's fake tensors see to that themselves.
    """
    guards = _guards()
    assert guards is not None, "ask unavailable() first"
    before = guards[1]
    guards[1] = before or guards[0]
    try:
        yield
    finally:
        guards[1] = before
