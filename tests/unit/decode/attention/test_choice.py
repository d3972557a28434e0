"""specbench.decode.attention.choice: what is refused and why, what is taken, and that a self-check sees faults."""

import copy
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from specbench import config
from specbench.decode.attention import choice
from specbench.decode.attention.backend import Facts
from specbench.decode.attention.choice import Attention, Shape, choose, facts_of, foreseen
from specbench.decode.attention.flash import FlashPackage, FlashVarlen
from specbench.decode.attention.masked import CuDNN, Doubled, Grouped
from specbench.decode.attention.split_kv import SplitKV
from specbench.decode.target import CachedModel, expected_attention, self_test
from specbench.errors import ModelRefusedError, UnsupportedError
from support import decoding, models

FULL = [None, None]
FACTS = Facts(torch.device("cpu"), torch.float32, query_heads=4, kv_heads=2, head_dim=8, window=None)


def _fresh(name: str) -> transformers.PreTrainedModel:
    """A module of its own, so that switching it changes no other test's."""
    return copy.deepcopy(models.target(name))


def _kinds() -> dict[str, transformers.PreTrainedModel]:
    small = {"vocab_size": 83, "bos_token_id": None, "eos_token_id": None}
    falcon = transformers.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **small)
    sinks = transformers.GptOssConfig(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        **small,
    )
    return {
        "falcon": transformers.FalconForCausalLM(falcon),
        "gpt_oss": transformers.GptOssForCausalLM(sinks),
        "gemma2": _fresh("gemma2"),
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("falcon", "0 of its 2 layers use"), ("gpt_oss", "with eager attention"), ("gemma2", "with eager attention")],
)
def test_a_family_that_the_interface_cannot_serve_keeps_its_own_attention(kind: str, reason: str):
    module = _kinds()[kind]
    own = module.config._attn_implementation
    found = choose(module, FULL)
    assert (found.name, found.needs_view) == (own, True)
    assert reason in found.refused["auto"]
    assert module.config._attn_implementation == own


@pytest.mark.parametrize("extra", ["softcap", "s_aux"])
def test_what_changes_the_scores_in_a_way_that_no_backend_knows_is_seen(extra: str, monkeypatch):
    """Llama, but its layers hand a soft cap or sinks on, as others do."""
    from transformers.models.llama import modeling_llama

    module, forward = _fresh("llama"), modeling_llama.LlamaAttention.forward
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", lambda self, *a, **k: forward(self, *a, **k, **{extra: 30.0})
    )
    assert facts_of(module, FULL) == f"its attention has {extra}"


def test_a_window_that_attention_is_not_told_of_is_seen():
    assert "how far they look back" in str(facts_of(_fresh("llama"), [7, 7]))


def test_what_a_model_asks_of_attention_is_read_off_its_calls():
    assert facts_of(_fresh("llama"), FULL) == FACTS
    window = models.WINDOW
    assert facts_of(_fresh("mistral"), [window, window]) == replace(FACTS, window=window)


@pytest.mark.parametrize("backend", [SplitKV(), FlashPackage(), FlashVarlen(), CuDNN()])
def test_what_needs_a_gpu_says_so_on_a_cpu(backend):
    if backend.name != "split-kv" or find_spec("triton"):
        assert backend.unsupported(FACTS) == "runs on CUDA only"


def test_what_a_backend_cannot_take_is_said_before_it_runs(monkeypatch):
    there = replace(FACTS, device=torch.device("cuda"), head_dim=64)
    half = replace(there, dtype=torch.bfloat16)
    assert CuDNN().unsupported(there) == FlashVarlen().unsupported(there) == "takes half precision only"
    assert "up to 256" in FlashVarlen().unsupported(replace(half, head_dim=320))
    assert FlashVarlen().unsupported(half) is None
    monkeypatch.setattr("specbench.decode.attention.flash.find_spec", lambda _: None)
    assert "not installed" in FlashPackage().unsupported(half)
    monkeypatch.setattr("specbench.decode.attention.split_kv.find_spec", lambda _: None)
    assert "not installed" in SplitKV().unsupported(half)
    assert Doubled().unsupported(half) == "runs on a CPU only"


