"""Where a step's time goes, as the phase pass has it."""

from __future__ import annotations

import pandas as pd

from specbench.records.schema import PHASES
from specbench.report.cells import Results

COLUMNS = (
    "title", "arm", *(f"{phase}_ms" for phase in (*PHASES, "step")), "launch_ms", "syncs_per_step", "tokens_per_step",
)  # fmt: skip

NAMES = {"host": "host and other"}
"""What people read for a phase, where that is not its own name."""


def phase_times(results: Results) -> pd.DataFrame:
    """Mean milliseconds of a step by phase, one row per cell and arm, over all steps of the phase pass."""
    launched = results.steps["steps"].where(results.steps["launch_s"].notna())
    steps = results.steps.assign(launched=launched)
    sums = steps.groupby(["title", "arm"], sort=False).sum(numeric_only=True, min_count=1)
    means = {f"{phase}_ms": 1000 * sums[f"{phase}_s"] / sums["steps"] for phase in (*PHASES, "step")}
    means["launch_ms"] = 1000 * sums["launch_s"] / sums["launched"]
    means["syncs_per_step"] = sums["syncs"] / sums["steps"]
    means["tokens_per_step"] = sums["emitted_tokens"] / sums["rows_active"]
    return pd.DataFrame(means).reset_index()[list(COLUMNS)]


def shown(phases: pd.DataFrame) -> pd.DataFrame:
    """The same under the headings that people read."""
    names = {f"{phase}_ms": f"{NAMES.get(phase, phase)} ms" for phase in (*PHASES, "step")}
    return phases.rename(columns=names | {"launch_ms": "host's launches ms"})
