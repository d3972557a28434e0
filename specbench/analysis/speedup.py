"""How much faster one arm is than another, on the same prompts and blocks, with its interval."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.acceptance import decode_tokens, measured
from specbench.analysis.intervals import Interval, Totals, jackknife_interval, noise_floor, ratio
from specbench.analysis.memo import of_frame
from specbench.analysis.throughput import batch_table, full_batch_table
from specbench.errors import ResultsError

COMPARABLE = (
    "target", "target_sha", "dtype", "device", "threads", "execution", "batch_size", "temperature", "max_new_tokens",
    "prompts_sha",
)  # fmt: skip
"""Columns in which two arms must agree before one is divided by the other."""

PAIR = ["process", "block", "repeat"]
"""What names one timed batch of prompts, whichever arm ran it."""


@dataclass(frozen=True)
class Speedup:
    """One arm against another.

    `ratio` is seconds a token of the baseline over the same of the method; None where they share no finished
    batch. `interval` is None below four batches of prompts (`units` says how many there were); what it speaks
    of, `specbench.analysis.intervals.estimand` says from the number of `processes`.
    """

    ratio: float | None
    interval: Interval | None
    units: int
    pairs: int
    baseline_tokens: int
    method_tokens: int
    processes: int = 1


def speedup(baseline: pd.DataFrame, method: pd.DataFrame, *, with_prefill: bool = False) -> Speedup:
    """Ratio of total decode time per token over the batches that both arms finished.

    The unit of the interval is the batch of prompts: its repeats share their prompts, so they are summed.
    Processes are a level of their own.

    Args:
        baseline: Rows of the arm that counts as 1; one cell, one pass.
        method: Rows of the arm in question, of the same cell and pass.
        with_prefill: Take prefill time and the first token too: the end-to-end speed-up.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.

    Source: the ratio of totals (`specbench.analysis.intervals.ratio`).
    """
    return _of_pairs(paired_batches(baseline, method, with_prefill=with_prefill))


def full_batch_speedup(baseline: pd.DataFrame, method: pd.DataFrame) -> Speedup:
    """Ratio of `full_batch_tokens_per_s`: how early rows end, which static batches pay for, is no part of it.

    Equals `speedup` at batch size 1.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    check_comparable(baseline, method)
    return _of_pairs(_joined(*(full_batch_table(rows).set_index(PAIR) for rows in (baseline, method))))


def full_batch_rate(rows: pd.DataFrame) -> Speedup:
    """`full_batch_tokens_per_s` of one arm with its interval: its speed-up over a clock of one token a second."""
    return _rate(full_batch_table(rows).set_index(PAIR))


def batch_rate(rows: pd.DataFrame) -> Speedup:
    """`batch_tokens_per_s` of one arm with its interval, likewise."""
    return _rate(_decoded_batches(measured(rows)))


def _rate(table: pd.DataFrame) -> Speedup:
    return _of_pairs(_joined(table.assign(seconds=1.0, tokens=1.0), table))


def request_speedup(baseline: pd.DataFrame, method: pd.DataFrame) -> Speedup:
    """Ratio of `decode_tokens_per_s` over the requests that both arms finished: what one request sees.

    Equals `speedup` at batch size 1.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    return _of_pairs(_paired_requests(baseline, method))


def request_speedups(
    baseline: pd.DataFrame, method: pd.DataFrame, groups: Mapping[str, Collection[str]]
) -> dict[str, Speedup]:
    """`request_speedup` on each group of prompts, such as those of one category.

    Args:
        baseline: Rows of the arm that counts as 1; one cell, one pass.
        method: Rows of the arm in question, of the same cell and pass.
        groups: Name of a group -> its ``prompt_id``.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    pairs = _paired_requests(baseline, method)
    return {name: _of_pairs(pairs[pairs["prompt_id"].isin(prompts)]) for name, prompts in groups.items()}


def efficiency_ratio(baseline: pd.DataFrame, method: pd.DataFrame) -> Speedup:
    """Ratio of `block_efficiency`, the method's over the baseline's: above 1, the method's steps emit more.

    Steps take the place of seconds, so the interval is that of a speed-up; no clock is in it.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    check_comparable(baseline, method)
    return _of_pairs(_joined(*(_step_totals(rows) for rows in (baseline, method))))


def _step_totals(rows: pd.DataFrame) -> pd.DataFrame:
    """Steps and tokens per timed batch, over its finished rows; steps are called seconds, as what a token costs."""
    rows = measured(rows)
    totals = rows[PAIR].assign(seconds=rows["steps"].astype(float), tokens=decode_tokens(rows))
    return totals.groupby(PAIR)[["seconds", "tokens"]].sum()


def _paired_requests(baseline: pd.DataFrame, method: pd.DataFrame) -> pd.DataFrame:
    check_comparable(baseline, method)
    left, right = (_request_totals(rows) for rows in (baseline, method))
    pairs = _joined(left, right)
    return pairs.assign(prompt_id=left["prompt_id"].reindex(pairs.index))


@of_frame
def _request_totals(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds and tokens per finished request."""
    rows, place = measured(rows), [*PAIR, "row"]
    totals = rows[[*place, "prompt_id"]].assign(seconds=rows["row_done_s"], tokens=decode_tokens(rows))
    return totals.set_index(place)


