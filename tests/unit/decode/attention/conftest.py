"""What the tests of our kernel share."""

import pytest

from support import interpreter


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter.mend(monkeypatch.setattr)
