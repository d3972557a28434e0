"""specbench.decode.compiled: what becomes of a phase whose compiled form fails. The texts are test_contract's."""

import pytest
import torch

from specbench.decode import compiled
from specbench.decode.compiled import CompiledStep
from specbench.decode.static import StaticStep
from specbench.decode.step import Decoding, Step
from support import decoding, models

TOKENS = 12
TWO = [[7, 3, 9, 4], [5, 2]]


def step_whose_verify_fails(monkeypatch, error):
    def failing(*inputs):
        raise error

    monkeypatch.setattr(compiled.torch, "compile", lambda work, **settings: failing)
    target = decoding.family("llama")
    return CompiledStep(Step(target, decoding.prompt_lookup(), Decoding(TOKENS)), ["verify"])


def decode(step):
    return decoding.ids(decoding.decode(step.target, step.method, models.PROMPTS, step=step))


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(monkeypatch):
    step = step_whose_verify_fails(monkeypatch, RuntimeError("no kernel for this\nand much more"))
    assert decode(step) == [models.greedy_continuation("llama", tuple(prompt), TOKENS) for prompt in models.PROMPTS]
    assert (step.compiled_phases, step.refused) == ((), {"verify": "no kernel for this"})


def test_a_full_memory_is_no_fault_of_the_compiler(monkeypatch):
    step = step_whose_verify_fails(monkeypatch, MemoryError("no room"))
    with pytest.raises(MemoryError):
        decode(step)
    assert (step.compiled_phases, step.refused) == (("verify",), {})


def test_what_fails_as_it_is_too_was_no_fault_of_the_compiler(monkeypatch):
    step = step_whose_verify_fails(monkeypatch, RuntimeError("operation not permitted when stream is capturing"))
    monkeypatch.setattr(step.target, "verify", step._works["verify"]._work)
    with pytest.raises(RuntimeError, match="capturing"):
        decode(step)
    assert (step.compiled_phases, step.refused) == (("verify",), {})


def test_everything_is_asked_for_but_on_batches_of_the_form_that_it_settled_with(monkeypatch):
    asks_less = []

    def fake(work, **settings):
        def noting(*inputs):
            asks_less.append(torch._dynamo.eval_frame._stance.skip_guard_eval_unsafe)
            return work(*inputs)

        return noting

    monkeypatch.setattr(compiled.torch, "compile", fake)
    target = decoding.family("llama")
    step = StaticStep(CompiledStep(Step(target, decoding.prompt_lookup(), Decoding(TOKENS)), ["verify"]))

    def asked_less(prompts):
        asks_less.clear()
        decoding.decode(target, step.method, prompts, step=step)
        return set(asks_less)

    assert asked_less(TWO) == {False}
    step.settle()
    assert asked_less(TWO) == {compiled._IS_APART}
    assert asked_less(TWO[:1]) == {False}
    assert asked_less(TWO[::-1]) == {compiled._IS_APART}
    target.release()
    assert asked_less(TWO) == {False}


@pytest.mark.skipif(not compiled._IS_APART, reason="this torch keeps the forms of all work together")
def test_work_that_shows_a_new_form_behind_the_last_one_is_asked_everything_again():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    work = compiled.Compiled(lambda values: values + 1)
    work._work = torch.compile(
        work._work._torchdynamo_orig_callable, backend=counter, dynamic=False, isolate_recompiles=True
    )
    work(torch.ones(3))
    work.has_all_forms = True
    assert work(torch.ones(3)).tolist() == [2, 2, 2]
    assert (counter.frame_count, work.has_all_forms) == (1, True)
    assert work(torch.ones(2)).tolist() == [2, 2]
    assert (counter.frame_count, work.has_all_forms) == (2, False)
