"""Models, oracles and methods that the tests share; those of ``specbench.testing`` among them."""

from specbench.testing import laws, models

__all__ = ["laws", "models"]
