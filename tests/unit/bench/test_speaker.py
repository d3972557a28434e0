"""specbench.bench.speaker"""

import pytest
import torch

from specbench.bench import speaker as module
from specbench.bench.chat import TYPED
from specbench.bench.prompts import Prompt, PromptSet
from specbench.bench.speaker import ready_setting, speaker_for, told_options
from specbench.decode import loop
from specbench.errors import ConfigError, ContractError, UnsupportedError
from tests.unit.bench import talk


def setting(family, *overrides, **changes):
    return ready_setting(talk.plan(TYPED, *overrides, **changes), family, lambda *_, **__: PromptSet([], "", "typed"))


def prompt(text="def f(x):\n", number=0):
    return Prompt(str(number), number, None, talk.ids_of(text), text)


@pytest.fixture(scope="module")
def speaker(family):
    return speaker_for(*setting(family), family)


def heard(speaker, **options):
    calls = []
    measured = speaker.answer([prompt()], lambda tokens, step: calls.append((step, list(tokens))), **options)
    return calls, measured.trace.rows[0], measured.timing


def test_each_step_is_told_once_with_its_own_tokens(speaker):
    calls, row, timing = heard(speaker)
    assert [step for step, _ in calls] == list(range(row.steps + 1))
    assert [len(tokens) for _, tokens in calls] == [1, *row.emitted_per_step]
    assert [token for _, tokens in calls for token in tokens] == row.output_ids == talk.greedy(prompt().ids)
    assert row.steps < len(row.output_ids) - 1  # some step has several tokens, or the test shows little
    assert len(timing.step_end_s) == row.steps


def test_on_a_gpu_each_step_is_told_one_step_late_and_none_is_lost(speaker, monkeypatch):
    at_once, row, _ = heard(speaker)
    monkeypatch.setattr(loop, "read_lag", lambda device: 1)
    passed = []
    real = module.StepWatch.step

    def step(watch):
        real(watch)
        passed.append(watch._heard_steps)

    monkeypatch.setattr(module.StepWatch, "step", step)
    assert heard(speaker)[0] == at_once
    assert passed == list(range(1, row.steps + 2))


def test_an_answer_of_one_token_is_told_as_well(speaker):
    calls, row, _ = heard(speaker, max_new_tokens=1)
    assert calls == [(0, row.output_ids)]
    assert len(row.output_ids) == 1


def test_the_settings_say_how_long_an_answer_may_be_at_most(speaker):
    assert len(heard(speaker, max_new_tokens=99)[1].output_ids) == 12


def fail_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module, "generate", fail)


def test_out_of_memory_is_a_line_that_says_what_to_do(speaker, monkeypatch):
    fail_with(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(UnsupportedError, match="draft_model: out of memory; a smaller batch or shorter texts"):
        speaker.answer([prompt()])


@pytest.mark.parametrize("error", [ContractError("method x: a draft of depth 9"), ZeroDivisionError("a fault")])
def test_other_faults_are_raised_as_they_are(speaker, monkeypatch, error):
    fail_with(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        speaker.answer([prompt()])


def test_a_method_that_cannot_run_such_a_batch_says_why(family, monkeypatch):
    from methods.draft_model import DraftModel

    monkeypatch.setattr(DraftModel, "unsupported", lambda self, batch_size, rule: f"not with {batch_size} rows")
    with pytest.raises(UnsupportedError, match="not with 4 rows"):
        speaker_for(*setting(family, batch_size=4), family)


@pytest.mark.parametrize(
    ("overrides", "changes", "words"),
    [
        ([], {"batch_size": [1, 2]}, "one setting at a time"),
        (["methods.0.draft_model.gamma=[2, 3]"], {}, "one setting at a time"),
        (["decode.rule.synthetic.mean_length=2.0"], {}, "synthetic only counts tokens; it writes no text"),
        (["methods.0.draft_model.draft_latency_ms=5.0"], {}, "only a run keeps a draft latency"),
    ],
)
def test_what_is_no_single_setting_that_writes_text_is_refused(family, overrides, changes, words):
    with pytest.raises(ConfigError, match=words):
        setting(family, *overrides, **changes)


def test_only_options_that_differ_from_their_default_are_told(family):
    _, arm = setting(family, "methods.0.draft_model.stop.kind=heuristic")
    told = told_options(arm)
    assert told["draft"] == "pico-wide"
    assert told["gamma"] == "3"
    assert '"kind": "heuristic"' in told["stop"]
    assert set(told) == {"draft", "gamma", "stop"}
