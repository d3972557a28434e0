"""A run of several processes that hold one target together: what they may run, and which of them writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specbench.errors import ConfigError
from specbench.grid import Plan
from specbench.models.ranks import leads, world
from specbench.records.store import Store

_TENSOR = "machine.parallel: tensor"


def check_processes(plan: Plan) -> None:
    """Refuse a plan that these processes cannot run together.

    Raises:
        ConfigError: Several processes without one target to hold, or something that is made in one process.
    """
    spread = {cell.machine.parallel == "tensor" for cell in plan.cells}
    if world() > 1 and spread != {True}:
        raise ConfigError(f"{world()} processes were started together, and only {_TENSOR} has a use for them")
    if True not in spread:
        return
    if plan.measure.processes > 1:
        raise ConfigError(f"measure.processes is more than 1, and with {_TENSOR} torchrun starts the processes")
    if plan.studies:
        raise ConfigError(f"traces, latencies and scores are made in one process: not with {_TENSOR}")
    if any(cell.decode.turns > 1 for cell in plan.cells):
        raise ConfigError(f"decode.turns is more than 1, and answers are made in one process: not with {_TENSOR}")


def store_of(folder: Path) -> Store:
    """The results folder of a run; only the leader writes to it."""
    return Store(folder) if leads() else _OnlyRead(folder)


class _OnlyRead(Store):
    """A results folder that another process writes to."""

    def write_block(self, key: str, requests: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> None:
        """Leave it to the leader."""

    def write_part(self, table: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Leave it to the leader."""

    def write_run(self, row: Mapping[str, Any]) -> None:
        """Leave it to the leader."""
