"""specbench.bench.answers"""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from specbench.bench import answers as module
from specbench.bench import speaker
from specbench.bench.answers import write_answers
from specbench.bench.speaker import Speaker
from specbench.config import MachineSettings
from specbench.errors import ConfigError, ResultsError
from specbench.models.loader import ModelPool, placement
from tests.unit.bench import talk

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["def f(x):\n", "def g(y):\n"]},
    {"question_id": 9, "category": "math", "turns": ["import os\n"]},
    {"question_id": 82, "category": "writing", "turns": ["class A:\n", "class B:\n", "class C:\n"]},
    {"question_id": 83, "category": "math", "turns": ["x = 1\n", "y = 2\n"]},
    {"question_id": 84, "category": "math", "turns": ["for i in range(3):\n"]},
]
MODEL_ID = "pico-draft_model-draft-pico-wide-gamma-3-float32-temperature-0"
BY_ID = {question["question_id"]: question["turns"] for question in QUESTIONS}


@pytest.fixture(scope="module")
def pool(family):
    return ModelPool(placement(MachineSettings(device="cpu", dtype="float32")), family)


@pytest.fixture(autouse=True)
def _quick(pool, monkeypatch):
    """Models are loaded once, and no garbage is collected, which takes longer than a tiny model."""
    monkeypatch.setattr(speaker, "ModelPool", lambda *_: pool)
    monkeypatch.setattr(speaker, "no_garbage_collection", nullcontext)
    monkeypatch.setattr(module, "frozen_objects", nullcontext)


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """The name of a file in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    return "q.jsonl"


@pytest.fixture
def write(questions, family):
    """Answer the questions, two at a time and both turns unless told otherwise."""

    def _write(*overrides, path="out.jsonl", source=questions, model_id=None, **changes):
        plan = talk.plan(source, *overrides, **{"batch_size": 2, "turns": 2, **changes})
        return write_answers(plan, path and Path(path), zoo=family, model_id=model_id)

    return _write


KEPT = {}  # what was written once for all tests


@pytest.fixture
def whole(write):
    """A file with all answers."""
    path = Path("out.jsonl")
    if not KEPT:
        KEPT["answers"] = write()
        KEPT["bytes"] = path.read_bytes()
    path.write_bytes(KEPT["bytes"])
    return path


@pytest.fixture
def answers(whole):
    """What came of writing it."""
    return KEPT["answers"]


@pytest.fixture
def killed():
    """Let only so many batches be answered; the warm-up is none."""

    def _killed(patch, after):
        real, calls = Speaker.answer, []

        def answer(self, *arguments, **options):
            if not options:
                calls.append(arguments)
                if len(calls) > after:
                    raise KeyboardInterrupt
            return real(self, *arguments, **options)

        patch.setattr(Speaker, "answer", answer)

    return _killed


def lines(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def by_id(path):
    return {line["question_id"]: line for line in lines(path)}


def texts(path):
    return {number: line["choices"][0]["turns"] for number, line in by_id(path).items()}


def expected(turns):
    """The texts of the first two turns, each behind the answers before it."""
    found, ids = [], []
    for index, turn in enumerate(turns[:2]):
        ids += talk.ids_of(f"\n\n{turn}\n\n" if index else turn)
        found.append(talk.greedy(ids))
        ids += found[-1]
    return [talk.text_of(answer) for answer in found]


def test_answers_are_what_transformers_writes_and_later_turns_stand_behind_the_earlier_answers(answers, whole):
    assert texts(whole) == {number: expected(turns) for number, turns in BY_ID.items()}
    assert (answers.wanted, answers.kept, answers.done) == (5, 0, 5)


@pytest.mark.parametrize("size", [1, 4])
def test_the_texts_are_the_same_at_every_batch_size(write, whole, size):
    assert texts(write(path="other.jsonl", batch_size=size).path) == texts(whole)


def test_fastchat_can_read_the_file(whole):
    """As its load_model_answers, its judge and its reorg_answer_file do."""
    found = {}
    for line in whole.open():
        answer = json.loads(line)
        found[int(answer["question_id"])] = answer
    assert sorted(found) == sorted(BY_ID)
    two_turns = found[81]["choices"][0]["turns"]
    assert [type(text) for text in two_turns] == [str, str]
    for answer in found.values():
        assert set(answer) >= {"question_id", "answer_id", "model_id", "choices", "tstamp"}
        assert answer["choices"][0]["index"] == 0
        assert isinstance(answer["tstamp"], float)
    assert len({answer["answer_id"] for answer in found.values()}) == 5


def test_spec_bench_can_read_the_file(answers, whole):
    """As its speed.py does: tokens and seconds of each question by its category, and the lengths of all steps."""
    speeds, lengths, tokens = [], [], 0
    for line in lines(whole):
        assert line["category"] in {"writing", "math"}
        choice = line["choices"][0]
        tokens += sum(choice["new_tokens"])
        speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
        lengths.extend(choice["accept_lengths"])
        assert len(choice["turns"]) == len(choice["new_tokens"]) == len(choice["wall_time"])
        assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
        # The prefill's token is no step's.
        assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"]) - len(choice["turns"])
    assert min(speeds) > 0
    frame = answers.frame
    assert tokens == frame["output_tokens"].sum()
    assert sum(lengths) / len(lengths) == pytest.approx((frame["output_tokens"] - 1).sum() / frame["steps"].sum())
    assert sum(lengths) / len(lengths) > 1


def test_steps_and_time_of_a_request_are_its_own_and_not_its_batch_mates(write):
    frame = write(path="lookup.jsonl", method={"prompt_lookup": {"gamma": 3}}, batch_size=5).frame
    assert (frame["row_done_s"] < frame["decode_s"]).any()  # some request ended before its batch
    assert frame["steps"].nunique() > 1
    found = [line["choices"][0] for line in lines(Path("lookup.jsonl"))]
    told = [pair for one in found for pair in zip(one["decoding_steps"], one["wall_time"], strict=True)]
    assert sorted(told) == sorted(zip(frame["steps"], frame["prefill_s"] + frame["row_done_s"], strict=True))


def test_every_request_is_a_row(answers):
    frame = answers.frame
    assert len(frame) == 5 + 3
    assert frame["batch_id"].nunique() == 3 + 2  # three batches; none of the last one's questions has a second turn
    assert set(frame["status"]) == {"ok"}


def test_what_was_finished_before_a_kill_is_kept_and_not_asked_again(write, killed, whole, monkeypatch):
    path = Path("cut.jsonl")
    with monkeypatch.context() as patch:
        killed(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            write(path=path)
    before = path.read_bytes()
    assert len(lines(path)) == 2  # the second batch was in its second turn
    answers = write(path=path)
    assert (answers.kept, answers.done, len(answers.requests)) == (2, 5, 5)
    assert path.read_bytes().startswith(before)
    assert texts(path) == texts(whole)
    assert len(lines(path)) == 5


def test_where_all_is_answered_no_model_is_loaded(write, whole, monkeypatch):
    before = whole.read_bytes()
    monkeypatch.setattr(module, "speaker_for", None)
    answers = write()
    assert (answers.kept, answers.done, answers.requests) == (5, 5, [])
    assert whole.read_bytes() == before


@pytest.mark.parametrize("left", [1, 40, -2])
def test_a_last_line_that_was_torn_is_answered_again(write, whole, left):
    data, expected_texts = whole.read_bytes(), texts(whole)
    start = data.rfind(b"\n", 0, -1) + 1
    whole.write_bytes(data[: start + left] if left > 0 else data[:left])
    answers = write()
    assert (answers.kept, answers.done, len(answers.requests)) == (4, 5, 1)
    assert texts(whole) == expected_texts


def test_a_last_line_that_lacks_only_its_end_is_kept(write, whole):
    data = whole.read_bytes()
    whole.write_bytes(data[:-1])
    assert write().kept == 5
    assert whole.read_bytes() == data


def test_a_broken_line_before_the_last_is_an_error_with_its_number(write, whole):
    data = whole.read_bytes().split(b"\n")
    data[1] = data[1][:50]
    whole.write_bytes(b"\n".join(data))
    with pytest.raises(ResultsError, match=r"out.jsonl:2: no answer to a question"):
        write()


def refused(write, whole, words, *overrides, model_id=MODEL_ID):
    """Nothing is asked, and nothing is changed."""
    before = whole.read_bytes()
    with pytest.raises(ConfigError, match=words):
        write(*overrides, model_id=model_id)
    assert whole.read_bytes() == before


def test_answers_of_another_model_are_never_mixed(write, whole):
    refused(write, whole, rf"out.jsonl:1: an answer of {MODEL_ID}, and these would be mine's", model_id="mine")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "decode.max_new_tokens=13",
            "decode.max_new_tokens was 12 for this answer, and now it is 13; name another file",
        ),
        ("methods.0.draft_model.gamma=4", "options.gamma was 3 for this answer, and now it is 4"),
        ("decode.batch_size=1", "decode.batch_size was 2"),
        ("prompts.template='{prompt}!'", "prompts.template was null"),
    ],
)
def test_answers_under_another_setting_are_never_mixed(write, whole, override, words):
    refused(write, whole, words, override)


def test_answers_of_other_weights_are_never_mixed(write, whole):
    whole.write_bytes(re.sub(rb'"weights_sha": \["\w+"\]', b'"weights_sha": ["0123"]', whole.read_bytes()))
    refused(write, whole, r"weights_sha was \[\"0123\"\]")


def test_a_longer_list_goes_on_from_a_shorter_one(write):
    first = write("prompts.count=2")
    assert (first.wanted, first.done) == (2, 2)
    later = write("prompts.count=4")
    assert (later.wanted, later.kept, later.done) == (4, 2, 4)
    assert (write().wanted, write().kept) == (5, 5)


def test_a_count_is_the_most_and_not_an_exact_number(write, whole):
    assert write("prompts.count=80").wanted == 5


def test_a_prompt_that_is_too_long_may_be_left_out(write, whole):
    answers = write("prompts.truncate=skip", "prompts.max_prompt_tokens=5", path="short.jsonl")
    assert 0 < answers.wanted < 5
    assert answers.notes == [
        f"{5 - answers.wanted} prompts of q: longer than prompts.max_prompt_tokens or the target's context"
    ]


def test_a_source_without_questions_is_an_error(write):
    empty = Path("empty.jsonl")
    empty.write_text("\n")
    with pytest.raises(ConfigError, match=r"empty\.jsonl has no prompts"):
        write(source=empty)


def test_questions_without_a_number_keep_the_name_that_they_have(write):
    named = Path("named.jsonl")
    rows = [{"task_id": "HumanEval/0", "prompt": "def f():\n"}, {"id": "007", "prompt": "x"}, {"prompt": "y"}]
    named.write_text("\n".join(map(json.dumps, rows)))
    path = write(source=named).path
    assert set(by_id(path)) == {"HumanEval/0", "007", "named:3"}
    assert {line["category"] for line in lines(path)} == {None}
    assert write(source=named).kept == 3


def test_without_a_path_the_file_is_named_after_questions_and_model(write):
    answers = write("prompts.count=1", path=None)
    assert answers.path == Path(f"results/answers/q/{MODEL_ID}.jsonl")
    assert {line["model_id"] for line in lines(answers.path)} == {MODEL_ID}
    assert write("prompts.count=1", "methods.0.draft_model.gamma=2", path=None).kept == 0


def test_progress_is_told_after_every_batch(questions, family):
    told = []
    plan = talk.plan(questions, batch_size=2, turns=2)
    write_answers(plan, Path("out.jsonl"), zoo=family, tell=lambda now: told.append((now.done, now.wanted)))
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_sampled_answers_depend_on_neither_batch_nor_interruption(write, killed, whole, monkeypatch):
    sampled = texts(write(path="sampled.jsonl", temperature=0.9, batch_size=3).path)
    assert sampled != texts(whole)
    with monkeypatch.context() as patch:
        killed(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            write(path="cut.jsonl", temperature=0.9)
    assert texts(write(path="cut.jsonl", temperature=0.9).path) == sampled
