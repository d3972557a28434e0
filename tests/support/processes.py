"""Several real processes that know of one another, as ``torchrun`` starts them, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_together(code: str, folder: Path, *, count: int = 2, timeout_s: float = 900) -> list[str]:
    """Run a script in ``count`` processes and return what each printed; all of them have to end well."""
    script = folder / "together.py"
    script.write_text(code)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, script],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=timeout_s)[0] for process in started]
    finally:
        for process in started:
            process.kill()  # one that waits for another that has died would wait for half an hour
    assert [process.returncode for process in started] == [0] * count
    return printed
