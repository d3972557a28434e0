"""Token trees as tensors of static shape. A chain is a tree of width one, autoregressive decoding the empty tree.

Node 0 is the root: the last committed token, whose KV is not in the cache yet. Draft nodes 0..N-1 of a method become
nodes 1..N here. A method names parents in its own numbering: -1 is the root, -2 marks padding, a parent comes before
its children.
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


class Layout(NamedTuple):
    """Where every node of a batch of trees hangs. B rows, N draft nodes, N1 = N + 1.

    Attributes:
        parent: (B, N1) in node numbering; the root and padding point to 0.
        padding: (B, N1) bool; every node below a padding node is padding.
        eligible: (B, N1) bool, may be accepted: neither root, padding nor probe.
        ancestors: (B, N1, N1) bool, ``[b, i, j]``: j is an ancestor of i, or i itself.
        depth: (B, N1), the root and padding at 0.
        node: (N1,), 0..N.
        tally: (B, 2): the depth of the deepest eligible node, and the draft nodes that are no padding.
        is_chain: Every node is the only child of the one before it.
    """

    parent: Int[Tensor, "batch nodes"]
    padding: Bool[Tensor, "batch nodes"]
    eligible: Bool[Tensor, "batch nodes"]
    ancestors: Bool[Tensor, "batch nodes nodes"]
    depth: Int[Tensor, "batch nodes"]
    node: Int[Tensor, " nodes"]
    tally: Int[Tensor, "batch 2"]
    is_chain: bool

    @property
    def num_nodes(self) -> int:
        """Nodes that the target verifies, root and padding included."""
        return self.node.numel()


def lay_out(
    parents: Int[Tensor, "batch drafted"], max_depth: int, probe: Bool[Tensor, "batch drafted"] | None = None
) -> Layout:
    """Find ancestors and depths by pointer doubling: ``log2(max_depth)`` rounds, no loop over nodes or rows.

    Args:
        parents: (B, N) in the method's numbering.
        max_depth: No node is deeper.
        probe: (B, N) bool, nodes that are computed and never accepted.
    """
    num_nodes = parents.shape[1] + 1
    node = torch.arange(num_nodes, device=parents.device)
    given = F.pad(parents, (1, 0), value=-1)
    parent = (given + 1).clamp_min(0)
    ancestors = (node[:, None] == node) | (parent[:, :, None] == node)
    jump = parent
    for doubling in range(math.ceil(math.log2(max(1, max_depth)))):
        if doubling:
            jump = jump.gather(1, jump)
        ancestors = ancestors | ancestors.gather(1, jump[:, :, None].expand(-1, -1, num_nodes))
    padding = (ancestors & (given == -2)[:, None, :]).any(-1)
    drafted = ~padding & (node > 0)
    eligible = drafted if probe is None else drafted & ~F.pad(probe, (1, 0))
    depth = (ancestors.sum(-1) - 1).masked_fill(padding, 0)
    tally = _tally(depth, drafted, eligible)
    return Layout(parent, padding, eligible, ancestors, depth, node, tally, is_chain=False)


def _tally(depth: Tensor, drafted: Tensor, eligible: Tensor) -> Tensor:
    return torch.stack([(depth * eligible).amax(1), drafted.sum(1)], dim=1)


@cache  # without a bound: a captured graph may read what one layout shares with another
def _chain(length: int, batch: int, device: torch.device) -> Layout:
    parents = torch.arange(-1, length - 1, device=device)
    return lay_out(parents.expand(batch, -1), max(1, length))._replace(is_chain=True)


def lay_out_chain(
    length: int,
    drafted: Bool[Tensor, "{batch} {length}"] | None,
    batch: int,
    device: torch.device,
    probe: Bool[Tensor, "{batch} {length}"] | None = None,
) -> Layout:
    """A chain of ``length`` nodes for every row.

    Args:
        length: N, 0 for the empty tree.
        drafted: (B, N) bool, False where the row's chain has ended; a prefix of every row, or None for all.
        batch: B.
        device: Where the tensors live.
        probe: (B, N) bool, nodes that are computed and never accepted.
    """
    layout = _chain(length, batch, device)
    if drafted is None and probe is None:
        return layout
    padding = layout.padding if drafted is None else F.pad(~drafted, (1, 0))
    is_drafted = layout.eligible & ~padding
    eligible = is_drafted if probe is None else is_drafted & ~F.pad(probe, (1, 0))
    depth = layout.depth.masked_fill(padding, 0)
    tally = _tally(depth, is_drafted, eligible)
    return layout._replace(padding=padding, eligible=eligible, depth=depth, tally=tally)


@dataclass(frozen=True, eq=False)
class Topology:
    """A tree shape that is known before the run and the same for every row.

    Attributes:
        parents: (N,) in the method's numbering.
        levels: First node of every depth from 1 on, then N: nodes of a depth stand next to one another.
    """

    parents: Int[Tensor, " drafted"]
    levels: tuple[int, ...]

    @staticmethod
    def from_branching(branching: tuple[int, ...], device: torch.device) -> "Topology":
        """Every node of depth d has ``branching[d]`` children; nodes are numbered level by level."""
        parents: list[int] = []
        levels, above = [0], [-1]
        for children in branching:
            first = len(parents)
            parents += [parent for parent in above for _ in range(children)]
            above = list(range(first, len(parents)))
            levels.append(len(parents))
        return Topology(torch.tensor(parents, device=device, dtype=torch.int64), tuple(levels))


@lru_cache(maxsize=256)
def lay_out_topology(topology: Topology, batch: int) -> Layout:
    """A tree of that shape for every row; made once."""
    return lay_out(topology.parents.expand(batch, -1), max(1, len(topology.levels) - 1))


def deepest(layout: Layout, accepted: Bool[Tensor, "batch nodes"]) -> Int[Tensor, " batch"]:
    """The deepest accepted node of every row, the lowest-numbered one of several, (B,); 0 for the root alone.

    A node counts only if all nodes above it are accepted and eligible as well. The score is unique, so that no device's
    habit with ties decides.
    """
    accepted = accepted & layout.eligible
    if layout.is_chain:
        return accepted[:, 1:].cumprod(1).sum(1)
    missed = accepted < (layout.node > 0)
    is_cut_off = (layout.ancestors & missed[:, None, :]).any(-1)
    score = torch.add(layout.num_nodes - 1 - layout.node, layout.depth, alpha=layout.num_nodes)
    return score.masked_fill(is_cut_off, -1).argmax(1)


def path_to(layout: Layout, best: Int[Tensor, " batch"], columns: int) -> Int[Tensor, "batch {columns}"]:
    """The nodes from the root to ``best``, one a depth, -1 beyond it, (B, columns)."""
    batch = len(best)
    if layout.is_chain:
        column = torch.arange(columns, device=best.device)
        return column.masked_fill(column > best[:, None], -1)
    on_path = layout.ancestors[torch.arange(batch, device=best.device), best]
    path = torch.full((batch, columns + 1), -1, dtype=torch.int64, device=best.device)
    where = torch.where(on_path, layout.depth, columns)
    return path.scatter_(1, where, layout.node.expand(batch, -1))[:, :columns]


def children_table(layout: Layout, most: int) -> Int[Tensor, "batch nodes {most}"]:
    """Every node's eligible children in order, -1 where there are fewer, (B, N1, most)."""
    siblings = (layout.parent[:, :, None] == layout.parent[:, None, :]) & layout.eligible[:, None, :]
    rank = (siblings & (layout.node[None, :] < layout.node[:, None])).sum(-1)
    batch, num_nodes = layout.parent.shape
    column = torch.where(layout.eligible & (rank < most), layout.parent * most + rank, num_nodes * most)
    table = torch.full((batch, num_nodes * most + 1), -1, dtype=torch.int64, device=column.device)
    table = table.scatter_(1, column, layout.node.expand(batch, -1))
    return table[:, :-1].view(batch, num_nodes, most)


def sibling_ranks(layout: Layout) -> Int[Tensor, "batch nodes"]:
    """How many eligible siblings come before each node, (B, N1)."""
    siblings = (layout.parent[:, :, None] == layout.parent[:, None, :]) & layout.eligible[:, None, :]
    return (siblings & (layout.node[None, :] < layout.node[:, None])).sum(-1)
