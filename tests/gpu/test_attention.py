"""Every attention backend against a dense mask, at the head widths and lengths of large models."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from specbench.decode.attention.choice import BACKENDS
from specbench.decode.target import CachedModel
from specbench.decode.tree import lay_out, lay_out_chain
from specbench.errors import UnsupportedError
from specbench.models.shapes import shape_of
from support import gpu

pytestmark = pytest.mark.gpu

LENGTHS = (700, 3, 260)
SHAPES = {
    "as many heads of keys": "2x1024x8x1024,vocab=512",
    "grouped": "2x1024x8x1024,kv_heads=2,vocab=512",
    "narrow": "2x768x12x1024,vocab=512",
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def module(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape_of(request.param).config()).eval()


def layouts(device):
    """A single token, a chain of five, a tree whose nodes have two children each."""
    rows, parents = len(LENGTHS), (torch.arange(63, device=device) + 1) // 2 - 1
    return {
        "one": lay_out_chain(0, None, rows, device),
        "chain": lay_out_chain(4, None, rows, device),
        "tree": lay_out(parents.expand(rows, -1), max_depth=7),
    }


@torch.inference_mode()
def logits(module, attention, dtype):
    """Of every layout behind rows of unequal length."""
    model = CachedModel(copy.deepcopy(module).to(gpu.DEVICE, dtype), "llama", attention=attention)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, 512, (3, max(LENGTHS)), generator=generator).to(gpu.DEVICE)
    lengths = torch.tensor(LENGTHS, device=gpu.DEVICE)
    model.allocate(3, max(LENGTHS) + 80)
    model.prefill(prompts, lengths)
    found = {}
    for name, layout in layouts(gpu.DEVICE).items():
        nodes = layout.depth.shape[1]
        tokens = torch.randint(0, 512, (3, nodes), generator=generator).to(gpu.DEVICE)
        found[name] = model.verify(layout, tokens, lengths, max(LENGTHS)).logits.float()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [backend.name for backend in BACKENDS])
def test_its_logits_are_those_of_a_dense_mask(module, name, dtype):
    try:
        found = logits(module, name, dtype)
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    exact, dense = logits(module, "sdpa", torch.float32), logits(module, "sdpa", dtype)
    for layout, values in found.items():
        own_error = (dense[layout] - exact[layout]).abs().max()  # what rounding alone costs
        assert (values - exact[layout]).abs().max() <= 2 * own_error + 1e-4, layout
