"""The place where ``transformers`` calls us: an attention function under a name of its own.

A model is switched to that name once. While no forward of the core runs, the function and its masks are those of
``sdpa``, so that the same module may be called as ever, by ``generate`` too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from specbench.decode.attention.backend import Backend, Call

NAME = "specbench"


class Forward(NamedTuple):
    """How the forward that is running attends.

    Attributes:
        backend: By what; None in a prefill, where each query sees the fresh keys up to its own.
        prepared: What the backend made of the forward's `Sight`.
    """

    backend: Backend | None = None
    prepared: Any = None


class Running:
    """What the core is doing right now; the attention function is a plain function, and has nobody else to ask.

    Attributes:
        forward: The forward that is on its way through the layers. None outside of the core, and where a forward of
            the core brings a dense mask and leaves all else to ``transformers``.
    """

    forward: Forward | None = None


running = Running()


@contextmanager
def attending(forward: Forward | None) -> Iterator[None]:
    """Let the forward inside attend so."""
    running.forward = forward
    try:
        yield
    finally:
        running.forward = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer's attention: by the backend of the forward that runs, else as ``transformers`` calls torch."""
    forward = running.forward
    if forward is None or forward.backend is None:
        mask = attention_mask if forward is None else None
        others |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, mask, **others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(query, key, value, attention_mask, scale, sliding_window, others)
    return forward.backend.attend(call, forward.prepared), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def implementation(module: nn.Module) -> str:
    """The attention that the module runs outside of the core: ``sdpa`` or ``eager``, as a rule."""
    chosen = str(_config(module)._attn_implementation)
    return "sdpa" if chosen == NAME else chosen


def hook(module: nn.Module) -> None:
    """Switch a module whose attention is ``sdpa`` to our function."""
    _config(module)._attn_implementation = NAME


def unhook(module: nn.Module) -> None:
    """Switch a module back that no handle of the core runs by a backend."""
    _config(module)._attn_implementation = implementation(module)


@contextmanager
def unhooked(module: nn.Module) -> Iterator[None]:
    """The module as ``transformers`` left it, without even a call of ours that does nothing."""
    before = _config(module)._attn_implementation
    unhook(module)
    try:
        yield
    finally:
        _config(module)._attn_implementation = before


def _config(module: nn.Module) -> Any:
    return module.config
