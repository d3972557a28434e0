"""specbench.bench.conversations, and how the runner uses it"""

import json

import pytest

from specbench.bench import conversations
from specbench.bench.arms import CoreArm, Failure
from specbench.bench.cells import ready
from specbench.bench.conversations import NoAnswerError, answered, waits_for_answers
from specbench.bench.verify import verify
from specbench.config import MachineSettings
from specbench.errors import ResultsError
from specbench.models.loader import ModelPool, placement
from specbench.records.store import Store
from tests.unit.bench.bench_plans import plan_of, run
from tests.unit.models import tiny

QUESTIONS = [
    {"question_id": 1, "turns": ["def f(x):\n", "def g(y):\n"]},
    {"question_id": 2, "turns": ["import os\n"]},
    {"question_id": 3, "turns": ["class A:\n", "class B:\n", "class C:\n"]},
]

DECODE = {"max_new_tokens": 10, "batch_size": 2, "turns": 2}

PLAN = """
name: talk
targets: [{{model: pico}}]
prompts: {{source: {questions}, ids: [q/1, q/2, q/3]}}
decode: {decode}
measure: {{repeats: 1, warmup: 0, phase_blocks: 0}}
machine: {{device: cpu}}
"""


def prepared(folder, **changes):
    """The plan, with the questions beside it."""
    questions = folder / "q.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return PLAN.format(questions=questions, decode=json.dumps(DECODE | changes))


@pytest.fixture(scope="module")
def pool(family):
    return ModelPool(placement(MachineSettings(device="cpu")), family)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that were answered."""
    prompts = []
    real = conversations._answer

    def answer(arm, cell, prompt):
        prompts.append(prompt.id)
        return real(arm, cell, prompt)

    monkeypatch.setattr(conversations, "_answer", answer)
    return prompts


def complete(folder, pool, **changes):
    """The first cell of the plan with its later turns."""
    [cell, *_] = ready(plan_of(folder, prepared(folder, **changes)), folder / "zoo")
    assert waits_for_answers(cell)
    return answered(cell, pool.get("pico"), pool, folder)


def files(folder):
    return sorted((folder / "answers").iterdir())


def requests(summary):
    return Store(summary.folder).read("requests")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, family):
    """A run of two batch sizes."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "zoo").symlink_to(family)
    return run(folder, prepared(folder, batch_size=[1, 2]))


def test_a_conversation_has_a_row_for_each_turn_that_is_measured(finished):
    rows = requests(finished)
    for _, one in rows.groupby(["arm", "batch_size"]):
        found = sorted(zip(one["prompt_id"], one["turn"], strict=True))
        assert found == [("q/1", 1), ("q/1/turn2", 2), ("q/2", 1), ("q/3", 1), ("q/3/turn2", 2)]
    assert set(rows["status"]) == {"ok"}
    assert (finished.finished, finished.wrong) == (4, 0)


def test_every_arm_and_batch_size_is_asked_the_same_second_turn(finished):
    rows = requests(finished)
    assert rows["prompts_sha"].nunique() == 1
    assert rows.groupby("prompt_id")["prompt_tokens"].nunique().max() == 1
    assert len(files(finished.folder)) == 1


def test_a_second_turn_stands_behind_what_autoregressive_says_in_the_first(finished, folder, pool):
    rows, tokens = requests(finished), tiny.tokenizer()
    second = {prompt.id: prompt.ids for prompt in complete(folder, pool).prompts.prompts if prompt.turn == 2}
    for number in (1, 3):
        one, two = QUESTIONS[number - 1]["turns"][:2]
        said = rows[(rows["prompt_id"] == f"q/{number}") & (rows["arm"] == "autoregressive")].iloc[0]["output_ids"]
        said = [token for token in said if token != tokens.eos_token_id]
        assert second[f"q/{number}/turn2"] == [*tokens(one)["input_ids"], *said, *tokens(f"\n\n{two}\n\n")["input_ids"]]


def test_a_run_that_goes_on_finds_the_same_answers(folder, asked, monkeypatch):
    real, blocks = Store.write_block, []

    def killed(self, key, *tables):
        if blocks:
            raise KeyboardInterrupt
        blocks.append(key)
        real(self, key, *tables)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_block", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, prepared(folder))
    before = list(asked)
    summary = run(folder, prepared(folder))
    assert before == asked == ["q/1", "q/3"]
    assert (summary.blocks_kept, requests(summary)["prompts_sha"].nunique()) == (1, 1)


