"""README.md: its figure and its table."""

import json
from pathlib import Path

from specbench.report.readme import filled_text

ROOT = Path(__file__).parents[2]


def test_the_figure_and_the_table_show_the_numbers_that_are_kept_beside_the_figure():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    numbers = json.loads((ROOT / "experiments" / "quickstart.json").read_text(encoding="utf-8"))
    stale = "README.md is stale; run: specbench report results/quickstart --readme README.md"
    assert filled_text(text, numbers) == text, stale


def test_the_figure_lies_where_the_readme_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](experiments/quickstart.png)" in text
    assert (ROOT / "experiments" / "quickstart.png").stat().st_size > 10_000
