"""What models score on data sets, beside how often the target accepts them as drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from specbench.analysis.replay import replay
from specbench.analysis.skill import RankCorrelation, rank_correlation, skill_and_acceptance
from specbench.analysis.stop_rules import Fixed
from specbench.analysis.traces import Trace
from specbench.errors import ResultsError
from specbench.report.cells import Results

METRICS = {"perplexity": "perplexity", "top1": "next token right", "acc": "questions right"}
"""The metrics that are set beside acceptance, in words."""

COLUMNS = (
    "title", "data", "metric", "draft", "skill", "skill_low", "skill_high", "gamma", "block_efficiency",
    "efficiency_low", "efficiency_high",
)  # fmt: skip
"""One row a setting, data set, metric and draft. ``block_efficiency`` is at the longest ``gamma`` that is known of all
drafts of the setting."""

CORRELATIONS = ("title", "data", "metric", *(column.name for column in fields(RankCorrelation)))
"""Spearman's and Kendall's coefficient of each group of rows; none below six drafts."""

Efficiency = Mapping[str, Mapping[str, Any]]
"""Draft -> ``gamma``, ``block_efficiency`` and the ends of its interval."""


def skill(results: Results, gammas: pd.DataFrame) -> pd.DataFrame:
    """Every draft that was scored and whose acceptance is known.

    Args:
        results: With scores; where it has traces, acceptance is taken from them.
        gammas: Drafts by gamma, as `specbench.report.drafts` has them, for runs without traces.
    """
    if results.scores.empty:
        return pd.DataFrame(columns=COLUMNS)
    settings = dict(_of_traces(results.traces)) if results.traces else dict(_of_arms(gammas))
    rows = [row for title, found in settings.items() for row in _beside_scores(results.scores, title, found)]
    return pd.DataFrame(rows, columns=COLUMNS)


def correlations(found: pd.DataFrame) -> pd.DataFrame:
    """How far skill and tokens per step have the same order, over the drafts of each group."""
    rows: list[dict[str, Any]] = []
    for place, own in found.groupby(["title", "data", "metric"], sort=False):
        names = dict(zip(("title", "data", "metric"), place, strict=True))
        try:
            both = [rank_correlation(own["skill"], own["block_efficiency"], kind) for kind in ("spearman", "kendall")]
        except ResultsError:
            continue
        rows += [names | asdict(entry) for entry in both]
    return pd.DataFrame(rows, columns=CORRELATIONS)


def _of_traces(traces: list[Trace]) -> Iterator[tuple[str, Efficiency]]:
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        has = trace.provenance
        drawn = "" if has.temperature == 0 else f", {has.rule}"
        title = f"target {has.target}, {has.dataset}, T = {has.temperature:g}{drawn}, {has.dtype}"
        groups.setdefault(title, []).append(trace)
    for title, group in groups.items():
        yield title, _replayed(group, min(trace.provenance.gamma_max for trace in group))


def _replayed(traces: list[Trace], gamma: int) -> Efficiency:
    found = {}
    for trace in traces:
        walked = replay(trace, Fixed(gamma))
        over = walked.interval
        found[trace.provenance.draft] = {
            "gamma": gamma,
            "block_efficiency": walked.block_efficiency,
            "efficiency_low": over.low if over else None,
            "efficiency_high": over.high if over else None,
        }
    return found


def _of_arms(gammas: pd.DataFrame) -> Iterator[tuple[str, Efficiency]]:
    names = ["gamma", "block_efficiency", "efficiency_low", "efficiency_high"]
    for title, cell in gammas.groupby("title", sort=False):
        shared = set.intersection(*(set(own["gamma"]) for _, own in cell.groupby("draft")))
        if shared:
            yield str(title), cell[cell["gamma"] == max(shared)].set_index("draft")[names].to_dict("index")


def _beside_scores(scores: pd.DataFrame, title: str, found: Efficiency) -> Iterator[dict[str, Any]]:
    for (data, metric), rows in scores[scores["metric"].isin(METRICS)].groupby(["data", "metric"], sort=False):
        acceptance = {
            draft: float(entry["block_efficiency"]) for draft, entry in found.items() if draft in set(rows["model"])
        }
        if not acceptance:
            continue
        paired = skill_and_acceptance(scores, acceptance, data=str(data), metric=str(metric))
        for row in paired.drop(columns="acceptance").to_dict("records"):
            yield {"title": title, "data": data, "metric": metric, **row, **found[row["draft"]]}
