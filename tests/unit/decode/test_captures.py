"""specbench.decode.graphs.capture: what is asked of torch and in which order, on a machine without a GPU."""

from contextlib import contextmanager

import pytest
import torch

from specbench.decode.graphs import capture

DEVICE = torch.device("cuda", 1)


class FakeStream:
    def __init__(self, said, name):
        self.said, self.name = said, name

    def wait_stream(self, other):
        self.said.append(f"{self.name} waits for {other.name}")

    def synchronize(self):
        self.said.append(f"{self.name} is done")


@pytest.fixture
def said(monkeypatch):
    """What was asked of torch, in order."""
    said = []

    @contextmanager
    def on(stream):
        said.append(f"to {stream.name}")
        try:
            yield
        finally:
            said.append("back")

    @contextmanager
    def capturing(graph, **how):
        said.append(f"begin in {how['pool']}")
        yield
        said.append("end")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(said, f"side of {device.index}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(said, f"main of {device.index}"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool of its own")
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool"):
        monkeypatch.setattr(torch._C, name, lambda *inputs, name=name: said.append((name, *inputs)), raising=False)
    return said


CLEAR = ("_cuda_clearCublasWorkspaces",)
TO_THE_CAPTURE = [
    "side of 1 waits for main of 1", "to side of 1", *["work"] * 3, "side of 1 is done", CLEAR, "begin in the pool",
    "work",
]  # fmt: skip


def test_a_graph_holds_no_workspace_that_was_there_before_and_leaves_none_behind(said):
    result, _ = capture(lambda: said.append("work") or 7, DEVICE, pool="the pool")
    assert result == 7
    assert said == [*TO_THE_CAPTURE, "end", CLEAR, "back", "main of 1 waits for side of 1"]


def test_a_capture_that_fails_leads_back_to_its_stream_and_frees_the_pool_for_the_next(said):
    def work():
        said.append("work")
        if said.count("work") == 4:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        capture(work, DEVICE, pool="the pool")
    assert said == [*TO_THE_CAPTURE, ("_cuda_endAllocateToPool", 1, "the pool"), CLEAR, "back"]


def test_a_capture_alone_has_a_pool_of_its_own(said):
    capture(lambda: None, DEVICE)
    assert "begin in a pool of its own" in said
