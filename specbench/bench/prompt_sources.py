r"""Where prompts come from: the standard library, a file, a hub data set. All end as one `PromptTable`.

A text file has a prompt in each line: blank lines are left out, and ``\n``, ``\t`` and ``\\`` stand for a line break,
a tab and a backslash. The other files have a row in each line or element, in any format of ``prompt_formats``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from specbench.bench.prompt_encoding import limit_of
from specbench.bench.prompt_formats import FORMATS, SHOTS, Content, Format, Question, content_of, format_of
from specbench.bench.stdlib_prompts import stdlib_texts
from specbench.config import PROMPT_FILES, PROMPT_SOURCES, PromptSettings
from specbench.errors import ConfigError, UnknownNameError, UnsupportedError, did_you_mean
from specbench.models.rows import HUB, HubSource, Row, Rows, file_rows, hub_rows, lines, numbered

_BY = "prompts"
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


_ELSEWHERE = {
    "spec_bench": "question.jsonl of github.com/hemingkx/Spec-Bench (data/spec_bench)",
}


def read_table(settings: PromptSettings, *, needs_examples: bool = True) -> PromptTable:
    """The prompts of a source.

    Args:
        settings: Which source, and how its rows are read.
        needs_examples: Whether a question that is asked after worked examples is refused where there are none.

    Raises:
        ConfigError: A file or data set that is missing or cannot be read.
        UnsupportedError: A hub data set, and the hub cannot be reached.
    """
    name = settings.source
    if name == "stdlib":
        return _stdlib(settings)
    if name.endswith(PROMPT_FILES):
        return _table(_file_rows(Path(name)), settings, needs_examples=needs_examples)
    if name in _ELSEWHERE:
        raise UnsupportedError(f"prompts {name}: give the path of a local copy instead: {_ELSEWHERE[name]}")
    if name in HUB:
        return _hub(name, HUB[name], settings, needs_examples=needs_examples)
    if name.count("/") == 1 and not Path(name).exists():
        return _hub(name, HubSource(name), settings, needs_examples=needs_examples)
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


def _table(
    rows: Rows,
    settings: PromptSettings,
    labels: Sequence[Row] | None = None,
    examples: Sequence[Row] = (),
    *,
    needs_examples: bool = True,
) -> PromptTable:
    """The table of some rows.

    Args:
        rows: They.
        settings: How they are read.
        labels: The part of each row that holds its id and category, where reading all of it costs more.
        examples: Rows that were worked as examples, unless the settings name others.
        needs_examples: As for ``read_table``.
    """
    if settings.examples is not None:
        examples = _file_rows(Path(settings.examples)).rows
    form = None if settings.format is None else FORMATS[settings.format]
    labels = rows.rows if labels is None else labels
    ids = _all_different([_name(rows.name, row, number) for row, number in zip(labels, rows.numbers, strict=True)])
    categories = [_category(row) for row in labels]

    def question(index: int) -> Question | None:
        try:
            content = _content(rows.rows[index], form, settings.field, examples, needs_examples=needs_examples)
        except ConfigError as error:
            raise ConfigError(f"{rows.places(index)}: {error}") from error
        return None if content is None else Question(ids[index], content, categories[index])

    return PromptTable(rows.name, ids, categories, question)


def _content(
    row: Any, form: Format | None, column: str | None, examples: Sequence[Row], *, needs_examples: bool
) -> Content | None:
    if not isinstance(row, Mapping):
        raise ConfigError("should be a JSON object with a prompt or turns")
    if column is None:
        form = form or format_of(row)
    content = content_of(row, form, column)
    if content is None or form is None or form.examples is None or not (examples or needs_examples):
        return content
    if not examples:
        raise ConfigError("its question stands after worked examples; prompts.examples names the file that holds them")
    first, *later = content.turns
    choice = None if content.choice is None else replace(content.choice, shots=SHOTS)
    return replace(content, turns=(form.examples(row, examples) + first, *later), choice=choice)


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


# --- where rows come from


def _file_rows(path: Path) -> Rows:
    if path.suffix == ".txt":
        return numbered(path, [(number, {"prompt": _unescaped(line)}) for number, line in lines(path, _BY)])
    return file_rows(path, _BY)


def _unescaped(line: str) -> str:
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], line)


def _hub(name: str, source: HubSource, settings: PromptSettings, *, needs_examples: bool) -> PromptTable:
    source = replace(source, split=settings.split or source.split, subset=settings.subset or source.subset)
    rows = hub_rows(name, source, _BY, settings.revision)
    if source.file is not None:
        return _table(rows, settings, needs_examples=needs_examples)
    data: Any = rows.rows
    columns = [column for column in (*_ID_FIELDS, *_CATEGORY_FIELDS) if column in data.column_names]
    labels = data.select_columns(columns).to_list() if columns else [{}] * len(data)
    examples: Sequence[Row] = ()
    if source.examples is not None and settings.examples is None:
        worked: Any = hub_rows(name, replace(source, split=source.examples), _BY, settings.revision).rows
        examples = worked.to_list()
    return _table(rows, settings, labels, examples, needs_examples=needs_examples)
