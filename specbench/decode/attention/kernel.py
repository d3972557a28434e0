"""The split-KV kernel: attention over a ragged slab, which reads each row's length and a tree's ancestors by itself.

After Dao et al., *Flash-Decoding* (2023): a row's keys are cut into parts that run side by side, each with a softmax of
its own, and a second kernel weighs the parts by their sums of exponentials. To that come, for speculative decoding,
a length for every row and a mask over the draft nodes alone, as words of 64 bits. Query heads that share keys are rows
of one tile, so that every key is fetched once.

Importing this module imports Triton, which comes with torch's CUDA builds and is no dependency elsewhere.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_PARTS = 64
_WAVES = 1.5  # programs for every multiprocessor, below which the keys are cut into more parts
_LOG2_E = 1.4426950408889634


class Plan(NamedTuple):
    """How work is cut: query rows of a tile, tiles of a head of keys, keys of a block, and parts of a row's keys."""

    rows: int
    tiles: int
    keys: int
    parts: int


def plan(programs: int, rows: int, slots: int, multiprocessors: int, *, is_half: bool) -> Plan:
    """Cut the work by static shapes alone, so that a captured graph serves every length.

    Args:
        programs: Rows of the batch x heads of keys.
        rows: Query rows of a head of keys: queries x query heads that share it.
        slots: Slots of a row.
        multiprocessors: Of the device.
        is_half: Whether keys and values are of half precision. Without tensor cores a large tile spills registers.
    """
    # With 128 keys a block would leave a multiprocessor room for one program alone.
    most_rows, keys = (64, 64) if is_half else (16, 32)
    tile = min(most_rows, max(16, triton.next_power_of_2(rows)))
    tiles, parts = triton.cdiv(rows, tile), 1
    while parts < _MOST_PARTS and programs * tiles * parts < _WAVES * multiprocessors and parts * keys * 2 <= slots:
        parts *= 2
    return Plan(tile, tiles, keys, parts)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# Sizes that change from step to step must not each bring a compilation.
