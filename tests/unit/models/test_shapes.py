"""specbench.models.shapes"""

import pytest
import torch

from specbench.decode.target import CachedModel, self_test
from specbench.models.shapes import SHAPES, NamedShape, build_random, shape_of_hub_id
from specbench.models.source import locate

SMALL = NamedShape(2, 32, 64, 2, 2, vocab=200, context=128)


def build(seed=0):
    return build_random(SMALL, device=torch.device("cpu"), dtype=torch.float32, attention="sdpa", seed=seed)


def test_random_weights_are_never_zero_and_follow_the_seed():
    parameters, again = list(build().parameters()), list(build().parameters())
    assert all(parameter.abs().sum() > 0 for parameter in parameters)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
    assert not torch.equal(next(build(1).parameters()), parameters[0])


def test_making_weights_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    build()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_of_random_weights_passes_the_self_test():
    found = self_test(CachedModel(build(), "random"))
    assert found.difference <= found.tolerance


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vicuna-7b-v1.3", 6_738_415_616), ("vicuna-13b-v1.3", 13_015_864_320), ("llama-160m", 162_417_408)],
)
def test_shapes_have_the_published_number_of_parameters(name, parameters, tmp_path):
    assert locate(f"random:{name}", tmp_path).parameters == parameters


def test_a_published_model_has_its_shape_without_asking_the_hub():
    assert shape_of_hub_id("lmsys/vicuna-7b-v1.3") is SHAPES["vicuna-7b-v1.3"]
    assert shape_of_hub_id("nobody/nothing") is None
