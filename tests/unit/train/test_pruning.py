"""specbench.train.pruning"""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from specbench.errors import TrainingError
from specbench.models.shapes import numbers_of
from specbench.train.pruning import Importance, choose, importance, prune
from specbench.train.recipes import Shape

WHOLE = Shape(layers=4, hidden=48, heads=6, feed_forward=40)
TEXT = [torch.randint(0, 60, (3, 20), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def a_model(family="llama", *, kv_heads=3, tied=True, seed=0, **options):
    """Of the whole shape; heads are 8 wide, weights large enough that every unit shows in the logits."""
    torch.manual_seed(seed)
    config = CONFIGS[family](
        vocab_size=60, hidden_size=WHOLE.hidden, intermediate_size=WHOLE.feed_forward,
        num_hidden_layers=WHOLE.layers, num_attention_heads=WHOLE.heads, num_key_value_heads=kv_heads, head_dim=8,
        max_position_embeddings=64, tie_word_embeddings=tied, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


@torch.no_grad()
def logits(model):
    return model(TEXT[0]).logits


def pruned(model, layers_by="influence", **change):
    return prune(model, replace(WHOLE, **change), TEXT, layers_by)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_pruned_to_its_own_shape_a_model_gives_the_same_logits(family, tied):
    model = a_model(family, tied=tied)
    assert torch.equal(logits(pruned(model).model), logits(model))


@pytest.fixture(params=CONFIGS)
def half_dead(request):
    """A layer that adds nothing; in each of the others a group of heads that nobody reads, and neurons that nobody
    reads or that never fire; and dimensions of the residual stream that nobody writes to."""
    # The norms of a Qwen3's queries and keys, which nothing narrows, have the same constant: there it must be small.
    model = a_model(request.param, rms_norm_eps=1e-6 if request.param == "qwen3" else 0.05)
    layers = model.model.layers
    with torch.no_grad():
        for place, layer in enumerate(layers):
            layer.self_attn.o_proj.weight.unflatten(1, (6, 8))[:, 2 * (place % 3) : 2 * (place % 3) + 2] = 0
            layer.mlp.down_proj.weight[:, place : place + 5] = 0
            layer.mlp.gate_proj.weight[20:23] = 0
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[10:18] = 0
                writer.weight.mul_(place != 1)
        model.model.embed_tokens.weight[:, 10:18] = 0
    return model


def test_layers_heads_and_neurons_that_do_nothing_can_go_without_any_change_of_the_logits(half_dead):
    found = pruned(half_dead, layers=3, heads=4, feed_forward=32)
    assert found.kept.layers == (0, 2, 3)
    assert torch.equal(logits(found.model), logits(half_dead))


def test_dimensions_that_nobody_writes_to_can_go_without_a_change_of_the_logits(half_dead, tmp_path):
    found = pruned(half_dead, hidden=42)
    assert set(range(48)) - set(found.kept.hidden.tolist()) <= set(range(10, 18))
    assert torch.allclose(logits(found.model), logits(half_dead), atol=2e-4)
    found.model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(found.model))


def test_what_is_kept_are_the_source_s_own_weights():
    model = a_model(kv_heads=2)
    found = pruned(model, layers=2, hidden=36, heads=3, feed_forward=16)
    layer, own = found.model.model.layers[1], model.model.layers[found.kept.layers[1]]
    hidden, heads = found.kept.hidden, found.kept.heads[1]
    group = int(heads[0]) // 3
    assert heads.tolist() == [3 * group, 3 * group + 1, 3 * group + 2]
    assert torch.equal(layer.self_attn.k_proj.weight, own.self_attn.k_proj.weight[8 * group : 8 * group + 8][:, hidden])
    assert torch.equal(layer.self_attn.o_proj.weight, own.self_attn.o_proj.weight[hidden, 24 * group : 24 * group + 24])
    neurons = found.kept.neurons[1]
    assert torch.equal(layer.mlp.up_proj.weight, own.mlp.up_proj.weight[neurons][:, hidden])
    assert torch.equal(found.model.get_input_embeddings().weight, model.get_input_embeddings().weight[:, hidden])


def test_the_source_stays_as_it_is():
    model = a_model()
    before, config = logits(model), model.config.to_dict()
    pruned(model, layers=2, hidden=24, heads=2, feed_forward=8)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


def test_heads_keep_their_width_and_groups_their_size():
    found = pruned(a_model("qwen3"), hidden=30, heads=4)
    assert numbers_of(found.model.config)[1:5] == (30, 4, 2, 8)


def test_each_layer_keeps_its_own_kind_of_attention():
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = a_model("qwen2", layer_types=kinds, sliding_window=4, use_sliding_window=True)
    with torch.no_grad():
        for place in (0, 3):
            model.model.layers[place].self_attn.o_proj.weight.zero_()
            model.model.layers[place].mlp.down_proj.weight.zero_()
    found = pruned(model, layers=2)
    assert found.kept.layers == (1, 2)
    assert found.model.config.layer_types == ["full_attention", "sliding_attention"]
    assert torch.allclose(logits(found.model), logits(model), atol=1e-5)


def test_block_influence_is_one_less_the_cosine_of_what_a_layer_reads_and_writes():
    model = a_model()
    with torch.no_grad():
        states = [model(batch, output_hidden_states=True).hidden_states for batch in TEXT]
    first, second = (torch.cat([state[place].flatten(0, 1) for state in states]) for place in (0, 1))
    expected = 1 - torch.nn.functional.cosine_similarity(first, second, dim=-1).mean()
    assert importance(model, TEXT).influence[0].item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_head_s_importance_is_the_mean_square_of_what_it_adds():
    model = a_model()
    attention = model.model.layers[2].self_attn
    seen = []
    handle = attention.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(model)
    handle.remove()
    added = seen[0][..., 24:32] @ attention.o_proj.weight[:, 24:32].T
    expected = (added**2).sum(-1).mean()
    assert importance(model, TEXT[:1]).heads[2, 3].item() == pytest.approx(expected.item(), rel=1e-5)


def test_layers_go_by_their_influence_or_stand_evenly():
    found = Importance(
        torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3]), torch.ones(5, 4), torch.ones(5, 4), torch.ones(11, 4), torch.ones(4)
    )
    whole = numbers_of(LlamaConfig(hidden_size=4, num_attention_heads=4, num_hidden_layers=5, intermediate_size=4))
    shape = Shape(3, 4, 4, 4)
    assert choose(found, whole, shape, "influence").layers == (1, 3, 4)
    assert choose(found, whole, shape, "even").layers == (0, 2, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 5}, "--shape: layers 5 is larger than the 4 of the model that is pruned"),
        ({"hidden": 64}, "--shape: hidden 64 is larger than the 48"),
        ({"feed_forward": 41}, "--shape: feed-forward 41 is larger than the 40"),
        ({"heads": 3}, "2 heads share their keys and values, so that whole groups are kept: give a multiple of 2, got"),
        ({"hidden": 46, "heads": 4}, "the heads of a llama divide its hidden size, got 4 heads and 46"),
        ({"layers_by": "inflence"}, "--layers-by: unknown way 'inflence'. Did you mean 'influence'?"),
    ],
)
def test_a_shape_that_is_not_inside_the_model_is_refused_in_one_line(change, words):
    with pytest.raises(TrainingError) as caught:
        pruned(a_model(), **change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_built_otherwise_is_refused():
    with pytest.raises(TrainingError, match="only llama, mistral, qwen2, qwen3 can be pruned, and this is a gpt2"):
        prune(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)), Shape(1, 4, 1, 4), TEXT)


def test_a_parameter_that_nobody_knows_is_named():
    model = a_model()
    assert isinstance(model, LlamaForCausalLM)
    model.model.layers[0].self_attn.register_parameter("sinks", torch.nn.Parameter(torch.zeros(6)))
    with pytest.raises(TrainingError, match=r"this one has model\.layers\.0\.self_attn\.sinks"):
        pruned(model)


def test_without_a_text_nothing_can_be_judged():
    with pytest.raises(TrainingError, match="there is no text"):
        prune(a_model(), WHOLE, [])
