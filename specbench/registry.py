"""Methods by name. A method is imported when it is first asked for, so that naming one costs no torch.

The built-in names stand in ``methods.METHODS``; the entry-point group ``specbench.methods`` adds third-party
ones. Both map a name to ``"module:Class"``.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import ConfigError, ContractError, UnknownNameError, UnsupportedError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

_PACKAGE = "methods"
_GROUP = "specbench.methods"


def names() -> list[str]:
    """Every method's name: the built-in ones in the order of their table, then the others by alphabet.

    Raises:
        ConfigError: Another package shadows ``methods``, or a third-party name is taken.
    """
    return list(_table())


def check_name(name: str) -> None:
    """Refuse a name that is in no table; imports no method.

    Raises:
        UnknownNameError: With the nearest name and all the known ones.
    """
    known = names()
    if name not in known:
        nearest = did_you_mean(name, known)
        listed = "" if nearest.startswith("Known") else f" Known: {', '.join(known)}."
        raise UnknownNameError(f"unknown method {name!r}. {nearest}{listed}")


def load(name: str) -> type:
    """The class of a method.

    Raises:
        UnknownNameError: No table has the name.
        UnsupportedError: Its module needs something that is not installed.
        ContractError: Its module has no such class.
    """
    check_name(name)
    location = _table()[name]
    module_name, _, class_name = location.partition(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise UnsupportedError(f"method {name!r} cannot be imported from {location!r}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ContractError(f"method {name!r} is said to be {location!r}, but that is no class")
    return found


def options_class(name: str) -> "type[BaseModel]":
    """The options of a method: its class ``Options``, a strict and frozen pydantic model.

    Raises:
        ContractError: The method has none, or one that would let a misspelt option pass.
    """
    from pydantic import BaseModel  # the list of names must not wait for it

    options = getattr(load(name), "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise ContractError(f"method {name!r} has no class Options derived from pydantic.BaseModel")
    if options.model_config.get("extra") != "forbid" or not options.model_config.get("frozen"):
        raise ContractError(f"the Options of method {name!r} must be frozen and forbid extra keys")
    return options


@cache
def _table() -> Mapping[str, str]:
    """Every name and its location.

    Raises:
        ConfigError: Two methods have one name.
    """
    built_in = _built_in()
    third_party: dict[str, str] = {}
    for entry in sorted(entry_points(group=_GROUP), key=lambda entry: (entry.name, entry.value)):
        taken = built_in.get(entry.name) or third_party.get(entry.name)
        if taken:
            owner = entry.dist.name if entry.dist else "an installed package"
            raise ConfigError(
                f"two methods are called {entry.name!r}: {taken!r} and {entry.value!r} of {owner}. "
                "Uninstall one of them."
            )
        third_party[entry.name] = entry.value
    return {**built_in, **third_party}


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
