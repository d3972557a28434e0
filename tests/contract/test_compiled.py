"""What every method owes when its phases are compiled: make test-compiled."""

from weakref import WeakValueDictionary

import pytest
import torch

from specbench.decode import compiled as compiling
from specbench.decode import pieces
from specbench.decode.acceptance import Match, Rejection, Synthetic
from specbench.decode.compiled import CompiledStep
from specbench.decode.graphs import RecordedStep
from specbench.decode.method import Method
from specbench.decode.pieces import PiecedStep
from specbench.decode.static import StaticStep, hosted
from specbench.decode.step import Decoding, Step
from specbench.decode.target import CachedModel
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


def check_decodes_as_it_is(step, case, how):
    for prompts in (PROMPTS, PROMPTS[::-1]):
        trace, plain = decoding.decode(step.target, step.method, prompts, step=step), case.run(prompts, **how)
        assert decoding.ids(trace) == decoding.ids(plain)
        assert [row.accepted_per_step for row in trace.rows] == [row.accepted_per_step for row in plain.rows]
        step.settle()  # the second batch finds everything compiled


@pytest.mark.slow
@pytest.mark.parametrize("how", RULES.values(), ids=RULES)
def test_compiled_its_text_and_what_is_accepted_are_the_same(case, how):
    target = decoding.family(FAMILY)
    method = case.able(target, rule=how.get("rule"))
    step = StaticStep(CompiledStep(Step(target, method, Decoding(TOKENS, **how)), PHASES))
    check_decodes_as_it_is(step, case, how)
    kept = {"draft", "update"} if step.method.carries() is None else set()
    kept |= {"draft"} if step.caps.max_nodes == 0 else set()
    kept |= {"update"} if type(step.method).update is Method.update else set()
    assert set(step.compiled_phases) == set(PHASES) - kept, step._inner.refused


@pytest.fixture(scope="module")
def kept():
    """A step whose pieces live on: what was compiled for one test serves the others."""
    target = decoding.family(FAMILY)
    return PiecedStep(target, decoding.autoregressive(), Decoding(TOKENS), {"verify": [target]})


@pytest.mark.slow
@pytest.mark.parametrize("how", RULES.values(), ids=RULES)
def test_with_compiled_pieces_its_text_and_what_is_accepted_are_the_same(case, how, kept):
    target = decoding.family(FAMILY)
    method = case.able(target, rule=how.get("rule"))
    # Whichever of the drafts it has been given.
    drafts = [CachedModel(module, name) for name, module in decoding.drafts_of(FAMILY).items()]
    step = PiecedStep(target, method, Decoding(TOKENS, **how), {"draft": [target, *drafts], "verify": [target]})
    check_decodes_as_it_is(StaticStep(step), case, how)
    assert (step.compiled, step.refused) == ({"LlamaRMSNorm": 5 + 5 + 3, "LlamaMLP": 2 + 2 + 1}, {})


@pytest.fixture
def traced(monkeypatch):
    """What the compiler would make kernels of is run as it was traced."""
    made = torch.compile

    def trace(work, **how):
        return made(work, backend="eager", **how)

    monkeypatch.setattr(compiling.torch, "compile", trace)
    monkeypatch.setattr(pieces, "_kinds", WeakValueDictionary())  # none with kernels
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


@pytest.mark.slow
def test_compiled_pieces_stay_on_the_device_and_graphs_hold_them(kind, traced):
    if reason := FakeCuda.unavailable():
        pytest.skip(reason)
    case = Case(kind, kind.examples[0])
    case.able(decoding.family(FAMILY))
    with FakeCuda() as gpu:
        target, drafts = gpu.target(), []

        def draft_model(module, name):
            drafts.append(gpu.model(module, name))
            return drafts[-1]

        method = method_on(case, target, draft_model)
        models = {"draft": [target, *drafts], "verify": [target]}
        pieced = PiecedStep(target, method, Decoding(TOKENS, eos_ids=(3, 5)), models)
        step = RecordedStep(CompiledStep(pieced, ["accept"]), gpu)
        decoding.decode(target, method, PROMPTS[:2], step=step)
        step.settle()
    assert step.notes.refused == hosted(pieced)
    assert set(step.captured_phases) == {*PHASES} - {*hosted(pieced)}
    assert step.compiled_phases == ("accept",)
    assert pieced.refused == {}
    assert pieced.compiled["LlamaMLP"] >= 2
