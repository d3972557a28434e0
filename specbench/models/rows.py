"""Rows of data sets as they were published, from a file or from the hub: prompts and training texts are read alike."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import ConfigError, UnsupportedError, first_line

Row = Mapping[str, Any]

PEOPLE = frozenset({"human", "user"})
"""Who asks, in the words of every dialect."""
MODELS = frozenset({"gpt", "chatgpt", "bing", "bard", "model", "assistant"})
"""Who answers."""


@dataclass(frozen=True)
class Rows:
    """Rows as they were published.

    Attributes:
        name: Of the file or set.
        rows: All of them; those of the hub are read one by one, as they are asked for.
        places: Where each stands, for an error.
        numbers: What a row without an id is called.
    """

    name: str
    rows: Sequence[Any]
    places: Callable[[int], str]
    numbers: Sequence[int]


@dataclass(frozen=True)
class HubSource:
    """A hub data set.

    Attributes:
        path: Its hub id.
        split: The split that is read.
        subset: Its subset, where it has several.
        file: The one file to read, for a repository that ``datasets`` cannot.
        examples: The split that worked examples come from.
    """

    path: str
    split: str = "train"
    subset: str | None = None
    file: str | None = None
    examples: str | None = None


HUB: dict[str, HubSource] = {
    "mt_bench": HubSource("HuggingFaceH4/mt_bench_prompts"),
    "alpaca": HubSource("tatsu-lab/alpaca"),
    "alpaca_eval": HubSource("tatsu-lab/alpaca_eval", file="alpaca_eval.json"),
    "sharegpt": HubSource("Aeala/ShareGPT_Vicuna_unfiltered"),
    "humaneval": HubSource("openai/openai_humaneval", "test"),
    "gsm8k": HubSource("openai/gsm8k", "test", subset="main"),
    "hellaswag": HubSource("Rowan/hellaswag", "validation"),
    "mmlu": HubSource("cais/mmlu", "test", subset="all", examples="dev"),
}
"""The hub data sets that have a name of their own."""


def message_of(message: Row) -> tuple[str, Any]:
    """Who speaks, and what: ``role`` and ``content``, or ``from`` and ``value``.

    Raises:
        ConfigError: It has neither.
    """
    who, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(who, str):
        raise ConfigError(f"a message has role and content, or from and value; here are {listed(message)}")
    return who, content


def listed(names: Row) -> str:
    """The names of a row's fields, for an error."""
    return ", ".join(map(str, names)) or "none"


# --- files


def file_rows(path: Path, by: str) -> Rows:
    """The rows of a ``.jsonl``, a ``.parquet``, or of a ``.json`` that holds a list.

    Args:
        path: The file.
        by: Who asks for it, for an error: ``prompts``, ``--data``.

    Raises:
        ConfigError: The file is missing, or not what its name says.
    """
    if path.suffix == ".jsonl":
        return numbered(path, [(number, _json(line, f"{path}:{number}")) for number, line in lines(path, by)])
    rows = _parquet(path, by) if path.suffix == ".parquet" else _json(read_text(path, by), str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: should be a list of objects, one a row")
    return Rows(path.stem, rows, lambda index: f"{path} row {index}", range(len(rows)))


def numbered(path: Path, rows: Sequence[tuple[int, Any]]) -> Rows:
    """Rows that stand in lines of a file, each with the number of its line."""
    numbers = [number for number, _ in rows]
    return Rows(path.stem, [row for _, row in rows], lambda index: f"{path}:{numbers[index]}", numbers)


def lines(path: Path, by: str) -> list[tuple[int, str]]:
    """Every line that is not blank, with its number. JSON may hold other separators that ``splitlines`` knows."""
    found = read_text(path, by).split("\n")
    return [(number, line.rstrip("\r")) for number, line in enumerate(found, start=1) if line.strip()]


def read_text(path: Path, by: str) -> str:
    """A file in UTF-8.

    Raises:
        ConfigError: It is missing, or something else.
    """
    try:
        return _bytes(path, by).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{by} {path}: not UTF-8 text") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON: {error}") from error


def _parquet(path: Path, by: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(_bytes(path, by))).to_pylist()
    except pa.ArrowException as error:
        raise ConfigError(f"{by} {path}: no Parquet file: {first_line(error)}") from error


def _bytes(path: Path, by: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{by} {path}: {error.strerror or error}") from error


# --- the hub


def hub_rows(name: str, source: HubSource, by: str, revision: str | None = None) -> Rows:
    """The rows of one split of a hub data set.

    Args:
        name: How the user named it.
        source: Which one.
        by: Who asks for it, for an error.
        revision: The commit; None for the newest.

    Raises:
        ConfigError: There is no such set, split or revision, or it cannot be read.
        UnsupportedError: The hub cannot be reached, or ``datasets`` is not installed.
    """
    folder = _fetched(f"{by} {name}", source.path, source.file or "README.md", revision)
    if source.file is not None:
        rows = file_rows(folder / source.file, by)
        return Rows(name, rows.rows, rows.places, rows.numbers)
    data = _data_set(f"{by} {name}", source, revision)
    return Rows(name, data, lambda index: f"{by} {name} row {index}", range(len(data)))


def _fetched(subject: str, hub_id: str, file: str, revision: str | None) -> Path:
    """The folder of one file of a hub data set. This gives up at once where ``datasets`` tries on and on."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(hub_id, repo_type="dataset", revision=revision, allow_patterns=[file], etag_timeout=5)
        )
    except HFValidationError as error:
        raise ConfigError(f"{subject}: neither a file nor a hub id of the form owner/name") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{subject}: the hub data set {hub_id} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{subject}: the hub has no data set {hub_id}") from error
    except (OSError, HfHubHTTPError) as error:
        raise UnsupportedError(
            f"{subject}: the hub data set {hub_id} is not in the local cache, and the hub cannot be reached. "
            "Give the path of a local copy, or use stdlib"
        ) from error


def _data_set(subject: str, source: HubSource, revision: str | None) -> Any:
    """One split of a hub data set; raised here is what a user can mend."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UnsupportedError(f"{subject}: hub data sets need: pip install datasets") from error
    try:
        return load_dataset(source.path, source.subset, split=source.split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{subject}: {source.path} cannot be read: {first_line(error)}") from error
