"""specbench.decode.graphs: a recording is void once a model that it writes to has another slab."""

from specbench.decode.graphs import RecordedStep
from specbench.decode.step import Decoding, Step
from specbench.testing.tape import TapeRecorder
from support import decoding, models

PROMPTS, TOKENS = models.PROMPTS[:3], 12


def _recorded() -> tuple[RecordedStep, Step]:
    target = decoding.family("llama")
    method = decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", gamma=3)
    plain = Step(target, method, Decoding(TOKENS))
    recorded = RecordedStep(plain, TapeRecorder(), bound_stride=8, drafts=[method.model])
    decoding.decode(target, method, PROMPTS, step=recorded)
    recorded.settle()
    return recorded, plain


def _accepted(step: Step, prompts=PROMPTS) -> list[list[int]]:
    trace = decoding.decode(step.target, step.method, prompts, step=step)
    return [row.accepted_per_step for row in trace.rows]


def test_a_recording_is_not_run_on_a_draft_models_slab_that_is_gone():
    recorded, plain = _recorded()
    wanted = _accepted(plain)
    assert _accepted(recorded) == wanted
    assert recorded.notes.missed == 0
    recorded.method.model.release()  # as after a batch for which memory did not suffice
    assert _accepted(recorded) == wanted
    assert recorded.notes.missed > 0


def test_recordings_are_not_run_once_another_batch_size_has_brought_another_slab():
    recorded, plain = _recorded()
    few = _accepted(recorded, PROMPTS[:2])
    assert few == _accepted(plain, PROMPTS[:2])
    assert recorded.captured_phases == ()
    assert _accepted(recorded) == _accepted(plain)
    assert recorded.notes.missed > 0
