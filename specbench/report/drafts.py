"""Draft models side by side: what each gives and costs at every gamma, measured and composed.

Beside all gammas stands the one that is best for each draft: chosen on one half of the batches of prompts, and
reported on the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from specbench.analysis.composition import LATENCY_MODE
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.selection import choose, halves
from specbench.analysis.speedup import batch_rate, efficiency_ratio, speedup
from specbench.errors import ResultsError
from specbench.records.schema import PHASES
from specbench.report.cells import BASELINE, Results
from specbench.report.composed import composed_grid
from specbench.report.forwards import equal_sizes, significant_count

COLUMNS = (
    "title", "draft", "gamma", "batch_size", "latency_mode", "arm", "lossless", "simulated", "tokens_per_s", "low",
    "high", "block_efficiency", "efficiency_low", "efficiency_high", "forward_ms", "draft_ms", "verify_ms", "host_ms",
)  # fmt: skip
"""One row a cell, draft and gamma, measured or composed. ``tokens_per_s`` is of the whole batch until its last row
ends, ``block_efficiency`` the tokens that a step of one row emits, ``forward_ms`` a draft forward; the last three are
parts of a step, ``host_ms`` all but draft and verification. Composed rows have no arm."""

BEST_COLUMNS = (*COLUMNS, "chosen_on", "reported_on")
"""One row a cell, draft and latency mode. The last two are numbers of batches; 0 chosen on where there were too few to
part them, so that the best was chosen by the very numbers that it shows."""

DEPTH_COLUMNS = (*BEST_COLUMNS, "panel", "layers", "parameters", "ratio", "ratio_low", "ratio_high", "units")
"""One row a draft at its best gamma, where others of the same size have another depth. ``ratio`` is how much faster the
fastest of them is, 1 for itself, with its 95 % interval over batches of prompts; composed rows have no interval."""

LEFT_OUT = ("title", "what", "reason")
"""Cell, draft or arm, and why it could not be composed."""


@dataclass(frozen=True)
class Drafts:
    """Everything about draft models that a report shows.

    Attributes:
        gammas: One row a cell, draft, gamma and latency mode; see `COLUMNS`.
        best: At the best gamma of each; see `BEST_COLUMNS`.
        left_out: What could not be composed; see `LEFT_OUT`.
    """

    gammas: pd.DataFrame
    best: pd.DataFrame
    left_out: pd.DataFrame


def drafts(results: Results, overview: pd.DataFrame) -> Drafts:
    """Chains of one gamma that a draft model proposes, at its own pace.

    Args:
        results: The run, with its traces and latencies if it has any.
        overview: One row per cell and arm.
    """
    measured = _Measured(results, overview)
    gammas, best = list(measured.rows()), list(measured.best())
    composed, composed_best, left_out = _composed(results)
    return Drafts(
        gammas=pd.DataFrame([*gammas, *composed], columns=COLUMNS),
        best=pd.DataFrame([*best, *composed_best], columns=BEST_COLUMNS),
        left_out=pd.DataFrame(left_out, columns=LEFT_OUT),
    )


class _Measured:
    """Arms of a run."""

    def __init__(self, results: Results, overview: pd.DataFrame) -> None:
        self.results = results
        self.lines: dict[tuple[str, str], list[dict[Any, Any]]] = {}
        for title, cell in overview.groupby("title", sort=False):
            for name, rows in _lines(cell):
                self.lines[str(title), name] = rows

    def rows(self) -> Iterator[dict[str, Any]]:
        for (title, name), arms in self.lines.items():
            for arm in arms:
                found = self.row(title, name, arm)
                if found["tokens_per_s"] is not None:
                    yield found

    def best(self) -> Iterator[dict[str, Any]]:
        for (title, name), arms in self.lines.items():
            timed = self.results.timed[title]
            baseline = timed[BASELINE]
            named = {str(arm["arm"]): arm for arm in arms}
            choice = choose(baseline, {arm: timed[arm] for arm in named})
            if choice is not None and choice.speedup.ratio is not None:
                found = self.row(title, name, named[choice.arm], set(choice.reported_on))
                sides = {"chosen_on": len(choice.chosen_on), "reported_on": len(choice.reported_on)}
            else:
                rows = [row for arm in arms if (row := self.row(title, name, arm))["tokens_per_s"] is not None]
                if not rows:
                    continue
                found = max(rows, key=lambda row: float(row["tokens_per_s"]))
                sides = {"chosen_on": 0, "reported_on": int(baseline["block"].nunique())}
            yield found | sides

    def row(
        self, title: str, name: str, arm: Mapping[Any, Any], blocks: Collection[int] | None = None
    ) -> dict[str, Any]:
        timed = self.results.timed[title]
        own, plain = (timed[label] for label in (arm["arm"], BASELINE))
        if blocks is not None:
            own, plain = (rows[rows["block"].isin(blocks)] for rows in (own, plain))
        rate, efficiency = batch_rate(own), efficiency_ratio(plain, own)
        gamma = int(arm["gamma"])
        parts = _parts(arm)
        return {
            "title": title, "draft": name, "gamma": gamma, "batch_size": int(arm["batch_size"]),
            "latency_mode": arm["latency_mode"], "arm": arm["arm"], "lossless": bool(arm["lossless"]),
            "simulated": bool(arm["simulated"]), "tokens_per_s": rate.ratio, **_ends(rate.interval, ("low", "high")),
            "block_efficiency": efficiency.ratio,
            **_ends(efficiency.interval, ("efficiency_low", "efficiency_high")),
            "forward_ms": parts["draft_ms"] / gamma, **parts,
        }  # fmt: skip


def _lines(cell: pd.DataFrame) -> Iterator[tuple[str, list[dict[Any, Any]]]]:
    """The arms of a cell that differ in their gamma alone, by the name of their draft."""
    kept = cell[(cell["method"] == "draft_model") & (cell["latency_mode"] == "measured")]
    kept = kept[kept["gamma"].notna() & kept["draft"].notna() & kept["speedup_core"].notna()]
    groups: dict[tuple[str, str], list[dict[Any, Any]]] = {}
    for row in kept.to_dict("records"):
        options = {name: value for name, value in json.loads(row["options"]).items() if name != "gamma"}
        groups.setdefault((str(row["draft"]), json.dumps(options, sort_keys=True)), []).append(row)
    names = [draft for draft, _ in groups]
    for (draft, _), rows in groups.items():
        # Two ways to run one draft are told apart as the run told them apart.
        yield draft if names.count(draft) == 1 else str(rows[0]["series"]), rows


def _parts(arm: Mapping[Any, Any]) -> dict[str, float]:
    """Milliseconds of a step, parted as the phase pass says, at the pace of the headline pass; NaN if it was not."""
    phases = {phase: math.nan if pd.isna(arm[f"{phase}_ms"]) else float(arm[f"{phase}_ms"]) for phase in PHASES}
    pace = 1000 * float(arm["step_s"]) / math.fsum(phases.values())
    draft, verify = pace * phases["draft"], pace * phases["verify"]
    return {"draft_ms": draft, "verify_ms": verify, "host_ms": 1000 * float(arm["step_s"]) - draft - verify}


def _ends(interval: Any, names: tuple[str, str]) -> dict[str, float | None]:
    return dict(zip(names, (interval.low, interval.high) if interval else (None, None), strict=True))


# --- depth at equal parameters


def depths(results: Results, best: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    """Drafts of equally many parameters and unlike depth, against the fastest of them; see `DEPTH_COLUMNS`.

    Args:
        results: The run.
        best: Drafts at their best gamma.
        sizes: Columns ``model``, ``parameters`` and ``layers``.
    """
    known = sizes.dropna(subset=["layers"])
    parts = []
    for title, cell in best.groupby("title", sort=False):
        groups = equal_sizes(known[known["model"].isin(cell["draft"])])
        groups = [group for group in groups if len(group["layers"].unique()) > 1]
        for group in groups:
            size = significant_count(float(group["parameters"].median()))
            panel = f"{title}, {size} parameters" if len(groups) > 1 else str(title)
            own = cell.merge(group.rename(columns={"model": "draft"}), on="draft").assign(panel=panel)
            parts += [_against_fastest(results, rows) for _, rows in own.groupby("latency_mode", sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=DEPTH_COLUMNS)


def _against_fastest(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    fastest = rows.loc[rows["tokens_per_s"].astype(float).idxmax()]
    found = [_ratio(results, fastest, row) for row in rows.to_dict("records")]
    return rows.assign(**{name: [entry[name] for entry in found] for name in found[0]})[list(DEPTH_COLUMNS)]


def _ratio(results: Results, fastest: pd.Series, row: Mapping[Any, Any]) -> dict[str, Any]:
    """Of the prompts that chose no gamma; all drafts of a cell share those."""
    if fastest["latency_mode"] == LATENCY_MODE or row["arm"] == fastest["arm"]:
        return {"ratio": fastest["tokens_per_s"] / row["tokens_per_s"], "units": 0} | _ends(None, _RATIO_ENDS)
    timed = results.timed[row["title"]]
    blocks = timed[BASELINE]["block"].unique().tolist()
    kept = halves(blocks)[1] if row["chosen_on"] else blocks
    found = speedup(*(timed[arm][timed[arm]["block"].isin(kept)] for arm in (row["arm"], fastest["arm"])))
    return {"ratio": found.ratio, "units": found.units} | _ends(found.interval, _RATIO_ENDS)


_RATIO_ENDS = ("ratio_low", "ratio_high")


# --- composed


def _composed(results: Results) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, str, str]]]:
    """All gammas that the traces hold, the best of each draft, and what is left out with its reason."""
    if not results.traces or results.latencies.empty:
        return [], [], []
    try:
        table = LatencyTable(results.latencies, results.choosing)
        grid = composed_grid(results, results.traces, table)
    except ResultsError as error:
        return [], [], [("all cells", "all drafts", str(error))]
    rows = [_as_row(row) for row in grid.frame.to_dict("records")]
    left_out = [(*place, reason) for place, reason in grid.left_out.items()]
    return rows, list(_best_composed(results, table, rows)), left_out


def _as_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the grid, as one of `COLUMNS`."""
    renamed = {"tokens_per_s": row["composed_tokens_per_s"], "low": row["composed_low"], "high": row["composed_high"]}
    own = {"arm": None, "lossless": True, "simulated": False, "forward_ms": row["draft_ms"] / row["gamma"]}
    return {name: (renamed | own | dict(row))[name] for name in COLUMNS}


