"""Limits of the arms of a synthetic run: what their steps move, and what the machine does at best."""

from pathlib import Path

from specbench.records.schema import blank_row
from specbench.records.store import Store
from tests.unit.report.synthetic import Arm

# 60 MB at 10 GB/s are 6 ms of the 10 that a forward takes; four drafts of 8 MB at 40 GB/s are 0.8 ms of 4.
COUNTED = {
    "run_id": "run-1", "batch_size": 1, "steps": 10, "layers": 4,
    "verify_weight_bytes": 60e6, "verify_operations_per_token": 30e6, "kv_bytes_per_token": 1e3,
    "kv_operations_per_token": 1e3, "kv_windowed_share": 0.0, "draft_weight_bytes": 0.0, "draft_operations": 0.0,
    "draft_forwards": 0.0, "draft_kv_bytes_per_token": 0.0, "draft_launches": 1.0, "verify_launches": 200.0,
    "accept_launches": 20.0, "update_launches": 0.0, "verify_ceiling": "target",
}  # fmt: skip
A_DRAFT = {"draft_weight_bytes": 32e6, "draft_operations": 16e6, "draft_forwards": 4.0, "draft_launches": 500.0}
CEILING = {
    "device": "cpu Example 3000", "dtype": "bfloat16", "threads": 1, "torch": "2", "matrices": 9,
    "working_set_bytes": 60_000_000, "product_rows": [1, 8], "products_s": [0.006, 0.008],
    "read_bytes_per_s": 10e9, "copy_bytes_per_s": 15e9, "operations_per_s": 1e12, "launch_s": 2e-6,
    "measured_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


def write_limits(folder: Path, *arms: Arm, counted=COUNTED, drafted=A_DRAFT) -> Path:
    """Write limits of some arms, in all cells of a folder, and the ceilings of target and draft; returns the folder."""
    store = Store(folder)
    for name, pace in (("target", 10e9), ("draft", 40e9)):
        row = blank_row("ceilings") | CEILING | {"ceiling_id": name, "read_bytes_per_s": pace}
        store.write_part("ceilings", name, [row])
    for cell in store.read("requests")["cell"].unique():
        for arm in arms:
            row = blank_row("limits") | counted | {"cell": cell, "arm": arm.name}
            row |= drafted | {"draft_ceiling": "draft"} if arm.gamma and drafted else {}
            store.write_part("limits", f"{cell} {arm.name}", [row])
    return folder
