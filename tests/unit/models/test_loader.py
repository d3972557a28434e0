"""specbench.models.loader"""

import pytest
import torch

from specbench.config import MachineSettings
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError, ModelRefusedError, UnsupportedError
from specbench.models import loader
from specbench.models.loader import ModelPool, load, placement
from specbench.models.source import locate
from tests.unit.models import tiny


def here(**settings):
    return placement(MachineSettings(device="cpu", **settings))


def test_single_precision_is_what_a_cpu_gets_by_itself():
    assert here().dtype is torch.float32
    assert here(dtype="bfloat16").dtype is torch.bfloat16
    assert here(dtype="float16").dtype_name == "float16"


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_half_precision_is_what_a_gpu_gets_and_bfloat16_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert placement(MachineSettings()).dtype is expected
    assert placement(MachineSettings()).device == torch.device("cuda", 0)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"machine\.device is cuda, but torch finds no GPU; use cpu or auto"):
        placement(MachineSettings(device="cuda"))


def test_a_loaded_model_says_what_it_is(family):
    loaded = load(locate("pico", family), here())
    plain = tiny.model(seed=1)
    assert loaded.parameters == sum(parameter.numel() for parameter in plain.parameters())
    assert loaded.weight_bytes == 4 * loaded.parameters
    assert (loaded.attention, loaded.model.vocab_size) == ("grouped", 320)
    assert loaded.self_test.difference <= loaded.self_test.tolerance


def test_loaded_weights_are_those_of_the_file(family):
    loaded = load(locate("pico", family), here())
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.model.module(input_ids=ids).logits, tiny.model(seed=1)(input_ids=ids).logits)


def test_the_attention_that_was_asked_for_runs(family):
    assert load(locate("pico", family), here(attention="eager")).attention == "eager"


def test_a_model_that_fails_its_self_test_is_refused(family, monkeypatch):
    def refuse(model):
        raise ModelRefusedError("pico: it ignores positions")

    monkeypatch.setattr(loader, "self_test", refuse)
    with pytest.raises(ModelRefusedError, match="ignores positions"):
        load(locate("pico", family), here())


def test_a_folder_without_weights_is_refused(family, tmp_path):
    folder = tiny.save(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        load(locate(str(folder), family), here())


def test_a_pool_loads_a_model_once(family, monkeypatch):
    tests = []
    monkeypatch.setattr(loader, "self_test", lambda model: tests.append(model.name))
    pool = ModelPool(here(), family)
    target = pool.get("pico")
    assert pool.get("pico") is target
    first, second = pool.draft("pico-wide", target), pool.draft("pico-wide", target)
    assert tests == ["pico", "pico-wide"]
    assert first is not second
    assert first.module is second.module


def test_a_pool_lets_go_of_what_is_not_needed(family):
    pool = ModelPool(here(), family)
    target = pool.get("pico")
    pool.keep_only({repr("pico-wide")})
    assert pool.get("pico") is not target


def test_drafts_have_slabs_and_pacers_of_their_own(family):
    pool = ModelPool(here(), family)
    target = pool.get("pico")
    draft = pool.draft("pico", target)
    assert isinstance(draft, CachedModel)
    draft.allocate(1, 32)
    draft.pacer = object()
    assert target.model._cache is None
    assert target.model.pacer is not draft.pacer