def _best_composed(results: Results, table: LatencyTable, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    def half(which: int) -> dict[tuple[Any, ...], dict[str, Any]]:
        try:
            grid = composed_grid(results, results.traces, table, batches_of=lambda batches: halves(batches)[which])
        except ResultsError:
            return {}
        return {_key(row): _as_row(row) for row in grid.frame.to_dict("records")}

    first, second = half(0), half(1)
    for group in _by_draft(rows):
        counts = _halves_of(results, group[0])
        if not counts[0]:
            yield max(group, key=_speed) | {"chosen_on": 0, "reported_on": counts[1]}
            continue
        best = max(group, key=lambda row: _speed(first[_key(row)]))
        yield second[_key(best)] | dict(zip(("chosen_on", "reported_on"), counts, strict=True))


def _by_draft(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["title"], row["draft"]), []).append(row)
    return list(groups.values())


def _key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return row["title"], row["draft"], row["gamma"]


def _speed(row: Mapping[str, Any]) -> float:
    return float(row["tokens_per_s"])


def _halves_of(results: Results, row: Mapping[str, Any]) -> tuple[int, int]:
    """Batches of prompts in either half of a cell's traces."""
    first, second = halves(results.headline[row["title"]]["block"].unique().tolist())
    return len(first), len(second)


def is_composed(rows: pd.DataFrame) -> pd.Series:
    """Which rows were never run."""
    return rows["latency_mode"] == LATENCY_MODE
