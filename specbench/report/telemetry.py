"""What the GPU did while each arm ran: energy per token, power, clocks, heat, throttling, and who else was there."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specbench.analysis.acceptance import measured
from specbench.analysis.stability import throttled
from specbench.report.cells import Results

COLUMNS = (
    "title", "arm", "batches", "energy_batches", "energy_j_per_token", "power_w", "utilisation", "clock_mean_mhz",
    "clock_least_mhz", "memory_clock_mhz", "temperature_most_c", "throttled_batches", "throttled_blocks",
    "throttled_by", "throttled_share", "memory_most_gib", "other_processes", "looks", "busy_share",
)  # fmt: skip

READING = (
    "Energy is that of the whole GPU from the start of a batch to its end, prefill and idle power included, over the "
    "tokens of that batch. It comes from the GPU's own counter, and only from batches of 2 s and more "
    "(energy_batches): the sensor behind it sees part of the time, on an A100 or H100 about a quarter, so short "
    "batches would show what it happened to see. Clocks are means over the batches; least is that of the slowest "
    "batch. Throttled is a batch whose clock was held down for more than a hundredth of its time. busy_share is the "
    "share of the time in which the thread that asks was at work."
)
"""How the table is to be read."""


def telemetry(results: Results) -> pd.DataFrame:
    """One row per cell and arm, over the batches of the headline pass; none where no GPU was asked."""
    rows = [
        {"title": title, "arm": arm} | found
        for title, cell in results.headline.items()
        for arm, own in measured(cell).groupby("arm", sort=True)
        if (found := _of_arm(own))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def not_asked(results: Results) -> str | None:
    """Why a GPU on which something ran was not asked; None where it was, or where there is none."""
    rows = results.requests
    if rows.empty or rows["device"].str.startswith("cpu").all() or rows["telemetry_looks"].notna().any():
        return None
    reasons = {str(notes["telemetry"]) for notes in results.notes if notes.get("telemetry") not in {None, "", "on"}}
    return "; ".join(sorted(reasons)) or "the run says not why"


def _of_arm(own: pd.DataFrame) -> dict[str, Any]:
    tokens = own.groupby("batch_id")["output_tokens"].sum()
    batches = own.drop_duplicates("batch_id").set_index("batch_id").assign(tokens=tokens)
    batches = batches[batches["telemetry_looks"].notna()]
    if batches.empty:
        return {}
    weighed, held = batches[batches["gpu_energy_j"].notna()], throttled(batches)
    seconds = (batches["prefill_s"] + batches["decode_s"]).sum()
    words = sorted({word for text in held["gpu_throttled_by"] for word in text.split(",")})
    return {
        "batches": len(batches),
        "energy_batches": len(weighed),
        "energy_j_per_token": weighed["gpu_energy_j"].sum() / weighed["tokens"].sum() if len(weighed) else None,
        "power_w": batches["gpu_power_w"].mean(),
        "utilisation": batches["gpu_utilisation"].mean(),
        "clock_mean_mhz": batches["gpu_clock_mean_mhz"].mean(),
        "clock_least_mhz": batches["gpu_clock_mean_mhz"].min(),
        "memory_clock_mhz": batches["gpu_memory_clock_mhz"].mean(),
        "temperature_most_c": batches["gpu_temperature_c"].max(),
        "throttled_batches": len(held),
        "throttled_blocks": ", ".join(map(str, sorted(held["block"].unique()))),
        "throttled_by": ", ".join(words),
        "throttled_share": batches["gpu_throttled_share"].mean(),
        "memory_most_gib": batches["gpu_memory_bytes"].max() / 2**30,
        "other_processes": batches["gpu_other_processes"].max(),
        "looks": int(batches["telemetry_looks"].sum()),
        "busy_share": batches["telemetry_busy_s"].sum() / seconds if seconds else None,
    }
