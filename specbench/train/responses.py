"""Answers that the target writes itself: a drafter meets the target's own text when it is used, so it learns from that.

Every answer is keyed by the ids that it answers, and lies on disk from the moment that its batch is done. So a run that
was killed goes on where it was, and a run over more data finds what an earlier one has written.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from specbench import registry
from specbench.decode.acceptance import rule_for
from specbench.decode.loop import Requests, generate
from specbench.decode.step import Decoding
from specbench.errors import TrainingError
from specbench.models.loader import LoadedModel
from specbench.train.conversations import Conversation, Document, Documents, Exchange, Text
from specbench.train.examples import begins_of
from specbench.train.framing import Framing, common_length
from specbench.train.teacher import PROMPT_SHARE

_NO_ROOM = "no room for an answer"


def own_responses(
    documents: Documents,
    target: LoadedModel,
    framing: Framing,
    folder: Path,
    *,
    max_tokens: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Documents:
    """The same documents with every answer by the target itself, each behind its own answers to the turns before.

    Of a conversation the questions stay; it ends where an answer would have no room. A text becomes windows that the
    target goes on with after their first quarter, of which its part is to be learned.

    Args:
        documents: What ``read_documents`` read; questions without an answer are welcome.
        target: What answers.
        framing: What stands around a question.
        folder: Where the answers are kept. One process at a time writes there.
        max_tokens: Longest sequence that will be learned from; nothing is asked behind it.
        max_new_tokens: Longest answer; one that is cut there is not learned to end.
        temperature: 0 is greedy.
        batch_size: Answers that are written together. No text depends on it, but for near ties in half precision.
        seed: Of the sampling noise.
        report: Called after every batch with the answers so far, and the most that there can be.

    Raises:
        TrainingError: A file of answers cannot be read.
    """
    positions = target.model.max_positions
    longest = max_tokens - 1 if positions is None else min(max_tokens - 1, positions - max_new_tokens)
    training = [work for document in documents.training for work in _works(document, framing, longest, max_tokens)]
    held_out = [work for document in documents.held_out for work in _works(document, framing, longest, max_tokens)]
    works = training + held_out
    decoding = Decoding(
        max_new_tokens,
        temperature=temperature,
        rule=rule_for("auto", temperature),
        seed=seed,
        eos_ids=target.eos_ids,
    )
    progress = _Progress(sum(work.most for work in works), report)
    scribe = _Scribe(target, decoding, batch_size, folder, progress)
    while waiting := [(work, prompt) for work in works if (prompt := work.prompt()) is not None]:
        answers = scribe.write([prompt for _, prompt in waiting])
        for (work, _), answer in zip(waiting, answers, strict=True):
            work.take(answer)
    left_out = Counter(documents.left_out)
    left_out[_NO_ROOM] += sum(work.document() is None for work in works)
    return replace(
        documents,
        what=f"{documents.what}, answered by {target.source.name}",
        training=[document for work in training if (document := work.document()) is not None],
        held_out=[document for work in held_out if (document := work.document()) is not None],
        left_out={reason: count for reason, count in left_out.items() if count},
    )


# --- what is to be written


@dataclass(frozen=True)
class _Answer:
    """What the target wrote: ids without the token that ended it, (T,) int32, and whether one did."""

    ids: np.ndarray
    ended: bool


class _Work(ABC):
    """A document that the target writes on, one answer after the other.

    Attributes:
        most: Answers that it can take.
    """

    most: int

    @abstractmethod
    def prompt(self) -> list[int] | None:
        """What the next answer stands behind; None where there is none to come."""

    @abstractmethod
    def take(self, answer: _Answer) -> None:
        """The answer to ``prompt``."""

    @abstractmethod
    def document(self) -> Document | None:
        """What has become of it; None where nothing was written."""


def _works(document: Document, framing: Framing, longest: int, max_tokens: int) -> Iterator[_Work]:
    if isinstance(document, Conversation):
        yield _Talk(document, framing, longest)
        return
    tokenizer = framing.tokenizer
    head = begins_of(tokenizer)
    ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    length = max_tokens - len(head)
    for first in range(0, len(ids), length):
        window = ids[first : first + length]
        given = head + window[: max(1, int(len(window) * PROMPT_SHARE))]
        yield _Passage(given, framing, longest)


class _Talk(_Work):
    """A conversation; its questions stay."""

    def __init__(self, conversation: Conversation, framing: Framing, longest: int) -> None:
        self._conversation, self._framing, self._longest = conversation, framing, longest
        self._answered: tuple[Exchange, ...] = ()
        self._is_full = False
        self.most = len(conversation.exchanges)

    def prompt(self) -> list[int] | None:
        if self._is_full or len(self._answered) == self.most:
            return None
        question = self._conversation.exchanges[len(self._answered)].question
        asked = replace(self._conversation, exchanges=(*self._answered, Exchange(question)))
        [ids] = self._framing.encode([self._framing.asked(asked)])["input_ids"]
        self._is_full = len(ids) > self._longest
        return None if self._is_full else ids

    def take(self, answer: _Answer) -> None:
        question = self._conversation.exchanges[len(self._answered)].question
        text = _decoded(self._framing, answer.ids.tolist()).strip()
        self._answered = (*self._answered, Exchange(question, text, answer.ended))

    def document(self) -> Document | None:
        return replace(self._conversation, exchanges=self._answered) if self._answered else None


class _Passage(_Work):
    """The beginning of a window of some text."""

    most = 1

    def __init__(self, given: list[int], framing: Framing, longest: int) -> None:
        self._given, self._framing, self._has_room = given, framing, len(given) <= longest
        self._text: Text | None = None

    def prompt(self) -> list[int] | None:
        return self._given if self._has_room and self._text is None else None

    def take(self, answer: _Answer) -> None:
        whole = _decoded(self._framing, self._given + answer.ids.tolist())
        # A beginning may end within a letter, which is whole only together with what follows.
        given = common_length(whole, _decoded(self._framing, self._given))
        self._text = Text(whole, given, answer.ended)

    def document(self) -> Document | None:
        return self._text


def _decoded(framing: Framing, ids: list[int]) -> str:
    return str(framing.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


# --- writing, and keeping what was written


class _Progress:
    """How many answers there are."""

    def __init__(self, most: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._most, self._report = 0, most, report

    def add(self, count: int) -> None:
        self._done += count
        if self._report is not None:
            self._report(self._done, self._most)


class _Scribe:
    """The target with a pen: writes what is not on disk yet, batch by batch."""

    def __init__(
        self, target: LoadedModel, decoding: Decoding, batch_size: int, folder: Path, progress: _Progress
    ) -> None:
        self._model, self._decoding = target.model.sharing_weights(), decoding
        self._batch_size, self._progress = batch_size, progress
        kind = registry.load("autoregressive")
        self._method = kind(kind.Options())
        folder.mkdir(parents=True, exist_ok=True)
        precision = str(target.model.dtype).removeprefix("torch.")
        how = f"{decoding.max_new_tokens}-{decoding.temperature:g}-{decoding.seed}"
        self._path = folder / f"{target.weights_sha}-{precision}-{how}.jsonl"
        self._kept = _read(self._path)

    def write(self, prompts: Sequence[list[int]]) -> list[_Answer]:
        """An answer to every prompt; equal ones have the same."""
        keys = [_key(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._kept}
        self._progress.add(len(prompts) - len(missing))
        # The longest first: what does not fit into memory shows at once, and one cache serves all.
        waiting = sorted(missing, key=lambda key: len(missing[key]), reverse=True)
        for first in range(0, len(waiting), self._batch_size):
            batch = waiting[first : first + self._batch_size]
            self._write_batch({key: missing[key] for key in batch})
            self._progress.add(len(batch))
        return [self._kept[key] for key in keys]

    def _write_batch(self, prompts: dict[str, list[int]]) -> None:
        requests = Requests(list(prompts.values()), [int(key[:8], 16) & 0x7FFFFFFF for key in prompts])
        trace = generate(self._model, self._method, requests, self._decoding)
        lines = ""
        for key, row in zip(prompts, trace.rows, strict=True):
            ended = row.finish_reason == "eos"
            ids = row.output_ids[:-1] if ended else row.output_ids
            self._kept[key] = _Answer(np.asarray(ids, dtype=np.int32), ended)
            lines += json.dumps({"key": key, "ids": ids, "ended": ended}) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def _key(prompt: list[int]) -> str:
    return hashlib.sha256(np.asarray(prompt, dtype=np.int32).tobytes()).hexdigest()[:32]


def _read(path: Path) -> dict[str, _Answer]:
    """The answers in a file; what a kill has left of a line is cut off, or the next one would go on in it."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return {row["key"]: _Answer(np.asarray(row["ids"], dtype=np.int32), bool(row["ended"])) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: no answers in it; delete it and run again") from error