@triton.jit(do_not_specialize=["queries", "nodes", "words_batch", "words_query", "depth_batch"])
def _attend_part(
    query_ptr, key_ptr, value_ptr, base_ptr, words_ptr, depth_ptr, out_ptr, weight_ptr,
    scale, queries, nodes,
    query_batch, query_token, query_head,
    key_batch, key_slot, key_head,
    value_batch, value_slot, value_head,
    words_batch, words_query, depth_batch,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr, WINDOW: tl.constexpr, IS_LINE: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one row and head, for one tile of its query rows; rows are (query, head of the group)."""
    batch = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    part = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_row = row < queries * GROUP
    token = tl.minimum(row // GROUP, queries - 1)
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, DIM_BLOCK)
    is_dim = dim < DIM
    far = batch.to(tl.int64)  # offsets of a large slab do not fit 32 bits

    base = tl.load(base_ptr + batch).to(tl.int32)
    end = base + nodes
    first = 0
    if WINDOW > 0:
        first = tl.maximum(base - WINDOW + 1, 0) // KEYS * KEYS  # no query stands before the root
    share = tl.cdiv(tl.cdiv(end - first, KEYS), PARTS) * KEYS
    start = first + part * share
    stop = tl.minimum(start + share, end)

    if IS_LINE:
        depth = token
    else:
        depth = tl.load(depth_ptr + batch * depth_batch + token).to(tl.int32)
    query_at = query_ptr + far * query_batch + token[:, None] * query_token + head[:, None] * query_head
    query = tl.load(query_at + dim[None, :], mask=is_row[:, None] & is_dim[None, :], other=0.0)
    keys_at = key_ptr + far * key_batch + kv_head * key_head
    values_at = value_ptr + far * value_batch + kv_head * value_head

    most = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIM_BLOCK], tl.float32)
    for begin in range(start, stop, KEYS):
        slot = begin + tl.arange(0, KEYS)
        is_key = slot < stop
        place = slot.to(tl.int64)
        key = tl.load(
            keys_at + place[None, :] * key_slot + dim[:, None], mask=is_key[None, :] & is_dim[:, None], other=0.0
        )
        score = tl.dot(query, key, input_precision="ieee") * scale
        if (begin + KEYS > base) | (begin + KEYS > stop) | (WINDOW > 0):
            node = slot - base
            if IS_LINE:
                sees = node[None, :] <= token[:, None]
                if WINDOW > 0:
                    sees = sees & (node[None, :] > token[:, None] - WINDOW)
            else:
                is_node = node >= 0
                bit = tl.maximum(node, 0)
                word = tl.load(
                    words_ptr + batch * words_batch + token[:, None] * words_query + (bit // 64)[None, :],
                    mask=(is_node & is_key)[None, :] & is_row[:, None],
                    other=0,
                )
                committed = (~is_node)[None, :]
                if WINDOW > 0:
                    committed = committed & (node[None, :] > depth[:, None] - WINDOW)
                sees = committed | (((word >> (bit % 64)[None, :]) & 1) != 0)
            score = tl.where(sees & is_key[None, :], score, -1.0e30)
        highest = tl.maximum(most, tl.max(score, 1))
        # Blocks of which a row sees nothing count until it sees a key, its own at the latest, and then for nothing.
        chance = tl.exp2(score - highest[:, None])
        fade = tl.exp2(most - highest)
        total = total * fade + tl.sum(chance, 1)
        most = highest
        value = tl.load(
            values_at + place[:, None] * value_slot + dim[None, :], mask=is_key[:, None] & is_dim[None, :], other=0.0
        )
        mixed = tl.dot(chance.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")

    mixed = mixed / tl.maximum(total, 1.0e-30)[:, None]
    out_row = ((far * queries + token) * (KV_HEADS * GROUP) + head) * PARTS + part
    kept = is_row[:, None] & is_dim[None, :]
    tl.store(out_ptr + out_row[:, None] * DIM + dim[None, :], mixed.to(out_ptr.dtype.element_ty), mask=kept)
    if PARTS > 1:
        weight = tl.where(total > 0, most + tl.log2(tl.maximum(total, 1.0e-30)), -1.0e30)
        tl.store(weight_ptr + out_row, weight, mask=is_row)


@triton.jit
def _join_parts(
    parts_ptr, weight_ptr, out_ptr, PARTS: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr
):  # fmt: skip
    """One query head's output: its parts, weighted by their sums of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    part = row * PARTS + tl.arange(0, PARTS)
    dim = tl.arange(0, DIM_BLOCK)
    is_dim = dim < DIM
    weight = tl.load(weight_ptr + part)
    weight = tl.exp2(weight - tl.max(weight, 0))
    weight = weight / tl.sum(weight, 0)
    mixed = tl.load(parts_ptr + part[:, None] * DIM + dim[None, :], mask=is_dim[None, :], other=0.0)
    joined = tl.sum(mixed * weight[:, None], 0)
    tl.store(out_ptr + row * DIM + dim, joined.to(out_ptr.dtype.element_ty), mask=is_dim)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    base: Tensor,
    words: Tensor | None,
    depth: Tensor | None,
    nodes: int,
    scale: float,
    window: int,
    cut: Plan | None = None,
) -> Tensor:
    """Attention of M queries a row over its committed keys and the nodes behind them.

    Args:
        query: (B, M, query heads, D).
        key: One layer of the slab, (B, slots, KV heads, D).
        value: The same of the values.
        base: Committed keys of every row, (B,); node j sits in slot ``base + j``.
        words: Which nodes each query sees, bit j % 64 of word j // 64 for node j, (1 or B, M, words); None for a line,
            where query i is node i and sees those before it.
        depth: Depth of every query, (1 or B, M); None for a line.
        nodes: K.
        scale: Factor of the scores.
        window: How far a query looks back in committed keys, and in a line altogether; 0 without end. In a tree the
            words say which nodes are near enough.
        cut: How the work is cut; by default as ``plan`` says.

    Returns:
        (B, M, query heads, D).
    """
    batch, queries, heads, dim = query.shape
    slots, kv_heads = key.shape[1:3]
    group = heads // kv_heads
    multiprocessors, is_half = _multiprocessors(query.device), query.dtype.itemsize == 2
    cut = cut or plan(batch * kv_heads, queries * group, slots, multiprocessors, is_half=is_half)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    parts, weight = out, out
    if cut.parts > 1:
        parts = torch.empty((batch, queries, heads, cut.parts, dim), dtype=torch.float32, device=query.device)
        weight = torch.empty((batch, queries, heads, cut.parts), dtype=torch.float32, device=query.device)
    width = max(16, triton.next_power_of_2(dim))
    line = words is None or depth is None
    words, depth = (base[None, :, None], base[None]) if words is None or depth is None else (words, depth)
    _attend_part[batch * kv_heads, cut.parts, cut.tiles](
        query, key, value, base, words, depth, parts, weight,
        scale * _LOG2_E, queries, nodes,
        *query.stride()[:3],
        key.stride(0), key.stride(1), key.stride(2),
        value.stride(0), value.stride(1), value.stride(2),
        _row_stride(words), words.stride(1), _row_stride(depth),
        KV_HEADS=kv_heads, GROUP=group, DIM=dim, DIM_BLOCK=width,
        ROWS=cut.rows, KEYS=cut.keys, PARTS=cut.parts, WINDOW=window, IS_LINE=line,
        num_warps=4, num_stages=3 if is_half else 2,
    )  # fmt: skip
    if cut.parts > 1:
        _join_parts[(batch * queries * heads,)](
            parts, weight, out, PARTS=cut.parts, DIM=dim, DIM_BLOCK=width, num_warps=2
        )
    return out


def _row_stride(shared: Tensor) -> int:
    """The step from row to row, 0 where all rows share one."""
    return 0 if shared.shape[0] == 1 else shared.stride(0)


@torch.library.custom_op("specbench::split_kv", mutates_args=())
def opaque_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    base: Tensor,
    words: Tensor | None,
    depth: Tensor | None,
    nodes: int,
    scale: float,
    window: int,
) -> Tensor:
    """`attend` as one operation that the compiler does not look into: no copy of the slab, no recompilation."""
    return attend(query, key, value, base, words, depth, nodes, scale, window)


@opaque_attend.register_fake
def _shape_of_it(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
