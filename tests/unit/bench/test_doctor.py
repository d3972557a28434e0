"""specbench.bench.doctor"""

import hashlib
import json

import pynvml
import pytest
import torch

from specbench.bench import doctor
from specbench.bench.ceilings import Ceiling
from specbench.bench.telemetry import Gpu
from tests.unit.bench.nvml import FakeGpu, FakeNvml
from tests.unit.models import tiny


@pytest.fixture
def zoo(tmp_path):
    folder = tiny.save(tmp_path / "pico", seed=1)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "card.json").write_text(json.dumps({"weights_sha256": hashlib.sha256(weights).hexdigest()}))
    return tmp_path


def level(zoo):
    return [(finding.level, finding.subject) for finding in doctor._family(zoo)]


def test_weights_as_their_card_describes_them_are_ok(zoo):
    assert level(zoo) == [("ok", "model pico")]


def test_other_weights_than_the_cards_are_a_note(zoo):
    tiny.model(seed=2).save_pretrained(zoo / "pico")
    assert level(zoo) == [("note", "model pico")]


def test_weights_that_cannot_be_read_are_a_problem(zoo):
    (zoo / "pico" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert level(zoo) == [("problem", "model pico")]


def test_a_missing_family_is_a_note(tmp_path):
    assert level(tmp_path) == [("note", "embedded models")]


def test_a_hub_that_does_not_answer_is_a_note_and_never_a_problem(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert doctor._hub(lambda: "").level == "ok"
    silent = doctor._hub(lambda: "timed out")
    assert (silent.level, "timed out" in silent.words) == ("note", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not asked" in doctor._hub(lambda: "").words


def test_a_package_that_is_too_old_or_missing_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package-here", "x; extra == 'dev'"])
    found = [(finding.level, finding.subject) for finding in doctor._packages()]
    assert found == [("problem", "torch"), ("problem", "no-such-package-here")]


def test_a_shadowed_methods_package_is_a_problem(monkeypatch):
    from specbench.errors import ConfigError

    def shadowed():
        raise ConfigError("another package shadows 'methods'")

    monkeypatch.setattr(doctor.registry, "names", shadowed)
    assert doctor._methods().level == "problem"


def test_a_device_that_torch_cannot_compute_on_is_a_problem_with_the_reason():
    def measure(device, dtype):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand more")

    finding = doctor._pace(measure)
    assert finding.level == "problem"
    assert "no kernel image is available for execution on the device" in finding.words
    assert "and more" not in finding.words


def test_every_question_is_answered(monkeypatch):
    monkeypatch.setattr(doctor, "_asked_hub", lambda: "")
    subjects = {finding.subject for finding in doctor.examine()}
    assert {"python", "torch", "methods", "prompts", "precision", "CPU", "load", "memory", "disk", "hub"} <= subjects
    assert {"telemetry", "pace"} <= subjects


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 1)


def telemetry_of(monkeypatch, **refuses):
    binding = FakeNvml(refuses=refuses)
    monkeypatch.setattr(doctor, "gpus_of", lambda devices: ([Gpu(binding, FakeGpu()) for _ in devices], ""))
    return doctor._telemetry()


@pytest.mark.usefixtures("a_gpu")
def test_a_gpu_that_tells_all_is_ok_and_what_it_does_not_tell_is_named_in_one_line(monkeypatch):
    assert telemetry_of(monkeypatch).level == "ok"
    error = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    partly = telemetry_of(monkeypatch, nvmlDeviceGetUtilizationRates=error)
    assert (partly.level, "but not on utilisation" in partly.words) == ("note", True)


@pytest.mark.usefixtures("a_gpu")
def test_a_driver_out_of_reach_is_a_note_with_the_reason(monkeypatch):
    monkeypatch.setattr(doctor, "gpus_of", lambda devices: ([], "the driver is not loaded"))
    found = doctor._telemetry()
    assert (found.level, "the driver is not loaded" in found.words) == ("note", True)


def test_without_a_gpu_telemetry_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    assert doctor._telemetry().level == "note"


def test_the_pace_of_the_machine_is_told_with_its_units(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []

    def measure(device, dtype):
        asked.append((device.type, dtype))
        return Ceiling((1,), [0.1], 11.07e9, 21.6e9, 100.2e9, 2.18e-6, None)

    finding = doctor._pace(measure)
    assert asked == [("cpu", torch.float32)]
    assert finding.level == "ok"
    assert "read at 11 GB/s, a copy moves 22 GB/s, products do 100 GFLOP/s" in finding.words
    assert "in 2.2 us (float32, 1 threads; a rough try)" in finding.words
