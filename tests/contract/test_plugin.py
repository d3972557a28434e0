"""A method in a package of its own: installed, listed, checked, run and put to the suite, as its author would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

import specbench
from specbench import cli, registry
from specbench.testing import plugin
from tests.unit.models import tiny

ROOT = Path(specbench.__file__).parents[1]
EXPERIMENT = """
name: plug-in
targets: [{model: target}]
prompts: {source: prompts.txt, count: 2}
decode: {max_new_tokens: 8}
methods: [{METHOD: {gamma: 3}}]
measure: {repeats: 1, warmup: 1}
machine: {device: cpu}
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder on the path into which pip has installed the sample plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "tests" / "plugin", folder / "source")  # a build leaves files beside its sources
    install = "install --quiet --no-deps --no-index --no-build-isolation --disable-pip-version-check --target"
    command = [sys.executable, "-m", "pip", *install.split(), "site", "./source"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def folder(tmp_path) -> Path:
    """An experiment with the plug-in, on a tiny model."""
    tiny.save(tmp_path / "target")
    (tmp_path / "prompts.txt").write_text("def area(width, height):\nimport os\n")
    (tmp_path / "e.yaml").write_text(EXPERIMENT.replace("METHOD", "bigram"))
    return tmp_path


def python(*args: str, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    """``python -m ...`` with more folders on its path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path])), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def suite(*args: str, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    """The suite, also where specbench is on the path without being installed."""
    (cwd / "pytest.ini").write_text("[pytest]\n")  # so that none of a folder above is read
    plugin = ["pytest", "-p", "specbench.testing.plugin", "-p", "no:cacheprovider", "-q"]
    return python(*plugin, "--pyargs", "specbench.testing", *args, cwd=cwd, path=path)


def broken(folder: Path, **entries: str) -> Path:
    """A distribution with these entry points, and a module that is no method."""
    place = folder / "broken"
    (place / "half_installed-2.0.dist-info").mkdir(parents=True)
    (place / "half_installed.py").write_text("class Drafts:\n    pass\n")
    (place / "half_installed-2.0.dist-info" / "METADATA").write_text("Name: half-installed\nVersion: 2.0\n")
    lines = "\n".join(f"{name} = {location}" for name, location in entries.items())
    (place / "half_installed-2.0.dist-info" / "entry_points.txt").write_text(f"[specbench.methods]\n{lines}\n")
    return place


def test_the_list_names_the_package_of_a_plug_in(site, tmp_path):
    listed = python("specbench", "list", cwd=tmp_path, path=[site])
    [line] = [line for line in listed.stdout.splitlines() if "bigram" in line]
    assert line.split()[0] == "bigram"
    assert line.endswith("specbench-bigram 0.1")


def test_a_plug_in_runs_from_an_experiment(site, folder):
    result = python("specbench", "run", "e.yaml", cwd=folder, path=[site])
    assert (result.returncode, result.stderr) == (0, "")
    rows = pd.concat(map(pd.read_parquet, folder.glob("results/plug-in/*/requests.parquet/*.parquet")))
    rows = rows[(rows["method"] == "bigram") & (rows["pass"] == "headline")]
    assert len(rows) == 2
    assert (rows["verdict"] == "equal").all()
    assert rows["drafted_tokens"].gt(0).all()


def test_the_suite_passes_on_a_plug_in_by_its_registered_name(site, tmp_path):
    result = suite("--method", "bigram", "-k", "transformers or imports or loaded", cwd=tmp_path, path=[site])
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


@pytest.mark.slow
def test_the_whole_suite_passes_on_a_plug_in_that_is_not_registered(site, tmp_path):
    """And with options in place of its examples."""
    chosen = ("--method", "specbench_bigram.bigram:Bigram", "--options", '{"gamma": 2}')
    result = suite(*chosen, cwd=tmp_path, path=[site])
    assert result.returncode == 0, result.stdout


def test_the_suite_is_red_for_a_plug_in_that_looks_at_a_clock(site, tmp_path):
    chosen = ("--method", "specbench_bigram.clock:LooksAtTheClock", "-k", "imports or name")
    result = suite(*chosen, cwd=tmp_path, path=[site])
    assert result.returncode == 1
    assert "specbench_bigram.clock:3: time.perf_counter" in result.stdout
    assert "1 failed, 5 passed" in result.stdout


@pytest.fixture
def installed(site, folder, monkeypatch):
    """Pretend in this process that the sample plug-in, and a broken one with these entry points, are installed."""

    def install(**entries: str) -> None:
        monkeypatch.syspath_prepend(site)
        monkeypatch.syspath_prepend(broken(folder, **entries))
        registry._table.cache_clear()

    monkeypatch.chdir(folder)
    yield install
    registry._table.cache_clear()
    sys.modules.pop("half_installed", None)


def command(*args: str) -> tuple[int, str, list[str]]:
    """Exit code, output and the lines on stderr of a specbench command."""
    result = CliRunner().invoke(cli.app, list(args), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr.splitlines()


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["bigrm"], None, "unknown method 'bigrm'. Did you mean 'bigram'?"),
        (
            ["specbench_bigram.bigram:BigramOptions"],
            None,
            "a method is 'specbench_bigram.bigram:BigramOptions', which d",
        ),
        (["bigram"], {"gama": 3}, "bigram(gama=3): gama: Extra inputs are not permitted"),
        (["bigram"], [3], "--options takes a JSON object"),
        (None, {"gamma": 3}, "--options belongs to one --method"),
    ],
)
def test_a_method_that_cannot_be_tried_is_one_line(installed, methods, options, message):
    """``pytest.UsageError`` is what pytest prints as one line, with exit code 4."""
    installed()
    given = {"--method": methods, "--options": options}
    config = SimpleNamespace(getoption=given.get, addinivalue_line=lambda *_: None)
    with pytest.raises(pytest.UsageError) as caught:
        plugin.pytest_configure(config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "code", "message"),
    [
        (
            "no_such_module:Method",
            2,
            "method 'halves' cannot be imported from 'no_such_module:Method': No module named",
        ),
        ("half_installed:Drafts", 3, "method 'halves' is 'half_installed:Drafts', which does not derive from"),
    ],
)
def test_a_broken_plug_in_is_one_line_when_it_is_asked_for(installed, folder, location, code, message):
    installed(halves=location)
    (folder / "halves.yaml").write_text(EXPERIMENT.replace("METHOD", "halves"))
    exit_code, _, errors = command("check", "halves.yaml")
    assert (exit_code, len(errors)) == (code, 1)
    assert message in errors[0]
    assert command("check", "e.yaml")[0] == command("list")[0] == 0


def test_a_taken_name_is_one_line_and_other_methods_still_work(installed, folder):
    installed(prompt_lookup="half_installed:Drafts")
    taken = (
        "two methods are called 'prompt_lookup': 'methods.prompt_lookup:PromptLookup' and 'half_installed:Drafts' of "
    )
    assert taken in command("list")[1]
    (folder / "lookup.yaml").write_text(EXPERIMENT.replace("METHOD", "prompt_lookup"))
    exit_code, _, errors = command("check", "lookup.yaml")
    assert (exit_code, len(errors)) == (2, 1)
    assert taken in errors[0]
    assert command("check", "e.yaml")[0] == 0
