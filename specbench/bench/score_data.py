"""What models are scored on: texts, or questions with the ways to go on that they offer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from specbench.bench.prompt_choice import in_order
from specbench.bench.prompt_formats import Choice, Content
from specbench.bench.prompt_sources import read_table
from specbench.config import PROMPT_SOURCES, PromptSettings
from specbench.errors import ConfigError, UnknownNameError, did_you_mean
from specbench.models.corpus import held_out_modules
from specbench.models.rows import read_text

_BY = "--data"
_ROW_FILES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class TextSet:
    """Texts, to be read from their beginnings.

    Attributes:
        name: As the user gave it.
        documents: They; what one says tells nothing of another.
        skipped: What should be there and is not, each with the reason.
    """

    name: str
    documents: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """Sixteen hex digits of the texts, in order."""
        return _sha(self.documents)


@dataclass(frozen=True)
class ChoiceSet:
    """Questions with several ways to go on, one of them right; all have a context and a right one.

    Attributes:
        name: As the user gave it.
        questions: They.
    """

    name: str
    questions: tuple[Choice, ...]

    @property
    def sha(self) -> str:
        """Sixteen hex digits of the questions, in order."""
        return _sha([(question.context, question.endings, question.right) for question in self.questions])


def read_score_data(
    name: str, *, count: int | None = None, column: str | None = None, examples: str | None = None
) -> TextSet | ChoiceSet:
    """The texts or questions of a data set.

    ``stdlib`` is the held-out part of Python's library. A file of rows (``.jsonl``, ``.json``, ``.parquet``) or a hub
    data set, of which ``hellaswag`` and ``mmlu`` have names, holds texts or questions as its fields say. Any other
    file is a text, and a folder holds one in each file.

    Args:
        name: Which data set.
        count: Texts or questions to take, the same number of every category; None for all.
        column: The field that holds the text, where the rows have no known format.
        examples: A file of worked examples for questions of MMLU's form; the hub's MMLU has its own, and without any
            a question stands alone.

    Raises:
        ConfigError: It is missing, cannot be read, or holds neither texts nor questions with choices.
        UnsupportedError: A hub data set, and the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if name == "stdlib":
        held_out = held_out_modules()
        return _texts(name, [module.text for module in held_out.modules], count, held_out.skipped)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return _texts(name, [read_text(file, _BY) for file in files], count)
    if path.suffix not in _ROW_FILES and (path.exists() or path.suffix == ".txt"):
        return _texts(name, [read_text(path, _BY)], count)
    if name not in PROMPT_SOURCES and "/" not in name and path.suffix not in _ROW_FILES:
        raise UnknownNameError(
            f"{_BY}: neither a file, a folder nor a data set: {name!r}. {did_you_mean(name, PROMPT_SOURCES)}"
        )
    return _rows(name, PromptSettings(source=name, field=column, examples=examples), count)


def _texts(name: str, texts: Sequence[str], count: int | None, skipped: Mapping[str, str] | None = None) -> TextSet:
    documents = tuple(text for text in texts if text.strip())[:count]
    if not documents:
        raise ConfigError(f"{_BY} {name}: there is no text in it")
    return TextSet(name, documents, skipped or {})


def _rows(name: str, settings: PromptSettings, count: int | None) -> TextSet | ChoiceSet:
    try:
        table = read_table(settings, needs_examples=settings.examples is not None or settings.source == "mmlu")
        chosen = (table.question(row) for row in in_order(table, settings)[:count])
        contents = {question.id: question.content for question in chosen if question is not None}
    except ConfigError as error:
        raise type(error)(str(error).replace("prompts.", "--")) from error
    if not contents:
        raise ConfigError(f"{_BY} {name}: there is nothing in it")
    if any(content.choice is not None for content in contents.values()):
        return ChoiceSet(name, tuple(_choice(row_id, content) for row_id, content in contents.items()))
    return TextSet(name, tuple(_text(row_id, content) for row_id, content in contents.items()))


def _choice(row_id: str, content: Content) -> Choice:
    if content.choice is None:
        raise ConfigError(f"{_BY} {row_id}: it offers no choices, and others of its set do")
    if len(content.choice.endings) < 2:
        raise ConfigError(f"{_BY} {row_id}: it offers one choice alone")
    if content.choice.right is None:
        raise ConfigError(f"{_BY} {row_id}: nothing says which of its choices is right; take a split that has answers")
    context = content.turns[0] if content.choice.context is None else content.choice.context
    return replace(content.choice, context=context)


def _text(row_id: str, content: Content) -> str:
    if len(content.turns) > 1 or content.reference or content.system:
        raise ConfigError(
            f"{_BY} {row_id}: neither a text nor a question with choices, but one with an answer; --field names the "
            "field to read as a text"
        )
    return content.turns[0]


def _sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
