"""The contract suite: what every method owes, for any method that can be imported.

``pytest --pyargs specbench.testing`` runs it on every registered method, those of other packages included;
``--method my_package.my_module:MyMethod`` on one, registered or not. It needs no network, no trained weights, no GPU.
"""

from importlib.util import find_spec

from specbench.errors import UnsupportedError

if find_spec("pytest") is None:
    raise UnsupportedError("specbench.testing needs pytest: pip install 'specbench[testing]'")
