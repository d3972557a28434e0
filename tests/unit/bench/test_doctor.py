"""specbench.bench.doctor"""

import hashlib
import json

import pytest

from specbench.bench import doctor
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


def test_every_question_is_answered(monkeypatch):
    monkeypatch.setattr(doctor, "_asked_hub", lambda: "")
    subjects = {finding.subject for finding in doctor.examine()}
    assert {"python", "torch", "methods", "prompts", "precision", "CPU", "load", "memory", "disk", "hub"} <= subjects
