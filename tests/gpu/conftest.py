"""Every method's examples, as in the contract suite; and nothing here is run without a GPU."""

from specbench.testing.conftest import pytest_generate_tests  # noqa: F401
