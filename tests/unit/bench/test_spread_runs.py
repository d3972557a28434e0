"""specbench.bench.runner: a whole run whose target two processes hold together"""

from pathlib import Path

import pytest

from specbench.bench import runner
from specbench.errors import ConfigError
from specbench.records.store import Store
from support.processes import run_together
from tests.unit.bench.bench_plans import ONE_CELL, plan_of, run, texts

TESTS = Path(__file__).parents[2]
SPREAD = ONE_CELL.replace("device: cpu", "device: cpu, parallel: tensor")

# In the second process alone prompt lookup cannot be loaded. Neither has a say in when a batch has taken too long.
TWO = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from methods.prompt_lookup import PromptLookup
from specbench import registry
from specbench.models import ranks
from specbench.records import store
from tests.unit.bench.bench_plans import run

class Picky(PromptLookup):
    def load(self, context):
        super().load(context)
        if not ranks.leads():
            raise ValueError("not in this process")

written, real = [], store.write_atomically
store.write_atomically = lambda path, data: (written.append(path), real(path, data))
method_class = lambda name: Picky if name == "prompt_lookup" else registry.load(name)
summary = run(Path({folder!r}), {text!r}, method_class=method_class, batch_limit_s=1e-9)
print(summary.finished, summary.failed, summary.wrong, bool(written))
ranks.leave()
"""


def of_the_others(rows):
    """Texts by arm, pass, repeat, block and row; a trial is another one where the target attends otherwise."""
    return {key[1:]: text for key, text in texts(rows).items() if key[1] != "prompt_lookup"}


@pytest.mark.slow
def test_a_run_of_two_processes_has_the_texts_of_one_and_is_written_by_the_first(folder, tmp_path):
    pytest.importorskip("accelerate")
    code = TWO.format(root=str(TESTS.parent), tests=str(TESTS), folder=str(folder), text=SPREAD)
    first, second = (text.split() for text in run_together(code, tmp_path))
    assert first == ["3", "1", "0", "True"]
    assert second == ["3", "1", "0", "False"]
    (results,) = (folder / "results" / "one-cell").iterdir()
    rows = Store(results).read("requests")
    failed = rows[rows["status"] != "ok"]
    assert set(failed["arm"]) == {"prompt_lookup"}
    assert set(failed["reason"]) == {"ValueError: not in this process"}
    alone = Store(run(folder, ONE_CELL, results=folder / "again").folder).read("requests")
    assert of_the_others(rows) == of_the_others(alone)
    halves = rows[rows["arm"] == "autoregressive"]["weight_bytes"].max()
    assert halves < 0.6 * alone[alone["arm"] == "autoregressive"]["weight_bytes"].max()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (ONE_CELL, "2 processes were started together, and only machine.parallel: tensor has a use for them"),
        (SPREAD.replace("warmup: 1", "warmup: 1, processes: 2"), "measure.processes is more than 1"),
        (SPREAD + "traces: {gamma: 2}\n", "traces, latencies and scores are made in one process"),
        (SPREAD.replace("batch_size: 2", "batch_size: 2, turns: 2"), "decode.turns is more than 1"),
    ],
)
def test_what_several_processes_cannot_do_is_said_before_anything_runs(folder, monkeypatch, text, fault):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=fault):
        runner.run(plan_of(folder, text), results=folder, argv=[], experiment_yaml=text, zoo=folder / "zoo")
    assert not (folder / "one-cell").exists()
