"""specbench run, killed at any moment and started again"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specbench.bench import runner
from specbench.config import open_document
from specbench.grid import read_plan
from specbench.records.store import Store
from specbench.registry import options_class
from tests.unit.models import tiny

ROOT = Path(__file__).resolve().parents[2]

EXPERIMENT = """
name: killed
targets: [{{model: {target}}}]
prompts: {{source: stdlib, count: 6, max_prompt_tokens: 24}}
decode: {{max_new_tokens: 16, temperature: [0.0, 0.8], batch_size: 2}}
methods:
  - draft_model: {{draft: {draft}, gamma: 2}}
  - prompt_lookup: {{gamma: 3}}
measure: {{repeats: 2, warmup: 1}}
machine: {{device: cpu}}
"""

KEY = ["cell", "trial_id", "arm", "pass", "process", "repeat", "block", "row", "status", "finish_reason", "verdict"]


@pytest.fixture
def experiment(tmp_path):
    target, draft = tiny.save(tmp_path / "target", seed=1), tiny.save(tmp_path / "draft", seed=1)
    file = tmp_path / "killed.yaml"
    file.write_text(EXPERIMENT.format(target=target, draft=draft))
    return file


def start(file, results, *options):
    command = [sys.executable, "-m", "specbench", "run", str(file), "--results", str(results), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def parts(results):
    return len(list(results.rglob("requests.parquet/[!.]*.parquet")))


def rows(folder):
    found = Store(folder).read("requests")
    ids = found["output_ids"].map(tuple)
    return sorted(zip(*(found[name].astype(str) for name in KEY), ids, strict=True))


def kill_after(blocks, file, results, *options):
    process = start(file, results, *options)
    deadline = time.monotonic() + 300
    while parts(results) < blocks and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.stdout.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process


def test_killed_and_started_again_it_ends_with_the_same_rows_and_texts(experiment, tmp_path):
    results = tmp_path / "results"
    for blocks in (2, 7):  # somewhere in the first cell, and somewhere later
        kill_after(blocks, experiment, results)
    before = parts(results)
    process = start(experiment, results)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"{12 - before} blocks to run, {before} are there already" in output
    (folder,) = (results / "killed").iterdir()

    undisturbed = runner.run(
        read_plan(open_document(experiment, []), options_class)[1],
        results=tmp_path / "undisturbed",
        argv=[],
        experiment_yaml="",
    )
    assert rows(folder) == rows(undisturbed.folder)
    assert sorted(Store(folder).read("runs")["status"]) == ["done", "interrupted", "interrupted"]
    assert set(Store(folder).read("steps")["batch_id"]) == set(
        Store(folder).read("requests").query("`pass` == 'phase'")["batch_id"]
    )


@pytest.mark.slow
def test_killed_in_its_second_process_it_ends_with_the_same_rows_and_texts(experiment, tmp_path):
    """Eight blocks, four a process; what is killed is the parent, and its child must not live on."""
    results = tmp_path / "results"
    options = ("--limit", "2", "--set", "measure.processes=2")
    killed = kill_after(5, experiment, results, *options)
    killed.stdout.read()  # returns only when the child has closed its end as well
    written = parts(results)
    assert 5 <= written < 8
    process = start(experiment, results, *options)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert f"{8 - written} blocks to run, {written} are there already" in output
    assert "process 2 of 2" in output
    assert "process 1 of 2" not in output

    undisturbed = runner.run(
        read_plan(open_document(experiment, []), options_class)[1],
        results=tmp_path / "undisturbed",
        argv=[],
        experiment_yaml="",
        limit=2,
    )
    (folder,) = (results / "killed").iterdir()
    expected = rows(undisturbed.folder)
    place = KEY.index("process")
    assert rows(folder) == sorted((*row[:place], which, *row[place + 1 :]) for row in expected for which in "01")
    assert sorted(Store(folder).read("runs")["status"]) == ["done", "done", "interrupted"]
