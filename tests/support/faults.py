"""Faults that the checks of ``support.checks`` must see in every family; each is planted by monkeypatching."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specbench.decode import cache
from specbench.decode.target import CachedModel, Nodes
from specbench.decode.tree import Layout


def _draft_nodes_sit_one_position_too_far(patch: pytest.MonkeyPatch) -> None:
    verify = CachedModel.verify

    def faulty(self: CachedModel, layout: Layout, *args: object) -> object:
        return verify(self, layout._replace(depth=layout.depth + (layout.node > 0)), *args)

    patch.setattr(CachedModel, "verify", faulty)


def _all_nodes_sit_one_position_too_far(patch: pytest.MonkeyPatch) -> None:
    verify = CachedModel.verify

    def faulty(self: CachedModel, layout: Layout, *args: object) -> object:
        return verify(self, layout._replace(depth=layout.depth + 1), *args)

    patch.setattr(CachedModel, "verify", faulty)


def _hide(which: Callable[[Nodes], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Let no query of a forward see the committed key whose slot ``which`` names."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        forward, additive = CachedModel._forward, CachedModel._additive
        running: list[Nodes] = []

        def noting(self: CachedModel, nodes: Nodes, *args: object) -> object:
            running.append(nodes)
            try:
                return forward(self, nodes, *args)
            finally:
                running.pop()

        def hiding(self: CachedModel, visible: Tensor, *args: object) -> object:
            if running:
                key = torch.arange(visible.shape[-1])
                visible = visible & (key != which(running[-1])[:, None])[:, None]
            return additive(self, visible, *args)

        patch.setattr(CachedModel, "_forward", noting)
        patch.setattr(CachedModel, "_additive", hiding)

    return plant


def _nothing_is_compacted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache.SlabCache, "compact", lambda *args: None)


def _compaction_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    compact = cache.SlabCache.compact

    def faulty(self: cache.SlabCache, path: Tensor, kept: Tensor, lengths: Tensor) -> None:
        compact(self, path, (kept - 1).clamp_min(0), lengths)

    patch.setattr(cache.SlabCache, "compact", faulty)


def _compaction_takes_the_node_before(patch: pytest.MonkeyPatch) -> None:
    compact = cache.SlabCache.compact

    def faulty(self: cache.SlabCache, path: Tensor, kept: Tensor, lengths: Tensor) -> None:
        compact(self, torch.where(path > 1, path - 1, path), kept, lengths)

    patch.setattr(cache.SlabCache, "compact", faulty)


def _two_rows_change_places(patch: pytest.MonkeyPatch) -> None:
    opens = cache.SlabCache.open

    def faulty(self: cache.SlabCache, slots: Tensor, view: int | None) -> None:
        rows = self.rows
        self.rows = torch.cat([rows[:2].flip(0), rows[2:]])
        opens(self, slots, view)
        self.rows = rows

    patch.setattr(cache.SlabCache, "open", faulty)


def _a_write_lands_one_slot_too_far(patch: pytest.MonkeyPatch) -> None:
    opens = cache.SlabCache.open

    def faulty(self: cache.SlabCache, slots: Tensor, view: int | None) -> None:
        opens(self, slots if view is None else slots + (slots < slots.max()), view)

    patch.setattr(cache.SlabCache, "open", faulty)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "draft nodes sit one position too far": _draft_nodes_sit_one_position_too_far,
    "all nodes sit one position too far": _all_nodes_sit_one_position_too_far,
    "the last committed key is unseen": _hide(lambda nodes: nodes.base - 1),
    "the key before it is unseen": _hide(lambda nodes: nodes.base - 2),
    "stale keys: nothing is compacted": _nothing_is_compacted,
    "stale keys: the last accepted node is not moved": _compaction_is_off_by_one,
    "stale keys: the node before is moved": _compaction_takes_the_node_before,
    "two rows change places in the slab": _two_rows_change_places,
    "a write lands one slot too far": _a_write_lands_one_slot_too_far,
}
