"""methods/README.md: a reader who does what its five steps say, in a copy of the checkout, has a method."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import specbench
from methods import METHODS

ROOT = Path(specbench.__file__).parents[1]
README = (ROOT / "methods" / "README.md").read_text("utf-8")
STEPS = re.split(r"^\d\. ", README.partition("\n## ")[0], flags=re.MULTILINE)[1:]
MODULES = {"specbench": ["specbench"], "pytest": ["pytest", "-p", "specbench.testing.plugin", "-p", "no:cacheprovider"]}


def block(step: int, language: str) -> str:
    """The one fenced block of a step, without its indentation."""
    [found] = re.findall(rf"^   ```{language}\n(.*?)^   ```$", STEPS[step - 1], flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^   ", "", found, flags=re.MULTILINE)


def write(folder: Path, text: str) -> None:
    """A file whose first line is a comment with its name."""
    name, _, rest = text.partition("\n")
    (folder / name.removeprefix("# ")).write_text(rest, "utf-8")


def do(folder: Path, command: str) -> str:
    """A command of the guide, with the copy in front of the path."""
    program, *arguments = shlex.split(command)
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", *MODULES[program], *arguments]
    done = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout after the steps that write: the file, its name, the experiment."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("specbench", "methods"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "zoo"))
    (folder / "specbench" / "zoo").symlink_to(ROOT / "specbench" / "zoo")
    (folder / "pytest.ini").write_text("[pytest]\n")  # so that none of a folder above is read
    write(folder, block(1, "python"))
    table = folder / "methods" / "__init__.py"
    table.write_text(table.read_text("utf-8").replace("\n}", f"\n    {block(2, 'python').strip()}\n}}"), "utf-8")
    write(folder, block(4, "yaml"))
    return folder


def test_there_are_five_steps():
    assert len(STEPS) == 5


@pytest.mark.parametrize(
    "some", ["-k 'transformers or imports or loaded'", pytest.param("", marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_suite_of_the_third_step_passes(checkout, some):
    [command] = block(3, "sh").splitlines()
    assert " passed" in do(checkout, f"{command} {some}")


def test_the_method_is_measured_as_the_fifth_step_says(checkout):
    for command in block(5, "sh").splitlines():
        do(checkout, command)
    [page] = (checkout / "results").rglob("report.html")
    assert "repeat_last" in page.read_text("utf-8")


def test_every_method_of_the_table_stands_in_the_guide():
    assert [name for name in METHODS if f"| `{name}` |" not in README] == []
