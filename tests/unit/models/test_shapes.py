"""specbench.models.shapes"""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from specbench.decode.target import CachedModel, self_test
from specbench.errors import ConfigError, UnknownNameError
from specbench.models.shapes import (
    SHAPES,
    ModelShape,
    OptShape,
    build_random,
    numbers_of,
    shape_of,
    shape_of_hub_id,
)
from specbench.models.source import locate

SMALL = ModelShape(2, 32, 64, 2, 2, vocab=200, context=128)


def build(seed=0, shape=SMALL):
    return build_random(shape, device=torch.device("cpu"), dtype=torch.float32, attention="sdpa", seed=seed)


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


# What the checkpoints really hold, as the hub counts them and others have printed them; the wide drafts follow below.
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "vicuna-7b-v1.3": 6_738_415_616,
    "vicuna-13b-v1.3": 13_015_864_320,
    "vicuna-33b-v1.3": 32_528_943_616,
    "sheared-llama-1.3b": 1_345_423_360,
    "sheared-llama-2.7b": 2_701_560_320,
    "llama-68m": 68_030_208,
    "llama-160m": 162_417_408,
    "tinyllama-1.1b": 1_100_048_384,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_shapes_have_the_published_number_of_parameters(name, parameters, tmp_path):
    assert locate(f"random:{name}", tmp_path).parameters == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("noft-wide-1.3b", 1274.0), ("noft-wide-796m", 796.26), ("noft-wide-543m", 543.29), ("noft-wide-290m", 290.32)],
)
def test_the_wide_drafts_of_the_paper_weigh_what_their_names_say(name, millions, tmp_path):
    """The names count matrices alone, so the norms are left out here."""
    source = locate(f"random:{name}", tmp_path)
    norms = sum(parameter.numel() for parameter in source.skeleton.parameters() if parameter.ndim == 1)
    digits = 1 if millions > 1000 else 2
    assert round((source.parameters - norms) / 1e6, digits) == millions


def test_the_wide_drafts_on_the_hub_weigh_more_than_their_names_say(tmp_path):
    """The file of the 796M repository holds 5.1 GB of float32, and a converted file of the 290M one 465M numbers."""
    stored = {name: locate(f"random:wide-sheared-llama-{name}", tmp_path).parameters for name in ("796m", "290m")}
    assert round(stored["796m"] * 4 / 1e9, 1) == 5.1
    assert round(stored["290m"] / 1e6) == 465


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_counted_as_transformers_builds_the_model(name, tmp_path):
    assert SHAPES[name].parameters == locate(f"random:{name}", tmp_path).parameters


@pytest.mark.parametrize(
    "shape",
    [
        ModelShape(3, 48, 80, 6, 2, vocab=90, tied=True),
        ModelShape(2, 40, 64, 4, 4, vocab=77, head_dim=16),
        OptShape(2, 32, 100, 4, 4, vocab=60, tied=True, context=70),
        OptShape(2, 32, 100, 4, 4, vocab=60, tied=True, embedding=16, post_norm=True),
    ],
    ids=repr,
)
def test_so_are_those_of_other_shapes(shape):
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(shape.config())
    assert shape.parameters == sum(parameter.numel() for parameter in built.parameters())


def test_opt_350m_has_its_projections_and_no_norm_at_the_end(tmp_path):
    decoder = locate("random:opt-350m", tmp_path).skeleton.model.decoder
    assert (decoder.project_in.in_features, decoder.project_in.out_features) == (512, 1024)
    assert decoder.final_layer_norm is None
    assert locate("random:opt-125m", tmp_path).skeleton.model.decoder.final_layer_norm is not None


def test_an_opt_with_those_quirks_passes_the_self_test():
    shape = OptShape(2, 32, 64, 2, 2, vocab=200, context=128, tied=True, embedding=16, post_norm=True)
    found = self_test(CachedModel(build(shape=shape), "random"))
    assert found.difference <= found.tolerance


def test_a_shape_is_given_by_numbers_as_well():
    assert shape_of("5x2560x32x11008") == ModelShape(5, 2560, 11008, 32, 32)
    further = "80x8192x64x28672, kv_heads=8, context=4096, head_dim=128, vocab=128256, tied=true"
    assert shape_of(further) == ModelShape(80, 8192, 28672, 64, 8, 128256, 4096, head_dim=128, tied=True)
    assert shape_of("llama-7b") is SHAPES["llama-7b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5x100x12x400", "12 heads do not divide a width of 100"),
        ("2x64x8x128,kv_heads=3", "3 heads of keys and values do not divide 8 heads"),
        ("2x20x4x30", "a head is 5 wide, and rotary positions need an even width"),
        ("0x64x2x128", "layers must be at least 1, got 0"),
        ("2x-64x2x128", "hidden must be at least 1, got -64"),
        ("2x64x2", "not LAYERSxHIDDENxHEADSxFEED_FORWARD, like 5x2560x32x11008"),
        ("2x64x2x128x1", "not LAYERSxHIDDENxHEADSxFEED_FORWARD"),
        ("2x64x2x128,kvheads=1", "unknown key 'kvheads'. Did you mean 'kv_heads'?"),
        ("2x64x2x128,vocab=many", "vocab must be a whole number, got 'many'"),
        ("2x64x2x128,tied=yes", "tied must be true or false, got 'yes'"),
    ],
)
def test_a_shape_that_cannot_exist_is_one_clear_line(text, words):
    with pytest.raises(ConfigError) as error:
        shape_of(text)
    assert str(error.value).startswith(f"shape {text}: {words}")
    assert "\n" not in str(error.value)


def test_an_unknown_name_of_a_shape_brings_the_nearest_one():
    with pytest.raises(UnknownNameError, match=r"unknown model shape 'opt-125n'\. Did you mean 'opt-125m'"):
        shape_of("opt-125n")


def test_random_weights_are_known_by_numbers_and_seed_not_by_a_name(tmp_path):
    named, free = (locate(f"random:{text}", tmp_path) for text in ("llama-68m", "2x768x12x3072"))
    assert named.weights_sha == free.weights_sha
    others = ("2x768x12x3072,tied=true", "2x768x12x3072,context=1024", "2x768x12x3074")
    shas = {locate(f"random:{text}", tmp_path).weights_sha for text in others}
    assert len(shas | {free.weights_sha}) == 4


def test_the_numbers_of_any_family_are_found():
    gpt2 = GPT2Config(n_layer=3, n_embd=48, n_head=4, vocab_size=99)
    assert numbers_of(gpt2) == (3, 48, 4, 4, 12, None, 99)
    assert numbers_of(SHAPES["opt-125m"].config()) == (12, 768, 12, 12, 64, 3072, 50272)
    assert numbers_of(SHAPES["llama-2-70b"].config()) == (80, 8192, 64, 8, 128, 28672, 32000)
    assert numbers_of(SHAPES["llama-2-70b"].config()).kv_values_per_token == 2 * 80 * 8 * 128


def test_a_published_model_has_its_shape_without_asking_the_hub():
    assert shape_of_hub_id("lmsys/vicuna-7b-v1.3") is SHAPES["vicuna-7b-v1.3"]
    assert shape_of_hub_id("nobody/nothing") is None
