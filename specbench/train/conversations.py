"""What a drafter learns from: conversations and texts, in whatever dialect they are kept.

A row is a conversation where it has messages (``conversations``, ``messages``, ``conversation``, ``turns``) or a
question and its answer (``instruction`` and ``output``, ``prompt`` and ``response``, ...), and a text where it has
``text``. What can be mended is mended: blank messages are left out, an answer to nothing is dropped from the beginning,
and what one side says twice in a row becomes one message. What cannot is left out, and counted by its reason.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specbench.errors import ConfigError, TrainingError, UnknownNameError, did_you_mean
from specbench.models.corpus import held_out_modules, library_root, library_tests, training_modules
from specbench.models.rows import (
    HUB,
    MODELS,
    PEOPLE,
    HubSource,
    Row,
    Rows,
    file_rows,
    hub_rows,
    message_of,
    read_text,
)

HELD_OUT_SHARE = 0.05

_BY = "--data"
_ROW_FILES = (".json", ".jsonl", ".parquet")
_SYSTEMS = frozenset({"system", "developer"})
_MESSAGES = ("conversations", "messages", "conversation", "turns")
_QUESTIONS = ("instruction", "prompt", "question", "query", "problem")
_CONTEXTS = ("input", "context")
_ANSWERS = ("output", "response", "completion", "answer", "solution")


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
        question: What the user says.
        answer: What the model says; None where nobody has answered.
        ended: Whether the answer came to its end. Of one that was cut, the end is not to be learned.
    """

    question: str
    answer: str | None = None
    ended: bool = True


@dataclass(frozen=True)
class Conversation:
    """What a user and a model say in turn; the user begins.

    Attributes:
        exchanges: One a turn, at least one.
        system: What the model is told beforehand.
    """

    exchanges: tuple[Exchange, ...]
    system: str | None = None


@dataclass(frozen=True)
class Text:
    """A text that nobody asks for.

    Attributes:
        text: All of it.
        given: Characters at its beginning that are read and not learned.
        ended: Whether it came to its end.
    """

    text: str
    given: int = 0
    ended: bool = True


Document = Conversation | Text


@dataclass(frozen=True)
class Documents:
    """What was read, and what of it is never trained on.

    Attributes:
        what: Where it comes from, for the card.
        training: To learn from.
        held_out: To measure on; whatever opens like one of these is among them.
        left_out: Rows of which nothing can be learned, counted by the reason.
    """

    what: str
    training: list[Document]
    held_out: list[Document]
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_documents(
    data: Sequence[str], *, held_out_share: float = HELD_OUT_SHARE, most: int | None = None
) -> Documents:
    """Read every source, and hold a share of it out.

    Documents are split, and ordered, by a hash of what opens them, the first question or the text. So neither a file's
    name nor its order decides anything, and no opening is on both sides. Of the standard library ``models.corpus``
    lists the held-out modules.

    Args:
        data: ``stdlib``; ``stdlib-tests``, the library's own tests, which are no part of it; the name of a hub data
            set, like ``sharegpt`` or ``alpaca``; any other one as ``owner/name``, ``owner/name:split`` or
            ``owner/name:subset:split``; a file of rows (``.json``, ``.jsonl``, ``.parquet``); any other file, as a
            text; a folder of files.
        held_out_share: Share of the documents that is held out, at least one.
        most: Documents to learn from; of those held out the share is kept. None keeps all.

    Raises:
        ConfigError: A file or data set that is missing or cannot be read.
        UnknownNameError: A bare name that is no source.
        UnsupportedError: A hub data set, and the hub cannot be reached.
        TrainingError: There is nothing to learn from, or nothing else to hold out.
    """
    parts = [_read(entry) for entry in data]
    what = ", ".join(part.what for part in parts)
    left_out = sum((part.left_out for part in parts), Counter[str]())
    documents = [document for part in parts for document in part.documents]
    training, held_out = _split(documents, held_out_share)
    training += [document for part in parts for document in part.training]
    held_out += [document for part in parts for document in part.held_out]
    if not held_out:
        training, held_out = _one_out(training)
    if most is not None:
        held_out = _ordered(held_out)[: max(1, round(most * held_out_share))]
    if not training:
        count = len(set(map(opening, held_out)))
        found = f"{count} different documents; one to learn from and one to hold out are the least"
        raise TrainingError(f"{_BY} {what}: {found}{because(left_out)}")
    return Documents(what, _ordered(training)[:most], _ordered(held_out), dict(left_out))


