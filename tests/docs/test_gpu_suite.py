"""experiments/gpu, its README and `make gpu` speak of the same parts, and of eight minutes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
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
    assert len(others) == 4
    assert sum(seconds().values()) + sum(others) <= 8 * 60


def test_a_number_names_the_published_folder_that_it_comes_from():
    """Nothing pretends: a cell of the GPU column is empty of numbers, or names a folder that is there."""
    rows = re.findall(r"^\| `\w+\.yaml` \|.*\| (.*) \|$", (SUITE / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    folders = [path.name for path in (ROOT / "results" / "published").iterdir() if path.is_dir()]
    assert rows
    for cell in rows:
        assert cell == "not measured yet" or any(folder in cell for folder in folders), cell


# --- what `make gpu` starts, with programs in place of python and specbench that note how they were called

NOTES = """#!/bin/sh
echo "$(basename "$0") $*" | tr '\\n' ' ' >> {calls}
echo >> {calls}
case "$*" in
  -c*) exec {python} -c 'import sys; sys.exit({gpu})' ;;
  *methods*) exit 3 ;;
  *batches*) sleep 2 ;;
esac
"""


@pytest.fixture
def make_gpu(tmp_path):
    """Runs `make gpu`; gives its exit code, its last line on stderr, and what it called."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()

    def make(*settings, gpu="0"):
        for name in ("python", "specbench"):
            (programs / name).write_text(NOTES.format(calls=calls, python=sys.executable, gpu=gpu))
            (programs / name).chmod(0o755)
        (programs / ".installed").touch()
        command = ["make", "gpu", f"BIN={programs}", f"GPU_RESULTS={tmp_path / 'results'}", *settings]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr.splitlines(), calls.read_text().splitlines()

    return make


def test_what_fails_or_runs_out_of_time_is_named_and_the_rest_and_the_report_come_all_the_same(make_gpu, tmp_path):
    code, errors, calls = make_gpu("GPU_PARTS=texts:9 methods:9 batches:1 large:9")
    assert code != 0
    assert "error: with an exit code of their own: methods (3) batches (124);" in errors[0]
    runs = [re.search(r"^specbench (run|report) (\S+)", call) for call in calls]
    assert [found.groups() for found in runs if found] == [
        *(("run", f"experiments/gpu/{part}.yaml") for part in ("texts", "methods", "batches", "large")),
        ("report", str(tmp_path / "results")),
    ]
    [tests] = [call for call in calls if " -m pytest " in call]
    assert "tests/gpu/test_waiting.py" in tests
    assert f"--junitxml={tmp_path / 'results'}/tests.xml" in tests
    for command in ("overhead", "kernels"):
        [call] = [call for call in calls if f"specbench.bench.{command} --device cuda" in call]
        assert f"--out {tmp_path / 'results'}/{command}.json" in call


def test_a_suite_that_ends_well_says_so_by_its_exit_code(make_gpu):
    code, errors, _ = make_gpu("GPU_PARTS=texts:9")
    assert (code, errors) == (0, [])


def test_without_a_gpu_one_line_says_so_and_nothing_is_run(make_gpu):
    code, errors, calls = make_gpu(gpu='"error: make gpu needs a GPU"')
    assert code != 0
    assert errors[0] == "error: make gpu needs a GPU"
    assert [call.split()[:2] for call in calls] == [["python", "-c"]]
