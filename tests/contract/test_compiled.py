"""What every method owes when its phases are compiled: make test-compiled."""

import pytest
import torch

from specbench.decode.acceptance import Match, Rejection, Synthetic
from specbench.decode.compiled import CompiledStep
from specbench.decode.method import Method
from specbench.decode.static import StaticStep
from specbench.decode.step import Decoding, Step
from specbench.decode.trace import PHASES
from specbench.testing.cases import FAMILY, PROMPTS, TOKENS, Case
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
    trace, plain = decoding.decode(step.target, step.method, PROMPTS, step=step), case.run(**how)
    assert decoding.ids(trace) == decoding.ids(plain)
    assert [row.accepted_per_step for row in trace.rows] == [row.accepted_per_step for row in plain.rows]
    kept = {"draft", "update"} if step.method.carries() is None else set()
    kept |= {"draft"} if step.caps.max_nodes == 0 else set()
    kept |= {"update"} if type(step.method).update is Method.update else set()
    assert set(step.compiled_phases) == set(PHASES) - kept, step._inner.refused


@pytest.mark.parametrize("rule", [Synthetic(rates=(0.9, 0.5)), Synthetic(trace=(2, 0, 1))], ids=["rates", "trace"])
def test_a_compiled_rule_copies_no_prescription_from_the_host_in_every_step(rule, monkeypatch):
    graphs = []

    def note(graph, _inputs):
        graphs.append(graph.graph)
        return graph

    compile_as_ever = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **how: compile_as_ever(work, backend=note, **how))
    target = decoding.family(FAMILY)
    method = decoding.draft_model(target, decoding.drafts_of(FAMILY), draft="near", gamma=3)
    step = CompiledStep(Step(target, method, Decoding(TOKENS, rule=rule)), ("accept",))
    decoding.decode(target, method, PROMPTS, step=step)
    assert step.compiled_phases == ("accept",)
    assert torch.tensor not in {node.target for graph in graphs for node in graph.nodes}
