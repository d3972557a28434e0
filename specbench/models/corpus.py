"""The text that the embedded family knows: Python's own standard library, split into training and held-out modules.

The held-out list names modules whose source is the same, byte for byte, in several Python releases. Each carries its
hash, so that a machine whose copy differs skips the module and says so: two users' prompts are then equal or named.
Prompts come from the modules that no release has changed before they come from any other.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# sha256 (first 16 hex digits) of each module's source, as CPython 3.11.7, 3.12.1 and 3.13.0 have it.
HELD_OUT: dict[str, str] = {
    "concurrent/futures/_base.py": "8c6d5f09f7c535d4",
    "weakref.py": "56f8d313fb74019e",
    "email/header.py": "4d9baa908ad5288d",
    "graphlib.py": "7bd338c5a475d110",
    "heapq.py": "6d43277e5c76fc0f",
    "urllib/robotparser.py": "389b811835f9a3ba",
    "xml/etree/ElementPath.py": "ae8a80a8b51567b4",
    "xml/sax/saxutils.py": "3fe2cdb6386e0c4d",
    "xml/dom/pulldom.py": "614b88673d496a36",
    "xml/dom/xmlbuilder.py": "d4f33a8f01875562",
    "unittest/suite.py": "ed2da92bc9f97c53",
    "py_compile.py": "3464f04938b57a7a",
    "_threading_local.py": "e1bf3dae66d0bfa6",
    "multiprocessing/heap.py": "f6bb79bb99b9ae48",
    "multiprocessing/synchronize.py": "9afc08f6d99deb0c",
    "multiprocessing/reduction.py": "4999f8b9ae7b3e8a",
    "zoneinfo/_zoneinfo.py": "ebb9b679519a2325",
    "email/headerregistry.py": "fada56c25b6a457c",
    "email/contentmanager.py": "2d81026aef17e478",
    "pyclbr.py": "e8ca09333701ba41",
    "tracemalloc.py": "c2cc84a05b824df7",
    "wsgiref/headers.py": "0fbf95a47d8e4c0d",
    "html/__init__.py": "923d82d821e75e8d",
    "_markupbase.py": "cb14dd6f2e2439eb",
}

UNCHANGED: tuple[str, ...] = (
    "xml/etree/ElementPath.py",
    "xml/sax/saxutils.py",
    "xml/dom/pulldom.py",
    "unittest/suite.py",
    "multiprocessing/heap.py",
    "email/headerregistry.py",
    "pyclbr.py",
    "tracemalloc.py",
)
"""The held-out modules that are equal in every release looked at, from 3.11.2 to 3.14.2."""

# Folders that hold tests, foreign packages, or tables that no model should spend its weights on.
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "site-packages", "__pycache__", "ensurepip", "encodings", "pydoc_data", "idle_test"}
)

_LARGEST_TEST_BYTES = 300_000


@dataclass(frozen=True)
class Module:
    """One source file: its path below the library's root, and its text."""

    path: str
    text: str


def library_root() -> Path:
    """The folder that holds this Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def training_modules(root: Path | None = None) -> list[Module]:
    """Every library module that is neither held out nor in a skipped folder, in the order of its path."""
    root = root or library_root()
    paths = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    return [
        Module(path.as_posix(), (root / path).read_text("utf-8", errors="replace"))
        for path in paths
        if path.as_posix() not in HELD_OUT and not _SKIPPED_FOLDERS.intersection(path.parts)
    ]


def library_tests(root: Path | None = None) -> list[Module]:
    """The library's own tests, in the order of their paths: code that no model of the family has learned.

    Empty where a distribution leaves them out. Files of tables are none of them.
    """
    root = root or library_root()
    paths = sorted(path.relative_to(root) for path in (root / "test").rglob("*.py"))
    return [
        Module(path.as_posix(), (root / path).read_text("utf-8", errors="replace"))
        for path in paths
        if (root / path).stat().st_size < _LARGEST_TEST_BYTES
    ]


@dataclass(frozen=True)
class HeldOut:
    """The held-out modules found here, and a reason for each that is missing or differs."""

    modules: list[Module]
    skipped: dict[str, str]


def held_out_modules(root: Path | None = None) -> HeldOut:
    """The held-out modules of this Python, in the fixed order of the list; a changed one is skipped and named."""
    root = root or library_root()
    modules, skipped = [], {}
    for name, expected in HELD_OUT.items():
        try:
            source = (root / name).read_bytes()
        except OSError:
            skipped[name] = "missing in this Python"
            continue
        if hashlib.sha256(source).hexdigest()[:16] != expected:
            skipped[name] = "its source differs in this Python"
            continue
        modules.append(Module(name, source.decode("utf-8")))
    return HeldOut(modules, skipped)
