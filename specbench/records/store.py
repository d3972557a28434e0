"""The files of a run folder: blocks are written whole or not at all, and read back checked.

A folder holds ``requests.parquet/`` and ``steps.parquet/``, folders with one part a block, and the file
``runs.parquet``. The steps part of a block is written before its requests part, so the requests part is the
mark that the block is complete: steps without it are not read, and are overwritten when the block runs again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from specbench.errors import ResultsError
from specbench.records.schema import BEFORE, SCHEMA_VERSION, TABLES, arrow_schema, row_faults

_VERSION_KEY, _BLOCK_KEY = b"specbench.schema_version", b"specbench.block"


class Store:
    """One run folder, for writing blocks and for reading tables. Opening it touches no disk."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def write_block(self, key: str, requests: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> None:
        """Store the rows of one block, all or none of them; a block of the same key is replaced.

        Raises:
            ResultsError: A row does not fit the schema (the message names the column), or the disk is full.
        """
        # Both are encoded before either is written: a bad row must not leave its block's other half behind.
        encoded = {"steps": _encode("steps", steps, key), "requests": _encode("requests", requests, key)}
        mark = self._part("requests", key)
        mark.unlink(missing_ok=True)
        for table, data in encoded.items():
            try:
                write_atomically(self._part(table, key), data)
            except ResultsError:
                self._part("steps", key).unlink(missing_ok=True)
                raise

    def has_block(self, key: str) -> bool:
        """Whether the block is stored whole.

        Raises:
            ResultsError: It is stored, but unreadable or with another schema version.
        """
        part = self._part("requests", key)
        if not part.exists():
            return False
        _checked_schema(part)
        return True

    def block_keys(self) -> set[str]:
        """Keys of all blocks that are stored whole.

        Raises:
            ResultsError: A part is unreadable or has another schema version.
        """
        metadata = (_checked_schema(part).metadata for part in _parts(self.folder / "requests.parquet"))
        return {entry[_BLOCK_KEY].decode() for entry in metadata if _BLOCK_KEY in entry}

    def write_part(self, table: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store rows of a table that knows no blocks, all or none of them; a part of the same key is replaced.

        Raises:
            ResultsError: A row does not fit the schema (the message names the column), or the disk is full.
        """
        write_atomically(self._part(table, key), _encode(table, rows, key))

    def has_part(self, table: str, key: str) -> bool:
        """Whether rows are stored under that key; they are not looked at."""
        return self._part(table, key).exists()

    def read_part(self, table: str, key: str) -> list[dict[str, Any]] | None:
        """The rows stored under that key; None where there are none.

        Raises:
            ResultsError: They are unreadable or of another schema version.
        """
        part = self._part(table, key)
        return _read_part(part).to_pylist() if part.exists() else None

    def write_run(self, row: Mapping[str, Any]) -> None:
        """Store the row of one run; a row with the same ``run_id`` is replaced.

        Raises:
            ResultsError: The row does not fit, ``runs.parquet`` is unreadable, or the disk is full.
        """
        path = self.folder / "runs.parquet"
        kept = [
            old for old in (_read_part(path).to_pylist() if path.exists() else []) if old["run_id"] != row["run_id"]
        ]
        write_atomically(path, _encode("runs", [*kept, row], None))

    def read(self, table: str, columns: Sequence[str] | None = None, keys: Iterable[str] | None = None) -> pd.DataFrame:
        """The rows of a table; of ``steps`` only those whose block is complete.

        A nullable integer column with nulls reads as float with NaN; a list column holds numpy arrays.

        Args:
            table: Which one, by its name in ``schema.TABLES``.
            columns: Only these; every column where None.
            keys: Only the rows stored under these, as far as there are any; all rows where None.

        Raises:
            ResultsError: The folder has no such table, or a part is unreadable or of another schema version.
        """
        tables = self._read_parts(table, partial(_read_part, columns=columns), keys)
        empty = arrow_schema(table).empty_table()
        empty = empty if columns is None else empty.select(list(columns))
        # Parts may be older than some column, which is then null in their rows.
        whole = pa.concat_tables([empty, *tables], promote_options="default")
        frame = whole.to_pandas(split_blocks=True, self_destruct=True)
        return frame.fillna({name: value for name, value in BEFORE.items() if name in frame})

    def has(self, table: str) -> bool:
        """Whether the folder holds rows of a table."""
        return bool(_parts(self.folder / f"{table}.parquet"))

    def copy_whole(self, folder: Path) -> list[Path]:
        """Write every table that is here into another folder, as one file each; steps of unfinished blocks stay behind.

        Such a copy is read like any run folder, and is a fraction of its size. No run goes on from it.

        Raises:
            ResultsError: A part is unreadable or of another schema version, or the folder cannot be written to.
        """
        written = []
        for table in filter(self.has, TABLES):
            schema = arrow_schema(table)
            tables = [schema.empty_table(), *self._read_parts(table, _read_part)]
            written.append(folder / f"{table}.parquet")
            write_atomically(written[-1], _as_parquet(pa.concat_tables(tables, promote_options="default"), schema))
        return written

    def none_of(self, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The table without a row, as ``read`` would give it."""
        empty = arrow_schema(table).empty_table()
        return (empty if columns is None else empty.select(list(columns))).to_pandas()

    def read_step_sums(self, columns: Sequence[str]) -> pd.DataFrame:
        """Sums over the steps of each batch, with their number as ``steps``; one row a ``batch_id``.

        Each part is summed as it is read, so that millions of steps are never held at once.

        Raises:
            ResultsError: A part is unreadable or of another schema version.
        """
        sums = [(column, "sum") for column in columns]
        names = ["batch_id", *columns, "steps"]
        empty = arrow_schema("steps").empty_table().select(names[:-1])

        def summed(part: Path) -> pa.Table:
            # A part may be older than some column. The steps of a batch lie in one part, so its sum is whole.
            rows = pa.concat_tables([empty, _read_part(part, names[:-1])], promote_options="default")
            groups = rows.group_by("batch_id")
            return groups.aggregate([*sums, ([], "count_all")]).rename_columns(names)

        tables = self._read_parts("steps", summed)
        if tables:
            return pa.concat_tables(tables).to_pandas()
        return pd.DataFrame(columns=names).astype(dict.fromkeys(names[1:], float))

    def _read_parts(
        self, table: str, read: Callable[[Path], pa.Table], keys: Iterable[str] | None = None
    ) -> list[pa.Table]:
        if table not in TABLES:
            raise ResultsError(f"{self.folder}: no table {table!r}; there are {', '.join(TABLES)}")
        parts = _parts(self.folder / f"{table}.parquet")
        if table == "steps" and (self.folder / "steps.parquet").is_dir():
            complete = {part.name for part in _parts(self.folder / "requests.parquet")}
            parts = [part for part in parts if part.name in complete]
        if not parts and table != "steps":
            raise ResultsError(f"{self.folder}: no {table} in it. Is this the folder of a finished run?")
        if keys is not None:
            wanted = {self._part(table, key) for key in keys}
            parts = [part for part in parts if part in wanted]
        with ThreadPoolExecutor() as pool:  # a large run has thousands of parts, and most of a read is waiting
            return list(pool.map(read, parts))

    def _part(self, table: str, key: str) -> Path:
        # The readable half of the name is for people, the digest keeps apart what the slug cannot.
        slug = re.sub(r"[^A-Za-z0-9._-]+", "_", key).strip("._")[:80]
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self.folder / f"{table}.parquet" / f"{slug}-{digest}.parquet"


def is_run_folder(folder: Path) -> bool:
    """Whether the folder itself holds a run."""
    return (folder / "requests.parquet").exists()


def run_folders(root: Path) -> list[Path]:
    """Every run folder at or below ``root``, sorted."""
    if is_run_folder(root):
        return [root]
    return sorted(path.parent for path in root.rglob("requests.parquet"))


def _parts(path: Path) -> list[Path]:
    """The Parquet files of a table: itself if it is a file, else the finished files in it."""
    if path.is_file():
        return [path]
    return sorted(part for part in path.glob("*.parquet") if not part.name.startswith("."))


def _encode(table: str, rows: Sequence[Mapping[str, Any]], key: str | None) -> bytes:
    for index, row in enumerate(rows):
        if faults := row_faults(table, row):
            raise ResultsError(f"{table} row {index}: {'; '.join(faults)}")
    schema = arrow_schema(table)
    if key is not None:
        schema = schema.with_metadata({**schema.metadata, _BLOCK_KEY: key.encode()})
    columns = [_column(table, field, [row[field.name] for row in rows]) for field in schema]
    return _as_parquet(pa.Table.from_arrays(columns, schema=schema), schema)


def _as_parquet(rows: pa.Table, schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(schema.metadata), sink, compression="zstd")
    return sink.getvalue()


def _column(table: str, field: pa.Field, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ResultsError(f"{table}: column {field.name!r} must be {field.type}: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a run after a crash, sees all of it or nothing.

    Raises:
        ResultsError: The disk is full, or the folder cannot be written to.
    """
    # The temporary name is fixed, so that what a killed run left behind is overwritten, never collected.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = "Free some space and run again; finished blocks are kept." if full else "Nothing was written."
        raise ResultsError(f"{path}: cannot be written: {os.strerror(error.errno or 0)}. {remedy}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; not every system lets a folder be opened, and there the rename alone must do."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked_schema(path: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path) from error
    _check_version(path, schema)
    return schema


def _check_version(path: Path, schema: pa.Schema) -> None:
    found = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise ResultsError(
            f"{path}: schema version {found}, expected {SCHEMA_VERSION}. "
            "Read it with the specbench that wrote it, or move the folder away and run again."
        )


def _read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            _check_version(path, file.schema_arrow)
            # A part is small, and several are read side by side: threads of its own would only cost.
            return file.read(columns=columns, use_threads=False).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path) from error


def _corrupt(path: Path) -> ResultsError:
    again = "the runs before are then forgotten" if path.name == "runs.parquet" else "its block will be repeated"
    return ResultsError(f"{path}: not a whole Parquet file. Delete it and run again; {again}.")
