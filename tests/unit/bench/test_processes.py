"""specbench.bench.processes, and runs of several of them"""

import os
from functools import partial

import pytest

from specbench.bench.processes import run_apart
from specbench.errors import ConfigError, SpecbenchError
from specbench.records.store import Store
from tests.unit.bench import apart
from tests.unit.bench.bench_plans import ONE_CELL, run, texts


class Listener:
    """A reporter that writes down what it is told."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        return lambda *arguments: self.heard.append((name, arguments))


def test_a_process_tells_what_it_does_and_its_error_is_raised_here():
    listener = Listener()
    with pytest.raises(ConfigError, match="a fault of the user"):
        run_apart(partial(apart.talk_and_fail, os.getpid()), listener)
    assert listener.heard == [("say", ("hello",)), ("block_done", ())]


def test_a_process_that_dies_is_an_error_that_says_how():
    listener = Listener()
    with pytest.raises(SpecbenchError, match="killed by signal 9; finished blocks are kept"):
        run_apart(apart.die, listener)
    assert listener.heard == [("say", ("hello",))]


def test_every_process_runs_every_arm_on_every_block(folder):
    text = ONE_CELL.replace("warmup: 1", "warmup: 1, processes: 2")
    summary = run(folder, text)
    store = Store(summary.folder)
    rows = store.read("requests")
    assert (summary.blocks_run, summary.blocks_kept, summary.finished, summary.wrong) == (6, 0, 4, 0)
    assert rows.groupby("process").size().tolist() == [4 * 5 * 2] * 2
    first, second = (texts(rows[rows["process"] == process]) for process in range(2))
    assert first == second
    assert not set(rows[rows["process"] == 0]["batch_id"]) & set(rows[rows["process"] == 1]["batch_id"])
    orders = rows.drop_duplicates("batch_id").sort_values("order_in_block").groupby(["process", "block"])["arm"]
    assert len({tuple(order) for _, order in orders}) > 1
    runs = store.read("runs")
    assert runs["status"].tolist() == ["done", "done"]
    assert '"planned_blocks":6' in runs["notes"][0]
    assert set(store.read("steps")["batch_id"]) == set(rows[rows["pass"] == "phase"]["batch_id"])
    assert (folder / "log.txt").read_text().count("process 2 of 2") == 1

    whole = run(folder, text)
    assert (whole.blocks_run, whole.blocks_kept) == (0, 6)
    fewer = run(folder, ONE_CELL)
    assert (fewer.blocks_run, fewer.blocks_kept) == (0, 3)
