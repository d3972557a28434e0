"""What an experiment claims, held against what was measured here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from specbench.analysis.speedup import Speedup
from specbench.report.cells import Results
from specbench.report.metrics import head_to_head
from specbench.report.resolution import RESOLVED, resolution
from specbench.report.words import arm_words

HOLDS, OPPOSITE, OPEN = "holds", "the opposite was measured", "not resolved"


@dataclass(frozen=True)
class Comparison:
    """Two arms that a claim compares, alike in all that it does not name.

    Their names come with what must be known of their text.
    """

    title: str
    faster: str
    slower: str
    found: Speedup
    verdict: str


@dataclass(frozen=True)
class Published:
    """A published speed-up beside the one that was measured; `inside` says whether the interval holds it.

    `arm` is its name, with what must be known of its text.
    """

    title: str
    arm: str
    published: float
    measured: float
    low: float | None
    high: float | None

    @property
    def inside(self) -> bool | None:
        """Whether the interval holds the published value; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= self.published <= self.high


def claim_of(results: Results) -> dict[str, Any] | None:
    """The claim of the experiment, as its file states it; that of the first run if several differ."""
    return next((dict(entry["claim"]) for entry in results.experiments if entry.get("claim")), None)


def comparisons(results: Results, summary: pd.DataFrame, claim: Mapping[str, Any]) -> list[Comparison]:
    """Every pair of arms that the claim compares, cell by cell; empty where it compares none that finished."""
    return list(_comparisons(results, summary, claim)) if claim.get("faster") else []


def _comparisons(results: Results, summary: pd.DataFrame, claim: Mapping[str, Any]) -> Iterator[Comparison]:
    named = {*claim["faster"], *claim["than"]}
    for title, cell in summary.groupby("title", sort=False):
        arms = cell.to_dict("records")
        slower = {_rest(row, named): row for row in arms if _matches(row, claim["than"])}
        for row in arms:
            other = slower.get(_rest(row, named)) if _matches(row, claim["faster"]) else None
            if other is None:
                continue
            found = head_to_head(results, str(title), (other["arm"], row["arm"]))
            if found.ratio is not None:
                floor = None if pd.isna(row["noise_floor"]) else float(row["noise_floor"])
                yield Comparison(str(title), arm_words(row), arm_words(other), found, _verdict(found, floor))


def _verdict(found: Speedup, floor: float | None) -> str:
    if found.ratio is None or resolution(found, floor) != RESOLVED:
        return OPEN
    return HOLDS if found.ratio > 1 else OPPOSITE


def _settings(row: Mapping[Any, Any]) -> dict[str, Any]:
    latency = None if pd.isna(row["draft_latency_ms"]) else float(row["draft_latency_ms"])
    return json.loads(row["options"]) | {"method": row["method"], "draft_latency_ms": latency}


def _matches(row: Mapping[Any, Any], wanted: Mapping[str, Any]) -> bool:
    settings = _settings(row)
    return all(name in settings and settings[name] == value for name, value in wanted.items())


def _rest(row: Mapping[Any, Any], named: set[str]) -> str:
    return json.dumps({name: value for name, value in _settings(row).items() if name not in named}, sort_keys=True)


def published(summary: pd.DataFrame, claim: Mapping[str, Any]) -> list[Published]:
    """Every published speed-up whose arm was measured here, cell by cell."""
    values = claim.get("published") or {}
    return [
        Published(
            str(row["title"]),
            arm_words(row),
            float(values[row["arm"]]),
            float(row["speedup_core"]),
            None if pd.isna(row["low"]) else float(row["low"]),
            None if pd.isna(row["high"]) else float(row["high"]),
        )
        for row in summary.to_dict("records")
        if row["arm"] in values and pd.notna(row["speedup_core"])
    ]
