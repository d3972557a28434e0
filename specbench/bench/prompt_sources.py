r"""Where prompts come from: the standard library, a file, a hub data set. All end as one `PromptTable`.

A text file has a prompt in each line: blank lines are left out, and ``\n``, ``\t`` and ``\\`` stand for a line break,
a tab and a backslash. The other files have a row in each line or element, in any format of ``prompt_formats``.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from specbench.bench.prompt_encoding import limit_of
from specbench.bench.prompt_formats import FORMATS, Content, Format, Question, Row, content_of, format_of
from specbench.bench.stdlib_prompts import stdlib_texts
from specbench.config import PROMPT_FILES, PROMPT_SOURCES, PromptSettings
from specbench.errors import ConfigError, UnknownNameError, UnsupportedError, did_you_mean, first_line

_ID_FIELDS = ("id", "question_id", "task_id", "prompt_id")
_CATEGORY_FIELDS = ("category", "subject", "activity_label", "dataset")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}

_stdlib_texts = lru_cache(maxsize=4)(stdlib_texts)  # every cell of a plan asks for the same


@dataclass(frozen=True)
class PromptTable:
    """All prompts of a source; only those that are chosen are read whole.

    Attributes:
        name: The source's name.
        ids: Of every prompt; all different.
        categories: Of every prompt; None where it has none.
        question: The prompt at an index; None for a row that asks nothing.
        preferred: So many prompts, from the first, are taken before any other.
        skipped: What the source should hold and does not, each with the reason.
    """

    name: str
    ids: Sequence[str]
    categories: Sequence[str | None]
    question: Callable[[int], Question | None]
    preferred: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HubSource:
    """A hub data set that has a name of its own.

    Attributes:
        path: Its hub id.
        split: The split that prompts come from.
        subset: Its subset, where it has several.
        file: The one file to read, for a repository that ``datasets`` cannot.
        examples: The split that worked examples come from.
    """

    path: str
    split: str = "train"
    subset: str | None = None
    file: str | None = None
    examples: str | None = None


_HUB: dict[str, HubSource] = {
    "mt_bench": HubSource("HuggingFaceH4/mt_bench_prompts"),
    "alpaca": HubSource("tatsu-lab/alpaca"),
    "alpaca_eval": HubSource("tatsu-lab/alpaca_eval", file="alpaca_eval.json"),
    "sharegpt": HubSource("Aeala/ShareGPT_Vicuna_unfiltered"),
    "humaneval": HubSource("openai/openai_humaneval", "test"),
    "gsm8k": HubSource("openai/gsm8k", "test", subset="main"),
    "hellaswag": HubSource("Rowan/hellaswag", "validation"),
    "mmlu": HubSource("cais/mmlu", "test", subset="all", examples="dev"),
}

_ELSEWHERE = {
    "spec_bench": "question.jsonl of github.com/hemingkx/Spec-Bench (data/spec_bench)",
}


def read_table(settings: PromptSettings) -> PromptTable:
    """The prompts of a source.

    Raises:
        ConfigError: A file or data set that is missing or cannot be read.
        UnsupportedError: A hub data set, and the hub cannot be reached.
    """
    name = settings.source
    if name == "stdlib":
        return _stdlib(settings)
    if name.endswith(PROMPT_FILES):
        return _table(_file_rows(Path(name)), settings)
    if name in _ELSEWHERE:
        raise UnsupportedError(f"prompts {name}: give the path of a local copy instead: {_ELSEWHERE[name]}")
    if name in _HUB:
        return _hub(name, _HUB[name], settings)
    if name.count("/") == 1 and not Path(name).exists():
        return _hub(name, HubSource(name), settings)
    if "/" in name:
        raise ConfigError(f"prompts.source: {name}: no such {', '.join(PROMPT_FILES[:-1])} or {PROMPT_FILES[-1]} file")
    raise UnknownNameError(f"unknown prompt source {name!r}. {did_you_mean(name, PROMPT_SOURCES)}")


def _stdlib(settings: PromptSettings) -> PromptTable:
    found = _stdlib_texts(limit_of(settings) or 0)
    questions = [Question(f"stdlib/{one.name}", Content((one.text,)), one.module) for one in found.prompts]
    return PromptTable(
        "stdlib",
        [question.id for question in questions],
        [question.category for question in questions],
        questions.__getitem__,
        preferred=found.unchanged,
        skipped=found.skipped,
    )


# --- rows of a file or a data set


@dataclass(frozen=True)
class _Rows:
    """Rows as they were published.

    Attributes:
        name: Of the file or set.
        rows: All of them.
        labels: The same rows, or the part of each that holds its id and category.
        places: Where each stands, for an error.
        numbers: What a row without an id is called.
        examples: Rows that were worked as examples.
    """

    name: str
    rows: Sequence[Row]
    labels: Sequence[Row]
    places: Callable[[int], str]
    numbers: Sequence[int]
    examples: Sequence[Row] = ()


def _table(rows: _Rows, settings: PromptSettings) -> PromptTable:
    if settings.examples is not None:
        rows = replace(rows, examples=_file_rows(Path(settings.examples)).rows)
    form = None if settings.format is None else FORMATS[settings.format]
    ids = _all_different([_name(rows.name, row, number) for row, number in zip(rows.labels, rows.numbers, strict=True)])
    categories = [_category(row) for row in rows.labels]

    def question(index: int) -> Question | None:
        try:
            content = _content(rows.rows[index], form, settings.field, rows.examples)
        except ConfigError as error:
            raise ConfigError(f"{rows.places(index)}: {error}") from error
        return None if content is None else Question(ids[index], content, categories[index])

    return PromptTable(rows.name, ids, categories, question)


def _content(row: Any, form: Format | None, column: str | None, examples: Sequence[Row]) -> Content | None:
    if not isinstance(row, Mapping):
        raise ConfigError("should be a JSON object with a prompt or turns")
    if column is None:
        form = form or format_of(row)
    content = content_of(row, form, column)
    if content is None or form is None or form.examples is None:
        return content
    if not examples:
        raise ConfigError("its question stands after worked examples; prompts.examples names the file that holds them")
    first, *later = content.turns
    return replace(content, turns=(form.examples(row, examples) + first, *later))


def _name(table: str, row: Row, number: int) -> str:
    own = _first_of(_ID_FIELDS, row)
    return f"{table}:{number}" if own is None else f"{table}/{own}"


def _category(row: Row) -> str | None:
    return _first_of(_CATEGORY_FIELDS, row) or None  # some sets leave it empty


def _first_of(fields: Sequence[str], row: Any) -> str | None:
    if not isinstance(row, Mapping):
        return None  # no row of any format, which is said when it is read
    return next((str(row[name]) for name in fields if isinstance(row.get(name), str | int)), None)


def _all_different(names: Sequence[str]) -> list[str]:
    """A name that was there before gets a number: equal prompts are prompts of their own."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


