"""What a CUDA graph does, on any device: operations are noted once, then run again without the Python around them."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from specbench.decode.trace import Phase

T = TypeVar("T")

_ASK_THE_DEVICE = (
    "item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive",
)  # fmt: skip


class HostReadError(RuntimeError):
    """The host asked the device for a value, which no graph can hold."""


class TapeRecorder:
    """A ``Recorder`` by list: every operation with the tensors that it was given.

    As in a graph, numbers that Python knew are part of the list, and every result is written to where the first one
    lay. What is read or written at another address than in the recording is therefore stale or lost, as it is there.

    Attributes:
        operations: How many operations recordings of a phase have, views left out.
    """

    def __init__(self) -> None:
        self.operations: defaultdict[Phase, set[int]] = defaultdict(set)

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Do the work twice, and note it the second time: what is made once and kept is no part of it."""
        work()
        with _Tape() as tape:
            result = work()
        self.operations[phase].add(sum(not call.operation.is_view for call in tape.calls))
        return result, tape.replay


class _Call(NamedTuple):
    operation: OpOverload
    args: Any
    kwargs: Any
    results: list[Tensor]


class _Tape(TorchDispatchMode):
    """Notes operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation.__name__.split(".")[0] in _ASK_THE_DEVICE:
            raise HostReadError(f"{operation.__name__} makes the host wait for a value")
        result = operation(*args, **kwargs)
        self.calls.append(_Call(operation, args, kwargs, _tensors(result)))
        return result

    def replay(self) -> None:
        """Run all operations again, in order."""
        for operation, args, kwargs, results in self.calls:
            again = _tensors(operation(*args, **kwargs))
            for first, new in zip(results, again, strict=True):
                # A view, or what was written in place, lies there already.
                if first.data_ptr() != new.data_ptr():
                    first.copy_(new)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
