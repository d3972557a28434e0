"""CUDA graphs: what is replayed decodes as what is launched, for every method, and nothing is captured twice."""

import pytest

from specbench.decode.acceptance import Match, Rejection
from specbench.decode.trace import PHASES
from specbench.testing.cases import FAMILY, PROMPTS, TOKENS, Case
from support import decoding, gpu

pytestmark = pytest.mark.gpu

SAMPLED = {"match": {"rule": Match(), "temperature": 0.8}, "rejection": {"rule": Rejection(), "temperature": 0.8}}


def decoded(step):
    """Texts, and what every step of every row accepted."""
    trace = decoding.decode(step.target, step.method, PROMPTS, step=step)
    return decoding.ids(trace), [row.accepted_per_step for row in trace.rows]


def check_replays(case, **how):
    """Replays against launches on the same device, and against the CPU."""
    step, _ = gpu.captured(case, **how)
    replayed = decoded(step)
    assert replayed == decoded(gpu.step(case, **how))
    assert step.notes.missed == 0
    if step.method.carries() is not None:
        assert step.notes.refused == {}
        assert set(step.captured_phases) == set(PHASES)
    else:
        assert {"verify", "accept"} <= set(step.captured_phases)
    return replayed[0]


def test_replayed_a_greedy_text_is_the_one_of_launches_and_of_plain_decoding_on_the_cpu(case):
    on_the_cpu = decoding.decode(decoding.family(FAMILY), decoding.autoregressive(), PROMPTS, TOKENS)
    assert check_replays(case) == decoding.ids(on_the_cpu)


@pytest.mark.parametrize("how", SAMPLED.values(), ids=SAMPLED)
def test_replayed_a_drawn_text_is_the_one_of_launches(kind, how):
    check_replays(Case(kind, kind.examples[0]), **how)


def test_after_the_warm_up_nothing_is_captured_whatever_the_lengths(kind):
    longest_last = sorted(PROMPTS, key=len)
    step, recorder = gpu.captured(Case(kind, kind.examples[0]), warm_up=longest_last[-2:])
    graphs = dict(recorder.captures.graphs)
    assert graphs["verify"] >= 1
    for first in range(len(PROMPTS) - 1):
        decoding.decode(step.target, step.method, longest_last[first : first + 2], step=step)
    assert dict(recorder.captures.graphs) == graphs
    assert step.notes.missed == 0


def test_a_capture_takes_time_and_memory_that_are_told(kind):
    _, recorder = gpu.captured(Case(kind, kind.examples[0]))
    assert recorder.captures.seconds > 0
    assert recorder.captures.reserved_bytes >= 0
