"""Where a step's time goes, as the phase pass has it."""

from __future__ import annotations

import pandas as pd

from specbench.records.schema import PHASES
from specbench.report.cells import Results

COLUMNS = ("title", "arm", *(f"{phase}_ms" for phase in (*PHASES, "step")), "syncs_per_step", "tokens_per_step")


def phase_times(results: Results) -> pd.DataFrame:
    """Mean milliseconds of a step by phase, one row per cell and arm, over all steps of the phase pass."""
    sums = results.steps.groupby(["title", "arm"], sort=False).sum(numeric_only=True)
    means = {f"{phase}_ms": 1000 * sums[f"{phase}_s"] / sums["steps"] for phase in (*PHASES, "step")}
    means["syncs_per_step"] = sums["syncs"] / sums["steps"]
    means["tokens_per_step"] = sums["emitted_tokens"] / sums["rows_active"]
    return pd.DataFrame(means).reset_index()[list(COLUMNS)]
