"""specbench.decode.target: which models are taken, which are refused and why, and what the handle hands out."""

import pytest
import torch
import transformers
from torch import nn

from specbench.decode.method import Hidden
from specbench.decode.target import CachedModel, decoder_layers, self_test
from specbench.decode.tree import lay_out
from specbench.errors import ModelRefusedError, UnsupportedError
from support import decoding, models

SMALL = {"vocab_size": 83, "bos_token_id": None, "eos_token_id": None}


def _bloom() -> nn.Module:
    return transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SMALL))


def _mpt() -> nn.Module:
    return transformers.MptForCausalLM(transformers.MptConfig(d_model=32, n_layers=2, n_heads=4, **SMALL))


def _mamba() -> nn.Module:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SMALL)
    return transformers.MambaForCausalLM(config)


def _falcon_mamba() -> nn.Module:
    config = transformers.FalconMambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SMALL)
    return transformers.FalconMambaForCausalLM(config)


def _recurrent_gemma() -> nn.Module:
    config = transformers.RecurrentGemmaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, **SMALL
    )
    return transformers.RecurrentGemmaForCausalLM(config)


def _hybrid() -> nn.Module:
    config = transformers.Qwen3NextConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        **SMALL,
    )
    return transformers.Qwen3NextForCausalLM(config)


def _falcon_alibi() -> nn.Module:
    config = transformers.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, **SMALL)
    return transformers.FalconForCausalLM(config)


def _gpt_neo(window: int) -> nn.Module:
    config = transformers.GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=window,
        max_position_embeddings=160,
        **SMALL,
    )
    return transformers.GPTNeoForCausalLM(config)


class _IgnoresPositions(transformers.LlamaForCausalLM):
    def forward(self, input_ids, position_ids=None, attention_mask=None, past_key_values=None, use_cache=None):
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )


class _IgnoresMasks(transformers.LlamaForCausalLM):
    def forward(self, input_ids, position_ids=None, attention_mask=None, past_key_values=None, use_cache=None):
        return super().forward(
            input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache
        )


def _admit(module: nn.Module, name: str) -> None:
    self_test(CachedModel(models.scaled(module, seed=0), name))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        pytest.param(_bloom, "takes no position_ids", id="bloom, whose positions are distances"),
        pytest.param(_mpt, "takes no position_ids", id="mpt, whose positions are distances"),
        pytest.param(_mamba, "takes no position_ids", id="mamba, which keeps a state"),
        pytest.param(_falcon_mamba, "takes no position_ids", id="falcon_mamba, which keeps a state"),
        pytest.param(_recurrent_gemma, "cannot be rolled back", id="recurrent_gemma, which mixes a state in"),
        pytest.param(_hybrid, "cannot be rolled back", id="a hybrid of linear and full attention"),
        pytest.param(_falcon_alibi, "falcon", id="falcon with alibi, which fails on our masks"),
        pytest.param(lambda: _gpt_neo(4), "limits its attention", id="gpt_neo with a window under a name of its own"),
    ],
)
def test_a_model_that_the_core_cannot_run_is_refused_with_a_reason(build, reason):
    with pytest.raises(ModelRefusedError, match=reason) as refusal:
        _admit(build(), "falcon" if build is _falcon_alibi else "model")
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, UnsupportedError)


def test_a_window_that_is_longer_than_the_self_test_is_not_overlooked():
    """The model is refused, or its long texts are right; a window of 256 must not pass because the test is short."""
    module = models.scaled(_gpt_neo(40), seed=0)
    prompt = tuple(range(60))
    try:
        model = CachedModel(module, "gpt_neo")
        self_test(model)
    except ModelRefusedError:
        return
    trace = decoding.decode(model, decoding.autoregressive(), [prompt])
    assert trace.rows[0].output_ids == models.hf_greedy(module, prompt, 24)


@pytest.mark.parametrize("broken", [_IgnoresPositions, _IgnoresMasks])
def test_the_self_test_catches_a_model_that_accepts_positions_or_masks_and_ignores_them(broken):
    module = models.scaled(broken(models.target("llama").config), seed=3)
    with pytest.raises(ModelRefusedError, match="broken"):
        self_test(CachedModel(module, "broken"))


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_family_passes_the_self_test_with_room_to_spare(name: str):
    result = self_test(decoding.family(name))
    assert result.difference < 1e-4 <= result.tolerance


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_family_passes_the_self_test_in_bfloat16(name: str):
    _, build = models._BUILDERS[name]
    module = build()
    module.load_state_dict(models.target(name).state_dict())
    result = self_test(CachedModel(module.to(torch.bfloat16), name))
    assert result.difference <= result.tolerance


