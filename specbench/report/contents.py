"""What a results folder holds beside the texts of its requests, a line each."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from specbench.records.store import Store
from specbench.report.words import counted


def contents(store: Store) -> Iterator[str]:
    """Traces, forward times, scores, and what of them could not be made, in words."""
    yield from _traces(store)
    yield from _latencies(store)
    yield from _choosing(store)
    yield from _scores(store)
    yield from _failures(store)


def _traces(store: Store) -> Iterator[str]:
    if not store.has("traces"):
        return
    rows = store.read("traces", ["target", "draft", "gamma_max", "prompt_id", "temperature"])
    by = ["target", "draft", "temperature", "gamma_max"]
    for (target, draft, temperature, gamma), own in rows.groupby(by, sort=True):
        prompts = counted(own["prompt_id"].nunique(), "prompt")
        yield f"trace: {target} with {draft}, T={temperature:g}, {prompts}, gamma up to {gamma}"


def _latencies(store: Store) -> Iterator[str]:
    if not store.has("latencies"):
        return
    rows = store.read("latencies", ["model", "mode", "status"])
    for (model, mode), own in rows.groupby(["model", "mode"], sort=True):
        yield f"forward times: {model}, {mode}, {_points(own)}"


def _choosing(store: Store) -> Iterator[str]:
    if not store.has("choosing"):
        return
    rows = store.read("choosing", ["model", "mode", "temperature", "rule", "status"])
    for (model, mode, temperature, rule), own in rows.groupby(["model", "mode", "temperature", "rule"], sort=True):
        yield f"choice times: {model}, {mode}, T={temperature:g}, {rule}, {_points(own)}"


def _points(rows: pd.DataFrame) -> str:
    failed = rows[rows["status"] != "ok"]["status"].value_counts()
    return counted(len(rows), "point") + "".join(f", {number} {status}" for status, number in failed.items())


def _scores(store: Store) -> Iterator[str]:
    if not store.has("scores"):
        return
    rows = store.read("scores", ["model", "data", "metric", "value"])
    for (model, data), own in rows.groupby(["model", "data"], sort=True):
        metrics = ", ".join(f"{row['metric']} {row['value']:.4g}" for row in own.to_dict("records"))
        yield f"score: {model} on {data}, {metrics}"


def _failures(store: Store) -> Iterator[str]:
    if not store.has("studies"):
        return
    rows = store.read("studies")
    for row in rows[rows["status"] != "ok"].to_dict("records"):
        yield f"no {row['kind']}: {row['subject']}: {row['status']}: {row['reason']}"
