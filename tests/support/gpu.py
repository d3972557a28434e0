"""The tiny models and methods of the contract suite, moved to a GPU, and steps that are captured there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from specbench.bench.steps import CountingRecorder
from specbench.decode.graphs import CudaRecorder, RecordedStep
from specbench.decode.method import Method
from specbench.decode.step import Decoding, Step
from specbench.decode.target import CachedModel
from specbench.testing import models
from specbench.testing.cases import FAMILY, PROMPTS, TOKENS, Case
from specbench.testing.devices import method_on, moved
from support import decoding

DEVICE = torch.device("cuda", 0)


def model(module: nn.Module, name: str, dtype: torch.dtype = torch.float32, attention: str = "auto") -> CachedModel:
    """A copy on the GPU."""
    return CachedModel(moved(module, DEVICE, dtype), name, attention=attention)


def target(dtype: torch.dtype = torch.float32, attention: str = "auto") -> CachedModel:
    """The tiny Llama."""
    return model(models.target(FAMILY), FAMILY, dtype, attention)


def method(case: Case, beside: CachedModel) -> Method:
    """The method with its options, its drafts and its drafters beside the target; those are trained on the CPU."""
    return method_on(case, beside, lambda module, name: model(module, name, beside.dtype))


def step(case: Case, **how: Any) -> Step:
    """Phases as they are, launched one kernel after the other."""
    model_there = target()
    return Step(model_there, method(case, model_there), Decoding(TOKENS, **how))


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
