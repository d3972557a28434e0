"""What a method's source imports that it must not: clocks, loops, counters, other methods, the rest of specbench."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path

from specbench.decode.method import Method

_CONTRACT = ("specbench.decode", "specbench.models", "specbench.errors")
_FORBIDDEN = (
    "datetime",
    "methods",
    "specbench",
    "time",
    "timeit",
    "torch.cuda.Event",
    "torch.cuda.synchronize",
    "torch.profiler",
    "torch.utils.benchmark",
)
_LOOP = ("specbench.decode.loop", "specbench.decode.trace")


def foreign_imports(kind: type[Method]) -> list[str]:
    """``module:line: name`` for everything out of bounds, in the method's module and what it imports of its folder."""
    own = _folder(kind.__module__)
    faults, seen, waiting = [], set(), [kind.__module__]
    while waiting:
        module = waiting.pop()
        source = _source(module)
        if module in seen or source is None:
            continue
        seen.add(module)
        for line, name in _names(ast.parse(source.read_text("utf-8")), module, source):
            if _within(name, (own,)):
                waiting += [name, name.rpartition(".")[0]]
            elif _within(name, _LOOP) or (_within(name, _FORBIDDEN) and not _within(name, _CONTRACT)):
                faults.append(f"{module}:{line}: {name}")
    return faults


def _folder(module: str) -> str:
    """A built-in method's folder lies in ``methods``; that of any other is its whole package."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "methods" else 1])


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _source(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # the name of a class, or of a function
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _names(tree: ast.AST, module: str, source: Path) -> Iterator[tuple[int, str]]:
    """Every dotted name that is imported, or reached through attributes, with its line."""
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.startswith(("torch.", "specbench.")):
                yield node.lineno, dotted
