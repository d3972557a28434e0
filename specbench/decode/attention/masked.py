"""Attention by torch's own kernels under a dense mask: slower than what reads lengths, and at home everywhere."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from specbench.decode.attention.backend import HALF, Backend, Call, Facts


def without_cudnn(device: torch.device) -> AbstractContextManager[Any]:
    """On a GPU any kernel but cuDNN's, which makes a plan for every shape it meets; elsewhere torch chooses."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


class Grouped(Backend):
    """Masked attention without repeated heads: query heads that share keys are rows of one larger query.

    ``transformers`` repeats keys and values for every query head as soon as there are two queries and a mask.
    """

    name = "grouped"
    needs_view = True
    needs_mask = True
    takes_trees = True

    def unsupported(self, facts: Facts) -> str | None:
        """Nothing is."""
        return None

    def attend(self, call: Call, prepared: Any) -> Tensor:
        """One call for all query heads of a head of keys."""
        batch, heads, queries, dim = call.query.shape
        kv_heads = call.key.shape[1]
        group = heads // kv_heads
        query, mask = call.query, call.mask
        if group > 1:
            query = query.reshape(batch, kv_heads, group * queries, dim)
            if queries > 1:
                mask = mask.repeat(1, 1, group, 1)
        found = F.scaled_dot_product_attention(query, call.key, call.value, attn_mask=mask, scale=call.scale)
        return found.reshape(batch, heads, queries, dim).transpose(1, 2)

    def scope(self, device: torch.device) -> AbstractContextManager[Any]:
        """Any kernel but cuDNN's."""
        return without_cudnn(device)


class Doubled(Grouped):
    """A lone query as two of the same, one of which is kept.

    Of half precision torch's CPU kernel takes two queries faster than one, which goes another way through its products:
    measured with torch 2.13 and AVX-512, at .2 to .5 of the time. That is every step of plain decoding.
    """

    name = "doubled"

    def unsupported(self, facts: Facts) -> str | None:
        """Elsewhere a second query costs, or is there already."""
        if facts.device.type != "cpu":
            return "runs on a CPU only"
        if facts.dtype not in HALF:
            return "is for half precision only"
        if facts.query_heads != facts.kv_heads:
            return "heads that share keys are several queries already"
        return None

    def attend(self, call: Call, prepared: Any) -> Tensor:
        """Several queries as they are."""
        if call.query.shape[2] > 1:
            return super().attend(call, prepared)
        return super().attend(call._replace(query=call.query.expand(-1, -1, 2, -1)), prepared)[:, :1]


class CuDNN(Grouped):
    """The same by cuDNN, which torch prefers on Hopper; each shape's plan takes part of a second to make."""

    name = "cudnn"

    def unsupported(self, facts: Facts) -> str | None:
        """It is a library of NVIDIA's, for half precision."""
        if facts.device.type != "cuda":
            return "runs on CUDA only"
        if facts.dtype not in HALF:
            return "takes half precision only"
        return None

    def scope(self, device: torch.device) -> AbstractContextManager[Any]:
        """CuDNN and nothing else, so that what is measured is what is named."""
        return sdpa_kernel([SDPBackend.CUDNN_ATTENTION])
