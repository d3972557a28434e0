"""specbench.decode.attention in whole models: logits and ids are those of plain forwards, and modules stay usable."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specbench.decode.attention.backend import Backend
from specbench.decode.attention.choice import Attention
from specbench.decode.attention.flash import FlashPackage, FlashVarlen
from specbench.decode.attention.hook import NAME, unhooked
from specbench.decode.attention.masked import Doubled, Grouped
from specbench.decode.attention.split_kv import SplitKV
from specbench.decode.target import CachedModel
from specbench.decode.tree import lay_out
from support import checks, decoding, models

SERVED = tuple(name for name in models.FAMILIES if name != "gemma2")
INTERPRETED = SplitKV(is_interpreted=True)


def _every_model_by(backend: Backend, monkeypatch: pytest.MonkeyPatch, trees: Backend | None = None) -> None:
    family: Callable[[str], CachedModel] = decoding.family

    def switched(name: str) -> CachedModel:
        model = family(name)
        model.attention = Attention("sdpa", backend, trees or backend)
        return model

    monkeypatch.setattr(decoding, "family", switched)


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton")


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("name", ["llama", "mistral", "opt"])
def test_by_the_kernel_logits_over_trees_equal_plain_forwards(name: str, monkeypatch):
    """Grouped heads, windows, and positions that count from two."""
    _every_model_by(INTERPRETED, monkeypatch)
    assert checks.logit_difference(name, rounds=1) < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("name", SERVED)
def test_by_the_kernel_logits_over_deep_trees_equal_plain_forwards_in_every_family(name: str, monkeypatch):
    _every_model_by(INTERPRETED, monkeypatch)
    assert checks.logit_difference(name) < 1e-4
    assert checks.logit_difference(name, deep=True) < 1e-4


@pytest.mark.usefixtures("_triton")
def test_by_the_kernel_texts_are_those_of_transformers(monkeypatch):
    _every_model_by(INTERPRETED, monkeypatch)
    target = decoding.family("llama")
    draft = decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", tree={"branching": [2, 2]})
    for method in (decoding.autoregressive(), draft):
        found = decoding.ids(decoding.decode(target, method, models.PROMPTS[:2], 4))
        assert found == [models.greedy_continuation("llama", prompt, 4) for prompt in models.PROMPTS[:2]]


def test_by_doubled_queries_texts_are_those_of_transformers(monkeypatch):
    """In single precision, where ties decide nothing."""
    name = "opt"  # no heads share keys
    _every_model_by(Doubled(), monkeypatch)
    target = decoding.family(name)
    draft = decoding.draft_model(target, decoding.drafts_of(name), draft="near", gamma=2)
    for method in (decoding.autoregressive(), draft):
        found = decoding.ids(decoding.decode(target, method, models.PROMPTS[:3], 12))
        assert found == [models.greedy_continuation(name, prompt, 12) for prompt in models.PROMPTS[:3]]


class _VarlenFake:
    """What torch's own FlashAttention is said to compute, for all rows end to end, in plain words."""

    def __call__(
        self, query, key, value, first_query, first_key, queries, slots, *, dropout_p, is_causal, return_debug_mask,
        scale, window_size_left, window_size_right, seqused_k,
    ):  # fmt: skip
        out = torch.empty_like(query)
        assert is_causal
        for row, used in enumerate(seqused_k.tolist()):
            mine = slice(int(first_query[row]), int(first_query[row + 1]))
            begin = int(first_key[row])
            out[mine] = _bottom_right(query[mine], key[begin:], value[begin:], used, scale, window_size_left)
        return (out,)


