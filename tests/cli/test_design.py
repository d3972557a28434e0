"""specbench design, and what goes on from it: train, then run"""

import json
from functools import partial

import pytest
import yaml
from typer.testing import CliRunner

from specbench.bench import latencies
from specbench.bench.cells import target_sha
from specbench.bench.machine import device_name
from specbench.cli import app
from specbench.config import MachineSettings
from specbench.models.loader import placement
from specbench.models.shapes import shape_of
from specbench.models.source import locate
from specbench.records.store import Store
from tests.unit.models import tiny
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

LAYER_S = 0.001
"""Of a forward, on the machine that these tests pretend to be."""


class Clock:
    """A clock that only forwards move."""

    def __init__(self):
        self.ns = 0.0

    def wall(self):
        return round(self.ns)

    def forward(self, model, point, seed):
        layers = model.config.num_hidden_layers

        def run():
            self.ns += 1e9 * LAYER_S * (layers + 0.02 * point.query_tokens)

        return run


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latencies, "_forward", made.forward)
    monkeypatch.setattr(latencies, "timeline", lambda device: made)


def specbench(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def stored(folder, requests, steps, **changes):
    """Write tables as one block, with other values in some columns of the requests."""
    tables = (requests.assign(**changes).astype(object), steps.astype(object))
    rows = [table.where(table.notna(), None).to_dict("records") for table in tables]
    Store(folder).write_block("all", *rows)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A target of eight layers, a draft of four, and a run of the two on this machine, whose times are drawn."""
    folder = tmp_path_factory.mktemp("design")
    tiny.save(folder / "target", seed=1, layers=8)
    tiny.save(folder / "draft", seed=1, layers=4)
    arms = [
        Arm(
            f"draft_model gamma={gamma}", alpha=0.6, gamma=gamma, draft_s=4 * LAYER_S, verify_s=8 * LAYER_S,
            settings={"draft": str(folder / "draft"), "gamma": gamma},
        )
        for gamma in (1, 2)
    ]  # fmt: skip
    plan = Plan(arms=(AUTOREGRESSIVE, TWIN, *arms), batch_sizes=(1,), prompts=8, repeats=1)
    drawn = Store(write_results(folder / "drawn", plan))
    stored(
        folder / "results" / "run" / "machine",
        drawn.read("requests"),
        drawn.read("steps"),
        device=device_name(placement(MachineSettings(device="cpu")).device),
        dtype="float32",
        target_sha=target_sha(locate(str(folder / "target"))),
        draft=lambda rows: rows["method"].map({"draft_model": str(folder / "draft")}),
    )
    return folder


@pytest.fixture
def design(place, tmp_path):
    quick = ("--rounds", "6", "--burst", "1", "--largest-gamma", "3", "--device", "cpu", "--out", tmp_path / "found")
    return partial(specbench, "design", place / "target", *quick)


def test_what_it_writes_is_trained_and_measured_as_it_is(design, place, tmp_path):
    found = tmp_path / "found"
    result = design("--against", place / "results", "--shape", "1x32x2x64", "--shape", "2x32x2x64")
    assert result.exit_code == 0
    assert f"Next: specbench train draft {found / 'shapes.yaml'}" in result.output
    wanted = yaml.safe_load((found / "shapes.yaml").read_text())
    assert wanted["target"] == str(place / "target")
    assert [shape_of(draft["shape"]).layers for draft in wanted["drafts"]] == [1, 2]

    texts = place / "texts"
    texts.mkdir()
    for name in ("add", "multiply", "divide"):
        (texts / f"{name}.txt").write_text(f"def {name}(a, b):\n    return {name}(b, a)\n" * 100)
    short = ("--steps", 2, "--batch-size", 2, "--length", 16, "--data", texts, "--work", tmp_path / "work")
    assert specbench("train", "draft", found / "shapes.yaml", *short, "--device", "cpu").exit_code == 0
    for draft in wanted["drafts"]:
        shape = shape_of(draft["shape"])
        config = json.loads((found / "drafts" / draft["name"] / "config.json").read_text())
        assert (config["num_hidden_layers"], config["hidden_size"]) == (shape.layers, shape.hidden)

    quick = {
        "measure.repeats": 1, "measure.warmup": 0, "measure.phase_blocks": 0, "machine.device": "cpu",
        "prompts": "{source: stdlib, count: 1, max_prompt_tokens: 24}", "decode.max_new_tokens": 4,
    }  # fmt: skip
    overrides = [word for key, value in quick.items() for word in ("--set", f"{key}={value}")]
    run = specbench("run", found / "experiment.yaml", *overrides, "--results", tmp_path / "results")
    assert run.exit_code == 0
    (folder,) = (tmp_path / "results" / "target-drafts").iterdir()
    rows = Store(folder).read("requests")
    assert {*rows["status"]} == {"ok"}
    assert {draft["name"] for draft in wanted["drafts"]} | {"draft"} < {*rows["label"]}


def test_a_shallower_shape_needs_less_than_the_known_draft_has(design, place):
    result = design("--against", place / "results", "--shape", "1x32x2x64", "--shape", "4x32x2x64", "--json")
    rows = {row["model"]: row for row in json.loads(result.output)}
    known = rows[str(place / "draft")]
    assert known["forward_s"] == pytest.approx(4.02 * LAYER_S)
    assert rows["4x32x2x64"]["needed_alpha"] == pytest.approx(known["needed_alpha"])
    assert rows["1x32x2x64"]["needed_alpha"] < known["alpha"] < 1


def test_without_a_size_shapes_are_as_large_as_the_known_draft(design, place):
    result = design("--against", place / "results", "--json")
    rows = json.loads(result.output)
    sizes = [row["parameters"] for row in rows if row["kind"] == "candidate"]
    (known,) = (row["parameters"] for row in rows if row["kind"] == "known")
    assert len(sizes) > 1
    assert sizes == pytest.approx([known] * len(sizes), rel=0.05)


def test_a_budget_of_latency_keeps_the_shapes_that_are_as_fast(design):
    depths = [word for layers in (1, 2, 3) for word in ("--depth", layers)]
    result = design("--max-ms", "2.5", "--alpha", "0.5", "--draft-latency-ms", "4", "--width", "32", *depths, "--json")
    assert result.exit_code == 0
    assert {row["layers"]: row["within_budget"] for row in json.loads(result.output)} == {1: True, 2: True, 3: False}


def test_tokens_of_a_step_say_the_same_as_the_acceptance_that_gives_them(design):
    by_alpha, by_tokens = (
        json.loads(design("--shape", "1x32x2x64", "--draft-latency-ms", "0.5", *said, "--json").output)
        for said in (("--alpha", "0.5"), ("--tokens", "1.75", "--gamma", "2"))
    )
    assert by_alpha[0]["rival"] == "the known draft"
    assert by_tokens[0]["needed_alpha"] == pytest.approx(by_alpha[0]["needed_alpha"])


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ((), 2, "say which shapes to look at: --parameters, --max-ms or --shape"),
        (("--parameters", "few"), 2, "--parameters few: write a number of them, like 3.4M, 1.3B or 3400000"),
        (("--parameters", "20k", "--width", "40"), 2, "heads that are 16 wide do not divide a width of 40"),
        (("--shape", "2x65x2x128"), 2, "shape 2x65x2x128: 2 heads do not divide a width of 65"),
        (("--parameters", "5"), 2, "no shape of 1, 2, 3, 4, 6 or 8 layers with heads 16 wide has 5 parameters"),
        (
            ("--max-ms", "0.01", "--depth", "1", "--width", "32"),
            1,
            "no shape has a forward of 0.01 ms; the fastest, 1x",
        ),
        (("--shape", "1x32x2x64", "--alpha", "0.5"), 2, "of a known draft both must be said"),
        (("--shape", "1x32x2x64", "--draft-latency-ms", "1"), 2, "of a known draft both must be said"),
        (("--shape", "1x32x2x64", "--tokens", "2"), 2, "--tokens are those of a step of one gamma"),
        (("--alpha", "0.5", "--tokens", "2"), 2, "--alpha and --tokens say the same thing"),
        (("--draft-latency-ms", "1", "--tokens", "4", "--gamma", "2"), 2, "--tokens 4: a step of gamma 2 emits 1 to 3"),
        (("--against", "results", "--alpha", "0.5"), 2, "--alpha: --against says what there is to beat"),
        (("--against", "nowhere"), 1, "nowhere: no such folder of results"),
        (("--shape", "1x32x2x64", "--context", "999"), 2, "--context and --largest-gamma: 1,003 tokens exceed the 256"),
        (("--parameters", "20k", "--draft", "nobody", "--alpha", "0.5"), 2, "unknown model 'nobody'"),
    ],
)
def test_what_cannot_be_is_one_line(design, arguments, code, line):
    result = design(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {line}")
    assert len(result.stderr.splitlines()) == 1


def test_an_unknown_target_is_one_line():
    result = specbench("design", "pcio", "--parameters", "3.4M")
    line = "error: unknown model 'pcio'. Did you mean 'pico'? A hub id reads owner/name.\n"
    assert (result.exit_code, result.stderr) == (2, line)


def test_a_run_of_another_device_is_one_line(design, place, tmp_path):
    run = Store(place / "results" / "run" / "machine")
    other = stored(tmp_path / "other", run.read("requests"), run.read("steps"), device="NVIDIA Example")
    result = design("--against", other, "--parameters", "20k")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {other}: its device is 'NVIDIA Example', and here it is ")


def test_a_list_of_shapes_takes_no_further_shape(tmp_path):
    result = specbench("train", "draft", tmp_path / "shapes.yaml", "--shape", "1x32x2x64")
    line = f"error: --shape: {tmp_path}/shapes.yaml says which shapes to train\n"
    assert (result.exit_code, result.stderr) == (2, line)