def _joined(baseline: pd.DataFrame, method: pd.DataFrame) -> pd.DataFrame:
    """What both have, side by side."""
    left, right = baseline[["seconds", "tokens"]], method[["seconds", "tokens"]].add_suffix("_method")
    if left.index.equals(right.index):
        return pd.concat([left, right], axis=1)
    return left.join(right, how="inner")


def _of_pairs(pairs: pd.DataFrame) -> Speedup:
    """The ratio of totals, its units being blocks: their repeats share their prompts, so they are summed."""
    if pairs.empty:
        return Speedup(None, None, 0, 0, 0, 0)
    first, second = _totals_by_process(pairs)
    units, processes = first.seconds.shape
    value = ratio(first, second)
    interval = jackknife_interval(first, second)
    return Speedup(
        ratio=None if np.isnan(value) else value,
        interval=None if interval is None or np.isnan(interval.low) else interval,
        units=units,
        pairs=len(pairs),
        baseline_tokens=int(first.tokens.sum()),
        method_tokens=int(second.tokens.sum()),
        processes=processes,
    )


def twin_noise_floor(first: pd.DataFrame, second: pd.DataFrame) -> float | None:
    """Noise floor of a cell from its two autoregressive arms, on the log scale; None below four pairs.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    pairs = paired_batches(first, second)
    return noise_floor(*_totals(pairs)) if len(pairs) else None


def fastest_path(warm_up_s: Mapping[str, Sequence[float]]) -> str | None:
    """The arm that took least time a step when it warmed up; None where nothing was warmed up.

    The best pass of each counts: the first ones also pay for what is done once.

    Args:
        warm_up_s: Seconds a step of every warm-up pass, by arm; all of the arms emit one token a row and step.
    """
    best = {arm: min(seconds) for arm, seconds in warm_up_s.items() if seconds}
    return min(best, key=lambda arm: best[arm]) if best else None


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
    left, right = _identity(baseline), _identity(method)
    for column in COMPARABLE:
        if left.values[column] != right.values[column] or len(left.values[column]) > 1:
            found = (" and ".join(sorted(map(str, side.values[column]))) for side in (left, right))
            raise ResultsError(f"rows of different {column!r} must not be compared: {' against '.join(found)}")
    if left.prompts == right.prompts:
        return
    shared = {block for block, _ in left.prompts} & {block for block, _ in right.prompts}
    if other := sorted(block for block, _ in left.prompts ^ right.prompts if block in shared):
        raise ResultsError(f"rows of different 'prompt_id' must not be compared: block {other[0]} ran other prompts")


@dataclass(frozen=True)
class _Identity:
    """In what two arms must agree: the values of `COMPARABLE`, and the prompts of each block."""

    values: dict[str, set[Any]]
    prompts: set[tuple[int, str]]


@of_frame
def _identity(rows: pd.DataFrame) -> _Identity:
    values = {column: set(rows[column].unique()) if column in rows else set() for column in COMPARABLE}
    return _Identity(values, {*zip(rows["block"], rows["prompt_id"], strict=True)})


def paired_batches(baseline: pd.DataFrame, method: pd.DataFrame, *, with_prefill: bool = False) -> pd.DataFrame:
    """Seconds and tokens of both arms on each batch that both finished, indexed by process, block and repeat.

    Raises:
        ResultsError: The two must not be compared; the message names the column in which they differ.
    """
    if baseline.empty or method.empty:
        return pd.DataFrame(columns=["seconds", "tokens", "seconds_method", "tokens_method"])
    check_comparable(baseline, method)
    return _joined(*(_batch_totals(rows, with_prefill=with_prefill) for rows in (baseline, method)))


def _batch_totals(rows: pd.DataFrame, *, with_prefill: bool) -> pd.DataFrame:
    """Seconds and tokens per finished batch; the time of a batch is taken once, however many rows it has."""
    return (_whole_batches if with_prefill else _decoded_batches)(rows)


@of_frame
def _whole_batches(rows: pd.DataFrame) -> pd.DataFrame:
    batches = _finished(rows)
    return _placed(batches, batches["decode_s"] + batches["prefill_s"], batches["output_tokens"])


@of_frame
def _decoded_batches(rows: pd.DataFrame) -> pd.DataFrame:
    batches = _finished(rows)
    return _placed(batches, batches["decode_s"], batches["decode_tokens"])


def _finished(rows: pd.DataFrame) -> pd.DataFrame:
    batches = batch_table(rows)
    return batches[batches["ok"]]


def _placed(batches: pd.DataFrame, seconds: pd.Series, tokens: pd.Series) -> pd.DataFrame:
    return batches[PAIR].assign(seconds=seconds, tokens=tokens).dropna().set_index(PAIR)


_TOTALS = ("seconds", "tokens", "seconds_method", "tokens_method")


def _totals(frame: pd.DataFrame) -> tuple[Totals, Totals]:
    values = [frame[column].to_numpy(np.float64) for column in _TOTALS]
    return Totals(values[0], values[1]), Totals(values[2], values[3])


def _totals_by_process(pairs: pd.DataFrame) -> tuple[Totals, Totals]:
    """Totals ``[units, processes]``, repeats summed; 0 where a process has not run a batch."""
    blocks, unit = np.unique(pairs.index.get_level_values("block"), return_inverse=True)
    processes, process = np.unique(pairs.index.get_level_values("process"), return_inverse=True)
    shape = (len(blocks), len(processes))
    place = unit * len(processes) + process
    values = [
        np.bincount(place, pairs[column], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        for column in _TOTALS
    ]
    return Totals(values[0], values[1]), Totals(values[2], values[3])
