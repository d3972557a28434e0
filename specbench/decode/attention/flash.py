"""FlashAttention over the slab, for queries in a line: torch's own build, and the package where it is installed.

Both align a row's queries with the end of its keys, which is what a chain behind committed tokens is.
"""

import importlib
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.decode.attention.backend import HALF, Backend, Call, Facts, Sight

_WIDEST_HEAD = 256


def _unsupported(facts: Facts) -> str | None:
    if facts.device.type != "cuda":
        return "runs on CUDA only"
    if facts.dtype not in HALF:
        return "takes half precision only"
    if facts.head_dim > _WIDEST_HEAD or facts.head_dim % 8:
        return f"takes head dimensions up to {_WIDEST_HEAD} that 8 divides, got {facts.head_dim}"
    return None


class _Ragged(NamedTuple):
    """Rows laid end to end: where queries and keys of each begin, (B + 1,), and how many keys it has, (B,)."""

    first_query: Tensor
    first_key: Tensor
    keys: Tensor
    slots: int


class FlashVarlen(Backend):
    """The variable-length entry of FlashAttention 2 in torch, over the slab as one long row of keys.

    It splits no row's keys among multiprocessors, so that it pays off from large batches on.
    """

    name = "flash"
    needs_view = False
    needs_mask = False
    takes_trees = False

    def unsupported(self, facts: Facts) -> str | None:
        """It needs an entry that takes the keys really used of every row."""
        if fault := _unsupported(facts):
            return fault
        schema = str(torch.ops.aten._flash_attention_forward.default._schema)
        return None if "seqused_k" in schema else "this torch's FlashAttention takes no seqused_k"

    def prepare(self, sight: Sight) -> _Ragged:
        """Row boundaries, once for all layers."""
        row = torch.arange(len(sight.base) + 1, dtype=torch.int32, device=sight.base.device)
        keys = (sight.base + sight.queries).to(torch.int32)
        return _Ragged(row * sight.queries, row * sight.slots, keys, sight.slots)

    def attend(self, call: Call, prepared: _Ragged) -> Tensor:
        """One call for all rows."""
        batch, heads, queries, dim = call.query.shape
        found = torch.ops.aten._flash_attention_forward(
            call.query.transpose(1, 2).reshape(batch * queries, heads, dim),
            call.key.transpose(1, 2).flatten(0, 1),
            call.value.transpose(1, 2).flatten(0, 1),
            prepared.first_query,
            prepared.first_key,
            queries,
            prepared.slots,
            dropout_p=0.0,
            is_causal=True,
            return_debug_mask=False,
            scale=call.scale,
            window_size_left=None if call.window is None else call.window - 1,
            window_size_right=None if call.window is None else 0,
            seqused_k=prepared.keys,
        )[0]
        return found.view(batch, queries, heads, dim)


class FlashPackage(Backend):
    """``flash_attn_with_kvcache`` of the flash-attn package: the slab is its own layout, and it splits long rows."""

    name = "flash-attn"
    needs_view = False
    needs_mask = False
    takes_trees = False

    def unsupported(self, facts: Facts) -> str | None:
        """The package is no dependency."""
        return _unsupported(facts) or (None if find_spec("flash_attn") else "the package flash_attn is not installed")

    def prepare(self, sight: Sight) -> Tensor:
        """Keys of every row, (B,)."""
        return (sight.base + sight.queries).to(torch.int32)

    def attend(self, call: Call, prepared: Tensor) -> Tensor:
        """One call for all rows."""
        return importlib.import_module("flash_attn").flash_attn_with_kvcache(
            call.query.transpose(1, 2),
            call.key.transpose(1, 2),
            call.value.transpose(1, 2),
            cache_seqlens=prepared,
            softmax_scale=call.scale,
            causal=True,
            window_size=(-1, -1) if call.window is None else (call.window - 1, 0),
        )
