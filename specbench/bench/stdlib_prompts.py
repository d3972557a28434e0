"""Prompts of Python code: held-out library modules, each cut where the body of a function is about to begin."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specbench.models.corpus import UNCHANGED, Module, held_out_modules

# No token of a byte-level vocabulary is longer for long, so more text than this cannot end up in a prompt.
_CHARACTERS_PER_TOKEN = 16
# A body of fewer lines leaves a model nothing to say.
_LEAST_BODY_LINES = 3


@dataclass(frozen=True)
class CodePrompt:
    """The text of a module up to the body of one of its functions."""

    name: str
    module: str
    text: str


@dataclass(frozen=True)
class StdlibTexts:
    """All prompts that this Python has.

    Attributes:
        prompts: Those of the modules that are equal in every Python release come first.
        unchanged: How many those are.
        skipped: The modules that are missing or differ here, with the reason.
    """

    prompts: list[CodePrompt]
    unchanged: int
    skipped: dict[str, str]


def stdlib_texts(max_tokens: int, root: Path | None = None) -> StdlibTexts:
    """Every prompt, module by module.

    Args:
        max_tokens: What prompts will be cut to; a few more characters are kept.
        root: Where the library lies; None for this Python's own.
    """
    held_out = held_out_modules(root)
    modules = sorted(held_out.modules, key=lambda module: module.path not in UNCHANGED)
    prompts = [prompt for module in modules for prompt in _prompts(module, max_tokens)]
    unchanged = sum(prompt.module in UNCHANGED for prompt in prompts)
    return StdlibTexts(prompts, unchanged, held_out.skipped)


def _prompts(module: Module, max_tokens: int) -> Iterator[CodePrompt]:
    lines = module.text.splitlines(keepends=True)
    for function in ast.walk(ast.parse(module.text)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        end = _head_end(function, lines)
        if (function.end_lineno or 0) - end < _LEAST_BODY_LINES:
            continue
        name = f"{module.path}:{function.lineno}:{function.name}"
        yield CodePrompt(name, module.path, _tail(lines[:end], max_tokens * _CHARACTERS_PER_TOKEN))


def _head_end(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """The last line of the signature, or of the docstring where there is one; lines count from 1."""
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        return first.end_lineno or first.lineno
    # From the last argument on, for a default may end in a colon too; a comment before the body belongs to the body.
    inside = [node.end_lineno or 0 for node in ast.walk(function.args) if isinstance(node, ast.expr | ast.arg)]
    returns = function.returns.end_lineno or 0 if function.returns else 0
    end = max([function.lineno, returns, *inside])
    while end < first.lineno - 1 and not lines[end - 1].partition("#")[0].rstrip().endswith(":"):
        end += 1
    return end


def _tail(lines: list[str], characters: int) -> str:
    """The last lines that have that many characters between them; whole lines, so that tokens stay the same."""
    total, start = 0, len(lines)
    while start and total < characters:
        start -= 1
        total += len(lines[start])
    return "".join(lines[start:])
