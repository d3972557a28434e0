"""specbench run: exit codes and messages"""

import pytest
import torch
from typer.testing import CliRunner

from specbench.cli import app
from specbench.records.store import Store
from tests.unit.models import tiny

EXPERIMENT = """
name: tried
targets: [{{model: {model}}}]
prompts: {{source: {prompts}, count: 4, max_prompt_tokens: 24}}
decode: {{max_new_tokens: 8, batch_size: 2}}
methods: [{{draft_model: {{draft: {draft}, gamma: 2}}}}]
measure: {{repeats: 1, warmup: 0}}
machine: {{device: {device}}}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "target", seed=1)
    tiny.save(folder / "draft", seed=1)
    tiny.save(folder / "foreign", seed=1, vocab=300)
    return folder


@pytest.fixture
def invoke(models, tmp_path):
    """Run one experiment with a few things replaced."""

    def _invoke(*arguments, **changes):
        values = {"model": models / "target", "draft": models / "draft", "prompts": "stdlib", "device": "cpu"}
        file = tmp_path / "tried.yaml"
        file.write_text(EXPERIMENT.format(**{**values, **changes}))
        return CliRunner().invoke(app, ["run", str(file), "--results", str(tmp_path / "results"), *arguments])

    return _invoke


def test_a_run_ends_with_0_and_leaves_its_tables(invoke, tmp_path):
    assert invoke().exit_code == 0
    (folder,) = (tmp_path / "results" / "tried").iterdir()
    assert set(Store(folder).read("requests")["status"]) == {"ok"}


def test_an_override_of_the_command_line_is_recorded(invoke, tmp_path):
    assert invoke("--set", "decode.max_new_tokens=5").exit_code == 0
    (folder,) = (tmp_path / "results" / "tried").iterdir()
    assert set(Store(folder).read("requests")["max_new_tokens"]) == {5}
    assert "max_new_tokens: 5" in Store(folder).read("runs")["experiment"][0]


def test_a_dry_run_writes_nothing(invoke, tmp_path):
    result = invoke("--dry-run")
    assert result.exit_code == 0
    assert "1 cells, 3 trials" in result.output
    assert not (tmp_path / "results").exists()


BAD = {
    "a name that nobody knows": ({"model": "pico-sized"}, "unknown model 'pico-sized'"),
    "a draft of another token map": ({"draft": "MODELS/foreign"}, "has another token map than target"),
    "a missing file of prompts": ({"prompts": "nothing/here.jsonl"}, "nothing/here.jsonl: No such file or directory"),
    "a folder that is not there": ({"model": "./nowhere/at/all"}, "./nowhere/at/all: no such folder"),
    "a shape that nobody knows": ({"model": "{shape: vicuna-8b}"}, "unknown model shape 'vicuna-8b'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_written(invoke, tmp_path, models, changes, message):
    result = invoke(**{name: value.replace("MODELS", str(models)) for name, value in changes.items()})
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_is_asked_for_where_there_is_none(invoke, tmp_path):
    result = invoke(device="cuda")
    assert result.exit_code == 2
    assert "error: machine.device is cuda, but torch finds no GPU; use cpu or auto" in result.output
    assert not (tmp_path / "results").exists()


def test_hub_models_out_of_reach_share_a_line(invoke, monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    result = invoke(model="a/b")
    assert result.exit_code == 2
    assert "error: a/b: not in the local cache, and the hub cannot be reached" in result.output
    assert not (tmp_path / "results").exists()
