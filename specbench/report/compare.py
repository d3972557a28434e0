"""Before and after: the arms of two runs beside one another, each ratio with its interval.

Both runs must have measured the same prompts on the same GPU, data type and target; a block of prompts is the unit, so
what is hard in a prompt cancels. What differs between two runs as such does not, unless each had several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from specbench.analysis.acceptance import block_efficiency, measured
from specbench.analysis.speedup import COMPARABLE, Speedup, speedup, twin_noise_floor
from specbench.analysis.throughput import decode_tokens_per_s
from specbench.errors import ResultsError
from specbench.records.store import Store
from specbench.report.cells import BASELINE, TWIN, full_batches
from specbench.report.resolution import RESOLVED, resolution
from specbench.report.tables import MISSING, TIMES, number, significant, titled

_IDENTITY = ("method", "options", "draft_latency_ms", "rule", "twin")
_LOOSE = ("target", "batch_size", "temperature")


@dataclass(frozen=True)
class Side:
    """One arm in one run."""

    tokens_per_s: float | None
    tokens_per_step: float | None
    speedup_core: float | None
    lossless: bool
    verdicts: dict[str, int]
    requests: int


@dataclass(frozen=True)
class Change:
    """One arm, before (a) and after (b).

    Attributes:
        cell: What its arms share, in words.
        arm: The arm.
        a: Before.
        b: After.
        found: Decode throughput of b over a, with its interval.
        floor: The larger of the two noise floors, on the log scale; None where neither is known.
        same_texts: Requests whose ids are the same in both.
        texts: Requests that both have.
    """

    cell: str
    arm: str
    a: Side
    b: Side
    found: Speedup
    floor: float | None
    same_texts: int
    texts: int

    @property
    def resolution(self) -> str | None:
        """Whether the ratio differs from 1: resolved, not resolved, or no interval."""
        return resolution(self.found, self.floor)

    def is_slower(self, share: float) -> bool:
        """Whether b is slower by more than that share, and the difference is not below what can be told."""
        ratio = self.found.ratio
        return ratio is not None and ratio < 1 - share and self.resolution != "not resolved"


@dataclass(frozen=True)
class Comparison:
    """All arms that two runs share, and the names of those that only one has."""

    changes: list[Change]
    only_a: list[str]
    only_b: list[str]


def compare(a: Path, b: Path) -> Comparison:
    """Set two run folders beside one another.

    Arms are the same where their trials are; else where method, options and setting are, as after a change of code.

    Raises:
        ResultsError: They share no arm, or differ in a column that must not be mixed; the message names it.
    """
    before, after = _Run(a), _Run(b)
    pairs = list(_pairs(before, after))
    if not pairs:
        raise ResultsError(_why_nothing_is_shared(before, after))
    changes = sorted((_change(before, after, *pair) for pair in pairs), key=_baseline_first)
    return Comparison(
        changes,
        only_a=before.names(set(before.arms) - {first for first, _ in pairs}),
        only_b=after.names(set(after.arms) - {second for _, second in pairs}),
    )


class _Run:
    """The headline rows of one run, by trial."""

    def __init__(self, folder: Path) -> None:
        rows = Store(folder).read("requests")
        rows = rows[rows["pass"] == "headline"]
        if rows.empty:
            raise ResultsError(f"{folder}: no finished block in it")
        self.rows = rows.assign(twin=rows["arm"] == TWIN)
        self.arms = {str(trial): own for trial, own in self.rows.groupby("trial_id", sort=False)}

    def keys(self, columns: tuple[str, ...]) -> dict[tuple[str, ...], str]:
        """What the columns say of each trial -> the trial; left out where two trials say the same."""
        found: dict[tuple[str, ...], list[str]] = {}
        for trial, own in self.arms.items():
            found.setdefault(tuple(str(own[name].iloc[0]) for name in columns), []).append(trial)
        return {key: trials[0] for key, trials in found.items() if len(trials) == 1}

    def names(self, trials: set[str]) -> list[str]:
        """The trials as people call them."""
        return [f"{_cell_words(own)}: {own['arm'].iloc[0]}" for trial, own in self.arms.items() if trial in trials]

    def peer(self, trial: str, arm: str) -> pd.DataFrame:
        """The full batches of another arm of the trial's cell; empty where there is none."""
        cell = self.rows[self.rows["cell"] == self.arms[trial]["cell"].iloc[0]]
        return full_batches(cell[cell["arm"] == arm])


def _pairs(before: _Run, after: _Run) -> Iterator[tuple[str, str]]:
    """Trials of both runs that are the same: by their id, then by all they say, then by the little that must be so."""
    taken_a, taken_b = set(before.arms) & set(after.arms), set(before.arms) & set(after.arms)
    yield from ((trial, trial) for trial in before.arms if trial in taken_a)
    for columns in ((*_IDENTITY, *COMPARABLE), (*_IDENTITY, *_LOOSE)):
        theirs = after.keys(columns)
        for key, trial in before.keys(columns).items():
            other = theirs.get(key)
            if other is not None and trial not in taken_a and other not in taken_b:
                taken_a.add(trial)
                taken_b.add(other)
                yield trial, other


