"""What every method owes when its phases are compiled: make test-compiled."""

import pytest
import torch

from specbench.decode import compiled as compiling
from specbench.decode.acceptance import Match, Rejection, Synthetic
from specbench.decode.compiled import CompiledStep
from specbench.decode.graphs import RecordedStep
from specbench.decode.method import Method
from specbench.decode.static import StaticStep, hosted
from specbench.decode.step import Decoding, Step
from specbench.decode.trace import PHASES
from specbench.testing.cases import FAMILY, PROMPTS, TOKENS, Case
from specbench.testing.devices import method_on
from specbench.testing.fake_cuda import FakeCuda
from support import decoding

RULES = {
    "greedy": {},
    "match": {"rule": Match(), "temperature": 0.8},
    "rejection": {"rule": Rejection(), "temperature": 0.8},
}


@pytest.fixture(autouse=True)
def _without_checks_of_shapes(pytestconfig):
    if pytestconfig.getoption("--jaxtyping-packages", default=None):
        pytest.skip("functions whose shapes are checked cannot be compiled; make test-compiled runs this without")


def compiled(case: Case, how):
    target = decoding.family(FAMILY)
    method = case.able(target, rule=how.get("rule"))
    return StaticStep(CompiledStep(Step(target, method, Decoding(TOKENS, **how)), PHASES))


@pytest.mark.slow
@pytest.mark.parametrize("how", RULES.values(), ids=RULES)
def test_compiled_its_text_and_what_is_accepted_are_the_same(case, how):
    step = compiled(case, how)
    for prompts in (PROMPTS, PROMPTS[::-1]):
        trace, plain = decoding.decode(step.target, step.method, prompts, step=step), case.run(prompts, **how)
        assert decoding.ids(trace) == decoding.ids(plain)
        assert [row.accepted_per_step for row in trace.rows] == [row.accepted_per_step for row in plain.rows]
        step.settle()  # the second batch finds everything compiled
    kept = {"draft", "update"} if step.method.carries() is None else set()
    kept |= {"draft"} if step.caps.max_nodes == 0 else set()
    kept |= {"update"} if type(step.method).update is Method.update else set()
    assert set(step.compiled_phases) == set(PHASES) - kept, step._inner.refused


@pytest.fixture
def traced(monkeypatch):
    """What the compiler would make kernels of is run as it was traced."""
    made = torch.compile

    def trace(work, **how):
        return made(work, backend="eager", **how)

    monkeypatch.setattr(compiling.torch, "compile", trace)
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["greedy", "rejection", "synthetic"])
def test_compiled_its_phases_stay_on_the_device(kind, rule, traced):
    """Constants that the compiler has drawn into a phase would be copied from the host in every step."""
    if reason := FakeCuda.unavailable():
        pytest.skip(reason)
    case, how = Case(kind, kind.examples[0]), RULES.get(rule, {"rule": Synthetic(rates=(0.7, 0.4))})
    case.able(decoding.family(FAMILY), rule=how.get("rule"))
    with FakeCuda() as gpu:
        target = gpu.target()
        plain = Step(target, method_on(case, target, gpu.model), Decoding(TOKENS, eos_ids=(3, 5), **how))
        decoding.decode(target, plain.method, PROMPTS[:2], step=plain)  # what is made once and kept
        step = RecordedStep(CompiledStep(plain, PHASES), gpu)
        decoding.decode(target, plain.method, PROMPTS[:2], step=step)
        step.settle()
    assert step._inner.refused.keys() == hosted(plain).keys()
    assert step.notes.refused == hosted(plain)
    assert {"verify", "accept"} <= set(step.compiled_phases)
