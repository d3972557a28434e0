"""Rates and latencies of one arm, each under the one name that it has everywhere.

Times belong to batches: each function takes one per ``batch_id``, and only ``row_done_s`` row by row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.acceptance import decode_tokens, measured
from specbench.analysis.memo import of_frame

_PLACE = ("process", "block", "repeat", "batch_size")
_PER_STEP = ("accepted_per_step", "drafted_depth_per_step", "drafted_nodes_per_step")


@of_frame
def batch_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per timed batch, indexed by ``batch_id``: where it belongs, its times and its tokens.

    ``decode_tokens`` counts what decode steps emitted: see `acceptance.decode_tokens`. ``ok`` is
    False where any row of the batch failed.
    """
    # Arrays, not a grouped aggregation: a report calls this some hundred times.
    codes, ids = pd.factorize(rows["batch_id"])
    first = np.unique(codes, return_index=True)[1]
    columns: dict[str, Any] = {name: rows[name].to_numpy()[first] for name in _PLACE}
    columns |= {name: rows[name].to_numpy(np.float64)[first] for name in ("prefill_s", "ttft_s", "decode_s")}
    columns["rows"] = np.bincount(codes)
    columns["output_tokens"] = np.bincount(codes, rows["output_tokens"].fillna(0).to_numpy(np.float64))
    columns["decode_tokens"] = np.bincount(codes, decode_tokens(rows).fillna(0).to_numpy(np.float64))
    columns["ok"] = np.bincount(codes, rows["status"].ne("ok").to_numpy(np.float64)) == 0
    return pd.DataFrame(columns, index=pd.Index(ids, name="batch_id"))


def decode_tokens_per_s(rows: pd.DataFrame) -> float | None:
    """Tokens per second that one request sees while it decodes: without prefill, until its own end.

    Sum of decode tokens over the sum of the rows' own decode times; equals `batch_tokens_per_s` at batch size
    1.
    """
    rows = measured(rows)
    return _quotient(decode_tokens(rows).sum(), rows["row_done_s"].sum())


def e2e_tokens_per_s(rows: pd.DataFrame) -> float | None:
    """Output tokens per second of whole batches, prefill included, until the last row's end."""
    batches = batch_table(measured(rows))
    return _quotient(batches["output_tokens"].sum(), (batches["prefill_s"] + batches["decode_s"]).sum())


def batch_tokens_per_s(rows: pd.DataFrame) -> float | None:
    """Decode tokens per second of whole batches, until the last row's end: what a static batch delivers."""
    batches = batch_table(measured(rows))
    return _quotient(batches["decode_tokens"].sum(), batches["decode_s"].sum())


@of_frame
def full_batch_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds and decode tokens of each batch until its first row ends, indexed by ``batch_id``.

    Until then every slot works, so how early rows end is no part of it. Batches whose steps were not recorded,
    or in which a row ended with its first token, are left out.
    """
    rows = measured(rows)
    shortest = rows.groupby("batch_id")["steps"].transform("min")
    counted = rows["accepted_per_step"].notna().groupby(rows["batch_id"]).transform("all")
    usable = (counted & (shortest >= 1)).to_numpy(bool)
    rows, common = rows[usable], shortest[usable].to_numpy(np.int64)
    if rows.empty:
        return pd.DataFrame(columns=[*_PLACE, "seconds", "tokens"])
    accepted = rows["accepted_per_step"].to_numpy()
    lengths = np.fromiter(map(len, accepted), np.int64, len(rows))
    owner = np.repeat(np.arange(len(rows)), lengths)
    step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shared = step < common[owner]
    emitted = np.bincount(owner[shared], np.concatenate(accepted)[shared], minlength=len(rows)) + common
    # A row that ends in just this step emitted what was left to emit; the rest is overshoot.
    tokens = np.minimum(emitted, decode_tokens(rows).to_numpy(np.float64))
    batches = (
        rows[["batch_id", *_PLACE]].assign(seconds=rows["row_done_s"], tokens=tokens).groupby("batch_id", sort=False)
    )
    table = batches[list(_PLACE)].first()
    return table.assign(seconds=batches["seconds"].min(), tokens=batches["tokens"].sum())


def while_full(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as they were until the first one of their batch ended; the times are those of the whole batch still.

    Over these steps a fast row counts as much as a slow one, so acceptance over them is that of a full batch.
    """
    rows = measured(rows)
    fewest = rows.groupby("batch_id")["steps"].transform("min")
    lists = {name: _cut(rows[name], fewest) for name in _PER_STEP}
    return rows.assign(steps=fewest, **lists)


def _cut(counts: pd.Series, steps: pd.Series) -> pd.Series:
    """The first steps of each row's counts; what was not recorded stays so."""
    cut = [
        of_row[: int(number)] if recorded else None
        for of_row, number, recorded in zip(counts, steps, counts.notna(), strict=True)
    ]
    return pd.Series(cut, index=counts.index, dtype=object)


def full_batch_tokens_per_s(rows: pd.DataFrame) -> float | None:
    """Decode tokens per second of whole batches until their first row ends, while every slot works.

    The figure for method against method at batch sizes above 1. None where steps were not recorded.
    """
    table = full_batch_table(rows)
    return _quotient(table["tokens"].sum(), table["seconds"].sum())


def occupancy(rows: pd.DataFrame) -> float | None:
    """Share of slot-time in which a row was still decoding; 1 when all rows of a batch end together."""
    rows = measured(rows)
    batches = batch_table(rows)
    return _quotient(rows["row_done_s"].sum(), (batches["decode_s"] * batches["rows"]).sum())


def ttft_s(rows: pd.DataFrame) -> float | None:
    """Mean seconds from submission to the first token, over batches; prompts are already tokenised."""
    times = batch_table(measured(rows))["ttft_s"].dropna()
    return float(times.mean()) if len(times) else None


def tpot_s(rows: pd.DataFrame) -> float | None:
    """Mean seconds per output token after the first, over requests; not the gap between steps.

    A request of one token has none and is left out; None if all are such.

    Source: the vLLM serving benchmark: (latency - ttft) / (output_len - 1).
    """
    rows = measured(rows)
    rows = rows[rows["output_tokens"] > 1]
    if rows.empty:
        return None
    after_first = rows["prefill_s"] + rows["row_done_s"] - rows["ttft_s"]
    value = float((after_first / (rows["output_tokens"] - 1)).mean())
    return None if np.isnan(value) else value


def step_s(rows: pd.DataFrame) -> float | None:
    """Mean seconds of a decode step, from the headline pass: the rows' decode time over their steps."""
    rows = measured(rows)
    return _quotient(rows["row_done_s"].sum(), rows["steps"].sum())


def _quotient(numerator: float, denominator: float) -> float | None:
    """None where there is nothing to divide by, or nothing was measured: never 0, never infinite."""
    numerator, denominator = float(numerator), float(denominator)
    return numerator / denominator if denominator > 0 and not np.isnan(numerator) else None
