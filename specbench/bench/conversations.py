"""Later turns of conversations: each is asked behind answers that are frozen before anything is measured.

A second turn depends on the answer to the first. If every method gave its own, methods would be timed on prompts that
differ; so the core's autoregressive answers once, alone in its batch, under the cell's own temperature, length and
seed, and every arm, batch size and repeat is asked the same second turn. The answers lie in the run's folder, and a run
that goes on reads them from there.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from specbench.bench.arms import CoreArm, Failure
from specbench.bench.cells import Block, ReadyCell, decoding_of
from specbench.bench.prompt_encoding import Answer, Encoder
from specbench.bench.prompts import Prompt, prompt_of, prompts_sha
from specbench.errors import ResultsError
from specbench.grid import AUTOREGRESSIVE, Arm
from specbench.models.loader import LoadedModel, ModelPool
from specbench.models.source import Source
from specbench.records.store import write_atomically


class NoAnswerError(Exception):
    """The target could not answer a turn; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def waits_for_answers(cell: ReadyCell) -> bool:
    """Whether some of its prompts have no tokens yet."""
    return not all(prompt.ids for prompt in cell.prompts.prompts)


def answered(
    cell: ReadyCell, target: LoadedModel, pool: ModelPool, folder: Path | None, *, limit_s: float | None = None
) -> ReadyCell:
    """The cell with the tokens of its later turns.

    Args:
        cell: One that waits for answers.
        target: What answers.
        pool: Where the target comes from.
        folder: The run's; its file ``answers/*.json`` keeps what was answered, all of it or not. None keeps nothing.
        limit_s: Longest time for one answer.

    Raises:
        NoAnswerError: The target ran out of memory or time, or failed.
        ConfigError: A later turn does not fit.
        ResultsError: The answers cannot be read or written.
    """
    alone = _alone(cell)
    arm = CoreArm(Arm(AUTOREGRESSIVE, AUTOREGRESSIVE, AUTOREGRESSIVE, {}), alone, target, pool, limit_s=limit_s)
    file = _File(None if folder is None else folder / "answers" / f"{_digest(alone)}.json")
    encoder = Encoder(cell.cell.prompts, cell.target, cell.cell.decode.chat_template_kwargs)
    later: list[Prompt] = []
    for question in cell.prompts.questions:
        given = file.answers.setdefault(question.id, [])
        for turn in range(1, min(cell.cell.decode.turns, len(question.content.turns))):
            if len(given) < turn:
                given.append(_answer(arm, alone, prompt_of(question, encoder, given)))
                file.write()
            later.append(prompt_of(question, encoder, given[:turn]))
    first = [prompt for prompt in cell.prompts.prompts if prompt.turn == 1]
    prompts = [*first, *sorted(later, key=lambda prompt: prompt.turn)]
    return replace(cell, prompts=replace(cell.prompts, prompts=prompts, sha=prompts_sha(prompts)))


def _alone(cell: ReadyCell) -> ReadyCell:
    """The cell as answers are given: one prompt at a time, up to the end of the text, by no simulated rule."""
    decode = cell.cell.decode.model_copy(update={"batch_size": 1, "rule": "auto", "ignore_eos": False})
    return replace(cell, cell=replace(cell.cell, decode=decode), decoding=decoding_of(decode, cell.target))


def _answer(arm: CoreArm, cell: ReadyCell, prompt: Prompt) -> Answer:
    outcome = arm.run(Block(0, [prompt]), "headline")
    if isinstance(outcome, Failure):
        raise NoAnswerError(outcome)
    return answer_of(outcome.trace.rows[0].output_ids, cell.target)


def answer_of(output_ids: Sequence[int], source: Source) -> Answer:
    """What a model said, without the token that ended it."""
    ids = [token for token in output_ids if token not in source.eos_ids]
    return Answer(ids, source.tokenizer.decode(ids, skip_special_tokens=True))


def _digest(cell: ReadyCell) -> str:
    """Names all that answers depend on."""
    settings = (cell.cell.prompts, cell.cell.decode)
    parts = [cell.target_sha, cell.prompts.sha, cell.where.dtype_name, cell.cell.machine.attention]
    parts += [part.model_dump_json() for part in settings]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _File:
    """The answers of one cell, by the id of their question, on disk.

    Raises:
        ResultsError: The file is there and cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.answers = dict(_read(path)) if path is not None and path.exists() else {}

    def write(self) -> None:
        """Keep all answers so far."""
        plain = {question: [asdict(answer) for answer in given] for question, given in self.answers.items()}
        if self._path is not None:
            write_atomically(self._path, json.dumps(plain).encode())


def _read(path: Path) -> Iterator[tuple[str, list[Answer]]]:
    try:
        for question, given in json.loads(path.read_text("utf-8")).items():
            yield question, [Answer(**answer) for answer in given]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: no answers in it. Delete it and run again") from error
