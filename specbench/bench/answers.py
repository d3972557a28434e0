"""Answers of a method to a set of questions, in the JSON lines that FastChat and Spec-Bench read.

One line a question: ``question_id``, ``category``, ``answer_id``, ``model_id``, ``tstamp``, and one choice with a text
for each turn. As in Spec-Bench the choice also holds, turn by turn, ``decoding_steps``, ``new_tokens`` and
``wall_time``, and ``accept_lengths``: the tokens of every step, the target's own included. ``wall_time`` runs from the
start of the batch to the end of the request itself, prefill included. ``generate_params`` is what an answer depends on.

Sources: lm-sys/FastChat fastchat/llm_judge/gen_model_answer.py and common.py; hemingkx/Spec-Bench evaluation/eval.py
and speed.py.
"""

import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.bench.arms import Measured
from specbench.bench.cells import ReadyCell
from specbench.bench.conversations import answer_of
from specbench.bench.prompt_encoding import Answer, Encoder
from specbench.bench.prompt_formats import Question
from specbench.bench.prompts import PromptSet, load_prompts, prompt_of
from specbench.bench.rows import decoded
from specbench.bench.speaker import Speaker, ready_setting, speaker_for, told_options
from specbench.bench.timing import frozen_objects, utc_now
from specbench.config import PromptSettings
from specbench.errors import ConfigError, ResultsError
from specbench.grid import Arm, Plan
from specbench.models.source import Source
from specbench.models.zoo import ZOO

QuestionId = int | str
Json = dict[str, Any]


