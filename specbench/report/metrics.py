"""Every published number, as tidy frames made from stored rows; tables, plots and sentences only show them.

A cell is what the arms compared with one another share: the stored ``cell`` and every column that
`specbench.analysis.speedup` refuses to mix. Speeds come from the headline pass and leave out a last partial
batch; acceptance and text use every row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis import acceptance, throughput
from specbench.analysis.speedup import COMPARABLE, PAIR, Speedup, batch_ratios, speedup, twin_noise_floor
from specbench.errors import ResultsError
from specbench.records.schema import PHASES
from specbench.records.store import Store

BASELINE, TWIN = "autoregressive", "autoregressive-twin"
"""The arms of the A/A pair; the first is what `speedup_core` divides by."""

RESOLVED, NOT_RESOLVED, NO_INTERVAL = "resolved", "not resolved", "no interval"
"""Whether a speed-up differs from 1: its interval leaves out 1 and it exceeds the noise floor."""


@dataclass(frozen=True)
class Results:
    """The tables of one run folder, the rows marked with the title of their cell."""

    folder: Path
    requests: pd.DataFrame
    steps: pd.DataFrame
    runs: pd.DataFrame

    @property
    def experiment(self) -> str:
        """Name of the experiment: that of the folder above the machine's."""
        return self.folder.resolve().parent.name

    @property
    def machine(self) -> str:
        """Name of the machine: that of the folder itself."""
        return self.folder.resolve().name


@dataclass(frozen=True)
class Frames:
    """Everything that is shown, tidy: one row per cell and arm, or per position or batch below that."""

    summary: pd.DataFrame
    phases: pd.DataFrame
    positions: pd.DataFrame
    batches: pd.DataFrame


def load(folder: Path) -> Results:
    """Read a run folder.

    Raises:
        ResultsError: It holds no rows, or a part is unreadable or of another schema version.
    """
    store = Store(folder)
    requests = store.read("requests")
    if requests.empty:
        raise ResultsError(f"{folder}: no finished block in it. Start the run again; it goes on where it stopped.")
    steps = store.read("steps")
    runs = store.read("runs") if (folder / "runs.parquet").exists() else pd.DataFrame()
    requests = _with_titles(requests.drop(columns="output_ids"))  # long, and nothing here reads it
    places = requests[["batch_id", "title"]].drop_duplicates()
    return Results(folder, requests, steps.merge(places, on="batch_id"), runs)


def frames(results: Results) -> Frames:
    """All frames of a report."""
    return Frames(summary(results), phase_times(results), positions(results), batches(results))


def summary(results: Results) -> pd.DataFrame:
    """One row per cell and arm, cells by target, temperature and batch size, arms from fast to slow.

    Raises:
        ResultsError: Rows of a cell must not be compared.
    """
    fastest = _fastest_autoregressive(results.runs)
    phases = phase_times(results).set_index(["title", "arm"])
    slowdowns = _phase_pass_slowdowns(results.requests)
    rows = []
    for title, cell in _headline_cells(results.requests):
        arms = {str(arm): own for arm, own in cell.groupby("arm", sort=True)}
        full = {arm: _full_batches(own) for arm, own in arms.items()}
        floor = _noise_floor(full)
        baseline = full.get(fastest.get(str(cell["cell"].iloc[0]), BASELINE), full.get(BASELINE))
        cell_rows = []
        for arm, own in arms.items():
            row = _place(title, cell) | _identity(own) | _counts(own, full[arm]) | _rates(full[arm])
            row |= _acceptance(own) | _speeds(full[arm], full.get(BASELINE), floor)
            row |= _against_fastest(full[arm], baseline, row["speedup_core"])
            row |= _phase_columns(phases, title, arm)
            row["phase_pass_slowdown"] = slowdowns.get((title, arm))
            cell_rows.append(row)
        rows += sorted(cell_rows, key=_fast_first)
    return pd.DataFrame(rows)


