"""specbench.decode.pieces: as the compiler traces them, without its kernels; those are tried by tests/contract."""

from collections import Counter
from weakref import WeakValueDictionary

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from specbench.decode import compiled, pieces
from specbench.decode.pieces import PiecedStep, pieces_of
from specbench.decode.static import StaticStep
from specbench.decode.step import Decoding, Step
from support import decoding, models

TOKENS, GAMMA = 12, 3
PAIR = models.PROMPTS[:2]


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Counts the graphs that were made; each runs as it was traced."""
    made, counter = torch.compile, CompileCounter()
    monkeypatch.setattr(compiled.torch, "compile", lambda work, **how: made(work, backend=counter, **how))
    monkeypatch.setattr(pieces, "_kinds", WeakValueDictionary())
    yield counter
    torch.compiler.reset()


def pieced(family="llama", draft="near", method=None):
    """A step of a draft model, all of whose pieces are compiled."""
    target = decoding.family(family)
    method = method or decoding.draft_model(target, decoding.drafts_of(family), draft=draft, gamma=GAMMA)
    drafts = [method.model] if hasattr(method, "model") else []
    return PiecedStep(target, method, Decoding(TOKENS), {"draft": [target, *drafts], "verify": [target]})


def text(step, prompts=PAIR):
    return decoding.ids(decoding.decode(step.target, step.method, prompts, step=step))


def oracle(family="llama", prompts=PAIR):
    return [models.greedy_continuation(family, prompt, TOKENS) for prompt in prompts]


def is_switched(step):
    return any("forward" in vars(piece) for piece in step._all)


@pytest.mark.parametrize("family", [name for name in models.FAMILIES if name != "opt"])
def test_a_text_is_the_one_that_transformers_writes(family, graphs):
    step = pieced(family)
    assert text(StaticStep(step)) == oracle(family)
    assert step.refused == {}
    assert graphs.frame_count > 0


def test_what_is_compiled_is_told_by_class_and_each_module_counts_once():
    # Two layers and the last norm of the target, and as many of a draft of its shape.
    assert pieced().compiled == {"LlamaRMSNorm": 10, "LlamaMLP": 4}
    assert pieced(draft="same").compiled == {"LlamaRMSNorm": 5, "LlamaMLP": 2}
    assert pieced(method=decoding.autoregressive()).compiled == {"LlamaRMSNorm": 5, "LlamaMLP": 2}


def test_norms_within_attention_are_pieces_and_neither_attention_nor_single_kernels_are():
    found = Counter(type(piece).__name__ for piece in pieces_of(models.target("qwen3")))
    assert found == {"Qwen3RMSNorm": 2 * 2 + 2 * 2 + 1, "Qwen3MLP": 2}
    assert {type(piece).__name__ for piece in pieces_of(models.target("gpt_neox"))} == {"GPTNeoXMLP"}


def test_a_graph_is_made_for_each_kind_and_form_however_many_layers_models_and_arms_there_are(graphs):
    step = StaticStep(pieced())
    text(step)
    step.settle()
    made = graphs.frame_count
    # The target reads a draft and its root, the draft model two tokens, then one: norms and MLPs of three forms.
    assert made == 2 * 3
    deep = models.scaled(models._llama_like("Llama", num_hidden_layers=5), seed=3)
    model = decoding.CachedModel(deep, "deep")
    other = decoding.draft_model(model, {"near": models.stranger()}, draft="near", gamma=GAMMA)
    second = PiecedStep(model, other, Decoding(TOKENS), {"draft": [model, other.model], "verify": [model]})
    assert second.compiled == {"LlamaRMSNorm": 11 + 3, "LlamaMLP": 5 + 1}
    assert text(StaticStep(second)) == [models.hf_greedy(deep, prompt, TOKENS) for prompt in PAIR]
    assert graphs.frame_count == made


def test_every_module_computes_with_its_own_weights_in_whichever_order_they_are_asked(graphs):
    step = pieced()
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(2, width, 32, generator=generator) for width in (1, 2, 1)]
    with torch.inference_mode(), step._switched("draft"):
        for given in inputs:
            for piece in [*step._all, *reversed(step._all)]:
                torch.testing.assert_close(piece(given), type(piece).forward(piece, given))
    assert graphs.frame_count == 2 * 2


def test_hooks_on_a_piece_run_as_before():
    step = pieced(method=decoding.autoregressive())
    seen = []
    handles = [piece.register_forward_hook(lambda module, *_: seen.append(module)) for piece in step._all]
    try:
        text(step)
        compiled_calls = Counter(seen)
        seen.clear()
        text(Step(step.target, step.method, step.decoding))
    finally:
        for handle in handles:
            handle.remove()
    assert compiled_calls == Counter(seen)
    assert set(compiled_calls) == {*step._all}


class FailingError(Exception):
    pass


@pytest.mark.parametrize("place", ["draft", "verify"])
def test_whoever_runs_the_modules_next_finds_them_as_they_were_even_behind_an_error(place, monkeypatch):
    step = pieced()
    text(step)
    assert not is_switched(step)
    seen = []

    def failing(*inputs):
        seen.append(is_switched(step))
        raise FailingError

    monkeypatch.setattr(*((step.method, "draft") if place == "draft" else (step.target, "verify")), failing)
    with pytest.raises(FailingError):
        text(step)
    assert seen == [True]
    assert not is_switched(step)
    monkeypatch.setattr(pieces.CompiledIfPossible, "__call__", failing)
    assert models.hf_greedy(step.target.module, PAIR[0], TOKENS) == oracle()[0]


def refusing(monkeypatch, error):
    """MLPs cannot be compiled; norms run as they are traced."""

    def compile_norms(work, **how):
        def failing(*inputs):
            raise error

        return failing if "MLP" in work.__qualname__ else work

    monkeypatch.setattr(compiled.torch, "compile", compile_norms)


def test_a_kind_that_cannot_be_compiled_runs_as_it_is_and_says_why_and_the_others_are_compiled(monkeypatch):
    refusing(monkeypatch, RuntimeError("routes by values\nand much more"))
    step = pieced()
    assert text(StaticStep(step)) == oracle()
    assert step.compiled == {"LlamaRMSNorm": 10}
    assert step.refused == {"LlamaMLP": "routes by values"}


def test_a_full_memory_is_no_fault_of_the_compiler_and_leaves_the_modules_as_they_were(monkeypatch):
    refusing(monkeypatch, MemoryError("no room"))
    step = pieced()
    with pytest.raises(MemoryError):
        text(step)
    assert step.refused == {}
    assert not is_switched(step)


def test_a_model_without_pieces_runs_as_it_is_and_says_why(graphs):
    step = pieced("opt", method=decoding.autoregressive())
    assert text(StaticStep(step)) == oracle("opt")
    assert step.compiled == {}
    assert step.refused == {"opt": "beside attention its layers hold nothing of more than one kernel"}
    assert graphs.frame_count == 0


def test_weights_that_are_spread_are_not_compiled_and_the_draft_beside_them_is():
    target = decoding.family("llama")
    method = decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", gamma=GAMMA)
    target.is_spread = True
    step = PiecedStep(target, method, Decoding(TOKENS), {"draft": [target, method.model], "verify": [target]})
    assert step.compiled == {"LlamaRMSNorm": 5, "LlamaMLP": 2}
    assert step.refused == {"llama": "its weights lie on several devices, or with several processes"}


def test_a_module_whose_forward_somebody_has_replaced_is_left_to_them():
    module = models._llama_like("Llama")
    replaced = module.model.layers[1].mlp
    replaced.forward = lambda hidden: hidden
    assert replaced not in pieces_of(module)
    assert module.model.layers[0].mlp in pieces_of(module)
