"""Several processes that train one model, as ``torchrun`` starts them; one process alone is the simplest case."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from specbench.models.ranks import join


@dataclass(frozen=True)
class Processes:
    """Who trains together.

    Attributes:
        rank: Which of them this one is.
        world: How many there are.
    """

    rank: int
    world: int

    @staticmethod
    def alone() -> "Processes":
        """This process and no other."""
        return Processes(0, 1)

    @staticmethod
    def started(device_type: str) -> "Processes":
        """As the environment says that ``torchrun`` has set: NCCL between GPUs, gloo between CPUs."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return Processes.alone()
        join(device_type)
        return Processes(dist.get_rank(), world)

    @property
    def is_first(self) -> bool:
        """Whether this one prints and writes files."""
        return self.rank == 0

    @property
    def local_rank(self) -> int:
        """Its number on this machine: the GPU that it takes."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def wrap(self, module: nn.Module, *, find_unused: bool) -> nn.Module:
        """The module with its gradients averaged over all processes.

        Args:
            module: What learns.
            find_unused: Whether some of its parameters take no part in some forwards.
        """
        return DistributedDataParallel(module, find_unused_parameters=find_unused) if self.world > 1 else module

    def sum(self, values: Tensor) -> Tensor:
        """The values of all processes, added up."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """Close what ``started`` opened."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def device_of(processes: Processes, wanted: torch.device) -> torch.device:
    """The device of this process: each takes a GPU of its own."""
    if wanted.type == "cuda" and processes.world > 1:
        return torch.device("cuda", processes.local_rank)
    return wanted
