"""specbench.decode.graphs and static, with a tape in place of a GPU; every method is replayed by the contract suite."""

from itertools import cycle, islice

import pytest

from specbench.decode.graphs import RecordedStep
from specbench.decode.static import StaticStep
from specbench.decode.step import Decoding, Step
from specbench.testing.tape import TapeRecorder
from support import decoding, models

TOKENS = 12
FOUR = list(islice(cycle(models.PROMPTS), 4))
OTHERS = [[(token + 7) % models.VOCAB for token in prompt] for prompt in FOUR]


def draft_model(target, **options):
    return decoding.draft_model(target, decoding.drafts_of("llama"), **({"draft": "near", "gamma": 3} | options))


def recorded(method, target, recorder=None, **arguments):
    return RecordedStep(Step(target, method, Decoding(TOKENS)), recorder or TapeRecorder(), 8, **arguments)


def decode(step, prompts):
    return decoding.ids(decoding.decode(step.target, step.method, prompts, step=step))


def greedy(prompts):
    return [models.greedy_continuation("llama", tuple(prompt), TOKENS) for prompt in prompts]


@pytest.fixture
def settled():
    target = decoding.family("llama")
    step = recorded(draft_model(target), target)
    decode(step, OTHERS)
    step.settle()
    return step


def test_a_last_partial_batch_runs_as_it_is_and_full_ones_are_replayed_behind_it(settled):
    assert decode(settled, FOUR[:3]) == greedy(FOUR[:3])
    assert settled.notes.missed > 0
    missed = settled.notes.missed
    assert decode(settled, FOUR) == greedy(FOUR)
    assert settled.notes.missed == missed


def test_a_target_that_has_got_another_slab_is_never_replayed(settled):
    settled.target.allocate(4, 200)
    assert decode(settled, FOUR) == greedy(FOUR)
    assert settled.notes.missed > 0


def test_nothing_is_recorded_before_it_settles_and_nothing_after(settled):
    recorder = settled._recorder
    before = {phase: set(found) for phase, found in recorder.operations.items()}
    decode(settled, FOUR[:2])
    assert recorder.operations == before
    target = decoding.family("llama")
    fresh = recorded(draft_model(target), target)
    assert decode(fresh, FOUR) == greedy(FOUR)
    assert (fresh.captured_phases, fresh.notes.missed) == ((), 0)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why():
    class Full(TapeRecorder):
        def record(self, phase, work):
            if phase == "verify":
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
            return super().record(phase, work)

    target = decoding.family("llama")
    step = recorded(draft_model(target), target, Full())
    decode(step, OTHERS)
    step.settle()
    assert decode(step, FOUR) == greedy(FOUR)
    assert step.captured_phases == ("draft", "accept", "update")
    assert step.notes.refused == {"verify": "CUDA error: operation not permitted when stream is capturing"}
    assert step.notes.missed == 0


def test_a_phase_that_shall_run_as_it_is_does():
    target = decoding.family("llama")
    step = recorded(draft_model(target), target, refused={"draft": "its latency is kept"})
    decode(step, OTHERS)
    step.settle()
    assert decode(step, FOUR) == greedy(FOUR)
    assert step.captured_phases == ("verify", "accept", "update")


def test_drafts_of_any_width_are_filled_up_to_a_few_widths_and_the_text_stays():
    target = decoding.family("llama")
    step = StaticStep(Step(target, decoding.prompt_lookup(gamma=5), Decoding(TOKENS)))
    widths = []
    verify = step._inner.verify

    def noting(tree, *rest):
        widths.append(tree.tokens.shape[1])
        return verify(tree, *rest)

    step._inner.verify = noting
    assert decode(step, FOUR) == greedy(FOUR)
    assert set(widths) <= {0, 1, 3, 5}


def test_a_bound_on_lengths_moves_in_strides():
    target = decoding.family("llama")
    step = StaticStep(Step(target, decoding.autoregressive(), Decoding(TOKENS)), bound_stride=16)
    target.allocate(1, 40)
    assert [step.bound(longest) for longest in (1, 16, 17, 39)] == [16, 16, 32, 40]