@dataclass
class Answers:
    """What has come of a set of questions.

    Attributes:
        path: The file that the answers are in.
        title: Target, method, questions and setting, in words.
        wanted: Questions that were asked for.
        kept: Of those, how many the file held beforehand.
        done: How many it holds now.
        requests: One row for each turn that was answered now, with columns of the ``requests`` table.
        notes: What the source should hold and does not, and the like.
    """

    path: Path
    title: str
    wanted: int
    kept: int
    done: int
    requests: list[Json] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows, as ``specbench.analysis`` takes them."""
        return pd.DataFrame(self.requests)


def write_answers(
    plan: Plan,
    path: Path | None = None,
    *,
    model_id: str | None = None,
    zoo: Path = ZOO,
    tell: Callable[[Answers], None] = lambda _: None,
) -> Answers:
    """Answer all questions that the file does not answer yet, and write each batch as soon as it is whole.

    A batch goes through all its turns before the next one begins, each turn behind the answers that the method itself
    gave.

    Args:
        plan: Of one setting; ``prompts.count``, if given, is the most that are asked.
        path: The file; None is ``results/answers/DATASET/MODEL_ID.jsonl``.
        model_id: What the file calls model and method; None is made from the setting.
        zoo: Where the embedded family lies.
        tell: Told after every batch.

    Raises:
        ConfigError: Something is missing or does not fit, or the file holds other answers.
        ResultsError: The file cannot be read.
        SpecbenchError: As for ``speaker_for`` and ``Speaker.answer``.
    """
    cell, arm = ready_setting(plan, zoo, _at_most)
    name = model_id or _model_id(cell, arm)
    file = AnswerFile(
        path or Path("results", "answers", _slug(cell.prompts.dataset), f"{_slug(name)}.jsonl"),
        name,
        _parameters(cell, arm),
    )
    known = file.read()
    questions = cell.prompts.questions
    missing = [one for one in questions if question_id(one, cell.prompts.dataset) not in known]
    kept = len(questions) - len(missing)
    notes = [f"{part}: {reason}" for part, reason in cell.prompts.skipped.items()]
    answers = Answers(file.path, _title(cell, arm), len(questions), kept, kept, notes=notes)
    tell(answers)
    if missing:
        speaker = speaker_for(cell, arm, zoo)
        with frozen_objects():
            for batch in _Asker(cell, speaker).batches(missing):
                file.append(batch.lines)
                answers.requests += batch.requests
                answers.done += len(batch.lines)
                tell(answers)
    return answers


def _at_most(settings: PromptSettings, source: Source, **options: Any) -> PromptSet:
    """As ``load_prompts``, where ``count`` is an upper limit, and no limit at all unless it was given."""
    if "count" not in settings.model_fields_set and settings.ids is None:
        settings = settings.model_copy(update={"count": sys.maxsize})
    return load_prompts(settings, source, **options, exact=False)


def question_id(question: Question, dataset: str) -> QuestionId:
    """The id that the question has in its source: a number, where it is one, as FastChat sorts by it."""
    own = question.id.removeprefix(f"{dataset}/")
    return int(own) if own.isdecimal() and str(int(own)) == own else own


def _model_id(cell: ReadyCell, arm: Arm) -> str:
    """Target, method, the options that are not as by default, precision and temperature."""
    changed = [f"{name}-{value}" for name, value in told_options(arm).items()]
    decode = cell.cell.decode
    rule = [] if decode.rule == "auto" else [decode.rule_name]
    parts = [cell.cell.target.name, arm.method, *changed, cell.where.dtype_name, *rule]
    return "-".join(map(_slug, [*parts, f"temperature-{decode.temperature:g}"]))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def _title(cell: ReadyCell, arm: Arm) -> str:
    decode, rule = cell.cell.decode, cell.decoding.rule
    lossy = "" if rule.lossless else f", {rule.name} (lossy)"
    return (
        f"{cell.cell.target.name} {cell.where.dtype_name}, {arm.method}, {cell.prompts.dataset}, "
        f"T={decode.temperature:g}{lossy}, batch {decode.batch_size}"
    )


def _parameters(cell: ReadyCell, arm: Arm) -> Json:
    """All that the answers and their times depend on, but for which questions are asked."""
    which = {"count", "ids", "categories", "seed"}
    models, drafters = cell.drafts[arm.name], cell.drafters[arm.name]
    return {
        "target": cell.cell.target.model_dump(mode="json")["model"],
        "target_sha": cell.target_sha,
        "method": arm.method,
        "options": arm.options,
        "weights_sha": [model.weights_sha for model in models] + [drafter.weights_sha for drafter in drafters],
        "prompts": cell.cell.prompts.model_dump(mode="json", exclude=which),
        "decode": cell.cell.decode.model_dump(mode="json"),
        "machine": cell.cell.machine.model_dump(mode="json"),
    }


# --- asking


@dataclass
class _Batch:
    """The lines of one batch of questions, and the rows of its turns."""

    lines: list[Json]
    requests: list[Json]


@dataclass(frozen=True)
class _Turn:
    """One answer, how it came about, and when."""

    answer: Answer
    measured: Measured
    row: int

    @property
    def steps(self) -> list[int]:
        """Tokens of each step."""
        return self.measured.trace.rows[self.row].emitted_per_step

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer, with the one that ended it."""
        return len(self.measured.trace.rows[self.row].output_ids)

    @property
    def wall_s(self) -> float:
        """From the start of the batch to the end of this answer, in seconds."""
        timing = self.measured.timing
        return timing.prefill_s + timing.row_done_s(len(self.steps))


class _Asker:
    """Asks batch after batch, each through all its turns."""

    def __init__(self, cell: ReadyCell, speaker: Speaker) -> None:
        self._cell, self._speaker = cell, speaker
        self._encoder = Encoder(cell.cell.prompts, cell.target, cell.cell.decode.chat_template_kwargs)
        self._number = 0

    def batches(self, questions: list[Question]) -> Iterator[_Batch]:
        """Every question, in its order."""
        size = self._cell.cell.decode.batch_size
        self._speaker.get_ready([prompt_of(question, self._encoder) for question in questions[:size]])
        for start in range(0, len(questions), size):
            yield self._batch(questions[start : start + size])

    def _batch(self, questions: list[Question]) -> _Batch:
        turns: dict[str, list[_Turn]] = {question.id: [] for question in questions}
        requests: list[Json] = []
        for turn in range(self._cell.cell.decode.turns):
            asked = [question for question in questions if len(question.content.turns) > turn]
            if asked:
                requests += self._turn(asked, turns)
        return _Batch([_line(question, turns[question.id], self._cell) for question in questions], requests)

    def _turn(self, questions: list[Question], turns: Mapping[str, list[_Turn]]) -> list[Json]:
        """One turn of each question, noted behind its earlier ones."""
        prompts = [
            prompt_of(question, self._encoder, [turn.answer for turn in turns[question.id]]) for question in questions
        ]
        measured = self._speaker.answer(prompts)
        for index, (question, row) in enumerate(zip(questions, measured.trace.rows, strict=True)):
            answer = answer_of(row.output_ids, self._cell.target)
            turns[question.id].append(_Turn(answer, measured, index))
        self._number += 1
        place = {
            "status": "ok", "process": 0, "repeat": 0, "block": self._number, "batch_id": str(self._number),
            "batch_size": self._cell.cell.decode.batch_size,
        }  # fmt: skip
        return [place | decoded(measured, row) for row in measured.trace.rows]


