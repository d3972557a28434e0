"""Attention over a ragged slab as it is defined: every score, every mask, in double precision."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One layer's attention over noise. Behind each row's nodes stands noise as well, in the last slot NaN.

    Attributes:
        query: (B, M, query heads, D).
        slab: Keys and values, (2, B, slots, KV heads, D).
        base: Committed keys of every row, (B,).
        sees: Which nodes each query sees, (1 or B, M, K).
        depth: (1 or B, M).
        key_depth: (1 or B, K).
        window: How far a query looks back, in positions.
        is_line: Whether the queries are all nodes in a line.
    """

    query: Tensor
    slab: Tensor
    base: Tensor
    sees: Tensor
    depth: Tensor
    key_depth: Tensor
    window: int | None
    is_line: bool

    @staticmethod
    def line(queries: int, **options: Any) -> "Case":
        """Each node is the child of the one before it."""
        return _case(torch.arange(-1, queries - 1)[None], is_line=True, **options)

    @staticmethod
    def tree(queries: int, *, shared: bool = True, lengths: tuple[int, ...] = (70, 5), **options: Any) -> "Case":
        """Every node's parent is any earlier one, with a preference for late ones, so that there are deep paths."""
        rows = 1 if shared else len(lengths)
        chance = torch.Generator().manual_seed(queries)
        back = (torch.rand(rows, queries, generator=chance) ** 3 * torch.arange(queries)).long()
        return _case(torch.arange(-1, queries - 1) - back, is_line=False, lengths=lengths, **options)

    def last_queries(self, count: int) -> "Case":
        """The same nodes, of which only the last ones ask."""
        return replace(
            self, query=self.query[:, -count:], sees=self.sees[:, -count:], depth=self.depth[:, -count:].contiguous()
        )

    @property
    def nodes(self) -> int:
        """K."""
        return self.sees.shape[-1]

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return self.query.shape[-1] ** -0.5

    def near(self) -> Tensor:
        """The ancestors within the window, (1 or B, M, K)."""
        if self.window is None:
            return self.sees
        return self.sees & (self.key_depth[:, None, :] > self.depth[:, :, None] - self.window)


def _case(
    parents: Tensor,
    *,
    is_line: bool,
    lengths: tuple[int, ...] = (70, 5),
    group: int = 2,
    kv_heads: int = 2,
    dim: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Case:
    chance = torch.Generator().manual_seed(0)
    rows, nodes = parents.shape
    sees, depth = torch.eye(nodes, dtype=torch.bool).repeat(rows, 1, 1), torch.zeros(rows, nodes, dtype=torch.int64)
    for row in range(rows):
        for node in range(1, nodes):
            above = int(parents[row, node])
            sees[row, node] |= sees[row, above]
            depth[row, node] = depth[row, above] + 1
    batch = len(lengths)
    slots = max(lengths) + nodes + 9
    slab = torch.randn(2, batch, slots, kv_heads, dim, generator=chance).to(dtype)
    slab[:, :, -1] = torch.nan
    query = torch.randn(batch, group * kv_heads, nodes, dim, generator=chance).to(dtype).transpose(1, 2)
    tensors = (query, slab, torch.tensor(lengths), sees, depth, depth)
    return Case(*(part.to(device) for part in tensors), window=window, is_line=is_line)


def dense(case: Case) -> Tensor:
    """Row by row and query by query, (B, M, query heads, D), float64."""
    out = torch.zeros(case.query.shape, dtype=torch.float64, device=case.query.device)
    group = case.query.shape[2] // case.slab.shape[3]
    near = case.near()
    for row, base in enumerate(case.base.tolist()):
        shared = min(row, len(near) - 1)
        for query in range(case.query.shape[1]):
            position = base + int(case.depth[shared, query])
            first = 0 if case.window is None else max(0, position - case.window + 1)
            slots = list(range(first, base)) + [base + node for node in near[shared, query].nonzero()[:, 0].tolist()]
            key, value = case.slab[:, row, slots].double().repeat_interleave(group, dim=2)
            score = torch.einsum("hd,shd->hs", case.query[row, query].double(), key) * case.scale
            out[row, query] = torch.einsum("hs,shd->hd", score.softmax(-1), value)
    return out
