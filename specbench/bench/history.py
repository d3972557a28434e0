"""What earlier runs left in a results folder, as far as a later one must know it; and the lock on the folder."""

import json
import os
from collections.abc import Collection, Iterator
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

_BLOCK = ["cell", "process", "block", "repeat"]
_COLUMNS = [
    *_BLOCK, "trial_id", "method", "options", "target", "dtype", "batch_size", "status", "reason", "verdict",
]  # fmt: skip
_MAY_DO_BETTER = ("oom", "timeout", "error", "skipped")


class Past:
    """What the blocks of a results folder say of themselves, read once: opening thousands of parts takes its time.

    Attributes:
        store: The folder.
        rows: Every request, by some of its columns.

    Raises:
        ResultsError: A part is unreadable or of another schema version.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rows = store.read("requests", _COLUMNS) if store.has("requests") else store.none_of("requests", _COLUMNS)

    def failed_blocks(self) -> set[tuple[str, int, int, int]]:
        """Cell, process, block and repeat of every block in which an arm failed that might do so no more."""
        failed = self.rows[self.rows["status"].isin(_MAY_DO_BETTER)][_BLOCK].drop_duplicates()
        return {
            (str(cell), int(process), int(block), int(repeat)) for cell, process, block, repeat in failed.to_numpy()
        }

    def and_now(self, keys: Collection[str]) -> pd.DataFrame:
        """The rows with those that have been written under some keys since."""
        if not keys or not self.store.has("requests"):
            return self.rows
        new = self.store.read("requests", _COLUMNS, keys)
        replaced = pd.MultiIndex.from_frame(self.rows[_BLOCK]).isin(pd.MultiIndex.from_frame(new[_BLOCK]))
        return pd.concat([self.rows[~replaced], new], ignore_index=True) if len(self.rows) else new


class OutOfMemory:
    """The smallest batch size at which each arm ran out of memory; larger ones need not be tried."""

    def __init__(self, past: Past | None) -> None:
        """From earlier blocks; knowing nothing where that is None."""
        self._least: dict[tuple[Any, ...], int] = {}
        if past is None:
            return
        columns = ["target", "dtype", "method", "options", "batch_size"]
        rows = past.rows[past.rows["status"] == "oom"][columns].drop_duplicates()
        for *key, size in rows.itertuples(index=False):
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


def close_stale_runs(store: Store) -> None:
    """A run that still says ``running`` was killed: nobody else writes here now."""
    if not (store.folder / "runs.parquet").exists():
        return
    for old in store.read("runs").to_dict("records"):
        if old["status"] == "running":
            known = {str(name): None if pd.isna(value) else value for name, value in old.items()}
            store.write_run(known | {"status": "interrupted"})


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
