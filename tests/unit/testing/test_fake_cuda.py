"""specbench.testing.fake_cuda: it refuses what no CUDA graph can hold, and nothing else, and leaves nothing behind."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from specbench.decode.acceptance import (
    Greedy,
    Match,
    RedrafterPaper,
    Rejection,
    Synthetic,
    Typical,
    Verification,
)
from specbench.decode.loop import sampler_for
from specbench.decode.step import Decoding
from specbench.decode.tree import Topology, lay_out_chain, lay_out_topology
from specbench.testing.fake_cuda import DEVICE, FakeCuda, HostCopyError
from specbench.testing.tape import HostReadError

READS = {
    "item": lambda x: x[0, 0].item(),
    "if": lambda x: bool((x > 2).any()),
    "tolist": lambda x: x.tolist(),
    "a number as a bound": lambda x: x[:, : x[0, 0]],
    "nonzero": lambda x: x.nonzero(),
    "selection by a mask": lambda x: x[x > 2],
    "writing a tensor by a mask": lambda x: x.index_put_((x > 2,), x[0, 0]),
    "equal": lambda x: torch.equal(x, x),
    "bincount": lambda x: torch.bincount(x[0]),
    "repeats that only the device knows": lambda x: x[0].repeat_interleave(x[0]),
}
COPIES = {
    "a list": lambda x: torch.tensor([1, 2], device=x.device),
    "a number": lambda x: torch.tensor(1.5, device=x.device),
    "a new tensor": lambda x: x.new_tensor([1, 2]),
    "arange on the host": lambda x: torch.arange(3).to(x.device),
    "indices of the host": lambda x: x[[0, 1]],
    "a tensor of the host as an index": lambda x: x[torch.arange(2)],
    "writing a tensor of the host": lambda x: x.copy_(torch.zeros(2, 3)),
    "writing a number to places": lambda x: x.index_put_((x[:, 0],), torch.tensor(1)),
    "a choice with a number of the host": lambda x: torch.where(x > 2, x, torch.tensor(1)),
    "to the host": lambda x: x.cpu(),
}
HELD = {
    "a number": lambda x: x + 1,
    "a number in a tensor of the host": lambda x: x + torch.tensor(3),
    "a choice with a number": lambda x: torch.where(x > 2, x, -1),
    "filling by a mask": lambda x: x.__setitem__(x > 2, 3),
    "a row": lambda x: x[torch.arange(2, device=x.device), x[:, 0]],
    "making": lambda x: (torch.full((2,), 3, device=x.device), torch.zeros_like(x), x.new_empty((0,))),
    "sorting": lambda x: (x.sort(), x.float().topk(2), x.cumsum(1), F.pad(x, (1, 0), value=2)),
    "repeating": lambda x: x.repeat_interleave(2, dim=1),
    "what stays on the host": lambda x: torch.arange(3) + torch.tensor([1, 2, 3]),
}


@pytest.fixture
def gpu():
    if reason := FakeCuda.unavailable():
        pytest.skip(reason)
    with FakeCuda() as entered:
        yield entered


def recorded(gpu, work):
    x = torch.arange(6, device=DEVICE).view(2, 3)
    return gpu.record("draft", lambda: work(x))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("work", READS.values(), ids=READS)
def test_a_read_by_the_host_is_refused_and_its_line_named(gpu, work, inference):
    with torch.inference_mode(inference), pytest.raises(HostReadError, match=r"testing/test_fake_cuda.py:\d+"):
        recorded(gpu, work)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("work", COPIES.values(), ids=COPIES)
def test_a_copy_between_host_and_device_is_refused_and_its_line_named(gpu, work, inference):
    with torch.inference_mode(inference), pytest.raises(HostCopyError, match=r"testing/test_fake_cuda.py:\d+"):
        recorded(gpu, work)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("work", HELD.values(), ids=HELD)
def test_what_a_graph_can_hold_is_not_refused(gpu, work, inference):
    with torch.inference_mode(inference):
        recorded(gpu, work)


def test_tensors_of_host_and_device_do_not_mix(gpu):
    with pytest.raises(FakeTensorDeviceMismatchError):
        recorded(gpu, lambda x: x + torch.ones(2, 3))


def test_outside_of_a_recording_what_the_host_reads_is_made_up(gpu):
    x = torch.arange(6, device=DEVICE).view(2, 3)
    assert x[0, 0].item() == 3
    assert x.tolist() == [[3, 3, 3], [3, 3, 3]]
    assert x.cpu().tolist() == x.cpu().numpy().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert torch.tensor(7).item() == 7
    torch.tensor([1, 2], device=DEVICE)


def test_nothing_of_it_stays_behind():
    if reason := FakeCuda.unavailable():
        pytest.skip(reason)
    event = torch.cuda.Event
    with FakeCuda():
        torch.arange(6, device=DEVICE)[0]
    assert torch.cuda.Event is event
    assert type(torch.arange(3)) is torch.Tensor
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVIDIA"):
        torch.arange(3, device="cuda")


RULES = [
    Greedy(),
    Match(),
    Rejection(),
    Typical(),
    RedrafterPaper(),
    Synthetic(rates=(0.7, 0.4)),
    Synthetic(mean_length=2.3),
    Synthetic(trace=(2, 0, 1)),
]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("proposal", ["point", "iid", "without_replacement"])
@pytest.mark.parametrize("branching", [(1, 1, 1), (2, 2)], ids=["chain", "tree"])
def test_every_rule_decides_on_the_device(gpu, branching, proposal, temperature):
    target = gpu.target()
    topology = Topology.from_branching(branching, DEVICE)
    depth, most, nodes, vocab = len(branching), max(branching), len(topology.parents) + 1, target.vocab_size
    layout = lay_out_chain(depth, None, 2, DEVICE) if most == 1 else lay_out_topology(topology, 2)
    for rule in RULES:
        decoding = Decoding(9, 3, temperature, top_k=20, top_p=0.9, rule=rule, eos_ids=(3, 5))
        verification = Verification(
            layout=layout,
            tokens=torch.zeros(2, nodes, dtype=torch.int64, device=DEVICE),
            logits=torch.zeros(2, nodes, vocab, dtype=torch.bfloat16, device=DEVICE),
            positions=layout.depth + 7,
            sampler=sampler_for(target, [1, 2], [5, 6], decoding),
            proposal=proposal,
            draft_probs=torch.full((2, nodes, vocab), 1 / vocab, device=DEVICE),
            draft_rows=None,
            max_depth=depth,
            max_children=most,
            steps=torch.zeros(2, dtype=torch.int64, device=DEVICE),
        )
        rule.decide(verification)  # what is made once and kept
        decision, _ = gpu.record("accept", lambda verification=verification, rule=rule: rule.decide(verification))
        assert (decision.best.shape, decision.best.device) == ((2,), DEVICE)
        assert (decision.target_token.shape, decision.target_token.device) == ((2,), DEVICE)
