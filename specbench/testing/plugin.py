"""The options that the suite adds to pytest: known everywhere through the entry-point group ``pytest11``.

Nothing heavy is imported here, since every pytest of an environment with specbench in it imports this.
"""

import json

import pytest

from specbench.errors import SpecbenchError


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--method`` and ``--options``."""
    group = parser.getgroup("specbench", "the contract suite of specbench.testing")
    group.addoption(
        "--method",
        action="append",
        metavar="NAME",
        help="a registered name or package.module:Class; repeatable, all registered methods without it",
    )
    group.addoption(
        "--options",
        type=json.loads,
        metavar="JSON",
        help="the one option set to try, as a JSON object; the method's examples without it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a method that cannot be tried with one line, before anything is collected."""
    config.addinivalue_line("markers", "statistical: compares distributions; seeded, with a bounded false-alarm rate")
    wanted, options = config.getoption("--method"), config.getoption("--options")
    if options is not None and not isinstance(options, dict):
        raise pytest.UsageError(f"--options takes a JSON object like '{{\"gamma\": 4}}', got {json.dumps(options)}")
    if options is not None and len(wanted or []) != 1:
        raise pytest.UsageError("--options belongs to one --method")
    if not wanted:
        return
    from specbench.testing.cases import cases_of, find

    try:
        for name in wanted:
            cases_of(find(name), options)
    except SpecbenchError as error:
        raise pytest.UsageError(str(error)) from error
