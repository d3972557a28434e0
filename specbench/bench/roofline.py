"""The limit of an arm's step: what it has to move and compute, counted, and the ceilings of the machine, beside a run.

Ceilings are kept by device, data type, threads and shapes of the matrices. Each is tried a few times in the course of
a run, and the best of all is kept: a machine may be busy for as long as one try takes.

Source: Williams et al., Roofline (2009).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from specbench.bench import machine
from specbench.bench.arms import CoreArm
from specbench.bench.ceilings import best_of, measure_ceiling
from specbench.bench.cells import Block, ReadyCell
from specbench.bench.step_work import StepWork, whole_kv_bytes_per_token, windowed_layers
from specbench.bench.timing import utc_now
from specbench.decode.target import CachedModel
from specbench.models.ranks import agreed
from specbench.models.shapes import numbers_of
from specbench.records.store import Store

CEILINGS, LIMITS = "ceilings", "limits"
"""The two tables: what machines can do, and what steps ask of them."""

_TRIES = 4
# Passes that take longer than this together are long enough for one try.
_LONG_S = 1.0


class Limits:
    """The limits of a run's arms: counted once, with ceilings that get better as they are tried again.

    Args:
        store: The folder of the run.
        run_id: The run that notes them.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._tries: Counter[str] = Counter()

    def note(self, cell: ReadyCell, live: CoreArm, block: Block) -> None:
        """Count what a step of an arm asks for, measure its ceilings, and store both; nothing where they are stored.

        Args:
            cell: The arm's cell.
            live: The arm, loaded and warmed up.
            block: It is counted on prompts as long as those of this one.

        Raises:
            ResultsError: The folder cannot be read or written.
        """
        key = f"{cell.name} {live.arm.name}"
        if agreed(self._has(key)) or (work := live.step_work(block)) is None:
            return
        threads = cell.cell.machine.threads
        row = {
            "run_id": self._run_id,
            "cell": cell.name,
            "arm": live.arm.name,
            "batch_size": len(block.prompts),
            **limit_columns(work, live.target),
            "verify_ceiling": self._ceiling(work.verify_matrices, threads),
            "draft_ceiling": self._ceiling(work.draft_matrices, threads) if work.draft_matrices else None,
        }
        self._store.write_part(LIMITS, key, [row])

    def _has(self, key: str) -> bool:
        """Whether the folder holds a limit with all of its ceilings."""
        rows = self._store.read_part(LIMITS, key) or []
        names = [row[f"{part}_ceiling"] for row in rows for part in ("verify", "draft")]
        return bool(rows) and all(self._store.has_part(CEILINGS, name) for name in names if name is not None)

    def _ceiling(self, matrices: Sequence[Tensor], threads: int) -> str:
        """The name of the ceiling of some matrices, which is tried once more."""
        setting = {
            "device": machine.device_name(matrices[0].device),
            "dtype": str(matrices[0].dtype).removeprefix("torch."),
            "threads": threads,
            "torch": machine.versions()["torch"],
            "matrices": len(matrices),
            "working_set_bytes": sum(matrix.nbytes for matrix in matrices),
        }
        shapes = [[*matrix.shape] for matrix in matrices]
        name = hashlib.sha256(machine.as_json([setting, shapes]).encode()).hexdigest()[:16]
        (before,) = self._store.read_part(CEILINGS, name) or (None,)
        if before is None or (self._tries[name] < _TRIES and sum(before["products_s"]) < _LONG_S):
            self._tries[name] += 1
            found = best_of(measure_ceiling(matrices), before)
            row = {"ceiling_id": name, **setting, **asdict(found), "measured_at": utc_now()}
            self._store.write_part(CEILINGS, name, [row])
        return name


def limit_columns(work: StepWork, target: CachedModel) -> dict[str, Any]:
    """What was counted, as columns of ``limits``."""
    numbers, verify, drafting = numbers_of(target.config), work.phases["verify"], work.drafting
    share, window = windowed_layers(target)
    heads = numbers.heads * target.kv_shape.heads / numbers.kv_heads  # those of this process
    return {
        "steps": work.steps,
        "layers": numbers.layers,
        "verify_weight_bytes": verify.weight_bytes,
        "verify_operations_per_token": verify.weight_operations / work.verified_tokens,
        "kv_bytes_per_token": whole_kv_bytes_per_token(target),
        "kv_operations_per_token": 4.0 * numbers.layers * heads * numbers.head_dim,
        "kv_window_tokens": window,
        "kv_windowed_share": share,
        "draft_weight_bytes": drafting.weight_bytes,
        "draft_operations": drafting.weight_operations,
        "draft_forwards": work.draft_forwards,
        "draft_kv_bytes_per_token": work.draft_kv_bytes_per_token,
        **{f"{phase}_launches": own.launches for phase, own in work.phases.items()},
    }
