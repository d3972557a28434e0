"""Methods by name. A method is imported when it is first asked for, so that naming one costs no torch.

The built-in names stand in ``methods.METHODS``; the entry-point group ``specbench.methods`` adds third-party
ones. Both map a name to ``"module:Class"``. A plug-in that is broken, or whose name is taken, is refused when it is
asked for and stands in nobody's way until then.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import ConfigError, ContractError, UnknownNameError, UnsupportedError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from specbench.decode.method import Method
    from specbench.decode.outside import Baseline

_PACKAGE = "methods"
_GROUP = "specbench.methods"
_BASELINES = {
    "transformers-generate": "specbench.bench.baselines:TransformersGenerate",
    "transformers-assisted": "specbench.bench.baselines:TransformersAssisted",
    "transformers-prompt-lookup": "specbench.bench.baselines:TransformersPromptLookup",
}


@dataclass(frozen=True)
class _Entry:
    """Where a method is: ``"module:Class"``, the package that offers it, and what is wrong with its name."""

    location: str
    package: str = ""
    fault: str = ""


def names() -> list[str]:
    """Every method's name: the built-in ones in the order of their table, then the others by alphabet.

    Raises:
        ConfigError: Another package shadows ``methods``.
    """
    return list(_table())


def baselines() -> list[str]:
    """Which of the names are outside baselines: they decode by themselves, and are no methods on the core."""
    return list(_BASELINES)


def origins() -> dict[str, str]:
    """The package and version that every method comes from, nothing for a built-in one; or why its name is no use.

    Raises:
        ConfigError: Another package shadows ``methods``.
    """
    return {name: entry.fault or entry.package for name, entry in _table().items()}


def check_name(name: str) -> None:
    """Refuse a name that is in no table, or in two; imports no method.

    Raises:
        UnknownNameError: With the nearest name and all the known ones.
        ConfigError: Two methods have the name.
    """
    known = names()
    if name not in known:
        nearest = did_you_mean(name, known)
        listed = "" if nearest.startswith("Known") else f" Known: {', '.join(known)}."
        raise UnknownNameError(f"unknown method {name!r}. {nearest}{listed}")
    if fault := _table()[name].fault:
        raise ConfigError(fault)


def load(name: str) -> "type[Method]":
    """The class of a method.

    Raises:
        UnknownNameError: No table has the name.
        ConfigError: Two methods have the name.
        UnsupportedError: Its module cannot be imported, or it is an outside baseline.
        ContractError: What is there is no method of that name.
    """
    check_name(name)
    if name in _BASELINES:
        raise UnsupportedError(f"{name} decodes by itself: it can be measured by run, and has no method on the core")
    found = load_from(_table()[name].location, f"method {name!r}")
    if found.name != name:
        raise ContractError(f"method {name!r} calls itself {found.name!r}; its class attribute name must be the same")
    return found


def load_from(location: str, subject: str = "a method") -> "type[Method]":
    """The class at ``"module:Class"``, registered or not.

    Raises:
        UnsupportedError: The module cannot be imported.
        ContractError: What is there is no method.
    """
    from specbench.decode.method import Method  # the list of names must not wait for torch

    module_name, _, class_name = location.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever someone's module raises is one line here
        words = str(error).partition("\n")[0] or type(error).__name__
        raise UnsupportedError(f"{subject} cannot be imported from {location!r}: {words}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ContractError(f"{subject} is said to be {location!r}, but that is no class")
    if not issubclass(found, Method):
        raise ContractError(f"{subject} is {location!r}, which does not derive from specbench.decode.method.Method")
    if inspect.isabstract(found):
        raise ContractError(f"{subject} is {location!r}, which lacks {', '.join(sorted(found.__abstractmethods__))}")
    if not isinstance(getattr(found, "name", None), str):
        raise ContractError(f"{subject} is {location!r}, which lacks the class attribute name")
    return found


def load_baseline(name: str) -> "type[Baseline]":
    """The class of an outside baseline, one of ``baselines()``."""
    module_name, _, class_name = _BASELINES[name].partition(":")
    found: type[Baseline] = getattr(import_module(module_name), class_name)
    return found


def options_class(name: str) -> "type[BaseModel]":
    """The options of a method or of an outside baseline: its class ``Options``, a strict and frozen pydantic model.

    Raises:
        ContractError: The method has none, or one that would let a misspelt option pass.
    """
    from pydantic import BaseModel

    options = (load_baseline(name) if name in _BASELINES else load(name)).Options
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise ContractError(f"method {name!r} has no class Options derived from pydantic.BaseModel")
    if options.model_config.get("extra") != "forbid" or not options.model_config.get("frozen"):
        raise ContractError(f"the Options of method {name!r} must be frozen and forbid extra keys")
    return options


@cache
def _table() -> Mapping[str, _Entry]:
    """Every name, the built-in ones first. A name that two packages claim belongs to neither."""
    table = {name: _Entry(location) for name, location in (_built_in() | _BASELINES).items()}
    for point in sorted(entry_points(group=_GROUP), key=lambda point: (point.name, point.value)):
        taken = table.get(point.name)
        table[point.name] = _Entry(point.value, _owner(point)) if taken is None else _clash(taken, point)
    return table


def _clash(taken: _Entry, point: EntryPoint) -> _Entry:
    owner = f" of {taken.package}" if taken.package else ""
    fault = (
        f"two methods are called {point.name!r}: {taken.location!r}{owner} and {point.value!r} of {_owner(point)}. "
        "Uninstall one of them."
    )
    return replace(taken, fault=fault)


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"


def _built_in() -> dict[str, str]:
    """The table of the package that lies beside this one, and of no other that has taken its name.

    Raises:
        ConfigError: There is no such package, or it is another one.
    """
    expected = Path(__file__).resolve().parent.parent / _PACKAGE
    try:
        package = import_module(_PACKAGE)
    except ModuleNotFoundError:
        raise ConfigError(f"the package {_PACKAGE!r} is not importable; it should lie at {expected}.") from None
    found = Path(package.__file__).resolve().parent if package.__file__ else None
    if found != expected:
        place = found or "an empty folder of that name"
        raise ConfigError(f"another package shadows {_PACKAGE!r}: {place} was imported, not {expected}. Remove it.")
    return dict(package.METHODS)
