from tests.unit.bench.conftest import rough_ceilings  # noqa: F401
