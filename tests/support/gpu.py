"""The tiny models and methods of the contract suite, moved to a GPU, and steps that are captured there."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from specbench.bench.steps import CountingRecorder
from specbench.decode.graphs import CudaRecorder, RecordedStep
from specbench.decode.method import D, LoadContext, Method
from specbench.decode.step import Decoding, Step
from specbench.decode.target import CachedModel
from specbench.testing import models
from specbench.testing.cases import FAMILY, PROMPTS, TOKENS, Case
from specbench.testing.drafters import drafters_of
from support import decoding

DEVICE = torch.device("cuda", 0)


def moved(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy on the GPU; the original is shared with all tests of a CPU."""
    return copy.deepcopy(module).to(DEVICE, dtype)


def target(dtype: torch.dtype = torch.float32, attention: str = "auto") -> CachedModel:
    """The tiny Llama."""
    return CachedModel(moved(models.target(FAMILY), dtype), FAMILY, attention=attention)


def method(case: Case, model: CachedModel) -> Method:
    """The method with its options, its drafts and its drafters beside the target; those are trained on the CPU."""
    drafts, on_cpu = decoding.drafts_of(FAMILY), drafters_of(decoding.family(FAMILY))

    def drafter(kind: type[D], reference: str) -> D:
        return copy.deepcopy(on_cpu(kind, reference)).to(DEVICE, model.dtype).bind(model)

    made = case.kind(case.parsed())
    made.load(LoadContext(model, lambda name: CachedModel(moved(drafts[name], model.dtype), name), drafter))
    return made


def step(case: Case, **how: Any) -> Step:
    """Phases as they are, launched one kernel after the other."""
    model = target()
    return Step(model, method(case, model), Decoding(TOKENS, **how))


def captured(
    case: Case, warm_up: Sequence[Sequence[int]] = PROMPTS, **how: Any
) -> tuple[RecordedStep, CountingRecorder]:
    """Phases that were captured on prompts of these lengths and other tokens, and what counts captures."""
    plain = step(case, **how)
    recorder = CountingRecorder(CudaRecorder(DEVICE), DEVICE)
    recorded = RecordedStep(plain, recorder)
    others = [[(token + 7) % models.VOCAB for token in prompt] for prompt in warm_up]
    decoding.decode(plain.target, plain.method, others, step=recorded)
    recorded.settle()
    return recorded, recorder
