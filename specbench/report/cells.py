"""A run folder, read once, and its rows by cell.

A cell is what the arms compared with one another share: the stored ``cell`` and every column that
`specbench.analysis.speedup` refuses to mix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from specbench.analysis.intervals import estimand
from specbench.analysis.speedup import COMPARABLE
from specbench.analysis.traces import Trace, traces
from specbench.errors import ResultsError
from specbench.records.schema import PHASES
from specbench.records.store import Store

BASELINE, TWIN = "autoregressive", "autoregressive-twin"
"""The arms of the A/A pair; the first is what `speedup_core` divides by."""

REQUEST_COLUMNS = (
    "run_id", "cell", "method", "label", "arm", "options", "target", "draft", "dtype", "device", "threads",
    "attention", "execution", "captured_phases", "compiled_phases", "batch_size", "batch_id", "row", "block",
    "repeat", "pass", "process", "dataset", "category", "prompt_id", "prompt_tokens", "output_tokens",
    "prefill_tokens", "steps", "drafted_tokens", "accepted_tokens", "accepted_per_step", "drafted_depth_per_step",
    "drafted_nodes_per_step", "prefill_s", "ttft_s", "decode_s", "row_done_s", "temperature", "rule", "lossless",
    "seed", "max_new_tokens", "latency_mode", "draft_latency_ms", "simulated_acceptance", "repeat_ngram_share",
    "target_sha", "prompts_sha", "status", "reason", "verdict", "order_in_block", "load_average", "cpu_wait_share",
    "cpu_steal_share", "major_faults", "gpu_clock_mhz", "gpu_throttle", "gpu_alloc_retries", "gpu_clock_mean_mhz",
    "gpu_memory_clock_mhz", "gpu_energy_j", "gpu_power_w", "gpu_utilisation", "gpu_temperature_c",
    "gpu_throttled_share", "gpu_throttled_by", "gpu_memory_bytes", "gpu_other_processes", "telemetry_looks",
    "telemetry_busy_s",
)  # fmt: skip
"""What a report reads of `requests`: all but the texts and what names a trial."""

TABLES = ("requests", "traces", "latencies", "scores")
"""What may lie in a folder of results; any one of them can be reported on."""

_TIMES = tuple(f"{phase}_s" for phase in (*PHASES, "step"))
_SUMMED = (*_TIMES, "launch_s", "syncs", "rows_active", "emitted_tokens")
_ORDER = ("target", "dtype", "device", "temperature", "max_new_tokens", "batch_size")
_WORDS = {
    "target": "{}", "dataset": "{}", "dtype": "{}", "device": "{}", "threads": "{} threads",
    "execution": "{}",
    "max_new_tokens": "{} new tokens", "batch_size": "batch {}", "temperature": "T = {:g}", "cell_rule": "rule {}",
}  # fmt: skip
_AUTO = ("greedy", "rejection")
PLACE = (*COMPARABLE, "cell_rule")
"""In what cells differ. Arms under different rules may be divided by one another, but are no points of one line."""


@dataclass(frozen=True)
class Results:
    """The tables of one run folder, the rows marked with the title of their cell.

    `steps` holds the sums over the steps of each batch of the phase pass, with their number in ``steps``.
    """

    folder: Path
    requests: pd.DataFrame
    steps: pd.DataFrame
    runs: pd.DataFrame

    @cached_property
    def traces(self) -> list[Trace]:
        """What draft models would have proposed; empty where nothing was recorded."""
        rows = self._table("traces")
        return traces(rows) if len(rows) else []

    @cached_property
    def studies(self) -> pd.DataFrame:
        """Traces, forward times and scores that could not be made at first, one row each."""
        return self._table("studies")

    @cached_property
    def latencies(self) -> pd.DataFrame:
        """Forward times, one row a point; empty where none were measured."""
        return self._table("latencies")

    @cached_property
    def choosing(self) -> pd.DataFrame:
        """What choosing tokens takes, one row a point; empty where it was not measured."""
        return self._table("choosing")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """What models score on data sets; empty where none were scored."""
        return self._table("scores")

    @cached_property
    def limits(self) -> pd.DataFrame:
        """What a step of each arm has to move, compute and launch; empty where nothing was counted."""
        return self._table("limits")

    @cached_property
    def ceilings(self) -> pd.DataFrame:
        """What the machine does in a second at best, one row for each set of matrices."""
        return self._table("ceilings")

    def _table(self, name: str) -> pd.DataFrame:
        store = Store(self.folder)
        return store.read(name) if store.has(name) else store.none_of(name)

    @property
    def experiment(self) -> str:
        """Name of the experiment: that of the folder above the machine's."""
        return self.folder.resolve().parent.name

    @property
    def machine(self) -> str:
        """Name of the machine: that of the folder itself."""
        return self.folder.resolve().name

    @property
    def estimand(self) -> str:
        """What the intervals of this run speak of."""
        return estimand(int(self.requests["process"].nunique()))

    @cached_property
    def headline(self) -> dict[str, pd.DataFrame]:
        """Title -> rows of the headline pass, cells in their order."""
        rows = self.requests[self.requests["pass"] == "headline"]
        return {str(title): cell for title, cell in rows.groupby("title", sort=False)}

    @cached_property
    def timed(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Title -> arm -> the headline rows that speeds are taken from: those of full batches."""
        return {
            title: {str(arm): full_batches(own) for arm, own in cell.groupby("arm", sort=True)}
            for title, cell in self.headline.items()
        }

    @cached_property
    def notes(self) -> list[dict[str, Any]]:
        """The notes of each run, parsed; empty where a run has none."""
        texts = [] if self.runs.empty else self.runs["notes"]
        return [json.loads(text) if isinstance(text, str) and text else {} for text in texts]

    @cached_property
    def experiments(self) -> list[dict[str, Any]]:
        """The resolved experiment of each run, parsed; those that are alike once, the first first."""
        texts = [] if self.runs.empty else self.runs["experiment"].drop_duplicates()
        return [parsed for text in texts if isinstance(parsed := yaml.safe_load(text), dict)]


def load(folder: Path) -> Results:
    """Read a folder of results. It may hold no requests, where only traces, latencies or scores were made.

    Raises:
        ResultsError: It holds no rows, or a part is unreadable or of another schema version.
    """
    store = Store(folder)
    read = store.read if store.has("requests") else store.none_of
    requests = read("requests", REQUEST_COLUMNS)
    if requests.empty and not any(map(store.has, TABLES[1:])):
        raise ResultsError(f"{folder}: no finished block in it. Start the run again; it goes on where it stopped.")
    steps = store.read_step_sums(_SUMMED)
    runs = store.read("runs") if (folder / "runs.parquet").exists() else pd.DataFrame()
    requests = _with_titles(requests)
    places = requests[["batch_id", "title", "arm"]].drop_duplicates("batch_id")
    return Results(folder, requests, steps.merge(places, on="batch_id"), runs)


def folders(root: Path) -> list[Path]:
    """Every folder of results at or below ``root``, sorted."""
    return sorted({path.parent for table in TABLES for path in root.rglob(f"{table}.parquet")})


def full_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """Without a last partial batch, whose speed is another batch size's; with it if there is no other."""
    codes, _ = pd.factorize(rows["batch_id"])
    full = np.bincount(codes)[codes] == rows["batch_size"].to_numpy()
    return rows if full.all() or not full.any() else rows[full]


def missing_blocks(results: Results) -> int:
    """Blocks that the plan has and the folder has not, as far as the rows and the run's notes tell."""
    blocks = results.requests[["title", "process", "block", "repeat"]].drop_duplicates()
    planned = max((int(notes.get("planned_blocks", 0)) for notes in results.notes), default=0)
    sides = blocks.groupby("title")[["process", "block", "repeat"]].nunique().prod(axis=1)
    return max(planned, int(sides.sum())) - len(blocks)


def places_without(frame: pd.DataFrame, *axes: str) -> pd.Series:
    """The title of each row's cell without some axes: equal for cells that differ in nothing else.

    Args:
        frame: Rows with every column of `PLACE`.
        axes: ``batch_size``, ``temperature`` or ``cell_rule``.
    """
    kept = [name for name in PLACE if name not in axes]
    places = frame[kept].drop_duplicates()
    shown = [name for name in _shown(frame) if name not in axes]
    titles = list(_joined(places, shown))
    titles = titles if len(set(titles)) == len(titles) else _with_hashes(titles, places)
    return frame[kept].merge(places.assign(place=titles), on=kept, how="left")["place"].set_axis(frame.index)


def _with_titles(requests: pd.DataFrame) -> pd.DataFrame:
    """Mark each row with the title of its cell, and order rows so that cells come in a sensible order."""
    requests = requests.assign(cell_rule=_cell_rules(requests))
    order = [*_ORDER, *(column for column in PLACE if column not in _ORDER)]
    cells = requests[["cell", "dataset", *PLACE]].drop_duplicates(["cell", *PLACE])
    cells = cells.sort_values([*order, "cell"], kind="stable", ignore_index=True)
    cells["title"] = _titles(cells)
    cells["place"] = range(len(cells))
    marked = requests.merge(cells.drop(columns="dataset"), on=["cell", *PLACE], how="left")
    return marked.sort_values("place", kind="stable", ignore_index=True).drop(columns="place")


def _cell_rules(requests: pd.DataFrame) -> pd.Series:
    """The rule of each row's cell, as an experiment says it: ``auto`` stands for the two that it takes by temperature.

    Outside baselines decide by rules of their own, so the cell's is that of its autoregressive arm.
    """
    own = requests[requests["method"] == BASELINE].drop_duplicates("cell").set_index("cell")["rule"]
    rules = requests["cell"].map(own).fillna(requests["rule"])
    return rules.mask(rules.isin(_AUTO), "auto")


def _titles(cells: pd.DataFrame) -> list[str]:
    """A short title per cell: what differs between cells, and always batch size and temperature."""
    titles = list(_joined(cells, _shown(cells)))
    if len(set(titles)) == len(titles):
        return titles
    twice = {title for title in titles if titles.count(title) > 1}
    titles = [
        f"{title} ({cell})" if title in twice else title for title, cell in zip(titles, cells["cell"], strict=True)
    ]
    return titles if len(set(titles)) == len(titles) else _with_hashes(titles, cells)


def _with_hashes(titles: list[str], cells: pd.DataFrame) -> list[str]:
    """For the same cell with other prompts or weights, e.g. an experiment that was edited between two runs."""
    hashes = zip(titles, cells["target_sha"], cells["prompts_sha"], strict=True)
    return [f"{title} [weights {target[:6]}, prompts {prompts[:6]}]" for title, target, prompts in hashes]


def _shown(cells: pd.DataFrame) -> list[str]:
    always = {"batch_size", "temperature"}
    return [name for name in _WORDS if name in always or (name in cells and len(cells[name].unique()) > 1)]


def _joined(cells: pd.DataFrame, shown: Iterable[str]) -> Iterator[str]:
    for row in cells.to_dict("records"):
        yield ", ".join(_WORDS[name].format(row[name]) for name in shown)
