"""Every method's examples, as in the contract suite; and nothing here is run without a GPU."""

import inspect
from functools import partial

import pytest
import torch

from specbench.testing.conftest import pytest_generate_tests  # noqa: F401


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compiles comes late: a session that runs out of time has the rest behind it. No test follows a profiler."""
    items.sort(key=lambda item: ("test_kernels" in item.nodeid, "half_precision" in item.nodeid))


@pytest.fixture(autouse=True)
def _inputs_of_graphs_must_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph whose input is gone reads what lies there now: torch, where it is new enough, refuses to replay it."""
    if "check_input_liveness" in inspect.signature(torch.cuda.graph).parameters:
        monkeypatch.setattr(torch.cuda, "graph", partial(torch.cuda.graph, check_input_liveness=True))
