"""What every test of this repository shares: one thread, a seed, and no GPU test without a GPU."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that tests say ``from support import checks``

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the thorough tests as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.getoption("--slow") or "slow" in (config.getoption("-m") or "")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and not asked:
            item.add_marker(pytest.mark.skip(reason="thorough; run with --slow"))


@pytest.fixture(autouse=True, scope="session")
def _frozen() -> Iterator[None]:
    """The bench collects garbage around every batch: to look through half a million old objects takes far longer."""
    from specbench.bench.timing import frozen_objects

    with frozen_objects():
        yield


@pytest.fixture(autouse=True, scope="module")
def _freeze_what_was_kept(_frozen: None) -> None:
    """What imports and shared fixtures have left since then."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """No test depends on what ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