def _line(question: Question, turns: list[_Turn], cell: ReadyCell) -> Json:
    return {
        "question_id": question_id(question, cell.prompts.dataset),
        "category": question.category,
        "choices": [
            {
                "index": 0,
                "turns": [turn.answer.text for turn in turns],
                "decoding_steps": [len(turn.steps) for turn in turns],
                "new_tokens": [turn.new_tokens for turn in turns],
                "wall_time": [turn.wall_s for turn in turns],
                "accept_lengths": [tokens for turn in turns for tokens in turn.steps],
            }
        ],
        "tstamp": datetime.fromisoformat(utc_now()).timestamp(),
    }


# --- the file


class AnswerFile:
    """A file of answers, one line each. What is written stays, whenever the writer is killed.

    Args:
        path: Where it is, or is to be.
        model_id: Whose answers it holds.
        parameters: What they depend on.
    """

    def __init__(self, path: Path, model_id: str, parameters: Json) -> None:
        self.path, self._model_id = path, model_id
        self._parameters: Json = json.loads(json.dumps(parameters))

    def read(self) -> set[QuestionId]:
        """The questions that are answered. A last line that was cut short is taken away.

        Raises:
            ConfigError: The answers are another model's, or were given under another setting.
            ResultsError: A line is no answer.
        """
        if not self.path.exists():
            return set()
        data = self._repaired(self.path.read_bytes())
        lines = enumerate(data.split(b"\n"), start=1)
        return {self._question(line, f"{self.path}:{number}") for number, line in lines if line.strip()}

    def append(self, lines: list[Json]) -> None:
        """Write some answers, and wait until they are on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            for line in lines:
                whole = {
                    "question_id": line["question_id"],
                    "category": line["category"],
                    "answer_id": uuid.uuid4().hex,
                    "model_id": self._model_id,
                    **line,
                    "generate_params": self._parameters,
                }
                file.write(json.dumps(whole).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _repaired(self, data: bytes) -> bytes:
        """The file with whole lines only."""
        end = data.rfind(b"\n") + 1
        if end == len(data):
            return data
        if _parsed(data[end:]) is None:
            os.truncate(self.path, end)
            return data[:end]
        with self.path.open("ab") as file:
            file.write(b"\n")
        return data + b"\n"

    def _question(self, line: bytes, place: str) -> QuestionId:
        answer = _parsed(line)
        if answer is None or not isinstance(answer.get("question_id"), int | str):
            raise ResultsError(f"{place}: no answer to a question; name another file with --out")
        if answer.get("model_id") != self._model_id:
            raise ConfigError(
                f"{place}: an answer of {answer.get('model_id')}, and these would be {self._model_id}'s; "
                "name another file with --out"
            )
        self._check(answer.get("generate_params"), place)
        return answer["question_id"]

    def _check(self, parameters: Any, place: str) -> None:
        before, now = dict(_flat(parameters)), dict(_flat(self._parameters))
        for name in (*now, *before):
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f"{place}: {name} was {json.dumps(before.get(name))} for this answer, and now it is "
                    f"{json.dumps(now.get(name))}; name another file with --out"
                )


def _parsed(line: bytes) -> Json | None:
    """The object in a line; None where there is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted names."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value