def phase_times(results: Results) -> pd.DataFrame:
    """Mean milliseconds of a step by phase, one row per cell and arm, over all steps of the phase pass."""
    if results.steps.empty:
        columns = [
            "title",
            "arm",
            *(f"{phase}_ms" for phase in PHASES),
            "step_ms",
            "syncs_per_step",
            "tokens_per_step",
        ]
        return pd.DataFrame(columns=columns)
    groups = results.steps.groupby(["title", "arm"], sort=False)
    means = groups[[f"{phase}_s" for phase in (*PHASES, "step")]].mean() * 1000
    means.columns = [name.replace("_s", "_ms") for name in means.columns]
    means["syncs_per_step"] = groups["syncs"].mean()
    means["tokens_per_step"] = groups["emitted_tokens"].sum() / groups["rows_active"].sum()
    return means.reset_index()


def positions(results: Results) -> pd.DataFrame:
    """Acceptance by draft position (from 1), one row per cell, arm and position."""
    rows = []
    for title, cell in _headline_cells(results.requests):
        for arm, own in cell.groupby("arm", sort=True):
            series = zip(
                acceptance.survival(own),
                acceptance.conditional_acceptance(own),
                acceptance.alpha(own),
                acceptance.drafted_share(own),
                acceptance.reached(own),
                strict=True,
            )
            names = ("survival", "conditional_acceptance", "alpha", "drafted_share", "reached")
            for index, values in enumerate(series):
                place = {"title": title, "arm": arm, "position": index + 1}
                rows.append(place | dict(zip(names, values, strict=True)))
    columns = ["title", "arm", "position", "survival", "conditional_acceptance", "alpha"]
    columns += ["drafted_share", "reached"]
    return pd.DataFrame(rows, columns=columns)


def batches(results: Results) -> pd.DataFrame:
    """The spread: speed-up, tokens/s and block efficiency of each timed batch, one row a batch."""
    parts = []
    for title, cell in _headline_cells(results.requests):
        cell = _full_batches(cell)
        baseline = cell[cell["arm"] == BASELINE]
        for arm, own in cell.groupby("arm", sort=True):
            found = _batch_rates(acceptance.measured(own))
            found["speedup_core"] = batch_ratios(baseline, own)
            parts.append(found.reset_index().assign(title=title, arm=arm))
    columns = ["title", "arm", *PAIR, "speedup_core", "decode_tokens_per_s", "block_efficiency"]
    return pd.concat(parts, ignore_index=True)[columns]


def _batch_rates(own: pd.DataFrame) -> pd.DataFrame:
    """The same rates as in `throughput` and `acceptance`, for all batches of an arm at once."""
    sums = own.assign(tokens=own["output_tokens"] - 1).groupby(PAIR)[["tokens", "row_done_s", "steps"]].sum()
    sums = sums.astype(float).where(sums > 0)
    return pd.DataFrame(
        {
            "decode_tokens_per_s": sums["tokens"] / sums["row_done_s"],
            "block_efficiency": sums["tokens"] / sums["steps"],
        }
    )


def head_to_head(results: Results, title: str, pair: tuple[str, str]) -> Speedup:
    """How much faster the second arm is than the first, in one cell.

    Raises:
        ResultsError: The two must not be compared.
    """
    cell = _full_batches(dict(_headline_cells(results.requests))[title])
    return speedup(cell[cell["arm"] == pair[0]], cell[cell["arm"] == pair[1]])


def missing_blocks(results: Results) -> int:
    """Blocks that the plan has and the folder has not, as far as the rows and the run's notes tell."""
    blocks = results.requests[["title", "process", "block", "repeat"]].drop_duplicates()
    planned = max((int(notes.get("planned_blocks", 0)) for notes in notes_of(results.runs)), default=0)
    sides = blocks.groupby("title")[["process", "block", "repeat"]].nunique().prod(axis=1)
    return max(planned, int(sides.sum())) - len(blocks)