# --- files


def _file_rows(path: Path) -> _Rows:
    if path.suffix == ".jsonl":
        return _numbered(path, [(number, _json(line, f"{path}:{number}")) for number, line in _lines(path)])
    if path.suffix == ".txt":
        return _numbered(path, [(number, {"prompt": _unescaped(line)}) for number, line in _lines(path)])
    rows = _parquet(path) if path.suffix == ".parquet" else _json(_read(path), str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: should be a list of objects, each with a prompt or turns")
    return _Rows(path.stem, rows, rows, lambda index: f"{path} row {index}", range(len(rows)))


def _numbered(path: Path, lines: list[tuple[int, Any]]) -> _Rows:
    rows = [row for _, row in lines]
    numbers = [number for number, _ in lines]
    return _Rows(path.stem, rows, rows, lambda index: f"{path}:{numbers[index]}", numbers)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Every line that is not blank, with its number. JSON may hold other separators that ``splitlines`` knows."""
    lines = _read(path).split("\n")
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, start=1) if line.strip()]


def _unescaped(line: str) -> str:
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], line)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON: {error}") from error


def _read(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts.source: {path}: not UTF-8 text") from error


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(_bytes(path))).to_pylist()
    except pa.ArrowException as error:
        raise ConfigError(f"prompts.source: {path}: no Parquet file: {first_line(error)}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompts.source: {path}: {error.strerror or error}") from error


# --- the hub


def _hub(name: str, source: HubSource, settings: PromptSettings) -> PromptTable:
    source = replace(source, split=settings.split or source.split, subset=settings.subset or source.subset)
    if source.file is not None:
        folder = _fetched(name, source, source.file, settings.revision)
        return _table(replace(_file_rows(folder / source.file), name=name), settings)
    _fetched(name, source, "README.md", settings.revision)
    data = _data_set(name, source, source.split, settings.revision)
    columns = [column for column in (*_ID_FIELDS, *_CATEGORY_FIELDS) if column in data.column_names]
    labels = data.select_columns(columns).to_list() if columns else [{}] * len(data)
    examples: Sequence[Row] = ()
    if source.examples is not None and settings.examples is None:
        examples = _data_set(name, source, source.examples, settings.revision).to_list()
    rows = _Rows(name, data, labels, lambda index: f"prompts {name} row {index}", range(len(data)), examples)
    return _table(rows, settings)


def _fetched(name: str, source: HubSource, file: str, revision: str | None) -> Path:
    """The folder of one file of a hub data set. This gives up at once where ``datasets`` tries on and on."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                source.path, repo_type="dataset", revision=revision, allow_patterns=[file], etag_timeout=5
            )
        )
    except RevisionNotFoundError as error:
        raise ConfigError(f"prompts {name}: the hub data set {source.path} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"prompts {name}: the hub has no data set {source.path}") from error
    except (OSError, HfHubHTTPError) as error:
        raise UnsupportedError(
            f"prompts {name}: the hub data set {source.path} is not in the local cache, and the hub cannot be reached. "
            "Give a local copy of it as prompts.source, or use source: stdlib"
        ) from error


def _data_set(name: str, source: HubSource, split: str, revision: str | None) -> Any:
    """One split of a hub data set; raised here is what a user can mend."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UnsupportedError(f"prompts {name}: hub data sets need: pip install datasets") from error
    try:
        return load_dataset(source.path, source.subset, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"prompts {name}: {source.path} cannot be read: {first_line(error)}") from error
