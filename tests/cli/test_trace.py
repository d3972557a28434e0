"""specbench trace: record, print, print again, and set beside a run"""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from specbench.bench import runner
from specbench.cli import app
from tests.unit.bench.bench_plans import plan_of
from tests.unit.models import tiny


def specbench(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tiny.zoo(tmp_path_factory.mktemp("zoo"))


def recording(zoo, out, *more):
    return specbench(
        "trace", "--target", zoo / "pico", "--draft", zoo / "pico-wide", "--count", 5, "--max-prompt-tokens", 20,
        "--max-new-tokens", 10, "--gamma", 3, "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "traces"
    found = recording(zoo, out)
    assert found.exit_code == 0, found.output
    return out


def test_a_trace_is_recorded_printed_and_printed_again_from_its_folder(zoo, tmp_path):
    first = recording(zoo, tmp_path / "traces", "--batch-size", 2)
    again = specbench("trace", tmp_path / "traces", "--batch-size", 2)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.output == again.output
    # The draft is the target itself: of ten tokens the prefill gives one and gamma 3 the others in three steps.
    line = next(line for line in first.output.splitlines() if line.strip().startswith("gamma 3"))
    assert line.split()[2:] == ["3.00", "3.00", "to", "3.00", "3.00", "100", "%", "3.00"]
    for name in (
        "gamma 1",
        "gamma 2",
        "oracle",
        "heuristic from 5",
        "confidence 0.4",
        "entropy 0.4",
        "in a batch of 2",
    ):
        assert name in first.output
    assert "alpha 1.00; exact " in " ".join(first.output.split())


def test_a_program_reads_the_same_as_json(folder):
    found = specbench("trace", folder, "--json", "--threshold", 0.2, "--threshold", 0.9, "--start", 2)
    (trace,) = json.loads(found.output)
    assert (trace["gamma_max"], trace["prompts"], trace["recorded"], trace["exact"]) == (3, 5, 5, True)
    efficiency = {entry["drafts"]: entry["block_efficiency"] for entry in trace["replays"]}
    assert efficiency["gamma 3"] == efficiency["oracle, at most 3"] == 3.0
    assert {"confidence 0.2, at most 3", "confidence 0.9, at most 3", "heuristic from 2, at most 3"} <= set(efficiency)


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--target", "pico-deep", "but the command line has target pico-deep"),
        ("--temperature", 0.8, "the trace is of temperature 0, but the command line has temperature 0.8"),
        ("--dtype", "bfloat16", "the trace is of dtype float32, but the command line has dtype bfloat16"),
        ("--gamma", 8, "the trace is of gamma_max 3, but the command line has gamma_max 8"),
        ("--prompts", "mt_bench", "of prompts stdlib ("),
    ],
)
def test_a_folder_that_holds_another_trace_is_refused_in_one_line(folder, option, value, line):
    found = specbench("trace", folder, option, value)
    assert found.exit_code == 1
    assert line in found.output
    assert found.output.startswith("error: the trace is of ")
    assert len(found.output.splitlines()) == 1


def test_of_a_folder_the_wanted_trace_alone_is_printed(zoo, folder):
    recording(zoo, folder, "--temperature", 0.8, "--rule", "match", "--seed", 4)
    assert specbench("trace", folder).output.count("alpha 1.00") == 2
    assert specbench("trace", folder, "--temperature", 0.8).output.count("alpha 1.00") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "name a folder of traces, an experiment file, or --target and --draft"),
        (["--target", "pico"], 2, "--target and --draft"),
        (["."], 1, "no trace in it"),
        ([".", "--out", "x"], 2, "--out: . is a folder of traces"),
        ([".", "--count", "3"], 2, "--count: . holds traces that were recorded before"),
        (["e.yaml", "--count", "3"], 2, "--count: e.yaml says what to trace"),
        (["--target", "pico", "--draft", "pico", "--out", "e.yaml"], 2, "--out e.yaml: this is a file"),
        (["--target", "pico", "--draft", "pico", "--rule", "typical", "--temperature", "0.8"], 1,
            "under the rule typical a text depends on its drafts"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch, arguments, code, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("name: x\n")
    found = specbench("trace", *arguments)
    assert (found.exit_code, line in found.output) == (code, True), found.output
    assert "Traceback" not in found.output


EXPERIMENT = """
name: beside
targets: [{{model: {zoo}/pico}}]
prompts: {{source: stdlib, count: 4, max_prompt_tokens: 20}}
decode: {{max_new_tokens: 8, batch_size: [1, 2]}}
methods:
  - draft_model: {{draft: {zoo}/pico-wide, gamma: [1, 3]}}
  - draft_model: {{draft: {zoo}/pico-wide, tree: {{branching: [2, 1]}}, label: tree}}
measure: {{repeats: 1, warmup: 0, phase_blocks: 0}}
machine: {{device: cpu, dtype: float32}}
"""


@pytest.fixture(scope="module")
def run(zoo, tmp_path_factory):
    """A run of the experiment: its file and its folder."""
    place = tmp_path_factory.mktemp("run")
    text = EXPERIMENT.format(zoo=zoo)
    with (place / "log.txt").open("w") as log:
        runner.run(
            plan_of(place, text), results=place / "results", argv=["specbench"], experiment_yaml=text,
            console=Console(file=log),
        )  # fmt: skip
    return place / "experiment.yaml", place / "results"


def test_the_arms_of_a_run_stand_beside_their_replays(run, tmp_path):
    experiment, results = run
    assert specbench("trace", experiment, "--out", tmp_path).exit_code == 0
    found = specbench("trace", tmp_path, "--run", results, "--json")
    assert found.exit_code == 0, found.output
    arms = json.loads(found.output)
    # Two gammas at two batch sizes; the tree has no replay.
    assert [(arm["cell"].split(" #")[0][-1], arm["arm"][-7:]) for arm in arms] == [
        (size, f"gamma={gamma}") for size in "12" for gamma in "13"
    ]
    assert all(arm["measured"] == arm["replayed"] > 1 for arm in arms)
    assert all(arm["rows"] == arm["equal"] == 4 for arm in arms)
    assert "equal in every step" in specbench("trace", tmp_path, "--run", results).output


def test_a_run_of_something_else_is_refused(run, folder):
    found = specbench("trace", folder, "--run", run[1])
    assert found.exit_code == 1
    assert "error: the trace is of " in found.output
    assert "prompts stdlib" in found.output
