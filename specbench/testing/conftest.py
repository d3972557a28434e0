"""Gives every test of the suite its methods: ``--method``, or all that are registered."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch

from specbench import registry
from specbench.errors import SpecbenchError

from .cases import Case, cases_of, find


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test asks for ``method_name`` (any), for ``kind`` (a class that loads), or for ``case`` (with options)."""
    wanted = metafunc.config.getoption("method", None)
    names = wanted or [name for name in registry.names() if name not in registry.baselines()]
    if "method_name" in metafunc.fixturenames:
        metafunc.parametrize("method_name", names)
        return
    cases = _cases(names, metafunc.config.getoption("options", None))
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=str)
    elif "kind" in metafunc.fixturenames:
        kinds = list(dict.fromkeys(case.kind for case in cases))
        metafunc.parametrize("kind", kinds, ids=lambda kind: kind.name)


def _cases(names: Sequence[str], options: dict[str, Any] | None) -> list[Case]:
    """Those of every method that can be tried; ``test_the_method_can_be_loaded`` names the others."""
    cases: list[Case] = []
    for name in names:
        with suppress(SpecbenchError):
            cases += cases_of(find(name), options)
    return cases


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
