"""The row of ``runs`` behind all that a run stores: who measured what, where and with what, and how it ended."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from specbench.bench import machine
from specbench.bench.cells import MEASUREMENT_VERSION
from specbench.bench.timing import utc_now
from specbench.errors import ResultsError
from specbench.records.schema import SCHEMA_VERSION
from specbench.records.store import Store


def new_run_id() -> str:
    """A name that no other run has, and that sorts by when it began."""
    return f"{utc_now().replace('-', '').replace(':', '')}-{secrets.token_hex(3)}"


@contextmanager
def recorded(
    store: Store,
    experiment_yaml: str,
    *,
    argv: Sequence[str],
    device: torch.device,
    threads: int,
    seed: int,
    run_id: str | None = None,
    notes: Callable[[], Any] = lambda: None,
    has_failed: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Keep a row of ``runs`` up to date while something is measured, however that ends; gives its ``run_id``.

    Args:
        store: Where rows go.
        experiment_yaml: What is measured, with every default.
        argv: The command line; secrets are redacted.
        device: Where it runs.
        threads: Of the CPU.
        seed: Of all chance.
        run_id: Where the run has one already.
        notes: What the run has decided so far; asked at its beginning and at its end.
        has_failed: Whether a run that came to its end is to be called failed all the same.
    """
    sha, dirty = machine.git_state()
    row = {
        "run_id": run_id or new_run_id(),
        "started_at": utc_now(),
        "git_sha": sha,
        "git_dirty": dirty,
        "argv": machine.as_json(machine.redacted_argv(argv)),
        "experiment": experiment_yaml,
        "versions": machine.as_json(machine.versions()),
        "machine": machine.as_json(machine.describe()),
        "threads": threads,
        "device": machine.device_name(device),
        "seed": seed,
        "schema_version": SCHEMA_VERSION,
        "measurement_version": MEASUREMENT_VERSION,
    }

    def write(status: str) -> None:
        said = notes()
        store.write_run(row | {"notes": None if said is None else machine.as_json(said), "status": status})

    write("running")
    try:
        yield str(row["run_id"])
        status = "failed" if has_failed() else "done"
    except BaseException as error:
        # On a full disk this fails as well, and must not hide why.
        with suppress(ResultsError):
            write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    write(status)
