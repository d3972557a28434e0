"""Throughput over the latency of a draft forward: what was measured, beside the closed form that must hold for it.

The closed form is fitted to one arm of a line, the one of the least latency: its tokens per step, and its step without
the drafts. The other arms differ from it in nothing but how long a draft forward takes, so they judge it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.speedup import full_batch_rate
from specbench.analysis.throughput import full_batch_table
from specbench.records.schema import PHASES
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.phases import phase_times

COLUMNS = (
    "title", "series", "arm", "kind", "latency_mode", "requested_ms", "achieved_ms", "draft_latency_ms",
    "tokens_per_s", "low", "high", "predicted_tokens_per_s", "error", "fitted", "status", "reason",
)  # fmt: skip
"""``kind`` is ``arm``; ``line``, a point of the closed form alone; or ``composed``, an arm that was not run. Where a
point lies is ``draft_latency_ms``: what was achieved; of an arm at its own pace, its draft phase by forward. ``fitted``
marks the arm that the line is drawn by, ``error`` is predicted over measured, less 1, and an arm that could not run
has a status and a reason."""

_LINE_POINTS = 60


@dataclass(frozen=True)
class _Line:
    """Throughput of a draft as a function of the latency of its forwards."""

    batch_tokens: float
    forwards: int
    rest_s: float

    def tokens_per_s(self, latency_ms: float) -> float:
        """Of the whole batch. Source: `closed_forms.predicted_speedup`, with the step written out."""
        return self.batch_tokens / (self.forwards * latency_ms / 1000 + self.rest_s)


def latency_axis(results: Results) -> pd.DataFrame:
    """One row an arm of every line that has at least one injected latency, and the points of its closed form.

    A line whose phases were not timed has its arms and nothing predicted.
    """
    phases = phase_times(results).set_index(["title", "arm"])
    rows = [row for line in _lines(results) for row in _Axis(results, line, phases).rows()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _lines(results: Results) -> Iterator[tuple[str, list[str]]]:
    """Arms of one cell that differ in nothing but their latency."""
    for title, arms in results.timed.items():
        found: dict[tuple[str, str], list[str]] = {}
        for arm, rows in arms.items():
            if arm not in {BASELINE, TWIN}:
                first = rows.iloc[0]
                options = json.dumps(json.loads(first["options"]), sort_keys=True)
                found.setdefault((str(first["method"]), options), []).append(arm)
        for group in found.values():
            if any(arms[arm]["latency_mode"].iloc[0] == "injected" for arm in group):
                yield title, group


def composed_points(arms: pd.DataFrame) -> pd.DataFrame:
    """Composed arms of every line that has at least one latency asked for; throughput is of the whole batch.

    Args:
        arms: As `specbench.report.composed_arms` has them.
    """
    series = arms["arm"].astype(str).map(_without_latency)
    has_latency = arms["draft_latency_ms"].notna().groupby([arms["title"], series]).transform("any")
    named = {"composed_tokens_per_s": "tokens_per_s", "composed_low": "low", "composed_high": "high"}
    own = arms.assign(series=series, kind="composed", fitted=False, status="ok", requested_ms=arms["draft_latency_ms"])
    own = own[has_latency.astype(bool)].rename(columns=named)
    own["draft_latency_ms"] = own["requested_ms"].fillna(own["draft_ms"] / own["gamma"])
    return own.reindex(columns=list(COLUMNS))


def _without_latency(arm: str) -> str:
    return " ".join(word for word in arm.split(" ") if not word.startswith("latency="))


class _Axis:
    """One line on its way to rows."""

    def __init__(self, results: Results, line: tuple[str, list[str]], phases: pd.DataFrame) -> None:
        self.title, self.group = line
        self.arms = {arm: results.timed[self.title][arm] for arm in self.group}
        self.phases = {arm: phases.loc[(self.title, arm)] for arm in self.group if (self.title, arm) in phases.index}
        self.notes = _achieved(results, str(next(iter(self.arms.values()))["cell"].iloc[0]))
        self.rates = {arm: full_batch_rate(rows) for arm, rows in self.arms.items()}
        self.forwards = self.count_forwards()
        self.reference = min(
            (arm for arm in self.group if self.rates[arm].ratio and arm in self.phases),
            key=self.latency_ms,
            default=None,
        )
        leader = min(self.group, key=lambda arm: (self.requested_ms(arm) is not None, arm))
        self.series = _without_latency(leader)

    def rows(self) -> Iterator[dict[str, Any]]:
        line = self.line()
        for arm in sorted(self.group, key=self.latency_ms):
            yield self.row(arm, line)
        if line is None:
            return
        longest = np.nanmax([self.latency_ms(arm) for arm in self.group])
        for latency_ms in np.linspace(0, 1.1 * longest, _LINE_POINTS):
            point = {"title": self.title, "series": self.series, "kind": "line", "draft_latency_ms": float(latency_ms)}
            yield point | {"predicted_tokens_per_s": line.tokens_per_s(float(latency_ms)), "fitted": False}

    def row(self, arm: str, line: _Line | None) -> dict[str, Any]:
        first, rate, at_ms = self.arms[arm].iloc[0], self.rates[arm], self.latency_ms(arm)
        failed = self.arms[arm]["status"].ne("ok")
        predicted = None if line is None or math.isnan(at_ms) else line.tokens_per_s(at_ms)
        return {
            "title": self.title,
            "series": self.series,
            "arm": arm,
            "kind": "arm",
            "latency_mode": first["latency_mode"],
            "requested_ms": self.requested_ms(arm),
            "achieved_ms": self.notes.get(arm),
            "draft_latency_ms": at_ms,
            "tokens_per_s": rate.ratio,
            "low": rate.interval.low if rate.interval else None,
            "high": rate.interval.high if rate.interval else None,
            "predicted_tokens_per_s": predicted,
            "error": predicted / rate.ratio - 1 if predicted and rate.ratio else None,
            "fitted": arm == self.reference,
            "status": self.arms[arm].loc[failed, "status"].iloc[0] if failed.any() else "ok",
            "reason": self.arms[arm].loc[failed, "reason"].iloc[0] if failed.any() else None,
        }

    def requested_ms(self, arm: str) -> float | None:
        value = self.arms[arm]["draft_latency_ms"].iloc[0]
        return None if pd.isna(value) else float(value)

    def latency_ms(self, arm: str) -> float:
        """What a draft forward took; NaN where nothing tells."""
        requested = self.requested_ms(arm)
        if requested is not None:
            return self.notes.get(arm, requested)
        if arm not in self.phases or not self.rates[arm].ratio:
            return math.nan
        # Shares are the phase pass's, the pace that of the headline pass.
        share = self.phases[arm]["draft_ms"] / math.fsum(self.phases[arm][f"{phase}_ms"] for phase in PHASES)
        return 1000 * float(share) * self.batch_step(arm)[1] / self.forwards

    def count_forwards(self) -> int:
        """Paced calls of a step: a draft model's forwards, or the one draft phase of other methods.

        Whatever the method, a draft phase that is stretched to so many bounds tells.
        """
        counts = [
            self.phases[arm]["draft_ms"] / (self.notes.get(arm) or requested)
            for arm in self.group
            if (requested := self.requested_ms(arm)) and arm in self.phases
        ]
        return max(1, round(float(np.median(counts)))) if counts else 1

    def line(self) -> _Line | None:
        """The closed form that goes through the reference."""
        if self.reference is None:
            return None
        tokens, step_s = self.batch_step(self.reference)
        return _Line(tokens, self.forwards, step_s - self.forwards * self.latency_ms(self.reference) / 1000)

    def batch_step(self, arm: str) -> tuple[float, float]:
        """Tokens and seconds of a step of the whole batch, in the headline pass, while all of its rows decode."""
        rows = self.arms[arm]
        table = full_batch_table(rows)
        steps = float(rows.groupby("batch_id")["steps"].min().reindex(table.index).sum())
        return float(table["tokens"].sum()) / steps, float(table["seconds"].sum()) / steps


def _achieved(results: Results, cell: str) -> Mapping[str, float]:
    """Arm -> median milliseconds of its paced draft forwards, as the run noted."""
    found: dict[str, float] = {}
    for notes in results.notes:
        latencies = notes.get("draft_latency_ms", {}).get(cell, {})
        found |= {arm: float(latency["median"]) for arm, latency in latencies.items()}
    return found
