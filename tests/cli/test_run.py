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


# --- lists of experiments, and studies alone

LATENCIES = "name: {name}\nlatencies: {{models: [{model}], rounds: 1, burst: 1}}\nmachine: {{device: cpu}}\n"


@pytest.fixture
def invoke_list(models, tmp_path):
    """Run, or otherwise command, a list of experiments; each is a name and a model whose forward is timed."""

    def _invoke(command, entries, *arguments):
        for name, model in entries.items():
            text = LATENCIES.format(name=name, model=str(model).replace("MODELS", str(models)))
            (tmp_path / f"{name}.yaml").write_text(text)
        listing = tmp_path / "all.yaml"
        listing.write_text(f"experiments: [{', '.join(f'{name}.yaml' for name in entries)}]\n")
        return CliRunner().invoke(app, [command, str(listing), *arguments])

    return _invoke


def test_the_experiments_of_a_list_run_one_after_the_other_into_their_own_folders(invoke_list, tmp_path):
    results = tmp_path / "results"
    found = invoke_list("run", {"a": "MODELS/target", "b": "MODELS/draft"}, "--results", str(results))
    assert found.exit_code == 0
    assert found.output.index("a: 1 of 2") < found.output.index("b: 2 of 2")
    assert "2 of 2 experiments ended well" in found.output
    assert sorted(path.name for path in results.iterdir()) == ["a", "b"]


def test_one_that_fails_does_not_end_the_list_and_gives_its_exit_code(invoke_list, tmp_path):
    results = tmp_path / "results"
    found = invoke_list("run", {"a": "pico-wied", "b": "MODELS/draft"}, "--results", str(results))
    assert found.exit_code == 2
    assert "error: unknown model 'pico-wied'" in found.output
    assert "1 of 2 experiments ended well\nwith an exit code of their own: a (2)" in found.output
    assert [path.name for path in results.iterdir()] == ["b"]


def test_an_override_goes_to_all_of_a_list(invoke_list, tmp_path):
    results = tmp_path / "results"
    entries = {"a": "MODELS/target", "b": "MODELS/draft"}
    invoke_list("run", entries, "--results", str(results), "--set", "latencies.rounds=2")
    for name in entries:
        (folder,) = (results / name).iterdir()
        assert set(Store(folder).read("latencies")["rounds"]) == {2}


def test_every_experiment_of_a_list_is_checked(invoke_list):
    found = invoke_list("check", {"a": "pico", "b": "[pico, pico-wide]"[1:-1]})
    assert found.output == "a: ok: 1 forward time\nb: ok: 2 forward times\n"


def test_a_command_that_takes_one_experiment_refuses_a_list(invoke_list):
    found = invoke_list("verify", {"a": "pico"})
    assert found.exit_code == 2
    assert "all.yaml:1: experiments: this file lists experiments; give one of them" in found.output


def test_a_study_that_fails_gives_the_exit_code_of_failed_trials(invoke_list, tmp_path, monkeypatch):
    from specbench.bench import latencies

    def broken(*arguments):
        raise RuntimeError("a broken kernel")

    monkeypatch.setattr(latencies, "_forward", broken)
    found = invoke_list("run", {"a": "MODELS/target"}, "--results", str(tmp_path / "results"))
    assert found.exit_code == 5
    assert "latency of MODELS".replace("MODELS", "") in found.output
    assert "error: RuntimeError: a broken kernel" in found.output


def test_a_rehearsal_of_a_list_rehearses_each(invoke_list, tmp_path):
    results = tmp_path / "results"
    found = invoke_list(
        "run", {"a": "nobody/nothing", "b": "{shape: opt-66b}"}, "--rehearse", "--results", str(results)
    )
    assert found.exit_code == 0
    assert sorted(path.name for path in results.iterdir()) == ["a-rehearsal", "b-rehearsal"]
