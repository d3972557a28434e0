"""Whether a run was stable enough to be believed: what was seen, why it matters, what to do about it.

The manner is that of pyperf, whose benchmarks warn when their spread exceeds a tenth of their mean. Nothing here
changes a number: a caution stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from specbench.analysis.acceptance import measured
from specbench.analysis.intervals import MIN_UNITS
from specbench.analysis.speedup import speedup

UNSTEADY_SPREAD = 0.10
"""Standard deviation over mean of the baseline's step time; pyperf's own threshold."""

SLOW_PHASE_PASS = 0.03
"""Slow-down of the phase pass above which its times are shares and no sums."""

_SLOW_START = _DRIFT = _CLOCK_RANGE = 0.05
_STANDARD_ERRORS = 3.0  # a difference must also stand out of the noise by as much
_WAITING, _STEALING = 0.05, 0.02
_LOAD_BESIDES_OURS = 1.0
_FAULTS_PER_BATCH = 10.0
_BRIEFLY = 0.01

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Caution:
    """Something about a run that its reader must know.

    Attributes:
        kind: A short name, the same for the same fault everywhere.
        cell: The cell in which it was seen.
        seen: What was seen, with numbers.
        why: What it does to the results.
        remedy: What to do.
    """

    kind: str
    cell: str
    seen: str
    why: str
    remedy: str

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.cell}: {self.seen}. {self.why} {self.remedy}"


def cautions(requests: pd.DataFrame) -> list[Caution]:
    """Everything unstable in a run, cell by cell; empty for a run that is as it should be.

    Args:
        requests: The ``requests`` table, any number of cells, both passes.
    """
    found = []
    for cell, rows in requests.groupby("cell", sort=False):
        for check in _CHECKS:
            seen = check.sees(rows)
            if seen is not None:
                found.append(Caution(check.kind, str(cell), seen, check.why, check.remedy))
    return found


@dataclass(frozen=True)
class _Check:
    """``sees`` looks at the rows of one cell, and says what is wrong with them or None."""

    kind: str
    sees: Callable[[pd.DataFrame], str | None]
    why: str
    remedy: str


# --- what is looked at


def _few_units(rows: pd.DataFrame) -> str | None:
    units = _baseline(rows)["block"].nunique()
    if units >= MIN_UNITS:
        return None
    return f"{units} full {'batch' if units == 1 else 'batches'} of prompts, at least {MIN_UNITS} are needed"


def _unsteady(rows: pd.DataFrame) -> str | None:
    times = _step_times(rows)
    if len(times) < MIN_UNITS:
        return None
    spread = float(times.std(ddof=1) / times.mean())
    if spread <= UNSTEADY_SPREAD:
        return None
    return f"the autoregressive step time varies by {_percent(spread)} (standard deviation) over {len(times)} batches"


def _twins_differ(rows: pd.DataFrame) -> str | None:
    twins = [own for _, own in _baseline(rows).groupby("arm", sort=True)]
    if len(twins) != 2:
        return None
    interval = speedup(*twins).interval
    if interval is None or interval.low <= 1 <= interval.high:
        return None
    return (
        "the two autoregressive arms, which do the same work, differ: "
        f"95 % interval of their ratio {interval.low:.3f} to {interval.high:.3f}"
    )


def _slow_start(rows: pd.DataFrame) -> str | None:
    worst = max((_excess_at_start(_step_times(own)) for _, own in rows.groupby("process")), default=0.0)
    return f"the first autoregressive batches are {_percent(worst)} slower a step than later ones" if worst else None


def _excess_at_start(times: Times) -> float:
    """By how much the first tenth, at least the first of both twins, is slower than the rest; 0 if not clearly."""
    first = max(2, len(times) // 10)
    if len(times) < 4 * first:
        return 0.0
    start, rest = times[:first], times[first:]
    usual = float(np.median(rest))
    spread = 1.4826 * float(np.median(np.abs(rest - usual))) / usual  # of a normal law, from the median deviation
    excess = float(np.median(start)) / usual - 1
    return excess if excess > max(_SLOW_START, _STANDARD_ERRORS * spread / math.sqrt(first)) else 0.0


def _drifted(rows: pd.DataFrame) -> str | None:
    times = _step_times(rows)
    half = len(times) // 2
    if half < MIN_UNITS:
        return None
    first, second = times[:half], times[half:]
    change = float(second.mean() / first.mean()) - 1
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)) / float(first.mean())
    if abs(change) <= max(_DRIFT, _STANDARD_ERRORS * error):
        return None
    return f"autoregressive steps of the second half are {_percent(abs(change))} {'slower' if change > 0 else 'faster'}"


def _busy(rows: pd.DataFrame) -> str | None:
    waiting, stolen = _numbers(rows, "cpu_wait_share"), _numbers(rows, "cpu_steal_share")
    if len(waiting) and waiting.mean() > _WAITING:
        return f"the process waited for a core in {_percent(waiting.mean())} of the time{_load(rows)}"
    if len(stolen) and stolen.mean() > _STEALING:
        return f"the hypervisor took {_percent(stolen.mean())} of the CPU time{_load(rows)}"
    others = _numbers(rows, "load_average") - int(rows["threads"].iloc[0])
    if not len(waiting) and len(others) and others.mean() > _LOAD_BESIDES_OURS:
        return f"other programs were running{_load(rows)}"
    return None


def _load(rows: pd.DataFrame) -> str:
    load = _numbers(rows, "load_average")
    return f" (load average {load.mean():.1f} for {rows['threads'].iloc[0]} threads of ours)" if len(load) else ""


def throttled(batches: pd.DataFrame) -> pd.DataFrame:
    """The batches during which a GPU's clock was held down for more than a hundredth of the time, or was seen to be.

    Args:
        batches: Rows of ``requests``, one a batch.
    """
    by, share = batches["gpu_throttled_by"], batches["gpu_throttled_share"].astype(float)
    return batches[by.notna() & (by != "") & ~share.between(0, _BRIEFLY, inclusive="right")]


def _throttled(rows: pd.DataFrame) -> str | None:
    names = ["gpu_throttled_by", "gpu_throttled_share", "gpu_throttle"]
    batches = rows[rows["pass"] == "headline"].drop_duplicates("batch_id").reindex(columns=names)
    # Rows that are older than the counters only know what stood at the end.
    by = batches["gpu_throttled_by"].astype(object).fillna(batches["gpu_throttle"])
    held = throttled(batches.assign(gpu_throttled_by=by))
    if held.empty:
        return None
    words = ", ".join(sorted({word for text in held["gpu_throttled_by"] for word in text.split(",")}))
    longest = held["gpu_throttled_share"].astype(float).max()
    share = "" if math.isnan(longest) else f", for up to {_percent(longest)} of a batch"
    return f"the GPU's clock was held down in {len(held)} of {by.notna().sum()} batches ({words}){share}"


def _shared(rows: pd.DataFrame) -> str | None:
    others = _numbers(rows, "gpu_other_processes")
    seen = others[others > 0]
    if seen.empty:
        return None
    programs = "another program" if seen.max() == 1 else f"up to {seen.max():.0f} other programs"
    return f"{programs} computed on the GPU, in {len(seen)} of {len(others)} batches"


def _clock_moved(rows: pd.DataFrame) -> str | None:
    clocks = _numbers(rows, "gpu_clock_mhz")
    if clocks.empty or clocks.max() - clocks.min() <= _CLOCK_RANGE * clocks.median():
        return None
    return f"the GPU's clock moved between {clocks.min():.0f} and {clocks.max():.0f} MHz"


def _short_of_memory(rows: pd.DataFrame) -> str | None:
    faults, retries = _numbers(rows, "major_faults"), _numbers(rows, "gpu_alloc_retries")
    if len(retries) and retries.sum() > 0:
        return f"GPU memory ran full {retries.sum():.0f} times and was freed in the middle of a batch"
    if len(faults) and faults.mean() > _FAULTS_PER_BATCH:
        return f"{faults.mean():.0f} pages a batch had to be read from disk"
    return None


def _slow_phase_pass(rows: pd.DataFrame) -> str | None:
    slowdowns = {
        str(arm): ratio
        for arm, own in rows.groupby("arm", sort=True)
        if (ratio := speedup(own[own["pass"] == "phase"], own[own["pass"] == "headline"]).ratio) is not None
    }
    worst = max(slowdowns, key=lambda arm: slowdowns[arm], default=None)
    if worst is None or slowdowns[worst] - 1 <= SLOW_PHASE_PASS:
        return None
    return f"timing the phases slowed {worst} by {_percent(slowdowns[worst] - 1)}"


_CHECKS = (
    _Check(
        "few units", _few_units,
        why="No interval can be given, so other prompts might show something else.",
        remedy="Raise prompts.count, or lower decode.batch_size.",
    ),
    _Check(
        "unsteady", _unsteady,
        why="Small differences between methods drown in it.",
        remedy="Close other programs, give the machine a fixed clock, or raise measure.repeats.",
    ),
    _Check(
        "twins differ", _twins_differ,
        why="A difference of that size between methods may mean nothing; by chance one cell in twenty shows this.",
        remedy="Run again with more repeats; if it stays, look for what else runs on the machine.",
    ),
    _Check(
        "slow start", _slow_start,
        why="The warm-up was too short: caches, clocks or compilation were not settled.",
        remedy="Raise measure.warmup.",
    ),
    _Check(
        "drift", _drifted,
        why="Arms of one block share the drift, so speed-ups hold; tokens per second are an average over it.",
        remedy="Warm the machine up for longer, or look for what began to run beside it.",
    ),
    _Check(
        "busy machine", _busy,
        why="Other work takes time from the measured one, and not from all arms alike.",
        remedy="Stop the other work, or take a machine of your own.",
    ),
    _Check(
        "throttled", _throttled,
        why="Speeds are those of a slower GPU, and an arm that heats more slows the one after it.",
        remedy="Improve cooling or raise the power limit; or lock a lower clock (nvidia-smi --lock-gpu-clocks).",
    ),
    _Check(
        "shared GPU", _shared,
        why="They take time, memory and power from the measured work, and not from all arms alike.",
        remedy="Stop them, or take another GPU (machine.device).",
    ),
    _Check(
        "clock moved", _clock_moved,
        why="Batches at a lower clock are slower whatever the method.",
        remedy="Lock the clock (nvidia-smi --lock-gpu-clocks), or warm up for longer.",
    ),
    _Check(
        "short of memory", _short_of_memory,
        why="Waiting for memory is part of the measured time.",
        remedy="Lower decode.batch_size or decode.max_new_tokens, or free memory.",
    ),
    _Check(
        "slow phase pass", _slow_phase_pass,
        why="Phase times contain the cost of taking them.",
        remedy="Read them as shares of a step, never as sums; headline figures are not touched.",
    ),
)  # fmt: skip


# --- where it is read from


def full_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """Without a last partial batch, whose steps are those of another batch size."""
    return rows[rows.groupby("batch_id")["row"].transform("size") == rows["batch_size"]]


def _baseline(rows: pd.DataFrame) -> pd.DataFrame:
    """Headline rows of the core's autoregressive arms, without a last partial batch."""
    own = measured(rows)
    return full_batches(own[(own["method"] == "autoregressive") & (own["pass"] == "headline")])


def _step_times(rows: pd.DataFrame) -> Times:
    """Seconds a step of the autoregressive batches, in the order in which they ran."""
    own = _baseline(rows).sort_values(["process", "repeat", "block", "order_in_block"])
    batches = own.groupby("batch_id", sort=False).agg(decode_s=("decode_s", "first"), steps=("steps", "max"))
    batches = batches[batches["steps"] > 0].astype(float)
    return (batches["decode_s"] / batches["steps"]).to_numpy(np.float64)


def _once_a_batch(rows: pd.DataFrame, column: str) -> pd.Series:
    """What was recorded with each headline batch; empty where nothing was, or the table is older than the column."""
    if column not in rows:
        return pd.Series(dtype=object)
    return rows[rows["pass"] == "headline"].drop_duplicates("batch_id")[column].dropna()


def _numbers(rows: pd.DataFrame, column: str) -> pd.Series:
    return _once_a_batch(rows, column).astype(float)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
