"""What every way to attend over the slab shares: what it is asked, what it must know beforehand, what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Facts:
    """What a model's attention is like, as its own calls showed.

    Attributes:
        device: Where its weights are.
        dtype: Of queries, keys and values.
        query_heads: On this device.
        kv_heads: On this device.
        head_dim: Of queries, keys and values alike.
        window: How far a windowed layer looks back; None where no layer is windowed.
    """

    device: torch.device
    dtype: torch.dtype
    query_heads: int
    kv_heads: int
    head_dim: int
    window: int | None

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.query_heads // self.kv_heads


class Sight(NamedTuple):
    """What the queries of one forward see: M queries of each row, over its committed keys and K nodes behind them.

    Attributes:
        base: Committed keys of every row, (B,); node j sits in slot ``base + j``.
        queries: M.
        nodes: K.
        slots: Slots of a row in the slab.
        depth: Depth of every query, (1 or B, M); None where the queries are nodes 0..M-1 in a line.
        ancestors: Which nodes each query of a tree sees, (1 or B, M, K) bool.
        key_depth: Depth of every node of a tree, (1 or B, K).
        window: How far windowed layers look back; None where the model has none.
    """

    base: Tensor
    queries: int
    nodes: int
    slots: int
    depth: Tensor | None = None
    ancestors: Tensor | None = None
    key_depth: Tensor | None = None
    window: int | None = None


class Call(NamedTuple):
    """What one layer asks.

    Attributes:
        query: (B, query heads, M, D).
        key: (B, KV heads, slots in view, D), a view of the slab or a copy of it.
        value: The same of the values.
        mask: What is added to the scores, (B, 1, M, slots in view); of no meaning to backends that need none.
        scale: Factor of the scores.
        window: How far this layer looks back; None without end.
        others: What else the model passed.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    scale: float
    window: int | None
    others: Mapping[str, Any] = MappingProxyType({})


class Backend(ABC):
    """One way to attend.

    Attributes:
        name: What users and records call it.
        needs_view: Whether it reads as many slots as the host says. One that does not reads every row's length on the
            device, so that one CUDA graph serves all lengths.
        needs_mask: Whether it reads a dense mask.
        takes_trees: Whether queries need not stand in a line.
    """

    name: ClassVar[str]
    needs_view: ClassVar[bool]
    needs_mask: ClassVar[bool]
    takes_trees: ClassVar[bool]

    @abstractmethod
    def unsupported(self, facts: Facts) -> str | None:
        """Why it cannot serve such a model here, in words for a user; None when it can."""

    def prepare(self, sight: Sight) -> Any:
        """What all layers of a forward share, as tensors of static shape."""
        return sight

    @abstractmethod
    def attend(self, call: Call, prepared: Any) -> Tensor:
        """The attention's output, (B, M, query heads, D)."""

    def scope(self, device: torch.device) -> AbstractContextManager[Any]:
        """What a whole forward runs inside of."""
        return nullcontext()
