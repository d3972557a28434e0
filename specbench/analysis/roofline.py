"""How fast a forward can be at best: the bytes that it must move and the operations that it must do.

A bound, not a forecast: activations, norms, launches and the host come on top of it. Where a measured forward lies far
above it, the machine is not what holds it up.

Source: Williams et al., Roofline (2009), for the bound; MagicDec (arXiv 2408.11049) for the bytes and operations of a
layer and of its KV.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis import closed_forms


@dataclass(frozen=True)
class Hardware:
    """What a device can do in a second: bytes that its memory moves, and operations of the data type in question."""

    bytes_per_s: float
    operations_per_s: float

    @property
    def ridge(self) -> float:
        """Operations per byte at which moving and computing take equally long."""
        return self.operations_per_s / self.bytes_per_s


@dataclass(frozen=True)
class DenseModel:
    """The matrices of a dense decoder.

    Attributes:
        layers: Layers.
        width: Of the hidden state.
        ffn: Width between the matrices of the feed-forward part.
        attention_width: Query heads x head dimension.
        kv_width: KV heads x head dimension.
        vocab_size: Rows of the output matrix; the input embedding is looked up, not multiplied.
        gated: Whether the feed-forward part has three matrices (Llama) or two (OPT).
        bytes_per_value: Of weights and KV alike.
    """

    layers: int
    width: int
    ffn: int
    attention_width: int
    kv_width: int
    vocab_size: int
    gated: bool = True
    bytes_per_value: float = 2.0

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with."""
        attention = 2 * self.width * (self.attention_width + self.kv_width)
        feed_forward = (3 if self.gated else 2) * self.width * self.ffn
        return self.layers * (attention + feed_forward) + self.vocab_size * self.width

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token of context, over all layers."""
        return 2 * self.layers * self.kv_width * self.bytes_per_value


@dataclass(frozen=True)
class Work:
    """What one forward moves and computes: its weights, which all rows share, and its attention, which none do.

    Attributes:
        weight_bytes: Of all matrices, read once.
        weight_operations: A multiplication and an addition per parameter and token.
        kv_bytes: Keys and values of every row's context, read once.
        kv_operations: Scores and their sums over the context.
    """

    weight_bytes: float
    weight_operations: float
    kv_bytes: float
    kv_operations: float

    @property
    def kv_share(self) -> float:
        """Share of the bytes that are keys and values."""
        return self.kv_bytes / (self.kv_bytes + self.weight_bytes)


def forward_work(model: DenseModel, *, batch_size: int, query_tokens: int, context_tokens: float) -> Work:
    """What one forward over new tokens moves and computes.

    Args:
        model: The model.
        batch_size: Rows.
        query_tokens: New tokens a row: 1 to decode, gamma + 1 to verify.
        context_tokens: Positions that each of them attends to, the same in every row.

    Source: MagicDec: a layer of width d whose query heads share KV heads in groups of g has
    ``10 d^2 + 2 d^2 / g`` weights and ``2 d n / g`` values of KV for n tokens; per row ``4 n d`` operations on them.
    """
    tokens = batch_size * query_tokens
    return Work(
        weight_bytes=model.multiplied * model.bytes_per_value,
        weight_operations=2.0 * model.multiplied * tokens,
        kv_bytes=model.kv_bytes_per_token * batch_size * context_tokens,
        kv_operations=4.0 * model.layers * model.attention_width * tokens * context_tokens,
    )


def attainable_s(work: Work, hardware: Hardware) -> float:
    """Least seconds of a forward: weights, then attention, each as long as its bytes or its operations take.

    Source: Williams et al. (2009), applied to either part, since one runs after the other.
    """
    parts = ((work.weight_bytes, work.weight_operations), (work.kv_bytes, work.kv_operations))
    return math.fsum(
        max(moved / hardware.bytes_per_s, computed / hardware.operations_per_s) for moved, computed in parts
    )


def attainable_target_efficiency(
    model: DenseModel, hardware: Hardware, *, batch_size: int, gamma: int, context_tokens: float
) -> float:
    """`closed_forms.target_efficiency` of a target that runs at its roofline."""
    single_s, verify_s = (
        attainable_s(
            forward_work(model, batch_size=batch_size, query_tokens=tokens, context_tokens=context_tokens), hardware
        )
        for tokens in (1, gamma + 1)
    )
    return closed_forms.target_efficiency(single_s, verify_s)


def context_threshold(model: DenseModel, hardware: Hardware, query_tokens: int = 1) -> float:
    """Context beyond which a forward waits for memory at every batch size; infinite where no context does that.

    Below it a batch that is large enough makes the forward wait for operations, and verification stops being free.

    Args:
        model: The model.
        hardware: The device.
        query_tokens: New tokens a row.

    Source: MagicDec, for the quantity. As the batch grows, the weights' bytes stop counting; then the time to read the
    KV of n tokens is set equal to that of all operations, and solved for n.
    """
    # Operations that fit into the time in which the KV of one token of context is read, less those it asks for.
    spare = model.kv_bytes_per_token * hardware.ridge - 4 * model.layers * model.attention_width * query_tokens
    return 2 * model.multiplied * query_tokens / spare if spare > 0 else math.inf


# --- steps that were counted


def hardware_of(ceiling: Mapping[str, Any]) -> Hardware:
    """What a row of ``ceilings`` allows.

    On a GPU the faster of reading matrices and copying: both go through the same memory, and a matrix kernel that
    falls short of it is part of what is judged. On a CPU reading alone: a copy of the same size finds other caches.
    """
    read, copied = float(ceiling["read_bytes_per_s"]), float(ceiling["copy_bytes_per_s"])
    return Hardware(read if is_cpu(ceiling["device"]) else max(read, copied), float(ceiling["operations_per_s"]))


def is_cpu(device: str) -> bool:
    """Whether a name of the column ``device`` is a CPU's."""
    return device == "cpu" or device.startswith("cpu ")


