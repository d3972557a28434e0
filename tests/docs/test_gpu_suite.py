"""experiments/gpu, its README and `make gpu` speak of the same parts, and of eight minutes."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "experiments" / "gpu"
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PARTS = [path.removesuffix(".yaml") for path in yaml.safe_load((SUITE / "all.yaml").read_text("utf-8"))["experiments"]]


def seconds() -> dict[str, int]:
    """What each part may take."""
    [line] = re.findall(r"^GPU_PARTS := (.*)$", MAKEFILE, flags=re.MULTILINE)
    return {name: int(most) for name, _, most in (part.partition(":") for part in line.split())}


def test_every_part_is_listed_timed_and_explained_in_one_order():
    rows = re.findall(r"^\| `(\w+)\.yaml` \|", (SUITE / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    assert rows == PARTS == list(seconds())
    assert sorted(PARTS) == sorted(path.stem for path in SUITE.glob("*.yaml") if path.stem != "all")


def test_tests_parts_and_report_together_may_take_eight_minutes():
    others = [int(most) for most in re.findall(r"^GPU_\w+_S := (\d+)$", MAKEFILE, flags=re.MULTILINE)]
    assert len(others) == 3
    assert sum(seconds().values()) + sum(others) <= 8 * 60


def test_a_number_names_the_published_folder_that_it_comes_from():
    """Nothing pretends: a cell of the GPU column is empty of numbers, or names a folder that is there."""
    rows = re.findall(r"^\| `\w+\.yaml` \|.*\| (.*) \|$", (SUITE / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    folders = [path.name for path in (ROOT / "results" / "published").iterdir() if path.is_dir()]
    assert rows
    for cell in rows:
        assert cell == "not measured yet" or any(folder in cell for folder in folders), cell
