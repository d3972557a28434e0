"""specbench.models.loader: targets that are spread over processes or devices"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map_only

from specbench.bench.memory import LiveBytes
from specbench.config import MachineSettings
from specbench.decode.method import POST_NORM
from specbench.decode.target import CachedModel
from specbench.decode.tree import lay_out
from specbench.errors import UnsupportedError
from specbench.models import loader
from specbench.models.loader import ModelPool, Placement, load, placement
from specbench.models.source import locate
from support import decoding
from support.processes import run_together
from tests.unit.models import tiny

PROMPTS = [[1, 2, 3, 7], [5, 6, 7], [9]]
TESTS = Path(__file__).parents[2]

TENSOR = """
import json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from specbench.config import MachineSettings
from specbench.decode.target import local_part
from specbench.errors import SpecbenchError
from specbench.models import ranks
from specbench.models.loader import ModelPool, placement
from tests.unit.models.test_spread import greedy_texts
where = placement(MachineSettings(device="cpu", parallel="tensor"))
pool = ModelPool(where, Path({zoo!r}))
target, drawn = pool.get("pico"), pool.get("random:2x32x2x64,vocab=320,context=256")
draft = pool.draft("pico-wide", target)
try:
    pool.get("random:1x48x3x64,vocab=320")
except SpecbenchError as error:
    refused = str(error)
whole = target.model.module.lm_head.weight
print(json.dumps({{
    "plain": greedy_texts(target.model), "drafted": greedy_texts(target.model, draft),
    "drawn": greedy_texts(drawn.model), "kv_heads": target.model.kv_shape.heads, "refused": refused,
    "draft_kv_heads": draft.kv_shape.heads, "is_spread": [target.model.is_spread, draft.is_spread],
    "shares": [target.parameters, sum(local_part(own).numel() for own in target.model.module.parameters())],
}}))
ranks.leave()
"""


def greedy_texts(model, draft=None):
    from specbench import registry
    from specbench.decode.method import LoadContext

    kind = registry.load("autoregressive" if draft is None else "draft_model")
    method = kind(kind.Options() if draft is None else kind.Options(draft="x", tree={"branching": [2, 2]}))
    method.load(LoadContext(model, lambda _: draft))
    return decoding.ids(decoding.decode(model, method, PROMPTS, 20))


def test_two_processes_hold_half_of_the_target_each_and_decode_the_text_of_one(family, tmp_path):
    pytest.importorskip("accelerate")
    code = TENSOR.format(root=str(TESTS.parent), tests=str(TESTS), zoo=str(family))
    first, second = (json.loads(text) for text in run_together(code, tmp_path))
    alone = load(locate("pico", family), placement(MachineSettings(device="cpu")))
    assert first["plain"] == first["drafted"] == greedy_texts(alone.model)
    assert first == second
    assert (first["kv_heads"], first["draft_kv_heads"]) == (1, 2)
    assert first["is_spread"] == [True, False]
    whole, held = first["shares"]
    assert whole == alone.parameters
    assert whole / 2 <= held <= whole / 2 + 1000  # the norms are everywhere
    assert first["refused"].endswith("2 processes cannot share 3 heads and 3 heads of keys and values evenly")


def test_a_model_with_a_device_map_decodes_as_one_without(family):
    pytest.importorskip("accelerate")
    spread = load(locate("pico", family), placement(MachineSettings(device="cpu", parallel="device_map")))
    alone = load(locate("pico", family), placement(MachineSettings(device="cpu")))
    assert greedy_texts(spread.model) == greedy_texts(alone.model)


def on_two_devices():
    """A model whose second layer and head live on a device without values, with hooks that move what they are given.

    That is how accelerate spreads a model. The first layer computes for real.
    """
    model = tiny.model(seed=1)

    def carry(device):
        return lambda _, args, kwargs: tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))

    for part in (model.model.layers[1], model.model.norm, model.lm_head):
        part.to("meta").register_forward_pre_hook(carry("meta"), with_kwargs=True)
    model.register_forward_hook(lambda _, args, output: replace(output, logits=output.logits.to("cpu")))
    return model


def test_each_layers_keys_and_values_live_where_the_layer_does():
    alone = CachedModel(tiny.model(seed=1), "alone", attention="sdpa")
    with LiveBytes():  # in which a value that does not exist is a one
        spread = CachedModel(on_two_devices(), "spread", attention="sdpa")
        assert [device.type for device in spread.kv_shape.devices] == ["cpu", "meta"]
        assert spread.is_spread
        assert not alone.is_spread
        tokens, lengths = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2])
        for model in (alone, spread):
            model.allocate(2, 16)
            states = model.prefill(tokens, lengths, (POST_NORM,)).hidden[POST_NORM]
            layout = lay_out(torch.tensor([[-1, -1, 1], [-1, -1, 1]]), max_depth=2)
            output = model.verify(layout, torch.tensor([[7, 8, 9, 1], [4, 3, 2, 1]]), lengths, 4, (POST_NORM,))
            model.cache.compact(torch.tensor([[0, 2, 3], [0, 2, -1]]), torch.tensor([3, 2]), lengths)
            assert states.device == output.hidden[POST_NORM].device == output.logits.device == torch.device("cpu")
    there = spread.cache.window_on(torch.device("meta"))
    assert there.rows.device == there.slots.device == torch.device("meta")
    assert spread.cache.window_on(torch.device("meta")) is there
    first, second = spread.cache.slabs
    assert (first.device.type, second.device.type) == ("cpu", "meta")
    assert first.shape == second.shape == (1, 2, 2, 16, 2, 16)
    assert spread.kv_bytes == alone.kv_bytes == 2 * first.nbytes
    for row, length in enumerate([7, 4]):
        torch.testing.assert_close(first[0, :, row, :length], alone.cache.slab[0, :, row, :length])


def test_a_draft_is_whole_unless_it_is_the_target_itself(family, monkeypatch):
    where = Placement(torch.device("cpu"), torch.float32, None, "device_map")
    seen = []
    monkeypatch.setattr(loader, "load_module", lambda source, where, _: seen.append(where.parallel) or tiny.model(1))
    pool = ModelPool(where, family)
    target = pool.get("pico")
    pool.draft("pico-wide", target)
    pool.draft("pico", target)
    assert seen == ["device_map", "none"]


def test_one_process_cannot_share_a_target(monkeypatch):
    monkeypatch.setattr(loader, "find_spec", lambda name: object())
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UnsupportedError, match=r"takes several processes: torchrun --nproc-per-node 2 -m specbench"):
        placement(MachineSettings(device="cpu", parallel="tensor"))


def test_without_accelerate_nothing_is_spread(monkeypatch):
    monkeypatch.setattr(loader, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install accelerate"):
        placement(MachineSettings(device="cpu", parallel="device_map"))


def test_layers_that_stay_on_the_host_are_out_of_memory():
    module = tiny.model()
    module.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"}
    with pytest.raises(MemoryError, match="2 of its 3 parts would stay on the host"):
        loader._refuse_offloading(module, "large", torch.device("cuda", 0))
    loader._refuse_offloading(module, "large", torch.device("cpu"))