def _bottom_right(query, key, value, used: int, scale: float, left: int | None) -> torch.Tensor:
    """Causal attention whose last query sees the last of ``used`` keys, (M, query heads, D)."""
    group = query.shape[1] // key.shape[1]
    key, value = (part[:used].repeat_interleave(group, 1) for part in (key, value))
    last = torch.arange(used - len(query), used)[:, None]
    slot = torch.arange(used)
    sees = (slot <= last) & (slot >= last - (used if left is None else left))
    score = torch.einsum("mhd,shd->hms", query, key) * scale
    return torch.einsum("hms,shd->mhd", score.masked_fill(~sees, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flash_over_the_slab_is_asked_for_what_a_chain_is(name: str, monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", _VarlenFake())
    _every_model_by(FlashVarlen(), monkeypatch, trees=Grouped())
    outcome = checks.wrong_rows(name, checks.quick_arms())
    assert outcome.wrong == []


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_flash_package_is_asked_for_what_a_chain_is(name: str, monkeypatch):
    def with_kvcache(query, key, value, *, cache_seqlens, softmax_scale, causal, window_size):
        assert causal
        left = None if window_size[0] < 0 else window_size[0]
        rows = zip(query, key, value, cache_seqlens.tolist(), strict=True)
        return torch.stack([_bottom_right(*row[:3], row[3], softmax_scale, left) for row in rows])

    fake = type("flash_attn", (), {"flash_attn_with_kvcache": staticmethod(with_kvcache)})
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    _every_model_by(FlashPackage(), monkeypatch, trees=Grouped())
    assert checks.wrong_rows(name, checks.quick_arms()).wrong == []


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_without_a_dense_mask_none_is_ever_made(name: str, monkeypatch):
    """Neither in a prefill that no window cuts, nor over a chain."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", _VarlenFake())
    _every_model_by(FlashVarlen(), monkeypatch, trees=Grouped())
    model = decoding.family(name)
    monkeypatch.setattr(CachedModel, "_additive", lambda *_: pytest.fail("a mask was made"))
    model.allocate(2, 20)
    model.prefill(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    layout = lay_out(torch.tensor([[-1, 0], [-1, 0]]), max_depth=2)._replace(is_chain=True)
    model.verify(layout, torch.tensor([[5, 6, 7]] * 2), torch.tensor([3, 2]), 3)


@pytest.mark.parametrize("name", SERVED)
def test_a_module_that_the_core_uses_answers_others_as_ever(name: str):
    """Padded batches, own masks and generate: to the bit what the module said before."""
    module = copy.deepcopy(models.target(name))
    module.config._attn_implementation = "sdpa"
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5])}
    with torch.no_grad():
        before = module(**inputs).logits
        text = module.generate(**inputs, max_new_tokens=9, do_sample=False, pad_token_id=0)
        model = CachedModel(module, name)
        assert module.config._attn_implementation == NAME
        model.allocate(1, 20)
        model.prefill(torch.tensor([[1, 2]]), torch.tensor([2]))
        assert torch.equal(module(**inputs).logits, before)
        assert torch.equal(module.generate(**inputs, max_new_tokens=9, do_sample=False, pad_token_id=0), text)
    with unhooked(module):
        assert module.config._attn_implementation == "sdpa"
    assert module.config._attn_implementation == NAME


def test_a_forward_that_fails_leaves_nothing_behind():
    """A padded batch, as others call the module, is still padded."""
    model = decoding.family("llama")
    inputs = {"input_ids": torch.tensor([[0, 2, 3]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with torch.no_grad():
        before = model.module(**inputs).logits[:, -1]
        model.allocate(1, 8)
        with pytest.raises(IndexError):
            model.prefill(torch.tensor([[models.VOCAB + 1, 2]]), torch.tensor([2]))
        assert torch.equal(model.module(**inputs).logits[:, -1], before)


COMPILED = """
import sys
from importlib.util import find_spec

import torch

sys.path.insert(0, sys.argv[1])
from specbench.decode.attention.choice import Attention
from specbench.decode.attention.masked import Doubled, Grouped
from specbench.decode.attention.split_kv import SplitKV
from specbench.decode.tree import lay_out, lay_out_chain
from support import decoding, interpreter

interpreter.mend(setattr)
trees = [lay_out(torch.tensor(parents), max_depth=2) for parents in ([[-1, -1, 0], [-1, 0, 0]], [[-1, 0, 0]] * 2)]
chain = lay_out_chain(3, None, 2, torch.device("cpu"))
tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
for backend in (Grouped(), SplitKV(is_interpreted=True)) if find_spec("triton") else (Grouped(),):
    eager, other = decoding.family("mistral"), decoding.family("mistral")
    for model in (eager, other):
        model.attention = Attention("sdpa", backend, backend)
        model.allocate(2, 24)
        model.prefill(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    compiled = torch.compile(other.verify, fullgraph=True, dynamic=False, backend=sys.argv[2])
    for layout, lengths, is_new in ((trees[0], [3, 2], True), (trees[1], [3, 3], False), (chain, [2, 3], True)):
        lengths = torch.tensor(lengths)
        with torch._dynamo.config.patch(error_on_recompile=not is_new):
            found = compiled(layout, tokens, lengths, 3).logits
        torch.testing.assert_close(found, eager.verify(layout, tokens, lengths, 3).logits, atol=2e-5, rtol=2e-5)
        kept = [model.cache.slab[:, :, :, :-1] for model in (other, eager)]
        torch.testing.assert_close(*kept, atol=2e-5, rtol=2e-5)
    torch.compiler.reset()
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_forward_is_whole_and_right(compiler: str):
    """Lengths and trees change without a new compilation; in a process without the type checks of this one."""
    command = [sys.executable, "-c", COMPILED, str(Path(decoding.__file__).parents[1]), compiler]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
