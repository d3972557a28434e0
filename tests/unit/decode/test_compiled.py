"""specbench.decode.compiled: what becomes of a phase whose compiled form fails. The texts are test_contract's."""

import pytest

from specbench.decode import compiled
from specbench.decode.compiled import CompiledStep
from specbench.decode.step import Decoding, Step
from support import decoding, models

TOKENS = 12


def step_whose_verify_fails(monkeypatch, error):
    def failing(*inputs):
        raise error

    monkeypatch.setattr(compiled, "compiled", lambda work: failing)
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
