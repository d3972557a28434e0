"""The prompts of a cell: chosen from a source, turned into token ids once, and named by a hash. None is used twice.

Every prompt has an id that is unique within its source and a key made from it; chance depends on the key, so a prompt
keeps its text wherever it stands in a run.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from specbench.bench.prompt_choice import in_order
from specbench.bench.prompt_encoding import Answer, Encoder, limit_of
from specbench.bench.prompt_formats import Question
from specbench.bench.prompt_sources import PromptTable, read_table
from specbench.config import PromptSettings
from specbench.errors import ConfigError
from specbench.models.source import Source

_ASKS_NOTHING = "no question of a person with an answer to it"
_TOO_LONG = "longer than prompts.max_prompt_tokens or the target's context"


@dataclass(frozen=True)
class Prompt:
    """A prompt as the target reads it.

    Attributes:
        id: Unique within the run; a later turn's ends in ``/turn2`` and so on.
        key: A stable number below 2**31, made from the id.
        category: None where its source has none.
        ids: Its tokens; empty for a later turn whose earlier answers are not known yet.
        text: What is asked, without what stands before and around it.
        turn: Of its conversation, from 1.
    """

    id: str
    key: int
    category: str | None
    ids: list[int]
    text: str
    turn: int = 1


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a cell.

    Attributes:
        prompts: All first turns, then all second turns, and so on.
        sha: Sixteen hex digits of their ids, or of the text where the ids are not known yet.
        dataset: The source's name.
        skipped: What the source should hold and does not, or what was left out, each with the reason.
        questions: What the first turns come from, in their order.
        frame: What stands around each prompt, in words.
    """

    prompts: list[Prompt]
    sha: str
    dataset: str
    skipped: dict[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    frame: str = "nothing"


def load_prompts(
    settings: PromptSettings,
    source: Source,
    *,
    max_new_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    turns: int = 1,
    exact: bool = True,
) -> PromptSet:
    """The prompts of a cell, as its target reads them.

    Args:
        settings: Which prompts.
        source: The target, for its tokenizer, template and context.
        max_new_tokens: Room that must be left in the context, for each turn.
        chat_template_kwargs: Handed to the chat template.
        turns: Turns of each conversation; one that has fewer gives fewer prompts.
        exact: Whether ``prompts.count`` must be reached, and is not just the most that are taken.

    Raises:
        ConfigError: A missing or unreadable file, no or too few prompts, a prompt that does not fit.
        UnsupportedError: A hub data set that cannot be reached.
    """
    table = read_table(settings)
    encoder = Encoder(settings, source, chat_template_kwargs or {})
    room = _Room(settings, source, encoder, max_new_tokens, turns)
    questions: list[Question] = []
    left_out: Counter[str] = Counter()
    for row in in_order(table, settings):
        if len(questions) == settings.number:
            break
        question = table.question(row)
        if question is None:
            left_out[_ASKS_NOTHING] += 1
        elif not room.holds(question):
            left_out[_TOO_LONG] += 1
        else:
            questions.append(question)
    skipped = {f"{count} prompts of {table.name}": reason for reason, count in left_out.items()}
    if len(questions) < (settings.number if exact else 1):
        raise ConfigError(_too_few(settings, len(questions), skipped))
    prompts = [prompt_of(question, encoder) for question in questions]
    for turn in range(2, turns + 1):
        prompts += [_pending(question, turn) for question in questions if len(question.content.turns) >= turn]
    skipped |= _missed(table, questions)
    return PromptSet(prompts, prompts_sha(prompts), table.name, skipped, tuple(questions), encoder.frame)


def _too_few(settings: PromptSettings, found: int, skipped: Mapping[str, str]) -> str:
    wanted = f"prompts.count is {settings.number}" if settings.ids is None else f"prompts.ids names {settings.number}"
    of = "" if settings.categories is None else f" of category {' or '.join(settings.categories)}"
    left_out = "".join(f"; {which} are left out: {reason}" for which, reason in skipped.items())
    if not found:
        return f"{settings.source} has no prompts{of}{left_out}"
    return f"{wanted}, but {settings.source} has {found} prompts{of}; none is used twice{left_out}"


def _missed(table: PromptTable, questions: Sequence[Question]) -> dict[str, str]:
    """What the source lacks, unless nothing of it was needed."""
    preferred = set(table.ids[: table.preferred])
    if table.preferred and all(question.id in preferred for question in questions):
        return {}
    return dict(table.skipped)


def prompt_of(question: Question, encoder: Encoder, answers: Sequence[Answer] = ()) -> Prompt:
    """The prompt of the turn that follows the answers."""
    pending = _pending(question, 1 + len(answers))
    with _named(pending.id):
        ids = encoder.ids(question.content, answers)
    return Prompt(pending.id, pending.key, pending.category, ids, pending.text, pending.turn)


def _pending(question: Question, turn: int) -> Prompt:
    prompt_id = question.id if turn == 1 else f"{question.id}/turn{turn}"
    return Prompt(prompt_id, key_of(prompt_id), question.category, [], question.content.turns[turn - 1], turn)


def prompts_sha(prompts: list[Prompt]) -> str:
    """Sixteen hex digits of the ids of all prompts, in order; of the text of those that have no ids yet."""
    return hashlib.sha256(json.dumps([prompt.ids or prompt.text for prompt in prompts]).encode()).hexdigest()[:16]


def key_of(prompt_id: str) -> int:
    """A stable number below 2**31."""
    return int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:4], "big") & 0x7FFFFFFF


def warm_up_ids(ids: list[int]) -> list[int]:
    """A prompt that is as long as a measured one and none of them: its tokens in reverse order, the first one kept."""
    return [ids[0], *reversed(ids[1:])]


class _Room:
    """What a target can hold."""

    def __init__(
        self, settings: PromptSettings, source: Source, encoder: Encoder, max_new_tokens: int, turns: int
    ) -> None:
        self._skips, self._limit = settings.truncate == "skip", limit_of(settings)
        self._source, self._encoder, self._max_new_tokens, self._turns = source, encoder, max_new_tokens, turns

    def holds(self, question: Question) -> bool:
        """Whether the question can be asked; without ``truncate: skip`` it must be.

        Raises:
            ConfigError: The conversation is longer than the context.
        """
        with _named(question.id):
            tokens = len(self._encoder.ids(question.content))
            needed = self._needed(question)
            most = self._source.max_positions
            if self._skips:
                return (most is None or needed <= most) and (self._limit is None or tokens <= self._limit)
            if most is not None and needed > most:
                rest = needed - tokens
                more = "new ones" if self._turns == 1 else "of answers and later turns"
                raise ConfigError(
                    f"{tokens} tokens and {rest} {more} exceed the {most} positions of {self._source.name}; set "
                    f"prompts.max_prompt_tokens to at most {max(0, most - rest)}, or prompts.truncate to skip"
                )
        return True

    def _needed(self, question: Question) -> int:
        """Tokens of the whole conversation, every answer as long as it may get."""
        turns = min(self._turns, len(question.content.turns))
        silent = [Answer([], "")] * (turns - 1)
        return len(self._encoder.ids(question.content, silent)) + turns * self._max_new_tokens


@contextmanager
def _named(prompt_id: str) -> Iterator[None]:
    """Say which prompt a fault is in."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"prompt {prompt_id}: {error}") from error