def notes_of(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The notes of each run, parsed; empty where a run has none."""
    if runs.empty:
        return []
    return [json.loads(text) if isinstance(text, str) and text else {} for text in runs["notes"]]


# --- cells


def _with_titles(requests: pd.DataFrame) -> pd.DataFrame:
    """Mark each row with the title of its cell, and order rows so that cells come in a sensible order."""
    order = ["target", "dtype", "device", "temperature", "max_new_tokens", "batch_size"]
    order += [column for column in COMPARABLE if column not in order]
    requests = requests.sort_values([*order, "cell"], kind="stable", ignore_index=True)
    cells = requests[["cell", *COMPARABLE]].drop_duplicates()
    return requests.merge(cells.assign(title=_titles(cells)), on=["cell", *COMPARABLE], how="left")


def _titles(cells: pd.DataFrame) -> list[str]:
    """A short title per cell: what differs between cells, and always batch size and temperature."""
    words = {
        "target": "{}", "dtype": "{}", "device": "{}", "threads": "{} threads",
        "max_new_tokens": "{} new tokens", "batch_size": "batch {}", "temperature": "T = {:g}",
    }  # fmt: skip
    shown = [name for name in words if name in {"batch_size", "temperature"} or len(cells[name].unique()) > 1]
    titles = [", ".join(words[name].format(row[name]) for name in shown) for _, row in cells.iterrows()]
    if len(set(titles)) == len(titles):
        return titles
    titles = [f"{title} ({cell})" for title, cell in zip(titles, cells["cell"], strict=True)]
    if len(set(titles)) == len(titles):
        return titles
    # The same cell with other prompts or weights, e.g. an experiment file that was edited between two runs.
    hashes = zip(titles, cells["target_sha"], cells["prompts_sha"], strict=True)
    return [f"{title} [weights {target[:6]}, prompts {prompts[:6]}]" for title, target, prompts in hashes]


def _headline_cells(requests: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    headline = requests[requests["pass"] == "headline"]
    for title, cell in headline.groupby("title", sort=False):
        yield str(title), cell


def _full_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """Without a last partial batch, whose speed is another batch size's; with it if there is no other."""
    full = rows.groupby("batch_id")["row"].transform("size") == rows["batch_size"]
    return rows[full] if full.any() else rows


# --- the columns of one arm


def _place(title: str, cell: pd.DataFrame) -> dict[str, Any]:
    first = cell.iloc[0]
    return {"title": title, "cell": first["cell"]} | {name: first[name] for name in COMPARABLE}


def _identity(own: pd.DataFrame) -> dict[str, Any]:
    first = own.iloc[0]
    names = ("arm", "method", "label", "options", "draft", "rule", "attention", "captured_phases",
             "latency_mode", "draft_latency_ms")  # fmt: skip
    flags = {"lossless": bool(own["lossless"].all()), "simulated": bool(own["simulated_acceptance"].any())}
    return {name: first[name] for name in names} | flags


def _counts(own: pd.DataFrame, full: pd.DataFrame) -> dict[str, Any]:
    failed = own[own["status"] != "ok"]
    statuses = failed["status"].value_counts()
    verdicts = acceptance.measured(own)["verdict"].value_counts()
    return {
        "requests": len(own),
        "failed": len(failed),
        "status": ", ".join(f"{name} {count}" for name, count in statuses.items()) or "ok",
        "reason": failed["reason"].iloc[0] if len(failed) else None,
        "equal": int(verdicts.get("equal", 0)),
        "near_tie": int(verdicts.get("near-tie", 0)),
        "wrong": int(verdicts.get("WRONG", 0)),
        "partial_batches_left_out": own["batch_id"].nunique() - full["batch_id"].nunique(),
    }


def _rates(own: pd.DataFrame) -> dict[str, Any]:
    functions = (
        throughput.decode_tokens_per_s, throughput.e2e_tokens_per_s, throughput.batch_tokens_per_s,
        throughput.full_batch_tokens_per_s, throughput.occupancy, throughput.ttft_s, throughput.tpot_s,
        throughput.step_s,
    )  # fmt: skip
    return {function.__name__: function(own) for function in functions}


def _acceptance(own: pd.DataFrame) -> dict[str, Any]:
    ok = acceptance.measured(own)
    functions = (
        acceptance.block_efficiency, acceptance.block_efficiency_uncut, acceptance.mean_accepted,
        acceptance.acceptance_rate,
    )  # fmt: skip
    values: dict[str, Any] = {function.__name__: function(own) for function in functions}
    nodes = [np.sum(entry) for entry in ok["drafted_nodes_per_step"].dropna()]
    steps = float(ok["steps"].sum())
    values["nodes_per_step"] = float(np.sum(nodes)) / steps if nodes and steps else None
    values["output_tokens"] = int(ok["output_tokens"].sum()) if len(ok) else None
    values["repeat_ngram_share"] = _mean(ok["repeat_ngram_share"])
    return values


def _speeds(own: pd.DataFrame, baseline: pd.DataFrame | None, floor: float | None) -> dict[str, Any]:
    """Speed-up over the core's own autoregressive arm, with what is needed to judge it."""
    names = (
        "speedup_core",
        "low",
        "high",
        "units",
        "baseline_tokens",
        "method_tokens",
        "speedup_e2e",
        "resolution",
    )
    if baseline is None:
        return dict.fromkeys(names) | {"noise_floor": floor}
    found = speedup(baseline, own)
    interval = None if own["arm"].iloc[0] == BASELINE else found.interval
    return {
        "speedup_core": found.ratio,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "units": found.units,
        "baseline_tokens": found.baseline_tokens,
        "method_tokens": found.method_tokens,
        "speedup_e2e": speedup(baseline, own, with_prefill=True).ratio,
        "resolution": None if own["arm"].iloc[0] == BASELINE else resolution(found, floor),
        "noise_floor": floor,
    }


def resolution(found: Speedup, floor: float | None) -> str | None:
    """Whether a speed-up differs from 1, in one of three words; None if there is no speed-up.

    Args:
        found: The speed-up.
        floor: Noise floor of its cell on the log scale; None if unknown, and then the interval alone decides.
    """
    if found.ratio is None:
        return None
    if floor is not None and abs(math.log(found.ratio)) <= floor:
        return NOT_RESOLVED
    if found.interval is None:
        return NO_INTERVAL
    return NOT_RESOLVED if found.interval.low <= 1 <= found.interval.high else RESOLVED


def _against_fastest(own: pd.DataFrame, baseline: pd.DataFrame | None, speedup_core: float | None) -> dict[str, Any]:
    """Speed-up over the fastest autoregressive path at hand, which often is the core's own."""
    if baseline is None:
        return {"speedup": None, "fastest_autoregressive": None}
    name = str(baseline["arm"].iloc[0])
    ratio = speedup_core if name == BASELINE else speedup(baseline, own).ratio
    return {"speedup": ratio, "fastest_autoregressive": name}


def _phase_columns(phases: pd.DataFrame, title: str, arm: str) -> dict[str, Any]:
    names = [*(f"{phase}_ms" for phase in PHASES), "syncs_per_step"]
    if (title, arm) not in phases.index:
        return dict.fromkeys(names)
    return {name: float(phases.loc[(title, arm), name]) for name in names}


def _phase_pass_slowdowns(requests: pd.DataFrame) -> dict[tuple[str, str], float]:
    """By cell and arm how much longer a token took in the phase pass than in the headline pass, a fraction."""
    found = {}
    for (title, arm), own in requests.groupby(["title", "arm"], sort=False):
        ratio = speedup(own[own["pass"] == "headline"], own[own["pass"] == "phase"]).ratio
        if ratio is not None:
            found[str(title), str(arm)] = 1 / ratio - 1
    return found


def _noise_floor(arms: Mapping[str, pd.DataFrame]) -> float | None:
    if BASELINE not in arms or TWIN not in arms:
        return None
    return twin_noise_floor(arms[BASELINE], arms[TWIN])


def _fastest_autoregressive(runs: pd.DataFrame) -> dict[str, str]:
    """Cell to its fastest autoregressive arm, as the run decided on its warm-up."""
    found: dict[str, str] = {}
    for notes in notes_of(runs):
        found |= notes.get("fastest_autoregressive", {})
    return found


def _fast_first(row: Mapping[str, Any]) -> tuple[float, str]:
    return (-(row["speedup_core"] or 0.0), str(row["arm"]))


def _mean(values: pd.Series) -> float | None:
    values = values.dropna()
    return float(values.mean()) if len(values) else None