def products_s(ceiling: Mapping[str, Any], rows: float) -> float | None:
    """Seconds that a ceiling's products took alone with so many rows; None beyond what was measured.

    Error: between measured numbers of rows the time is taken to be linear, and kernels go in steps.
    """
    measured = ceiling["product_rows"]
    return float(np.interp(rows, measured, ceiling["products_s"])) if rows <= max(measured) else None


@dataclass(frozen=True)
class Load:
    """With what a step was run, on average.

    Attributes:
        rows: Rows that had not ended.
        nodes: Draft nodes of each, which are verified beside the root.
        context_tokens: Tokens before them.
    """

    rows: float
    nodes: float
    context_tokens: float

    @property
    def verified(self) -> float:
        """Tokens that a step verifies, over all rows."""
        return self.rows * (1 + self.nodes)


@dataclass(frozen=True)
class StepLimit:
    """Least seconds of a step: what its draft and its verification move and compute, at the best pace of the device.

    Accepting, updating and the host have none: what they take lies above the limit.
    """

    draft_s: float
    verify_s: float
    kv_share: float

    @property
    def step_s(self) -> float:
        """Of all of it."""
        return self.draft_s + self.verify_s


def step_limit(counted: Mapping[str, Any], load: Load, verify: Hardware, draft: Hardware | None) -> StepLimit:
    """The limit of an arm's step.

    Error: a bound from below. Scores, norms and logits that are written and read are not in it, nor is what a draft
    multiplies in its attention; rows and nodes that are padded are not counted as work.

    Args:
        counted: The arm's row of ``limits``.
        load: With what the step was run.
        verify: What the device does with the target's matrices.
        draft: The same with those of the draft; None where there are none.

    Source: `attainable_s`, of the verification and of all that is outside of it.
    """
    verified = _verify_work(counted, load)
    drafted = Work(
        weight_bytes=counted["draft_weight_bytes"],
        weight_operations=counted["draft_operations"] * load.rows / counted["batch_size"],
        kv_bytes=counted["draft_kv_bytes_per_token"] * load.rows * load.context_tokens,
        kv_operations=0.0,
    )
    return StepLimit(
        draft_s=0.0 if draft is None else attainable_s(drafted, draft),
        verify_s=attainable_s(verified, verify),
        kv_share=verified.kv_share,
    )


def _verify_work(counted: Mapping[str, Any], load: Load) -> Work:
    windowed = counted["kv_windowed_share"]
    nearest = min(load.context_tokens, counted["kv_window_tokens"]) if windowed else 0.0
    seen = (1 - windowed) * load.context_tokens + windowed * nearest
    return Work(
        weight_bytes=counted["verify_weight_bytes"],
        weight_operations=counted["verify_operations_per_token"] * load.verified,
        kv_bytes=counted["kv_bytes_per_token"] * load.rows * seen,
        kv_operations=counted["kv_operations_per_token"] * load.verified * seen,
    )


# --- forwards that were measured


def model_of(row: Mapping[str, Any]) -> DenseModel:
    """The matrices behind a row of ``latencies``.

    Neither the third matrix of a feed-forward part nor an output matrix of its own has a column: of the models that the
    numbers allow it is the one whose parameters come closest to those counted; norms and biases are the difference.
    """
    model = DenseModel(
        layers=int(row["layers"]),
        width=int(row["hidden"]),
        ffn=int(row["feed_forward"]),
        attention_width=int(row["heads"] * row["head_dim"]),
        kv_width=int(row["kv_heads"] * row["head_dim"]),
        vocab_size=int(row["vocab"]),
        bytes_per_value=row["weight_bytes"] / row["parameters"],
    )
    embedding = model.vocab_size * model.width

    def missed(kind: DenseModel) -> float:
        return min(abs(kind.multiplied + own - row["parameters"]) for own in (0, embedding))

    return min((model, replace(model, gated=False)), key=missed)


def over_memory_roof(rows: pd.DataFrame) -> pd.Series:
    """Forward times over the time that reading weights, keys and values takes at the best pace of any of them.

    About 1 where memory is all that a forward waits for; far above it where launches, norms and the host are, as with
    many thin layers, or arithmetic, as with many tokens. NaN where a time or the width of the feed-forward part is not
    known.

    Error: the pace is what was seen and not what the device can do, so a table without one large model flatters all of
    its models; and what fits into a cache is read faster than what does not.

    Args:
        rows: Of ``latencies``, all of one setting.

    Source: `Work`, with memory alone.
    """
    known = rows[rows["forward_s"].notna() & rows["feed_forward"].notna()]
    works = [_work(row) for row in known.to_dict("records")]
    moved = pd.Series([work.weight_bytes + work.kv_bytes for work in works], index=known.index, dtype=np.float64)
    seconds_per_byte = known["forward_s"] / moved
    return (seconds_per_byte / seconds_per_byte.min()).reindex(rows.index)


def _work(row: Mapping[str, Any]) -> Work:
    query, context = int(row["query_tokens"]), int(row["context_tokens"])
    return forward_work(
        model_of(row), batch_size=int(row["batch_size"]), query_tokens=query, context_tokens=context + query
    )
