"""How much faster one arm is than another, on the same prompts and blocks, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from specbench.analysis.intervals import Interval, Totals, jackknife_interval, noise_floor, ratio
from specbench.analysis.throughput import batch_table
from specbench.errors import ResultsError

COMPARABLE = (
    "target", "target_sha", "dtype", "device", "threads", "batch_size", "temperature", "max_new_tokens",
    "prompts_sha",
)  # fmt: skip
"""Columns in which two arms must agree before one is divided by the other."""

PAIR = ["process", "block", "repeat"]
"""What names one timed batch of prompts, whichever arm ran it."""


@dataclass(frozen=True)
class Speedup:
    """One arm against another.

    `ratio` is seconds a token of the baseline over the same of the method; None where they share no finished
    batch. `interval` is None below four batches of prompts (`units` says how many there were).
    """

    ratio: float | None
    interval: Interval | None
    units: int
    pairs: int
    baseline_tokens: int
    method_tokens: int


def speedup(baseline: pd.DataFrame, method: pd.DataFrame, *, with_prefill: bool = False) -> Speedup:
    """Ratio of total decode time per token over the batches that both arms finished.

    The unit of the interval is the batch of prompts: its repeats share their prompts, so they are summed.

    Args:
        baseline: Rows of the arm that counts as 1; one cell, one pass.
        method: Rows of the arm in question, of the same cell and pass.
        with_prefill: Take prefill time and the first token too: the end-to-end speed-up.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.

    Source: the ratio of totals (`specbench.analysis.intervals.ratio`).
    """
    pairs = paired_batches(baseline, method, with_prefill=with_prefill)
    if pairs.empty:
        return Speedup(None, None, 0, 0, 0, 0)
    units = pairs.groupby("block", sort=True)[["seconds", "tokens", "seconds_method", "tokens_method"]].sum()
    first, second = _totals(units)
    value = ratio(first, second)
    interval = jackknife_interval(first, second)
    return Speedup(
        ratio=None if np.isnan(value) else value,
        interval=None if interval is None or np.isnan(interval.low) else interval,
        units=len(units),
        pairs=len(pairs),
        baseline_tokens=int(first.tokens.sum()),
        method_tokens=int(second.tokens.sum()),
    )


def twin_noise_floor(first: pd.DataFrame, second: pd.DataFrame) -> float | None:
    """Noise floor of a cell from its two autoregressive arms, on the log scale; None below four pairs.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    pairs = paired_batches(first, second)
    return noise_floor(*_totals(pairs)) if len(pairs) else None


def batch_ratios(baseline: pd.DataFrame, method: pd.DataFrame) -> pd.Series:
    """The speed-up on each timed batch alone, indexed by process, block and repeat: the spread.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    pairs = paired_batches(baseline, method)
    pairs = pairs[(pairs["tokens"] > 0) & (pairs["tokens_method"] > 0)]
    return (pairs["seconds"] / pairs["tokens"]) / (pairs["seconds_method"] / pairs["tokens_method"])


def check_comparable(baseline: pd.DataFrame, method: pd.DataFrame) -> None:
    """Refuse rows that must not be divided by one another.

    Raises:
        ResultsError: They differ in a column of `COMPARABLE`, or ran other prompts in the same block.
    """
    for column in COMPARABLE:
        left, right = (sorted(map(str, rows[column].unique())) for rows in (baseline, method))
        if left != right or len(left) > 1:
            raise ResultsError(
                f"rows of different {column!r} must not be compared: {' and '.join(left)} against {' and '.join(right)}"
            )
    left_prompts, right_prompts = (rows.groupby("block")["prompt_id"].unique().map(set) for rows in (baseline, method))
    for block in left_prompts.index.intersection(right_prompts.index):
        if left_prompts[block] != right_prompts[block]:
            raise ResultsError(f"rows of different 'prompt_id' must not be compared: block {block} ran other prompts")


def paired_batches(baseline: pd.DataFrame, method: pd.DataFrame, *, with_prefill: bool = False) -> pd.DataFrame:
    """Seconds and tokens of both arms on each batch that both finished, indexed by process, block and repeat.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    if baseline.empty or method.empty:
        return pd.DataFrame(columns=["seconds", "tokens", "seconds_method", "tokens_method"])
    check_comparable(baseline, method)
    left, right = (_batch_totals(rows, with_prefill=with_prefill) for rows in (baseline, method))
    return left.join(right.add_suffix("_method"), how="inner")


def _batch_totals(rows: pd.DataFrame, *, with_prefill: bool) -> pd.DataFrame:
    """Seconds and tokens per finished batch; the time of a batch is taken once, however many rows it has."""
    batches = batch_table(rows)
    batches = batches[batches["ok"]]
    seconds = batches["decode_s"] + batches["prefill_s"] if with_prefill else batches["decode_s"]
    tokens = batches["output_tokens"] if with_prefill else batches["decode_tokens"]
    return batches[PAIR].assign(seconds=seconds, tokens=tokens).dropna().set_index(PAIR)


def _totals(frame: pd.DataFrame) -> tuple[Totals, Totals]:
    columns = ("seconds", "tokens", "seconds_method", "tokens_method")
    values = [frame[column].to_numpy(np.float64) for column in columns]
    return Totals(values[0], values[1]), Totals(values[2], values[3])
