import pytest
import torch

from specbench.bench import ceilings
from tests.unit.models import tiny


@pytest.fixture(autouse=True, scope="session")
def rough_ceilings():
    """What the machine does at best is of no matter here, and takes longest to find out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "_BUDGET_S", 0.0)
        patch.setitem(ceilings._SQUARE, "cpu", 64)
        yield


@pytest.fixture
def folder(tmp_path, family):
    """A working folder that holds a tiny family."""
    (tmp_path / "zoo").symlink_to(family)
    return tmp_path


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.zoo(tmp_path_factory.mktemp("zoo"))
