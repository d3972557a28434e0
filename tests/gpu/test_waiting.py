"""A step makes the host wait for nothing: torch itself raises where one does."""

import pytest
import torch

from specbench.decode.acceptance import Match, Rejection
from specbench.decode.trace import NullWatch
from specbench.testing.cases import PROMPTS, Case
from support import decoding, gpu

pytestmark = pytest.mark.gpu

RULES = {
    "greedy": {},
    "match": {"rule": Match(), "temperature": 0.8},
    "rejection": {"rule": Rejection(), "temperature": 0.8},
}


class NoWaiting(NullWatch):
    """From the first step to the last, whatever synchronises is an error. The lagged read waits for its own event."""

    def prefilled(self):
        torch.cuda.set_sync_debug_mode("error")

    def finish(self, steps):
        self.leave()

    def leave(self):
        torch.cuda.set_sync_debug_mode("default")


def decode_without_waiting(step):
    watch = NoWaiting()
    try:
        return decoding.decode(step.target, step.method, PROMPTS, step=step, watch=watch)
    finally:
        watch.leave()


def on_the_device(step):
    """Methods that look at the host say so, and their waits are counted."""
    if step.method.carries() is None:
        pytest.skip(f"{step.method.name} looks at the host, once a step")
    return step


def test_a_wait_is_seen():
    def look(view):
        int(view.root[0])
        return draft(view)

    step = gpu.step(Case(type(decoding.autoregressive()), {}))
    draft, step.method.draft = step.method.draft, look
    with pytest.raises(RuntimeError, match="synchroniz"):
        decode_without_waiting(step)


def test_launched_no_step_waits(case):
    step = on_the_device(gpu.step(case))
    decoding.decode(step.target, step.method, PROMPTS, step=step)  # what is made once and kept
    assert sum(decode_without_waiting(step).syncs_per_step) == 0


@pytest.mark.parametrize("how", RULES.values(), ids=RULES)
def test_replayed_no_step_waits(kind, how):
    step = on_the_device(gpu.captured(Case(kind, kind.examples[0]), **how)[0])
    assert sum(decode_without_waiting(step).syncs_per_step) == 0
