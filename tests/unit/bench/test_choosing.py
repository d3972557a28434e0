"""specbench.bench.choosing: what is timed, held against the very phases of a run"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specbench.analysis.choosing import Choosing
from specbench.bench.choosing import chooser
from specbench.bench.latencies import Study, _forward, measure
from specbench.bench.latency_points import MODES, Choice, choosings, modes_of
from specbench.config import LatencySection, MachineSettings, RandomModel
from specbench.decode.acceptance import rule_for
from specbench.decode.step import Step
from specbench.grid import executions
from specbench.testing.tape import TapeRecorder
from support import decoding
from tests.unit.bench.bench_plans import ONE_CELL, plan_of

TINY = RandomModel(shape="2x32x2x64,vocab=100,context=256")
GAMMA = 3
WAYS = (
    Choosing(0.0, "greedy", "argmax"),
    Choosing(0.8, "rejection", "sample"),
    Choosing(0.8, "rejection", "argmax"),
    Choosing(0.8, "match", "sample", top_k=20, top_p=0.9),
)


class Operations(TorchDispatchMode):
    """The names of operations while it is entered, views and constants of the host left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if not operation.is_view:
            self.names.append(str(operation))
        return operation(*args, **kwargs or {})


def operations(work, *args, **named):
    with Operations() as seen:
        work(*args, **named)
    return sorted(seen.names)


def operations_of_a_run(target, method, how, monkeypatch):
    """Operations of the accept phase, and of choosing one draft token, in the first step of a real batch."""
    seen = {}

    def note(owner, name):
        work = getattr(owner, name)

        def noted(*args, **named):
            with Operations() as own:
                result = work(*args, **named)
            seen.setdefault(name, sorted(own.names))
            return result

        patch.setattr(owner, name, noted)

    with monkeypatch.context() as patch:
        note(Step, "accept")
        if method.caps().max_nodes:
            note(type(method), "_choose")
        decoding.decode(
            target, method, [[1, 2, 3, 4]], temperature=how.temperature, top_k=how.top_k, top_p=how.top_p, eos_ids=(),
            rule=rule_for(how.rule, how.temperature),
        )  # fmt: skip
    return seen


def chosen(target, kind, tokens, how):
    """The work that is timed, behind its forward."""
    choice = Choice(tokens, 1, 4, kind=kind, how=how)
    with torch.inference_mode():
        output = _forward(target, choice.forward, seed=0)()
        choose = chooser(target, choice, seed=0)
        choose(output)
        return operations(choose, output)


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.words)
def test_what_is_timed_has_the_operations_of_a_run(how, monkeypatch):
    target = decoding.family("llama")
    options = {"draft": "near", "gamma": GAMMA, "proposal": "auto" if how.proposal == "sample" else how.proposal}
    drafting = decoding.draft_model(target, decoding.drafts_of("llama"), **options)
    seen = operations_of_a_run(target, drafting, how, monkeypatch)
    assert chosen(target, "accept", GAMMA + 1, how) == seen["accept"]
    # A run has made the position before it chooses.
    assert chosen(target, "draw", 1, how) == sorted([*seen["_choose"], "aten.add.Tensor"])
    seen = operations_of_a_run(target, decoding.autoregressive(), how, monkeypatch)
    assert chosen(target, "accept", 1, how) == seen["accept"]


def test_choices_of_real_models_are_timed_eager_and_replayed(tmp_path):
    recorder = TapeRecorder()
    study = Study((TINY,), (1, 4), (1, 2), (16,), WAYS[1:2], ("eager", "graphs"), rounds=6, burst=1)
    found = measure(study, tmp_path, recorder=recorder)
    for rows in found:
        assert set(rows["status"]) == {"ok"}, set(rows["reason"])
        assert set(rows["mode"]) == {"eager", "graphs"}
    assert (found.choices["choice_s"] > 0).all()
    assert set(found.choices["vocab"]) == {100}
    assert {phase: bool(counts) for phase, counts in recorder.operations.items()} == {
        "verify": True, "draft": True, "accept": True,
    }  # fmt: skip


# --- what an experiment asks for


def plan(
    folder, decode="{max_new_tokens: 10, temperature: [0.0, 0.8], top_k: 50}", studies="traces: {}\nlatencies: {}"
):
    lines = [line for line in ONE_CELL.splitlines() if not line.startswith("decode")]
    return plan_of(folder, "\n".join([*lines, f"decode: {decode}", studies]))


def test_an_experiment_that_can_be_composed_times_its_own_ways_of_choosing(tmp_path):
    assert choosings(plan(tmp_path)) == (
        Choosing(0.0, "greedy", "argmax"), Choosing(0.8, "rejection", "sample", top_k=50),
    )  # fmt: skip
    assert choosings(plan(tmp_path, studies="latencies: {}")) == ()
    typical = plan(tmp_path, decode="{temperature: [0.0, 0.8], rule: typical}")
    assert choosings(typical) == (Choosing(0.0, "greedy", "argmax"),)


@pytest.mark.parametrize(
    ("section", "machine", "device", "modes"),
    [
        ({}, {}, "cpu", ("eager",)),
        ({}, {"compile": True}, "cpu", ("eager", "compiled")),
        ({}, {}, "cuda", ("eager", "graphs")),
        ({}, {"graphs": False}, "cuda", ("eager",)),
        ({}, {"compile": True}, "cuda", ("eager", "graphs, compiled")),
        ({}, {"compile": "pieces"}, "cuda", ("eager",)),
        ({"modes": ("graphs",)}, {"compile": True}, "cuda", ("graphs",)),
    ],
)
def test_forwards_run_eager_and_as_the_arms_do_unless_asked_otherwise(section, machine, device, modes):
    found = modes_of(LatencySection(**section), MachineSettings(**machine), torch.device(device))
    assert found == modes


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("compile_too", "graphs"), [(False, False), (False, True), (True, False), (True, True)])
def test_modes_are_the_words_of_the_column_execution(device, compile_too, graphs):
    machine = MachineSettings(device=device, compile=compile_too, graphs=graphs)
    word = machine.execution(device)
    assert word in MODES
    assert word in executions(machine) & executions(machine.model_copy(update={"device": "auto"}))
