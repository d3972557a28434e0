"""The row of ``runs`` behind measurements that no plan of trials stands for: who measured what, where and with what."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
import yaml

from specbench.bench import machine
from specbench.bench.cells import MEASUREMENT_VERSION
from specbench.bench.timing import utc_now
from specbench.errors import ResultsError
from specbench.records.schema import SCHEMA_VERSION
from specbench.records.store import Store


@contextmanager
def recorded(
    store: Store, settings: Mapping[str, Any], *, argv: Sequence[str], device: torch.device, threads: int, seed: int
) -> Iterator[str]:
    """Keep a row of ``runs`` up to date while something is measured, however that ends; gives the new ``run_id``.

    Args:
        store: Where rows go.
        settings: What is measured, with every default; kept as YAML.
        argv: The command line; secrets are redacted.
        device: Where it runs.
        threads: Of the CPU.
        seed: Of all chance.
    """
    row = _row(settings, argv, device, threads, seed)
    store.write_run(row)
    status = "interrupted"
    try:
        yield str(row["run_id"])
        status = "done"
    except KeyboardInterrupt:
        raise
    except BaseException:
        status = "failed"
        raise
    finally:
        # On a full disk this fails as well, and must not hide why.
        with suppress(ResultsError) if status == "failed" else nullcontext():
            store.write_run(row | {"status": status})


def _row(
    settings: Mapping[str, Any], argv: Sequence[str], device: torch.device, threads: int, seed: int
) -> dict[str, Any]:
    sha, dirty = machine.git_state()
    return {
        "run_id": f"{utc_now().replace('-', '').replace(':', '')}-{secrets.token_hex(3)}",
        "started_at": utc_now(),
        "git_sha": sha,
        "git_dirty": dirty,
        "argv": machine.as_json(machine.redacted_argv(argv)),
        "experiment": yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True),
        "versions": machine.as_json(machine.versions()),
        "machine": machine.as_json(machine.describe()),
        "threads": threads,
        "device": machine.device_name(device),
        "seed": seed,
        "schema_version": SCHEMA_VERSION,
        "measurement_version": MEASUREMENT_VERSION,
        "notes": None,
        "status": "running",
    }