def because(left_out: Mapping[str, int]) -> str:
    """What was left out, to go on a sentence with."""
    return "".join(f"; {count} left out: {reason}" for reason, count in left_out.items())


# --- what is held out


def opening(document: Document) -> str:
    """What decides on which side a document is."""
    return document.text if isinstance(document, Text) else document.exchanges[0].question


def _split(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    sides: tuple[list[Document], list[Document]] = [], []
    for document in documents:
        drawn = int.from_bytes(_digest(opening(document))[:8], "big")
        sides[drawn < share * 2**64].append(document)
    return sides


def _one_out(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """What opens otherwise than the first of all, and what opens as that."""
    first = min(map(opening, documents), key=_digest, default=None)
    sides: tuple[list[Document], list[Document]] = [], []
    for document in documents:
        sides[opening(document) == first].append(document)
    return sides


def _ordered(documents: Iterable[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: _digest(opening(document)))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


# --- sources


@dataclass(frozen=True)
class _Part:
    """What one source holds.

    Attributes:
        what: Its name, in words.
        documents: To be split.
        training: What the source itself says is to be learned from.
        held_out: What it says is not.
        left_out: Rows of which nothing can be learned, counted by the reason.
    """

    what: str
    documents: list[Document] = field(default_factory=list)
    training: list[Document] = field(default_factory=list)
    held_out: list[Document] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def _read(entry: str) -> _Part:
    path = Path(entry).expanduser()
    name, *rest = entry.split(":")
    if entry in _LIBRARY:
        return _LIBRARY[entry]()
    if name in HUB:
        return _hub(name, HUB[name], rest)
    if path.exists():
        return _from_files(path)
    is_path = path.suffix[1:].isalpha() or name.count("/") > 1 or entry.startswith((".", "/", "~"))
    if is_path:
        raise ConfigError(f"{_BY} {entry}: no such file or folder")
    if "/" not in name:
        raise UnknownNameError(f"{_BY}: unknown source {entry!r}. {did_you_mean(entry, [*_LIBRARY, *HUB])}")
    return _hub(name, HubSource(name), rest)


def _standard_library() -> _Part:
    what = f"the standard library of {library_root().name} without its tests"
    training: list[Document] = [Text(module.text) for module in training_modules() if module.text.strip()]
    return _Part(what, training=training, held_out=[Text(module.text) for module in held_out_modules().modules])


def _library_tests() -> _Part:
    modules = library_tests()
    if not modules:
        raise ConfigError(f"{_BY} stdlib-tests: {library_root()} has no folder test; some systems package it apart")
    what = f"the tests of the standard library of {library_root().name}"
    return replace(_standard_library(), what=what, training=[Text(module.text) for module in modules if module.text])


_LIBRARY = {"stdlib": _standard_library, "stdlib-tests": _library_tests}


def _hub(name: str, source: HubSource, rest: Sequence[str]) -> _Part:
    if len(rest) > 2:
        raise ConfigError(f"{_BY} {':'.join([name, *rest])}: a hub data set reads owner/name:subset:split")
    if rest:
        *subset, split = rest
        source = replace(source, split=split, subset=subset[0] if subset else source.subset)
    what = f"{source.path} ({':'.join(filter(None, (source.subset, source.split)))})"
    return _from_rows(what, [hub_rows(name, source, _BY)])


def _from_files(path: Path) -> _Part:
    texts: list[Document] = []
    rows = []
    for file in _files(path):
        found = _rows_of(file, in_folder=path.is_dir())
        if found is not None:
            rows.append(found)
        elif (text := _mended(read_text(file, _BY))).strip():
            texts.append(Text(text))
    part = _from_rows(path.name, rows)
    return replace(part, documents=texts + part.documents)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return [path]


def _rows_of(file: Path, *, in_folder: bool) -> Rows | None:
    """The rows of a file; None for one that is a text."""
    if file.suffix not in _ROW_FILES:
        return None
    if file.suffix != ".json" or not in_folder:
        return file_rows(file, _BY)
    try:  # a folder of program text holds all kinds of JSON
        rows = file_rows(file, _BY)
        document_of(rows.rows[0])
    except (ConfigError, Unusable, IndexError):
        return None
    return rows


def _from_rows(what: str, tables: Iterable[Rows]) -> _Part:
    part = _Part(what)
    for table in tables:
        for row in table.rows:
            try:
                part.documents.append(document_of(row))
            except Unusable as reason:
                part.left_out[str(reason)] += 1
    return part


# --- rows


class Unusable(Exception):  # noqa: N818 - a reason, and no error of anybody's
    """Nothing can be learned from a row; the message is the reason, by which rows are counted."""


def document_of(row: Any) -> Document:
    """What a row says.

    Raises:
        Unusable: Nothing that can be learned from.
    """
    if not isinstance(row, Mapping):
        raise Unusable("no object")
    messages = next((row[name] for name in _MESSAGES if row.get(name)), None)
    if messages is not None:
        return _talk(messages)
    question = next((row[name] for name in _QUESTIONS if row.get(name)), None)
    if question is not None:
        return _question_and_answer(question, row)
    if isinstance(row.get("text"), str):
        if (text := _mended(row["text"])).strip():
            return Text(text)
        raise Unusable("an empty text")
    raise Unusable(f"no conversation and no text among its fields, {', '.join(map(str, row)) or 'none'}")


def _talk(messages: Any) -> Conversation:
    """Messages, or the questions of several turns."""
    if not isinstance(messages, list | tuple):
        raise Unusable("its messages are no list")
    if all(isinstance(message, str) for message in messages):
        return _asked(messages)
    return conversation_of(_said(messages))


def _asked(questions: Sequence[str]) -> Conversation:
    """Questions that nobody has answered."""
    asked = tuple(Exchange(text) for question in questions if (text := _mended(question).strip()))
    if not asked:
        raise Unusable("nobody asks anything")
    return Conversation(asked)


def _question_and_answer(question: Any, row: Row) -> Conversation:
    answer = next((row[name] for name in _ANSWERS if row.get(name)), None)
    if not isinstance(question, str):
        return _talk([*question, *answer] if isinstance(answer, list) and isinstance(question, list) else question)
    context = next((row[name] for name in _CONTEXTS if isinstance(row.get(name), str) and row[name]), "")
    said = [("user", "\n\n".join(filter(None, (question, context))))]
    if answer is not None:
        if not isinstance(answer, str):
            raise Unusable("an answer that is no text")
        said.append(("assistant", answer))
    return conversation_of(said)


def _said(messages: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Who says what, in one dialect."""
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unusable("a message that is no object")
        try:
            who, content = message_of(message)
        except ConfigError as error:
            raise Unusable(str(error)) from error
        yield who, _text_of(content)


def _text_of(content: Any) -> str:
    """A text, or a list of parts that are all text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    raise Unusable("a message that is more than text")


def conversation_of(said: Iterable[tuple[str, str]]) -> Conversation:
    """Messages in any dialect as a conversation in which a user begins and the sides alternate.

    Args:
        said: Who speaks, and what.

    Raises:
        Unusable: Somebody else speaks, or nobody asks, or the system speaks in the midst.
    """
    sides: list[tuple[str, str]] = []
    system: list[str] = []
    for who, words in said:
        side, text = _side(who), _mended(words).strip()
        if not text:
            continue
        if side == "system":
            if sides:
                raise Unusable("a system message in its midst")
            system.append(text)
        elif sides and sides[-1][0] == side:
            sides[-1] = side, f"{sides[-1][1]}\n\n{text}"
        elif sides or side == "user":
            sides.append((side, text))
    if not sides:
        raise Unusable("nobody asks anything")
    texts = [text for _, text in sides]
    exchanges = tuple(Exchange(question, answer) for question, answer in zip_longest(texts[::2], texts[1::2]))
    return Conversation(exchanges, "\n\n".join(system) or None)


def _side(who: str) -> str:
    name = who.strip().lower()
    for side, names in (("user", PEOPLE), ("assistant", MODELS), ("system", _SYSTEMS)):
        if name in names:
            return side
    raise Unusable(f"a message of {who!r}, who is neither user, model nor system")


def _mended(text: str) -> str:
    """The text with halves of surrogate pairs joined, and lone ones replaced: no tokenizer takes them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
