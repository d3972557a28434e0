"""The suite's tiny models and methods on another device than the CPU, and in another type."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from specbench.decode.method import D, LoadContext, Method
from specbench.decode.target import CachedModel

from . import decoding
from .cases import FAMILY, Case
from .drafters import drafters_of

M = TypeVar("M", bound=nn.Module)


def moved(module: M, device: torch.device, dtype: torch.dtype, known: Mapping[int, Any] | None = None) -> M:
    """A copy elsewhere; the original is shared with all tests of a CPU.

    Args:
        module: The original.
        device: Where the copy's weights are.
        dtype: Of those that are no integers.
        known: What stands in the copy for an object of the original, by the ``id`` of that.
    """

    def there(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)

    weights = {id(weight): nn.Parameter(there(weight), requires_grad=False) for weight in module.parameters()}
    buffers = {id(buffer): there(buffer) for buffer in module.buffers()}
    return copy.deepcopy(module, {**weights, **buffers, **(known or {})})


def method_on(case: Case, target: CachedModel, draft_model: Callable[[nn.Module, str], CachedModel]) -> Method:
    """The method with its options, beside a copy of the tiny Llama; its drafters are trained on the CPU.

    Args:
        case: The method and its options.
        target: The copy.
        draft_model: A draft of the suite, and what it is called -> its copy there.
    """
    drafts, original = decoding.drafts_of(FAMILY), decoding.family(FAMILY)
    on_cpu = drafters_of(original)

    def drafter(kind: type[D], reference: str) -> D:
        found = on_cpu(kind, reference)
        return moved(found, target.device, target.dtype, {id(found.target): target})

    method = case.kind(case.parsed())
    method.load(LoadContext(target, lambda name: draft_model(drafts[name], name), drafter))
    return method
