"""Numbers and lists in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from specbench.analysis.speedup import Speedup

Row = Mapping[Any, Any]


def times(value: float) -> str:
    """A ratio: ``1.45 times``."""
    return f"{value:.2f} times"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 batch``, ``2 batches``: the plural is the noun with an s unless it is given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def batches(number: int) -> str:
    """So many batches of prompts."""
    return f"{counted(number, 'batch', 'batches')} of prompts"


def ordinal(number: int) -> str:
    """``first``, ``second``, ... ``tenth``, then ``11th``."""
    names = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
    if number <= len(names):
        return names[number - 1]
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in {11, 12, 13} else "th"
    return f"{number}{suffix}"


def listed(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def share(value: float) -> str:
    """A fraction as a whole percentage."""
    return f"{100 * value:.0f} %"


def milliseconds(value: float) -> str:
    """Milliseconds with as many digits as they have to say."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2g} ms"


def bounds(low: Any, high: Any, units: int) -> str:
    """A speed-up's interval in brackets, or why there is none."""
    if low is None or pd.isna(low):
        return f"no interval: {batches(units)}, at least 4 are needed"
    return f"95 % interval {low:.2f} to {high:.2f}, {batches(units)}"


def bounds_of(found: Speedup) -> str:
    """The same for a comparison that is not in the summary."""
    interval = found.interval
    return bounds(interval.low if interval else None, interval.high if interval else None, found.units)


def text_note(row: Row) -> str:
    """What a reader must know of an arm's text before its speed: `` (simulated)``, `` (lossy)``, or nothing."""
    if row["simulated"]:
        return " (simulated)"
    return "" if row["lossless"] else " (lossy)"


def arm_words(row: Row) -> str:
    """An arm's name with that note."""
    return f"{row['arm']}{text_note(row)}"


def text_notes(summary: pd.DataFrame) -> dict[str, str]:
    """The note of every arm over all cells, for names that stand beside several of them."""
    found: dict[str, list[str]] = {}
    for row in summary.to_dict("records"):
        found.setdefault(str(row["arm"]), []).append(text_note(row))
    return {arm: _over_cells(notes) for arm, notes in found.items()}


def _over_cells(notes: Sequence[str]) -> str:
    told = sorted({note for note in notes if note})
    return "".join(note if all(notes) else f"{note[:-1]} in some cells)" for note in told)


def named_some(names: Sequence[str], most: int = 4) -> str:
    """All names, or the first few and how many there are beside them."""
    if len(names) <= most:
        return listed(names)
    return f"{', '.join(names[:most])} and {counted(len(names) - most, 'other')}"
