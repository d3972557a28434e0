"""Which prompts of a source are taken.

Where there are more than the experiment wants, every category gives as many as every other: they take turns, and which
of its prompts a category gives is drawn by ``prompts.seed``. A shorter list is the beginning of a longer one.
"""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import zip_longest

from specbench.bench.prompt_sources import PromptTable
from specbench.config import PromptSettings
from specbench.errors import ConfigError, did_you_mean


def in_order(table: PromptTable, settings: PromptSettings) -> list[int]:
    """The rows that may be taken, those to take first in front.

    Raises:
        ConfigError: An id or a category that the source does not have.
    """
    if settings.ids is not None:
        return _by_id(table, settings.ids)
    rows = _of_categories(table, settings.categories)
    preferred = [row for row in rows if row < table.preferred]
    others = [row for row in rows if row >= table.preferred]
    return [*spread(table, preferred, settings.seed), *spread(table, others, settings.seed)]


def spread(table: PromptTable, rows: Sequence[int], seed: int) -> list[int]:
    """The rows with their categories taking turns; the seed draws the order of both."""

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    strata: dict[str | None, list[int]] = {}
    for row in sorted(rows, key=lambda row: drawn(table.ids[row])):
        strata.setdefault(table.categories[row], []).append(row)
    categories = sorted(strata, key=lambda category: drawn(category or ""))
    rounds = zip_longest(*(strata[category] for category in categories))
    return [row for turn in rounds for row in turn if row is not None]


def _by_id(table: PromptTable, ids: Sequence[str]) -> list[int]:
    rows = {prompt_id: row for row, prompt_id in enumerate(table.ids)}
    for prompt_id in ids:
        if prompt_id not in rows:
            missing = [f"{part}: {reason}" for part, reason in table.skipped.items() if part in prompt_id]
            nearest = get_close_matches(prompt_id, rows, n=1, cutoff=0)
            hint = missing or [f"the nearest is {name!r}" for name in nearest] or ["it has none"]
            raise ConfigError(f"prompts.ids: {table.name} has no prompt {prompt_id!r}; {hint[0]}")
    return [rows[prompt_id] for prompt_id in ids]


def _of_categories(table: PromptTable, wanted: Sequence[str] | None) -> list[int]:
    if wanted is None:
        return list(range(len(table.ids)))
    known = sorted({category for category in table.categories if category is not None})
    for category in wanted:
        if category not in known:
            hint = table.skipped.get(category) or did_you_mean(category, known) or "Its prompts have no categories."
            raise ConfigError(f"prompts.categories: {table.name} has no category {category!r}. {hint}")
    return [row for row, category in enumerate(table.categories) if category in wanted]
