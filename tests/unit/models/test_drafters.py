"""specbench.models.drafters: weights of a method's own, and those that nobody has trained."""

import pytest
import torch

from methods.medusa.heads import MedusaHeads
from methods.redrafter.drafter import RecurrentDrafter
from specbench import registry
from specbench.bench.footprint import Footprints
from specbench.bench.memory import weight_bytes
from specbench.decode.method import LoadContext
from specbench.errors import ConfigError, UnknownNameError
from specbench.models.drafters import locate_drafter
from specbench.models.loader import ModelPool, Placement
from support import decoding
from tests.unit.models import tiny

CPU = torch.device("cpu")
EVERY_KIND = [
    (MedusaHeads, "random", {"heads": 5, "layers": 1, "shared_output": False}),
    (MedusaHeads, "random:heads=3, layers=2,shared_output=true", {"heads": 3, "layers": 2, "shared_output": True}),
    (RecurrentDrafter, "random", {"layers": 2, "rnn": True, "exit_dim": None}),
    (RecurrentDrafter, "random:layers=1,rnn=false,exit_dim=24", {"layers": 1, "rnn": False, "exit_dim": 24}),
]


@pytest.fixture
def pool(family):
    return ModelPool(Placement(CPU, torch.bfloat16, "sdpa"), family)


@pytest.mark.parametrize(("kind", "reference", "settings"), EVERY_KIND)
def test_random_weights_have_the_target_s_shape_and_precision_and_the_settings_of_their_name(
    pool, kind, reference, settings
):
    target = pool.get("pico")
    found = pool.drafter(kind, reference, target)
    assert {name: getattr(found.settings, name) for name in settings} == settings
    rows, hidden_size = target.model.output_matrix.shape
    assert (found.rows, found.hidden_size) == (rows, hidden_size)
    assert {weight.dtype for weight in found.parameters()} == {torch.bfloat16}
    trained = kind.new(found.settings, target.model)
    assert {name: value.shape for name, value in found.state_dict().items()} == {
        name: value.shape for name, value in trained.state_dict().items()
    }


@pytest.mark.parametrize(("kind", "reference", "settings"), EVERY_KIND)
def test_no_random_weight_is_zero_and_all_are_the_same_again_whatever_torch_has_drawn(
    pool, family, kind, reference, settings
):
    found = pool.drafter(kind, reference, pool.get("pico"))
    torch.rand(7)
    state = torch.random.get_rng_state()
    again = ModelPool(pool.where, family)
    other = again.drafter(kind, reference, again.get("pico"))
    assert torch.equal(torch.random.get_rng_state(), state)
    for mine, theirs in zip(found.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert (mine == 0).float().mean() < 0.01
        assert 0.01 < mine.float().std() < 0.03


def test_random_weights_of_two_kinds_stand_beside_one_another(pool):
    target = pool.get("pico")
    heads, drafter = pool.drafter(MedusaHeads, "random", target), pool.drafter(RecurrentDrafter, "random", target)
    assert (type(heads), type(drafter)) == (MedusaHeads, RecurrentDrafter)
    assert pool.drafter(MedusaHeads, "random", target) is heads
    assert pool.has("random")
    pool.keep_only(set())
    assert not pool.has("random")


@pytest.mark.parametrize(
    ("name", "options"),
    [("medusa", {"heads": "random", "tree": {"branching": [3, 2]}}), ("redrafter", {"drafter": "random"})],
)
def test_a_method_with_random_weights_drafts_and_its_greedy_text_is_the_target_s(family, name, options):
    pool = ModelPool(Placement(CPU, torch.float32, None), family)
    target = pool.get("pico")
    kind = registry.load(name)
    method = kind(kind.Options(**options))
    method.load(LoadContext(target.model, lambda _: None, lambda kind, ref: pool.drafter(kind, ref, target)))
    prompts = [[5, 6, 7], [8]]
    trace = decoding.decode(target.model, method, prompts, 12)
    assert decoding.ids(trace) == decoding.ids(decoding.decode(target.model, decoding.autoregressive(), prompts, 12))
    assert all(min(row.drafted_nodes_per_step) > 0 for row in trace.rows)


@pytest.mark.parametrize("kind", [MedusaHeads, RecurrentDrafter])
def test_a_plan_weighs_random_weights_without_making_them(pool, family, kind):
    weighed = Footprints(family)
    _, bare = weighed._model("pico", pool.where)
    found = weighed.drafter(kind, "random", bare)
    assert {weight.device.type for weight in found.parameters()} == {"meta"}
    assert weight_bytes([found]) == weight_bytes([pool.drafter(kind, "random", pool.get("pico"))])


def test_another_setting_is_another_trial():
    names = ("random", "random:heads=3", "random:heads=4")
    assert len({locate_drafter(name).weights_sha for name in names}) == 3


@pytest.mark.parametrize("reference", ["random:", "random:heads", "random:heads=", "random:=3", "random:a=1,,b=2"])
def test_settings_that_are_none_are_refused_at_once(reference):
    with pytest.raises(ConfigError, match="random weights read random, or random:key=value"):
        locate_drafter(reference)


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("random:depth=3", r"random:depth=3: depth: Extra inputs .* Known: heads, layers, shared_output\."),
        ("random:heads=99", "random:heads=99: heads: Input should be less than or equal to 16"),
    ],
)
def test_a_setting_that_the_kind_does_not_have_is_one_line(pool, reference, fault):
    with pytest.raises(ConfigError, match=fault) as caught:
        pool.drafter(MedusaHeads, reference, pool.get("pico"))
    assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_is_found_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "random")
    assert locate_drafter("./random").folder.name == "random"
    with pytest.raises(UnknownNameError):
        locate_drafter("randum")
