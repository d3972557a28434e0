"""specbench.decode.attention on a GPU: every backend that passes gives the same logits, in graphs as well."""

import copy

import pytest
import torch

from specbench.decode.attention.choice import BACKENDS, choose
from specbench.decode.target import CachedModel, self_test
from specbench.decode.tree import lay_out
from specbench.errors import UnsupportedError
from support import models

pytestmark = pytest.mark.gpu


def _model(dtype: torch.dtype, attention: str = "auto") -> CachedModel:
    return CachedModel(copy.deepcopy(models.target("llama")).to("cuda", dtype), "llama", attention=attention)


def test_our_kernel_is_taken_without_a_clock():
    assert _model(torch.bfloat16).attention.name == "split-kv"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [backend.name for backend in BACKENDS])
def test_every_backend_passes_the_model_s_self_test_or_says_why_not(name: str, dtype: torch.dtype):
    try:
        model = _model(dtype, name)
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    found = self_test(model)
    assert found.difference <= found.tolerance


@pytest.mark.parametrize("name", ["split-kv", "flash+split-kv"])
def test_one_graph_serves_all_lengths(name: str):
    """A captured verification of a tree and of a chain, replayed after the rows have grown."""
    model = _model(torch.bfloat16, name)
    assert not model.attention.needs_view
    model.allocate(2, 300)
    model.prefill(torch.tensor([[1, 2, 3], [4, 5, 0]], device="cuda"), torch.tensor([3, 2], device="cuda"))
    model.cache.slab.normal_()
    tree = lay_out(torch.tensor([[-1, -1, 0], [-1, 0, 0]], device="cuda"), max_depth=2)
    chain = lay_out(torch.tensor([[-1, 0, 1]] * 2, device="cuda"), max_depth=3)._replace(is_chain=True)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]], device="cuda")
    lengths = torch.tensor([3, 2], device="cuda")
    for layout in (tree, chain):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model.verify(layout, tokens, lengths, 3)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = model.verify(layout, tokens, lengths, 3).logits
        for grown in ([3, 2], [250, 64], [1, 130]):
            lengths.copy_(torch.tensor(grown))
            graph.replay()
            torch.testing.assert_close(captured, model.verify(layout, tokens, lengths, 250).logits)


def test_a_step_s_forward_asks_the_device_nothing():
    model = _model(torch.bfloat16)
    model.allocate(2, 64)
    layout = lay_out(torch.tensor([[-1, -1, 0]] * 2, device="cuda"), max_depth=2)
    tokens, lengths = torch.ones(2, 4, dtype=torch.int64, device="cuda"), torch.tensor([3, 2], device="cuda")
    model.verify(layout, tokens, lengths, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.verify(layout, tokens, lengths, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_without_a_clock_the_shapes_of_the_self_check_leave_no_memory_behind():
    before = torch.cuda.memory_allocated()
    module = copy.deepcopy(models.target("llama")).to("cuda", torch.bfloat16)
    weights = torch.cuda.memory_allocated()
    choose(module, [None, None])
    assert torch.cuda.memory_allocated() - weights < 1 << 20
    assert before <= weights
