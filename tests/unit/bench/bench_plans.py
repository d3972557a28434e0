"""Experiments for tests of the bench: a plan from a few lines of YAML, on a tiny family in a temporary folder."""

import gc
from pathlib import Path

from rich.console import Console

from specbench.bench import runner
from specbench.config import open_document
from specbench.grid import Plan, read_plan
from specbench.registry import options_class

TWO_CELLS = """
name: two-cells
targets: [{model: pico}]
prompts: {source: stdlib, count: 5, max_prompt_tokens: 24}
decode: {max_new_tokens: 10, temperature: [0.0, 0.8], batch_size: 2}
methods:
  - draft_model: {draft: pico-wide, gamma: 2}
  - prompt_lookup: {gamma: 3}
measure: {repeats: 2, warmup: 1}
machine: {device: cpu}
"""

ONE_CELL = TWO_CELLS.replace("two-cells", "one-cell").replace("[0.0, 0.8]", "0.0").replace("repeats: 2", "repeats: 1")

KEY = ["trial_id", "arm", "pass", "repeat", "block", "row"]


def plan_of(folder: Path, text: str) -> Plan:
    file = folder / "experiment.yaml"
    file.write_text(text)
    return read_plan(open_document(file, []), options_class)[1]


def run(folder: Path, text: str, **options) -> runner.RunSummary:
    """Run on the family in ``folder / "zoo"``, quietly."""
    gc.collect()
    gc.freeze()  # what runs before it have imported
    with (folder / "log.txt").open("a") as log:
        return runner.run(
            plan_of(folder, text),
            **{
                "results": folder / "results",
                "argv": ["specbench", "run"],
                "experiment_yaml": text,
                "console": Console(file=log),
                "zoo": folder / "zoo",
                **options,
            },
        )


def texts(rows) -> dict[tuple, list[int]]:
    """The ids of every row, by what names it."""
    return {
        tuple(row[name] for name in KEY): list(row["output_ids"]) if row["status"] == "ok" else row["status"]
        for _, row in rows.iterrows()
    }