class _Faulty(Grouped):
    """Torch's attention with a fault of one kind."""

    name = "faulty"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def attend(self, call, prepared):
        mask = call.mask.clone()
        if self.fault == "one node too many":
            seen = (mask[:, 0, -1] == 0).nonzero()
            mask[0, 0, 0, seen[seen[:, 0] == 0][-1, 1]] = 0
        if self.fault == "no mask":
            mask.zero_()
        if self.fault == "the last key is missed":
            seen = (mask[0, 0, -1] == 0).nonzero()
            mask[0, 0, -1, seen[-1]] = -torch.inf
        if self.fault == "a committed key is missed":
            seen = (mask[0, 0, 0] == 0).nonzero()
            mask[0, 0, :, seen[-2]] = -torch.inf  # the last one is the root
        scale = 1.0 if self.fault == "no scale" else call.scale
        if self.fault == "raises":
            raise RuntimeError("no kernel image is available\nand more")
        found = super().attend(call._replace(mask=mask, scale=scale), prepared)
        return found.flip(2) if self.fault == "heads in another order" else found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fault",
    ["one node too many", "no mask", "the last key is missed", "no scale", "heads in another order", "raises"],
)
def test_the_self_check_sees_a_fault_in_any_precision(fault: str, dtype: torch.dtype):
    facts = replace(FACTS, dtype=dtype, query_heads=8, head_dim=32)
    reason = choice._failing(_Faulty(fault), facts, choice.SHAPES)
    assert reason == "it fails: no kernel image is available" if fault == "raises" else "self-check is off" in reason
    assert choice._failing(_Faulty("none"), facts, choice.SHAPES) is None


@pytest.mark.parametrize("fault", ["one node too many", "the last key is missed", "a committed key is missed"])
def test_among_thousands_of_keys_one_shows_in_half_precision(fault: str):
    facts = replace(FACTS, dtype=torch.bfloat16, query_heads=8, head_dim=32)
    shapes = [Shape(2, 5, 4000, is_tree=False), Shape(2, 5, 4000, is_tree=True)]
    assert choice._failing(Grouped(), facts, shapes) is None
    for shape in shapes:
        assert "self-check is off" in choice._failing(_Faulty(fault), facts, [shape])


@pytest.mark.parametrize("window", [3, 30])
@pytest.mark.parametrize("is_tree", [False, True])
def test_the_self_check_of_what_counts_windows_itself_knows_where_they_end(window: int, is_tree: bool):
    pytest.importorskip("triton")
    facts, shapes = replace(FACTS, window=window), [Shape(2, 9, 40, is_tree=is_tree)]

    class Shifted(SplitKV):
        def attend(self, call, prepared):
            return super().attend(call._replace(window=call.window and call.window + 1), prepared)

    assert choice._failing(SplitKV(is_interpreted=True), facts, shapes) is None
    assert "self-check is off" in choice._failing(Shifted(is_interpreted=True), facts, shapes)


@pytest.mark.parametrize("window", [3, 100])
def test_the_self_check_holds_windows_to_positions(window: int):
    facts = replace(FACTS, window=window)
    assert choice._failing(Grouped(), facts, choice.SHAPES) is None

    class Blind(Grouped):
        """What one query sees, all do."""

        def attend(self, call, prepared):
            return super().attend(call._replace(mask=call.mask.amax(2, keepdim=True).expand_as(call.mask)), prepared)

    assert "off by" in choice._failing(Blind(), facts, choice.SHAPES)


def test_the_run_s_own_shapes_are_checked():
    class Narrow(Grouped):
        name = "narrow"

        def attend(self, call, prepared):
            if call.query.shape[0] > 3:
                raise RuntimeError("too many rows")
            return super().attend(call, prepared)

    assert choice._failing(Narrow(), FACTS, choice.SHAPES) is None
    assert "too many rows" in choice._failing(Narrow(), FACTS, [Shape(4, 1, 50, is_tree=False)])


def test_on_a_cpu_the_choice_is_torch_without_repeated_heads():
    found = choose(_fresh("llama"), FULL)
    assert (found.name, found.needs_view) == ("grouped", True)
    assert found.refused.pop("doubled") == "is for half precision only"
    assert set(found.refused.values()) <= {"runs on CUDA only", "Triton is not installed"}


@pytest.mark.parametrize(("name", "taken"), [("opt", "doubled"), ("llama", "grouped")])
def test_on_a_cpu_a_lone_query_of_half_precision_is_doubled_where_no_heads_share_keys(name, taken):
    assert choose(_fresh(name).bfloat16(), FULL).name == taken


def test_a_clock_lets_the_faster_one_take_over_and_only_if_it_is_clearly_faster(monkeypatch):
    slow, fast = Grouped(), type("Fast", (Grouped,), {"name": "fast"})()
    monkeypatch.setattr(choice, "BACKENDS", (slow, fast))
    for seconds, taken in ((0.5, "fast"), (0.95, "grouped"), (2.0, "grouped")):
        price = {slow: 1.0, fast: seconds}
        asked = iter([price[backend] for _ in choice.SHAPES for backend in (slow, fast)])
        found = choose(_fresh("llama"), FULL, seconds_of=lambda work, asked=asked: next(asked))
        assert found.name == taken
        lines = sum(not shape.is_tree for shape in choice.SHAPES)
        assert found.seconds[0] == pytest.approx({"grouped": lines, "fast": lines * seconds})


