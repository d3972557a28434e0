"""One arm under several acceptance rules: what a lossy rule accepts beyond the exact one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from specbench.analysis.speedup import efficiency_ratio
from specbench.report.cells import BASELINE, TWIN, Results, places_without

COLUMNS = (
    "panel", "title", "arm", "temperature", "rule", "lossless", "speedup", "block_efficiency", "exact_efficiency",
    "inflation", "low", "high",
)  # fmt: skip
"""One row per cell and arm that ran under more than one rule. ``inflation`` is tokens per step over those of the exact
rule at the same temperature, less 1, with its 95 % interval; null for the exact rule itself and where there is none."""


def rules(results: Results, overview: pd.DataFrame) -> pd.DataFrame:
    """Every arm of every place where it ran under at least two rules, cells that differ in temperature together."""
    own = overview[~overview["arm"].isin({BASELINE, TWIN}) & ~overview["simulated"].astype(bool)]
    own = own[own["block_efficiency"].notna()]
    own = own.assign(panel=places_without(own, "temperature", "cell_rule"))
    groups = own.groupby(["panel", "arm"], sort=False)
    rows = [row for _, group in groups if len(group["cell_rule"].unique()) > 1 for row in _rows(results, group)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(results: Results, group: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for _, cells in group.groupby("temperature", sort=True):
        exact = cells[cells["lossless"].astype(bool)]
        reference = exact.iloc[0] if len(exact) else None
        for row in cells.to_dict("records"):
            names = ("panel", "title", "arm", "temperature", "rule", "lossless", "block_efficiency")
            shared = {name: row[name] for name in names} | {"speedup": row["speedup_core"]}
            yield shared | (_inflation(results, row, reference) if reference is not None else {})


def _inflation(results: Results, row: dict[Any, Any], exact: pd.Series) -> dict[str, Any]:
    found: dict[str, Any] = {"exact_efficiency": exact["block_efficiency"]}
    if row["lossless"]:
        return found
    cells = (results.headline[title] for title in (exact["title"], row["title"]))
    ratio = efficiency_ratio(*(cell[cell["arm"] == row["arm"]] for cell in cells))
    if ratio.ratio is not None:
        found["inflation"] = ratio.ratio - 1
    if ratio.interval is not None:
        found |= {"low": ratio.interval.low - 1, "high": ratio.interval.high - 1}
    return found
