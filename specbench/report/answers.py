"""What ``specbench generate`` shows when a set of questions has been answered."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

from specbench.analysis import acceptance, throughput
from specbench.report.tables import number, percent, significant, titled


def table(title: str, rows: pd.DataFrame) -> Table:
    """One line for all requests.

    Args:
        title: What was asked, and of whom.
        rows: One row a request, with columns of the ``requests`` table.
    """
    shown = titled(title)
    ttft_s = throughput.ttft_s(rows)
    cells = {
        "requests": f"{len(rows):,}",
        "tokens": f"{rows['output_tokens'].sum():,}",
        "tok/step": number(acceptance.block_efficiency(rows)),
        "accepted": percent(acceptance.acceptance_rate(rows)),
        "tok/s": significant(throughput.decode_tokens_per_s(rows)),
        "batch tok/s": significant(throughput.batch_tokens_per_s(rows)),
        "e2e tok/s": significant(throughput.e2e_tokens_per_s(rows)),
        "TTFT ms": significant(None if ttft_s is None else 1000 * ttft_s),
        "repeats": percent(rows["repeat_ngram_share"].mean()),
    }
    for heading in cells:
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_row(*cells.values())
    return shown


LEGEND = (
    "tok/step: block efficiency, the target's own token included; tok/s: decode tokens per second that one request "
    "sees; batch tok/s: of the whole batch until its last row ends; e2e: with prefill; repeats: share of 4-grams that "
    "occurred before. Speed-ups need a run: specbench run."
)
"""What the headings mean."""


def so_far(rows: pd.DataFrame) -> str:
    """The two figures of a progress line."""
    if rows.empty:
        return ""
    efficiency, rate = acceptance.block_efficiency(rows), throughput.batch_tokens_per_s(rows)
    return f"{number(efficiency)} tok/step, {significant(rate)} batch tok/s"
