"""Published prompt sets, row by row: one small function a format, from the fields of a row to the turns of a question.

`FORMATS` is the one table. A row is of the first format whose fields it has, unless the experiment names one.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbench.errors import ConfigError
from specbench.models.rows import MODELS, PEOPLE, Row, listed, message_of

SHOTS = 5
"""Worked examples of its subject that stand before an MMLU question."""

_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED"
_HOLE = re.compile(r"\{(?:articles?|context|documents?|passages?)\}")
_ALPACA_TASK = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
)
_ALPACA_PAIRED = ", paired with an input that provides further context"


@dataclass(frozen=True)
class Choice:
    """Several ways to go on, one of them right.

    Attributes:
        endings: The ways; a space stands before each.
        right: Index of the right one; None where the row does not tell.
        context: What they go on from; None where that is the first turn.
        shots: Worked examples that stand before it.
    """

    endings: tuple[str, ...]
    right: int | None
    context: str | None = None
    shots: int = 0


@dataclass(frozen=True)
class Content:
    """What a row says.

    Attributes:
        turns: What the user asks, one text a turn.
        system: What the model is told beforehand.
        reference: Known good answers.
        choice: The ways to go on that it offers; None where it offers none.
    """

    turns: tuple[str, ...]
    system: str | None = None
    reference: tuple[str, ...] = ()
    choice: Choice | None = None


@dataclass(frozen=True)
class Question:
    """A prompt before it is tokenised; every format comes to this.

    Attributes:
        id: Unique within its set.
        content: What it says.
        category: Its category; None where the set has none.
    """

    id: str
    content: Content
    category: str | None = None


@dataclass(frozen=True)
class Format:
    """How the rows of a published set are read.

    Attributes:
        fields: What a row must have.
        read: From a row to what it says; None for a row that asks nothing.
        examples: For a set that wants worked examples: what stands before a row's question, given all examples.
    """

    fields: tuple[str, ...]
    read: Callable[[Row], Content | None]
    examples: Callable[[Row, Sequence[Row]], str] | None = None


def format_of(row: Row) -> Format:
    """The format of a row, recognised from its fields.

    Raises:
        ConfigError: It is of none; the message names the fields that there are.
    """
    for known in FORMATS.values():
        if all(row.get(name) is not None for name in known.fields):
            return known
    raise ConfigError(
        f"no known format has these fields: {listed(row)}; prompts.field names the one that holds a prompt"
    )


def content_of(row: Row, form: Format | None = None, field: str | None = None) -> Content | None:
    """What a row says; None where it asks nothing.

    Args:
        row: A row of a file or data set.
        form: Its format; None to recognise it.
        field: The field that holds the prompt: text, or turns, or messages.

    Raises:
        ConfigError: A field is missing or holds something else, or the row is a placeholder.
    """
    if field is not None:
        content: Content | None = _any(_field(row, field), field)
    else:
        form = form or format_of(row)
        for name in form.fields:
            _field(row, name)
        content = form.read(row)
    if content is not None:
        _check(content)
    return content


def _check(content: Content) -> None:
    if not content.turns or not all(isinstance(turn, str) and turn.strip() for turn in content.turns):
        raise ConfigError("its prompt is empty, or no text")
    if any(_PLACEHOLDER in turn for turn in content.turns):
        raise ConfigError("a placeholder stands where its prompt belongs; prepare the data set first")


def _field(row: Row, name: str) -> Any:
    if name not in row:
        raise ConfigError(f"no field {name!r}; its fields are {listed(row)}")
    return row[name]


def _any(value: Any, field: str) -> Content:
    """Text, a list of turns, or a list of messages of either kind."""
    if isinstance(value, str):
        return Content((value,))
    if isinstance(value, list | tuple) and value and all(isinstance(turn, str) for turn in value):
        return Content(tuple(value))
    if isinstance(value, list | tuple) and value and all(isinstance(message, Mapping) for message in value):
        content = _dialogue(value)
        if content is not None:
            return content
    raise ConfigError(f"field {field!r} holds neither text nor turns nor messages")


def _dialogue(messages: Sequence[Row]) -> Content | None:
    """Messages of ``role`` and ``content``, or of ``from`` and ``value``; None where no person speaks first."""
    said = [_said(message) for message in messages]
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    if not said or said[0][0] not in PEOPLE:
        return None
    turns = tuple(text for who, text in said if who in PEOPLE)
    return Content(turns, system, tuple(text for who, text in said if who in MODELS))


def _said(message: Row) -> tuple[str, str]:
    who, text = message_of(message)
    if not isinstance(text, str):
        raise ConfigError(f"a message has role and content, or from and value; here are {listed(message)}")
    return who, text


def _references(value: Any) -> tuple[str, ...]:
    """Answers, however deep they are listed."""
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in _references(item))
    return (str(value),)


def _one_field(field: str, answer: str | None = None) -> Callable[[Row], Content]:
    """One field holds the question, and maybe another one its answer."""

    def read(row: Row) -> Content:
        content = _any(row[field], field)
        return Content(content.turns, content.system, _references(row.get(answer) if answer else None))

    return read


def _speed_bench(row: Row) -> Content:
    content = _any(row["turns"], "turns")
    if any(_HOLE.search(turn) for turn in content.turns):
        raise ConfigError("a hole like {article} stands where its text belongs; prepare the data set first")
    return content


def _sharegpt(row: Row) -> Content | None:
    """A conversation that a person begins and a model goes on with; a fragment of one asks nothing."""
    content = _dialogue(row["conversations"])
    return content if content is not None and content.reference else None


def _messages(row: Row) -> Content:
    content = _dialogue(row["messages"])
    if content is None:
        raise ConfigError("its messages do not begin with a user's")
    return content


def _alpaca(row: Row) -> Content:
    """Stanford's two templates: with an input, and without one."""
    paired = bool(row["input"])
    task = _ALPACA_TASK.format(paired=_ALPACA_PAIRED if paired else "", instruction=row["instruction"])
    given = f"### Input:\n{row['input']}\n\n" if paired else ""
    return Content((f"{task}{given}### Response:",), reference=_references(row.get("output")))


