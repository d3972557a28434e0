"""Triton's interpreter, as it has to be for the numpy that is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def mend(replace: Callable[[Any, str, Any], None]) -> None:
    """Triton 3.6 makes integers of arrays with one element in a way that numpy 2.4 has given up."""
    if find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    replace(interpreter, "_patch_lang_tensor", mended)
