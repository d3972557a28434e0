"""specbench.bench.steps and timing on a GPU, as far as one that is not there can show."""

import pytest

from specbench.bench import steps
from specbench.bench.steps import ReadyStep
from specbench.bench.timing import PhaseWatch, timeline
from specbench.config import MachineSettings
from specbench.decode import compiled
from specbench.decode.acceptance import Rejection
from specbench.decode.step import Decoding
from specbench.decode.trace import PHASES
from specbench.testing.cases import Case
from specbench.testing.devices import method_on
from specbench.testing.fake_cuda import DEVICE, FakeCuda
from support import decoding, models

PAIR = models.PROMPTS[:2]
DRAFT_MODEL = type(decoding.draft_model(decoding.family("llama"), decoding.drafts_of("llama"), draft="near"))


@pytest.fixture
def gpu(monkeypatch):
    if reason := FakeCuda.unavailable():
        pytest.skip(reason)
    monkeypatch.setattr(compiled.torch, "compile", lambda work, **how: work)  # there is nothing to compile for
    with FakeCuda() as entered:
        monkeypatch.setattr(steps, "CudaRecorder", lambda _device: entered)
        yield entered


@pytest.mark.parametrize("compiles", [False, "pieces"])
@pytest.mark.parametrize("is_paced", [False, True])
def test_an_arm_on_a_gpu_is_captured_whole_and_its_phases_are_timed_by_events(gpu, is_paced, compiles):
    target = gpu.target()
    method = method_on(Case(DRAFT_MODEL, {"draft": "near", "gamma": 2}), target, gpu.model)
    decoding_settings = Decoding(8, rule=Rejection(), temperature=0.8, eos_ids=(3,))
    machine = MachineSettings(compile=compiles)
    ready = ReadyStep(target, method, decoding_settings, machine, draft_is_paced=is_paced, drafts=[method.model])
    ready.prepare(lambda: decoding.decode(target, method, PAIR, step=ready.step))
    watch = PhaseWatch(timeline(DEVICE))
    trace = decoding.decode(target, method, PAIR, step=ready.step, watch=watch)
    wanted = set(PHASES) - ({"draft"} if is_paced else set())
    assert set(trace.captured_phases) == wanted
    assert trace.compiled_phases == ("accept",)
    notes = ready.notes()
    assert notes["graphs"].keys() == wanted
    assert notes["not_captured"] == ({"draft": "its latency is kept"} if is_paced else {})
    assert notes["ran_uncaptured"] == 0
    assert notes.get("pieces_as_they_are", {}) == {}
    # Five norms and two MLPs each, of the target and of a draft that nobody paces.
    models_compiled = 0 if not compiles else 1 if is_paced else 2
    counted = {"LlamaRMSNorm": 5 * models_compiled, "LlamaMLP": 2 * models_compiled}
    assert notes.get("compiled_pieces") == (counted if compiles else None)
    assert watch.timing.decode_s == 0.0