def test_answers_that_were_cut_short_are_completed(folder, pool, asked, monkeypatch):
    real = CoreArm.run

    def killed(self, block, which):
        if block.prompts[0].id == "q/3":
            raise KeyboardInterrupt
        return real(self, block, which)

    with monkeypatch.context() as patch:
        patch.setattr(CoreArm, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            complete(folder, pool)
    complete(folder, pool)
    assert asked == ["q/1", "q/3", "q/3"]
    [file] = files(folder)
    assert {name: len(given) for name, given in json.loads(file.read_text()).items()} == {"q/1": 1, "q/2": 0, "q/3": 1}


def test_answers_of_another_temperature_are_others(folder, pool):
    greedy, sampled = complete(folder, pool), complete(folder, pool, temperature=0.8)
    assert len(files(folder)) == 2
    assert greedy.prompts.sha != sampled.prompts.sha


def test_an_answer_ends_where_its_text_does_even_if_rows_do_not(folder, pool, asked):
    """An end of text that the rows ignore would be what every later turn stands behind."""
    plain, ignoring = complete(folder, pool), complete(folder, pool, ignore_eos=True)
    assert [prompt.ids for prompt in plain.prompts.prompts] == [prompt.ids for prompt in ignoring.prompts.prompts]
    assert asked == ["q/1", "q/3"]  # the same answers, so the same file


def test_a_third_turn_stands_behind_two_answers(folder, pool, asked):
    prompts = {prompt.id: prompt.ids for prompt in complete(folder, pool, turns=3).prompts.prompts}
    assert prompts == {prompt.id: prompt.ids for prompt in complete(folder, pool, turns=3).prompts.prompts}
    assert asked == ["q/1", "q/3", "q/3/turn2"]  # and nothing again
    second, third = prompts["q/3/turn2"], prompts["q/3/turn3"]
    assert third[: len(second)] == second
    assert third[-4:] == tiny.tokenizer()("\n\nclass C:\n\n\n")["input_ids"][-4:]


def test_the_trials_are_known_before_anything_is_answered_and_do_not_change(folder, pool):
    [cell] = ready(plan_of(folder, prepared(folder)), folder / "zoo")
    after = complete(folder, pool)
    assert (after.trial_ids, after.name) == (cell.trial_ids, cell.name)
    assert after.prompts.sha != cell.prompts.sha


def test_a_target_that_runs_out_of_memory_gives_no_answer(folder, pool, monkeypatch):
    monkeypatch.setattr(CoreArm, "run", lambda self, block, which: Failure("oom", "out of memory"))
    with pytest.raises(NoAnswerError, match="out of memory"):
        complete(folder, pool)


def test_a_target_without_an_answer_is_rows_of_every_arm(folder, monkeypatch):
    monkeypatch.setattr(CoreArm, "run", lambda self, block, which: Failure("oom", "out of memory"))
    rows = requests(run(folder, prepared(folder)))
    assert set(zip(rows["status"], rows["reason"], strict=True)) == {("oom", "out of memory")}
    assert rows[rows["turn"] == 2]["prompt_tokens"].isna().all()
    assert rows[rows["turn"] == 1]["prompt_tokens"].notna().all()


def test_a_file_that_holds_no_answers_is_named(folder, pool):
    complete(folder, pool)
    files(folder)[0].write_text("{")
    with pytest.raises(ResultsError, match=r"\.json: no answers in it\. Delete it and run again"):
        complete(folder, pool)


def test_single_turns_wait_for_nobody(folder):
    [cell] = ready(plan_of(folder, prepared(folder, turns=1)), folder / "zoo")
    assert not waits_for_answers(cell)
    assert [prompt.id for prompt in cell.prompts.prompts] == ["q/1", "q/2", "q/3"]


def test_answers_can_be_kept_nowhere(folder, pool):
    [cell] = ready(plan_of(folder, prepared(folder)), folder / "zoo")
    assert answered(cell, pool.get("pico"), pool, None).prompts == complete(folder, pool).prompts
    assert [path.name for path in folder.iterdir() if path.is_dir()].count("answers") == 1


def test_a_check_of_losslessness_reads_second_turns_as_well(folder):
    plan = plan_of(folder, prepared(folder) + "methods: [{prompt_lookup: {gamma: 2}}]\n")
    checks = list(verify(plan, zoo=folder / "zoo"))
    assert [(check.requests, check.wrong) for check in checks] == [(5, 0)] * len(checks)