def test_a_backend_for_lines_alone_leaves_trees_to_another_and_both_are_named(monkeypatch):
    lines = type("Lines", (Grouped,), {"name": "lines", "takes_trees": False})()
    monkeypatch.setattr(choice, "BACKENDS", (lines, Grouped()))
    found = choose(_fresh("llama"), FULL)
    assert found.name == "lines+grouped"
    assert Attention("sdpa", SplitKV(), SplitKV()).needs_view is Attention("sdpa", FlashVarlen(), SplitKV()).needs_view
    assert not Attention("sdpa", FlashVarlen(), SplitKV()).needs_view
    assert Attention("sdpa", FlashVarlen(), Grouped()).needs_view  # for trees
    assert choose(_fresh("llama"), FULL, "lines").name == choose(_fresh("llama"), FULL, found.name).name == found.name
    with pytest.raises(UnsupportedError, match="lines takes no trees"):
        choose(_fresh("llama"), FULL, "grouped+lines")


def test_what_was_asked_for_runs_or_is_refused_with_the_reason():
    assert choose(_fresh("llama"), FULL, "sdpa").name == "sdpa"
    assert choose(_fresh("llama"), FULL, "grouped").is_asked_for
    with pytest.raises(UnsupportedError, match=r"machine\.attention: flash: runs on CUDA only"):
        choose(_fresh("llama"), FULL, "flash")
    with pytest.raises(UnsupportedError, match="with eager attention"):
        choose(_fresh("gemma2"), FULL, "grouped")


def test_an_experiment_may_ask_for_every_backend_by_its_name():
    assert set(config.ATTENTION) == {"auto", *choice.names()}
    for name in (*choice.names(), "flash+split-kv"):
        assert config.MachineSettings(attention=name).attention == name
    with pytest.raises(ValueError, match="unknown attention backend"):
        config.MachineSettings(attention="flash+sdpa")


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_attention_is_known_before_the_weights_are_there(name: str):
    here = torch.device("cpu"), torch.float32
    own = copy.deepcopy(models.target(name).config)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(own)
    assert expected_attention(skeleton, "auto", *here) == CachedModel(_fresh(name), name).attention.name
    there = torch.device("cuda"), torch.bfloat16
    if find_spec("triton") and name != "gemma2":
        assert expected_attention(skeleton, "auto", *there) == "split-kv"
        assert foreseen(skeleton, CachedModel(_fresh(name), name).windows, "flash+split-kv", *there) == "flash+split-kv"
    assert skeleton.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")


def test_a_backend_that_fails_the_model_s_self_test_gives_way_to_the_model_s_own(monkeypatch):
    """It passes on its own, and is wrong in the model: say, since a layer does something that nobody foresaw."""

    class Broken(Grouped):
        def attend(self, call, prepared):
            return super().attend(call._replace(mask=torch.zeros_like(call.mask)), prepared)

    monkeypatch.setattr(choice, "BACKENDS", (Broken(),))
    monkeypatch.setattr(choice, "_failing", lambda *_: None)
    model = CachedModel(_fresh("llama"), "llama")
    self_test(model)
    assert model.attention.name == "sdpa"
    assert "differ" in model.attention.refused["grouped"]
    with pytest.raises(ModelRefusedError):
        self_test(CachedModel(_fresh("llama"), "llama", attention="grouped"))


def test_handles_of_one_model_attend_alike():
    model = decoding.family("llama")
    assert model.sharing_weights().attention is model.attention


def test_query_heads_that_share_keys_give_what_repeated_heads_give():
    query, key, value = torch.randn(2, 6, 3, 8), torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 8)
    mask = torch.where(torch.rand(2, 1, 3, 11) < 0.5, 0.0, -torch.inf)
    mask[..., 0] = 0
    found = Grouped().attend(choice.Call(query, key, value, mask, 0.3, None), None)
    repeated = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
    wanted = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("queries", [1, 3])
def test_a_lone_query_goes_as_two_and_gives_what_it_gives_alone(queries, monkeypatch):
    seen = []

    def spy(query, *others, **named):
        seen.append(query.shape[2])
        return scaled_dot_product_attention(query, *others, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    query, key, value = torch.randn(2, 4, queries, 8), torch.randn(2, 4, 11, 8), torch.randn(2, 4, 11, 8)
    mask = torch.where(torch.rand(2, 1, queries, 11) < 0.5, 0.0, -torch.inf)
    mask[..., 0] = 0
    call = choice.Call(query, key, value, mask, 0.3, None)
    torch.testing.assert_close(Doubled().attend(call, None), Grouped().attend(call, None))
    assert seen == [max(2, queries), queries]
