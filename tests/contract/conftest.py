import pytest

pytest.register_assert_rewrite("specbench.testing")

from specbench.testing.conftest import pytest_generate_tests  # noqa: E402, F401
