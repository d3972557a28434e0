import pytest

from tests.unit.models import tiny


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    return tiny.zoo(tmp_path_factory.mktemp("zoo"))
