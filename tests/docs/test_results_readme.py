"""results/README.md: the column dictionary."""

from pathlib import Path

from specbench.records.schema import TABLES, markdown

README = Path(__file__).parents[2] / "results" / "README.md"


def test_the_column_dictionary_is_the_one_that_the_schema_generates():
    stored = README.read_text(encoding="utf-8")
    assert stored == markdown(), "results/README.md is stale; run: python -m specbench.records.schema"


def test_every_column_has_a_sentence():
    sentences = {column.name: column.meaning for columns in TABLES.values() for column in columns}
    assert [name for name, meaning in sentences.items() if not meaning.endswith(".")] == []
