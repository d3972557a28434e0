"""specbench.bench.machine"""

import json
import re
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from specbench.bench import machine
from tests.unit.bench.nvml import FakeGpu, FakeNvml


@pytest.mark.parametrize("name", ["HF_TOKEN", "api_key", "AWS_SECRET", "db_password", "--hub-token"])
def test_a_setting_that_sounds_like_a_secret_loses_its_value(name):
    assert machine.redacted({name: "x7"}) == {name: "[redacted]"}


@pytest.mark.parametrize("name", ["max_new_tokens", "tokenizer", "max_prompt_tokens", "TOKENIZERS_PARALLELISM"])
def test_settings_that_only_look_like_secrets_stay(name):
    assert machine.redacted({name: "8"}) == {name: "8"}


def test_a_command_line_loses_its_secrets_in_either_form():
    argv = ["specbench", "run", "a.yaml", "--hub-token", "x1", "--api-key=x2", "--set", "decode.max_new_tokens=8"]
    assert machine.redacted_argv(argv) == [
        "specbench", "run", "a.yaml", "--hub-token", "[redacted]", "--api-key=[redacted]", "--set",
        "decode.max_new_tokens=8",
    ]  # fmt: skip


def test_the_description_is_json_and_has_an_answer_to_everything():
    described = json.loads(machine.as_json(machine.describe()))
    assert set(described) >= {"cpu", "cores", "memory_bytes", "gpus", "system"}
    assert None not in described.values()


def test_outside_of_a_checkout_there_is_no_commit(tmp_path):
    assert machine.git_state(tmp_path) == (None, None)


def test_a_package_that_is_missing_has_an_unknown_version(monkeypatch):
    monkeypatch.setattr(machine, "_PACKAGES", ("no-such-package",))
    assert machine.versions()["no-such-package"] == "unknown"


def test_a_command_that_cannot_run_has_no_output():
    assert machine._output(["no-such-command"]) is None


def test_the_slug_is_a_folder_name(monkeypatch):
    monkeypatch.setattr(machine, "cpu_model", lambda: "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz")
    assert machine.machine_slug(torch.device("cpu")) == "cpu-intel-xeon-platinum-8481c"
    assert re.fullmatch(r"[a-z0-9-]+", machine.machine_slug(torch.device("cpu")))


@pytest.fixture
def one_gpu(monkeypatch):
    """A GPU that torch sees, of those that stand in the machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="b"))


@pytest.mark.parametrize("question", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_where_nvml_does_not_answer_a_gpu_still_has_its_name(monkeypatch, one_gpu, question):
    nvml = FakeNvml(refuses={question: pynvml.NVMLError_LibraryNotFound()})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert machine.gpus() == [{"name": "Some GPU"}]


def test_only_gpus_that_torch_sees_are_described(monkeypatch, one_gpu):
    nvml = FakeNvml(FakeGpu("GPU-a", celsius=40), FakeGpu("GPU-b", celsius=60), FakeGpu("GPU-c", celsius=80))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert [gpu["temperature_c"] for gpu in machine.gpus()] == [60]
