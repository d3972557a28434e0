"""A YAML file as plain values that still know their lines, and the faults found in it, all reported at once.

YAML is read by the core rules of version 1.2: ``1e-3`` is a number, ``on`` and ``no`` are text. A key given
twice is a fault, and no tag can build a Python object.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from specbench.errors import ConfigError, did_you_mean

Key = tuple[str | int, ...]
"""Where a value stands: names of mappings and indices of lists, from the top of the file."""

_MAX_NODES = 100_000
_ABSENT = object()
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """The safe loader with the implicit types of YAML 1.2 in place of those of 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class Document:
    """One file: its values, the line of each, and which of them the command line has set."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    overrides: list[Key] = field(default_factory=list)

    def line(self, key: Key) -> int:
        """The line of ``key``, or of the nearest thing around it that has one; 0 where nothing has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 0)

    def where(self, key: Key) -> str:
        """The place as errors name it: ``file:line: a.b`` or ``--set a.b``."""
        for override in reversed(self.overrides):
            if key[: len(override)] == override or (key not in self.lines and override[: len(key)] == key):
                return f"--set {dotted(override)}" + (f": {dotted(key)}" if key != override else "")
        place = _at(self.name, self.line(key))
        return f"{place}: {dotted(key)}" if key else place

    def text(self) -> str:
        """The values as YAML, overrides applied: what a run keeps as its resolved experiment."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=110)


class Faults:
    """Everything that is wrong with a document, one self-contained line each, in the order of the file."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._lines: dict[str, int] = {}

    def add(self, key: Key, problem: str, *, got: object = _ABSENT, known: Iterable[str] = ()) -> None:
        """Note one fault.

        Args:
            key: Where it stands.
            problem: What is wrong, without a full stop.
            got: The value that was found, if showing it helps.
            known: The names that would have been right; the nearest is suggested, or all are listed.
        """
        value = "" if got is _ABSENT else f", got {shown(got)}"
        name = key[-1] if problem == UNKNOWN_KEY and key else got
        hint = did_you_mean(str(name), known)
        text = problem + value
        sentence = text if text.endswith((".", "?")) else f"{text}."
        line = " ".join(filter(None, (f"{self._document.where(key)}: {sentence}", hint)))
        self._lines.setdefault(line, self._document.line(key))

    def raise_any(self) -> None:
        """Raise all faults together, if there are any.

        Raises:
            ConfigError: One line a fault.
        """
        if self._lines:
            raise ConfigError("\n".join(sorted(self._lines, key=lambda line: self._lines[line])))


UNKNOWN_KEY = "unknown key"


def _at(name: str, line: int) -> str:
    """``file:line``; an option of the command line has no lines worth naming."""
    return f"{name}:{line}" if line and not name.startswith("--set") else name


def dotted(key: Key) -> str:
    """``("methods", 0, "gamma")`` as ``methods.0.gamma``."""
    return ".".join(map(str, key))


def shown(value: object) -> str:
    """A value as an error shows it: in the words of YAML, and short."""
    text = repr(value) if isinstance(value, str | float) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read(path: Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigError: The file is missing, no YAML, empty or no mapping, repeats a key, or builds objects.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        hint = did_you_mean(path.name, sorted(sibling.name for sibling in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path}: no such file. {hint}".rstrip()) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start}).") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """The document in ``text``; ``name`` is what errors call it.

    Raises:
        ConfigError: As for ``read``.
    """
    document = Document(name)
    node = _compose(text, name)
    if node is None:
        raise ConfigError(f"{name}: the file is empty. An experiment needs name, targets and prompts.")
    faults = Faults(document)
    value = _Reader(document, faults).value(node, ())
    faults.raise_any()
    if not isinstance(value, dict):
        raise ConfigError(f"{name}:{document.line(())}: an experiment is a mapping of keys, got {shown(value)}.")
    document.values = value
    return document


def override(document: Document, assignment: str) -> None:
    """Apply one ``dotted.path=value`` of the command line; the value is YAML.

    Raises:
        ConfigError: The assignment has no path or no value, or its path leads through something without keys.
    """
    path, equals, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {assignment}: write it as section.key=value, like decode.batch_size=8.")
    name = f"--set {path.strip()}"
    value = _value(text, name)
    parent, key = _descend(document.values, parts, name)
    last = _step(parent, parts[-1], name)
    parent[last] = value
    document.overrides.append((*key, last))


def _value(text: str, name: str) -> Any:
    node = _compose(text, name)
    scratch = Document(name)
    faults = Faults(scratch)
    value = None if node is None else _Reader(scratch, faults).value(node, ())
    faults.raise_any()
    return value


def _descend(values: Any, parts: list[str], name: str) -> tuple[Any, Key]:
    """The mapping or list that holds the last part; mappings that are missing on the way are made."""
    key: Key = ()
    for part in parts[:-1]:
        step = _step(values, part, name)
        if isinstance(values, dict) and values.get(part) is None:
            values[part] = {}
        values = values[step]
        key = (*key, step)
    return values, key


def _step(values: object, part: str, name: str) -> str | int:
    if isinstance(values, dict):
        return part
    if not isinstance(values, list):
        raise ConfigError(f"{name}: {part!r} leads into a value that has no keys, got {shown(values)}.")
    if not part.isdecimal() or int(part) >= len(values):
        raise ConfigError(f"{name}: the list has the entries 0 to {len(values) - 1}, got {part!r}.")
    return int(part)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _at(name, mark.line + 1 if mark else 0)
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{place}: not valid YAML: {' '.join(problem.split())}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply.") from None
    return node


class _Reader:
    """Turns composed nodes into plain values and notes the line of each."""

    def __init__(self, document: Document, faults: Faults) -> None:
        self._document = document
        self._faults = faults
        self._open: set[int] = set()  # nodes that are being read: an alias to one of them would never end
        self._count = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        """The plain value of ``node``; faults are noted and read as null."""
        self._document.lines.setdefault(key, node.start_mark.line + 1)
        self._count += 1
        if self._count > _MAX_NODES:
            if self._count == _MAX_NODES + 1:
                self._faults.add(key, f"the file has more than {_MAX_NODES} values")
            return None
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace(_TAG, "!!")
            self._faults.add(key, f"the tag {tag} would build an object; only plain values are allowed")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if id(node) in self._open:
            self._faults.add(key, "an alias that contains itself")
            return None
        self._open.add(id(node))
        value = self._mapping(node, key) if isinstance(node, yaml.MappingNode) else self._list(node, key)
        self._open.discard(id(node))
        return value

    def _list(self, node: yaml.Node, key: Key) -> list[Any]:
        return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, item in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                self._document.lines[(*key, "?")] = line
                self._faults.add((*key, "?"), "a key must be one word")
                continue
            place = (*key, name.value)
            if name.value in values:
                first = self._document.lines[place]
                self._document.lines[place] = line
                self._faults.add(place, f"the key is given twice, first on line {first}")
                continue
            self._document.lines[place] = line
            values[name.value] = self.value(item, place)
        return values

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text = node.value
        try:
            match node.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            self._faults.add(key, "the value does not fit its tag", got=text)
            return None
        return text