def _instruction(row: Row) -> Content:
    """For models with a chat template: the instruction, and below it its input."""
    text = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return Content((text,), reference=_references(row.get("output")))


def _hellaswag(row: Row) -> Content:
    endings = _listed_texts(row, "endings")
    right = _index(row.get("label"), endings)
    choice = Choice(tuple(map(_without_marks, endings)), right, _scene(row))
    return Content((row["ctx"],), reference=() if right is None else (endings[right],), choice=choice)


def _scene(row: Row) -> str:
    """What is going on, and how it goes on: what the endings of HellaSwag follow in EleutherAI's lm-evaluation-harness.

    Rows of the same form that do not take the scene apart give it as it is.
    """
    activity, first, second = (row.get(name) for name in ("activity_label", "ctx_a", "ctx_b"))
    if isinstance(activity, str) and isinstance(first, str) and isinstance(second, str):
        return _without_marks(f"{activity}: {first} {second.capitalize()}")
    return _without_marks(row["ctx"])


def _without_marks(text: str) -> str:
    """Without the marks that WikiHow left in HellaSwag's texts, as that harness takes them out."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _mmlu(row: Row) -> Content:
    choices = _listed_texts(row, "choices")
    right = _index(_field(row, "answer"), choices)
    letters = tuple(string.ascii_uppercase[: len(choices)])
    return Content(
        (_choices(row),), reference=() if right is None else (choices[right],), choice=Choice(letters, right)
    )


def _choices(row: Row) -> str:
    lettered = zip(string.ascii_uppercase, _listed_texts(row, "choices"), strict=False)
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in lettered)
    return f"{row['question'].strip()}\n{choices}\nAnswer:"


def _listed_texts(row: Row, field: str) -> Sequence[str]:
    texts = row[field]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"field {field!r} should be a list of texts")
    if not 1 <= len(texts) <= len(string.ascii_uppercase):
        raise ConfigError(f"field {field!r} should hold 1 to {len(string.ascii_uppercase)} texts, got {len(texts)}")
    return texts


def _index(right: object, choices: Sequence[str]) -> int | None:
    """Which choice is right: its place from 0, as a number or in digits, or its letter; None where nothing is said."""
    if right is None or right == "":
        return None
    letters = string.ascii_uppercase[: len(choices)]
    place = letters.find(right) if isinstance(right, str) and len(right) == 1 and right.isalpha() else right
    try:
        index = int(place) if isinstance(place, int | str) else -1
    except ValueError:
        index = -1
    if not 0 <= index < len(choices):
        raise ConfigError(f"{right!r} is none of its {len(choices)} choices")
    return index


def _mmlu_examples(row: Row, examples: Sequence[Row]) -> str:
    """The header of the subject, and its first five worked examples."""
    subject = str(_field(row, "subject"))
    own = [example for example in examples if example.get("subject") == subject][:SHOTS]
    if len(own) < SHOTS:
        raise ConfigError(f"there are {len(own)} worked examples of subject {subject!r}, and {SHOTS} are needed")
    header = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
    return "\n\n".join([header, *map(_worked, own)]) + "\n\n"


def _worked(example: Row) -> str:
    content = _mmlu(example)
    if content.choice is None or content.choice.right is None:
        raise ConfigError(f"a worked example has no answer: {example['question']!r}")
    return f"{content.turns[0]} {content.choice.endings[content.choice.right]}"


FORMATS: dict[str, Format] = {
    "speed_bench": Format(("turns", "src_id"), _speed_bench),
    "spec_bench": Format(("turns",), _one_field("turns", "reference")),
    "sharegpt": Format(("conversations",), _sharegpt),
    "messages": Format(("messages",), _messages),
    "alpaca": Format(("instruction", "input"), _alpaca),
    "alpaca_eval": Format(("instruction",), _instruction),
    "instruction": Format(("instruction",), _instruction),
    "humaneval": Format(("prompt", "entry_point"), _one_field("prompt", "canonical_solution")),
    "mt_bench": Format(("prompt", "prompt_id"), _one_field("prompt", "reference")),
    "mmlu": Format(("question", "choices"), _mmlu, _mmlu_examples),
    "hellaswag": Format(("ctx", "endings"), _hellaswag),
    "gsm8k": Format(("question", "answer"), _one_field("question", "answer")),
    "math": Format(("problem",), _one_field("problem", "solution")),
    "prompt": Format(("prompt",), _one_field("prompt")),
    "text": Format(("text",), _one_field("text")),
}
"""Every format of ``specbench.config.PROMPT_FORMATS``; the first that fits a row wins."""