def test_the_self_test_leaves_the_slab_of_the_running_batch_alone():
    model = decoding.family("llama")
    model.allocate(2, 30)
    model.prefill(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([3, 2]))
    before = model.cache.slab.clone()
    self_test(model)
    assert torch.equal(model.cache.slab, before)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_hidden_states_equal_those_that_transformers_returns(name: str):
    model, module = decoding.family(name), models.target(name)
    wanted = (Hidden("post_norm"), Hidden("layer_input", 1))
    rows = [list(models.PROMPTS[0]), list(models.PROMPTS[5])]
    lengths = torch.tensor([5, 3])
    padded = torch.tensor([rows[0], rows[1] + [0, 0]])
    model.allocate(2, 30)
    everywhere = model.prefill(padded, lengths, wanted, all_positions=True)
    last = model.prefill(padded, lengths, wanted)
    with torch.no_grad():
        for index, row in enumerate(rows):
            states = module(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
            for key, expected in ((wanted[0], states[-1][0]), (wanted[1], states[1][0])):
                torch.testing.assert_close(everywhere.hidden[key][index, : len(row)], expected, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(last.hidden[key][index, 0], expected[-1], atol=1e-4, rtol=1e-4)
    assert last.hidden[wanted[0]].shape[:2] == (2, 1)
    assert torch.equal(last.logits, everywhere.logits)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_output_head_over_post_norm_states_gives_the_logits(name: str):
    if name == "gemma2":
        pytest.skip("gemma2 caps its logits after the head")
    model = decoding.family(name)
    model.allocate(1, 30)
    output = model.prefill(torch.tensor([[1, 2, 3]]), torch.tensor([3]), (Hidden("post_norm"),))
    torch.testing.assert_close(model.head(output.hidden[Hidden("post_norm")]), output.logits, atol=1e-5, rtol=1e-5)


def test_the_decoder_layers_are_found_in_every_family():
    for name in models.FAMILIES:
        assert len(decoder_layers(models.target(name))) == 2


def test_hooks_are_hung_once_and_leave_a_forward_that_asks_for_nothing_as_it_was():
    ids = torch.tensor([[1, 2, 3]])
    before = models.target("llama")(input_ids=ids, use_cache=False).logits
    for _ in range(3):  # handles of the same module
        model = decoding.family("llama")
        model.allocate(1, 30)
        model.prefill(ids, torch.tensor([3]), (Hidden("post_norm"), Hidden("layer_input", 0)))
    hooks = [hook for module in model.module.modules() for hook in module._forward_pre_hooks.values()]
    assert len(hooks) == 2 + sum("layer_input" in repr(hook) and "layer=0" not in repr(hook) for hook in hooks)
    assert torch.equal(model.module(input_ids=ids, use_cache=False).logits, before)
    assert model.prefill(ids, torch.tensor([3])).hidden == {}


def test_a_smaller_batch_takes_the_first_rows_and_the_full_one_finds_its_slab_where_it_was():
    model = decoding.family("llama")
    model.allocate(4, 30)
    whole, place = model.cache, model.cache.slab.data_ptr()
    model.allocate(3, 20)
    assert (model.cache.batch, model.cache.slab.data_ptr(), model.kv_bytes) == (3, place, whole.kv_bytes)
    model.allocate(4, 25)
    assert model.cache is whole
    model.allocate(5, 25)
    assert model.cache.batch == 5
    assert model.cache is not whole


def test_a_handle_that_shares_weights_has_a_slab_of_its_own():
    model = decoding.family("llama")
    other = model.sharing_weights()
    model.allocate(1, 20)
    other.allocate(1, 20)
    assert other.module is model.module
    assert other.cache.slab.data_ptr() != model.cache.slab.data_ptr()


def test_every_forward_but_no_prefill_goes_through_the_pacer():
    entered = []

    class Pacer:
        def __enter__(self):
            entered.append(1)

        def __exit__(self, *args):
            return None

    model = decoding.family("llama")
    model.pacer = Pacer()
    model.allocate(1, 20)
    model.prefill(torch.tensor([[1, 2]]), torch.tensor([2]))
    assert entered == []
    layout = lay_out(torch.tensor([[-1]]), max_depth=1)
    model.verify(layout, torch.tensor([[3, 4]]), torch.tensor([2]), 2)
    assert entered == [1]


def test_what_padding_nodes_write_is_never_seen():
    """The same tree with other tokens in its padding, then a step on top of the path: the same logits to the bit."""
    layout = lay_out(torch.tensor([[-1, -2, 0], [-1, -1, 0]]), max_depth=2)
    lengths, longest = torch.tensor([2, 2]), 2
    outcomes = []
    for filler in (0, 9):
        model = decoding.family("llama")
        model.allocate(2, 20)
        model.prefill(torch.tensor([[1, 2], [3, 4]]), lengths)
        tokens = torch.tensor([[5, 6, filler, 8], [5, 6, 7, 8]])
        logits = model.verify(layout, tokens, lengths, longest).logits
        model.cache.compact(torch.tensor([[0, 1, 3], [0, 1, 3]]), torch.tensor([3, 3]), lengths)
        after = model.verify(layout, tokens, lengths + 3, longest + 3).logits
        outcomes.append(torch.stack([logits, after])[:, ~layout.padding])
    assert torch.equal(*outcomes)


def test_padding_in_a_prompt_leaves_no_keys_behind():
    model = decoding.family("llama")
    model.allocate(2, 20)
    model.prefill(torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]]), torch.tensor([2, 4]))
    written = (model.cache.slab != 0)[:, :, :, :-1].flatten(-2).any(-1).all(0).all(0)
    assert written.sum(1).tolist() == [2, 4]


def test_padding_in_a_prompt_is_never_seen():
    model = decoding.family("mistral")
    model.allocate(2, 40)
    first = model.prefill(torch.tensor([[1, 2, 3, 0, 0], [5, 6, 7, 8, 9]]), torch.tensor([3, 5]))
    second = model.prefill(torch.tensor([[1, 2, 3, 80, 81], [5, 6, 7, 8, 9]]), torch.tensor([3, 5]))
    assert torch.equal(first.logits, second.logits)