def _why_nothing_is_shared(before: _Run, after: _Run) -> str:
    for column in COMPARABLE:
        ours, theirs = (sorted(map(str, run.rows[column].unique())) for run in (before, after))
        if not set(ours) & set(theirs):
            return f"rows of different {column!r} must not be compared: {', '.join(ours)} against {', '.join(theirs)}"
    return "the two runs share no arm of the same method, options and setting"


def _baseline_first(change: Change) -> tuple[str, bool, str]:
    return change.cell, change.arm not in {BASELINE, TWIN}, change.arm


def _change(before: _Run, after: _Run, trial_a: str, trial_b: str) -> Change:
    own_a, own_b = before.arms[trial_a], after.arms[trial_b]
    found = speedup(full_batches(own_a), full_batches(own_b))
    floors = [
        twin_noise_floor(run.peer(trial, BASELINE), run.peer(trial, TWIN))
        for run, trial in ((before, trial_a), (after, trial_b))
    ]
    same, texts = _same_texts(own_a, own_b)
    return Change(
        cell=_cell_words(own_b),
        arm=str(own_b["arm"].iloc[0]),
        a=_side(before, trial_a),
        b=_side(after, trial_b),
        found=found,
        floor=max((floor for floor in floors if floor is not None), default=None),
        same_texts=same,
        texts=texts,
    )


def _side(run: _Run, trial: str) -> Side:
    own, baseline = run.arms[trial], run.peer(trial, BASELINE)
    return Side(
        tokens_per_s=decode_tokens_per_s(full_batches(own)),
        tokens_per_step=block_efficiency(own),
        speedup_core=speedup(baseline, full_batches(own)).ratio,
        lossless=bool(own["lossless"].all()),
        verdicts={str(word): int(count) for word, count in measured(own)["verdict"].value_counts().items()},
        requests=len(own),
    )


def _same_texts(own_a: pd.DataFrame, own_b: pd.DataFrame) -> tuple[int, int]:
    place = ["process", "block", "repeat", "prompt_id"]
    ids = [measured(rows).drop_duplicates(place).set_index(place)["output_ids"] for rows in (own_a, own_b)]
    both = pd.concat(ids, axis=1, join="inner", keys=["a", "b"])
    return sum(list(a) == list(b) for a, b in zip(both["a"], both["b"], strict=True)), len(both)


def _cell_words(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['target']} {first['dtype']}, T={first['temperature']:g}, batch {first['batch_size']}"


def tables(comparison: Comparison) -> Iterator[Table]:
    """One table a cell, as a terminal shows it."""
    for cell in dict.fromkeys(change.cell for change in comparison.changes):
        shown = titled(cell)
        shown.add_column("arm", overflow="fold", min_width=18)
        for heading in ("tok/s A", "tok/s B", "B / A"):
            shown.add_column(heading, justify="right", no_wrap=True)
        shown.add_column("95 % interval", min_width=12)
        for heading in ("tok/step A, B", "speed-up A, B"):
            shown.add_column(heading, justify="right", no_wrap=True)
        shown.add_column("text", min_width=14)
        for change in comparison.changes:
            if change.cell == cell:
                shown.add_row(change.arm, *_cells(change), style=_style(change))
        yield shown


def _cells(change: Change) -> list[str]:
    a, b = change.a, change.b
    return [
        significant(a.tokens_per_s),
        significant(b.tokens_per_s),
        number(change.found.ratio, 3, TIMES),
        interval_words(change),
        f"{number(a.tokens_per_step)}, {number(b.tokens_per_step)}",
        f"{number(a.speedup_core)}, {number(b.speedup_core)}",
        text_words(change),
    ]


def interval_words(change: Change) -> str:
    """The interval, and whether the difference can be told."""
    interval = change.found.interval
    if change.found.ratio is None:
        return MISSING
    if interval is None:
        return f"none: {change.found.units} of 4 batches"
    note = "" if change.resolution == RESOLVED else f" ({change.resolution})"
    return f"{interval.low:.3f} to {interval.high:.3f}{note}"


def text_words(change: Change) -> str:
    """How many texts stayed the same, and what became of the verdicts; whether they are the target's at all."""
    same = f"same {change.same_texts} of {change.texts}" if change.texts else MISSING
    a, b = _verdicts(change.a), _verdicts(change.b)
    if a != b:
        return f"{same}; {a} -> {b}"
    return same if change.b.lossless else f"{same}; {b}"


def _verdicts(side: Side) -> str:
    if not side.lossless:
        return "lossy"
    return ", ".join(f"{word} {count}" for word, count in sorted(side.verdicts.items())) or "not compared"


def _style(change: Change) -> str:
    if change.b.verdicts.get("WRONG"):
        return "red"
    return "" if change.resolution == RESOLVED else "dim"


def as_data(change: Change) -> dict[str, Any]:
    """The change for a program to read."""
    interval = change.found.interval
    return {
        "cell": change.cell, "arm": change.arm, "a": vars(change.a), "b": vars(change.b), "ratio": change.found.ratio,
        "low": interval and interval.low, "high": interval and interval.high, "units": change.found.units,
        "processes": change.found.processes, "noise_floor": change.floor, "resolution": change.resolution,
        "same_texts": change.same_texts, "texts": change.texts,
    }  # fmt: skip
