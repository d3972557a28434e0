"""Several processes that hold one model together, as ``torchrun`` starts them; one process alone is the simplest case.

All of them run the same program on the same prompts. What they compute together is equal everywhere; what each finds
out for itself (a clock, a full memory, a file) need not be, so they agree on it before any of them acts on it. The
first one leads: it alone prints and writes.
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch.distributed import ProcessGroup

T = TypeVar("T")

# One that has failed alone is missed by the others; a slow disk while weights are read is none.
_PATIENCE = timedelta(minutes=30)
_groups: "dict[str, ProcessGroup]" = {}


def world() -> int:
    """Processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process prints and writes files."""
    return world() == 1 or int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """This process's number on its machine: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(device_type: str) -> None:
    """Meet the other processes: NCCL between GPUs, gloo between CPUs. Once is enough."""
    import torch
    import torch.distributed as dist

    if world() == 1 or dist.is_initialized():
        return
    if device_type == "cuda":
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)


def leave() -> None:
    """Part from the other processes."""
    import torch.distributed as dist

    if dist.is_initialized():
        _groups.clear()
        dist.destroy_process_group()


def agreed(value: T) -> T:
    """What the leader holds the value to be; it has to be picklable."""
    return told(value)[0]


def told(value: T) -> list[T]:
    """What every process holds the value to be, the leader first; it has to be picklable."""
    import torch.distributed as dist

    if world() == 1 or not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_on_hosts())
    return values


def _on_hosts() -> "ProcessGroup":
    """A group that talks between hosts: agreeing must not wait for a GPU."""
    import torch.distributed as dist

    if "hosts" not in _groups:
        _groups["hosts"] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _groups["hosts"]


def share(tensors: "Iterable[torch.Tensor]") -> None:
    """Give every process the leader's values of some tensors that all of them hold."""
    import torch.distributed as dist

    if world() > 1 and dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
