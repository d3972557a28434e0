"""What a beam search was verified with: how much of its beams their shared prefixes save, one row per cell and arm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.acceptance import measured
from specbench.report.cells import Results
from specbench.report.resolution import RESOLVED

COLUMNS = (
    "title", "arm", "series", "group", "width", "length", "beam_nodes", "nodes_per_step", "saved", "tokens_saved",
    "tokens_saved_p01", "tokens_saved_p99", "speedup", "low", "high", "resolved", "block_efficiency", "lossless",
    "simulated",
)  # fmt: skip
"""``group`` is what arms have in common that differ in width and length alone. ``saved`` counts draft nodes;
``tokens_saved`` counts the root as well, in every beam, as ReDrafter's paper does; p01 and p99 are its percentiles
over steps. All four are null where the tree was not made of whole beams."""


def beams(results: Results, overview: pd.DataFrame) -> pd.DataFrame:
    """Every arm that has a width and a length, and finished."""
    rows = [
        _row(row, options, results.headline[row["title"]])
        for row in overview.to_dict("records")
        if pd.notna(row["nodes_per_step"]) and _is_beam_search(options := json.loads(row["options"]))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _is_beam_search(options: Mapping[str, Any]) -> bool:
    return all(isinstance(options.get(name), int) for name in ("width", "length")) and options.get("branching") is None


def _row(row: Mapping[Any, Any], options: Mapping[str, Any], cell: pd.DataFrame) -> dict[str, Any]:
    rest = {name: value for name, value in options.items() if name not in {"width", "length"}}
    names = ("title", "arm", "series", "nodes_per_step", "low", "high", "block_efficiency", "lossless", "simulated")
    shared = {name: row[name] for name in names} | {name: options[name] for name in ("width", "length")}
    shared |= {
        "group": json.dumps([row["method"], row["label"], row["draft_latency_ms"], rest], sort_keys=True),
        "speedup": row["speedup_core"],
        "resolved": row["resolution"] == RESOLVED,
    }
    return shared | (_saved(options, cell[cell["arm"] == row["arm"]]) if options.get("nodes") is None else {})


def _saved(options: Mapping[str, Any], own: pd.DataFrame) -> dict[str, float]:
    """How much smaller than its beams the tree was.

    Source: the tokens before and after the removal of duplicates, Cheng et al., arXiv 2403.09919, figure 6.
    """
    count, depth = _beams(options), int(options["length"]) - 1
    nodes = np.concatenate(measured(own)["drafted_nodes_per_step"].to_numpy()).astype(float)
    tokens = 1 - (nodes + 1) / (count * (depth + 1))
    low, high = np.percentile(tokens, [1, 99])
    return {
        "beam_nodes": float(count * depth),
        "saved": float(1 - nodes.mean() / (count * depth)),
        "tokens_saved": float(tokens.mean()),
        "tokens_saved_p01": float(low),
        "tokens_saved_p99": float(high),
    }


def _beams(options: Mapping[str, Any]) -> int:
    """Beams that a search ends with: fewer than its width where its top-k offers no more."""
    width, top_k = int(options["width"]), options.get("top_k")
    return width if top_k is None else min(width, int(top_k) ** (int(options["length"]) - 1))
