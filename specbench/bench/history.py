"""What earlier runs left in a results folder, as far as a later one must know it; and the lock on the folder."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.bench import machine
from specbench.bench.arms import Failure
from specbench.bench.cells import ReadyCell
from specbench.errors import ConfigError, ResultsError
from specbench.grid import Arm
from specbench.records.store import Store


class OutOfMemory:
    """The smallest batch size at which each arm ran out of memory; larger ones need not be tried."""

    def __init__(self, store: Store | None) -> None:
        """From earlier blocks of the store; knowing nothing where that is None."""
        self._least: dict[tuple[Any, ...], int] = {}
        columns = ["target", "dtype", "method", "options", "batch_size"]
        rows = _with_status(store, ["oom"], columns) if store else None
        for *key, size in () if rows is None else rows.itertuples(index=False):
            self._note(tuple(key), int(size))

    def note(self, cell: ReadyCell, arm: Arm) -> None:
        """Remember it."""
        self._note(_memory_key(cell, arm), cell.cell.decode.batch_size)

    def _note(self, key: tuple[Any, ...], size: int) -> None:
        self._least[key] = min(size, self._least.get(key, size))

    def skip(self, cell: ReadyCell, arm: Arm) -> Failure | None:
        """Why the arm is not tried in this cell, if it is not."""
        size = self._least.get(_memory_key(cell, arm))
        if size is None or cell.cell.decode.batch_size <= size:
            return None
        return Failure("skipped", f"it ran out of memory at batch size {size}")


def fastest_so_far(store: Store) -> dict[str, str]:
    """What earlier runs decided on: cell to its fastest autoregressive arm, the first decision first."""
    if not (store.folder / "runs.parquet").exists():
        return {}
    decided: dict[str, str] = {}
    for run in store.read("runs").sort_values("started_at")["notes"].dropna():
        decided = json.loads(run).get("fastest_autoregressive", {}) | decided
    return decided


def _with_status(store: Store, statuses: Sequence[str], columns: list[str]) -> pd.DataFrame:
    """What requests of these statuses have in some columns, each once."""
    if not (store.folder / "requests.parquet").exists():
        return pd.DataFrame(columns=columns)
    rows = store.read("requests", [*columns, "status"])
    return rows[rows["status"].isin(statuses)][columns].drop_duplicates()


def failed_blocks(store: Store) -> set[tuple[str, int, int, int]]:
    """Cell, process, block and repeat of every block in which an arm failed that might do so no more."""
    columns = ["cell", "process", "block", "repeat"]
    failed = _with_status(store, ["oom", "timeout", "error", "skipped"], columns)
    return {(str(cell), int(process), int(block), int(repeat)) for cell, process, block, repeat in failed.to_numpy()}


def close_stale_runs(store: Store) -> None:
    """A run that still says ``running`` was killed: nobody else writes here now."""
    if not (store.folder / "runs.parquet").exists():
        return
    for old in store.read("runs").to_dict("records"):
        if old["status"] == "running":
            store.write_run({**old, "status": "interrupted"})


def _memory_key(cell: ReadyCell, arm: Arm) -> tuple[Any, ...]:
    return cell.cell.target.name, cell.where.dtype_name, arm.method, machine.as_json(arm.options)


def only_writer(folder: Path) -> AbstractContextManager[None]:
    """Keep a second run away from the folder; the lock dies with the process that holds it."""
    return _locked(folder) if os.name == "posix" else nullcontext()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ResultsError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another run is writing to it") from error
    try:
        yield
    finally:
        os.close(descriptor)
