"""specbench.bench.arms and specbench.bench.runner: what happens when memory really runs out, or the GPU faults"""

import weakref

import pytest
import torch

from methods.draft_model import DraftModel
from specbench import registry
from specbench.bench.arms import failure_of
from specbench.bench.steps import ReadyStep
from specbench.bench.timing import HostTimeline
from specbench.errors import DeviceFaultError
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, run

MORE_THAN_THERE_IS = 1 << 55

# What torch says of a GPU, in one line.
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.10 GiB is "
    "free. Including non-PyTorch memory, this process has 78.04 GiB memory in use. Of the allocated memory 60.02 GiB "
    "is allocated by PyTorch, and {unused} is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


class Hungry(DraftModel):
    """Asks the allocator for more than any machine has, in batches of two."""

    slabs_of_two: list

    def begin(self, view, prefill):
        if len(view.root) == 2:
            self.slabs_of_two.append(self.model.kv_bytes)
        super().begin(view, prefill)
        if len(view.root) > 1:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)


def test_a_real_allocation_failure_is_rows_and_the_run_goes_on_without_larger_batches(folder):
    text = ONE_CELL.replace("batch_size: 2", "batch_size: [2, 3]").replace("count: 5", "count: 3")
    text = text.replace("  - prompt_lookup: {gamma: 3}\n", "")
    kind = type("Hungry", (Hungry,), {"slabs_of_two": []})
    summary = run(folder, text, method_class=lambda name: kind if name == "draft_model" else registry.load(name))
    rows = Store(summary.folder).read("requests")
    hungry, others = rows[rows["arm"] == "draft_model"], rows[rows["arm"] != "draft_model"]
    statuses = {size: set(own["status"]) for size, own in hungry.groupby("batch_size")}
    assert statuses == {2: {"ok", "oom"}, 3: {"skipped"}}  # of three prompts the last is a batch of its own
    assert hungry[hungry["status"] == "oom"]["reason"].str.contains("can't allocate memory").all()
    assert set(hungry[hungry["status"] == "skipped"]["reason"]) == {"it ran out of memory at batch size 2"}
    assert set(others["status"]) == {"ok"}
    assert (summary.failed, summary.skipped) == (1, 1)
    assert kind.slabs_of_two[1:] == [0] * (len(kind.slabs_of_two) - 1), "what the arm alone had is free after a failure"


def test_what_failed_keeps_no_tensor_alive():
    seen = []

    def fail():
        large = torch.ones(1000)
        seen.append(weakref.ref(large))
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)

    def fail_again():
        try:
            fail()
        except RuntimeError:
            other = torch.ones(1000)
            seen.append(weakref.ref(other))
            raise KeyError("while it was cleaned up") from None

    for attempt, status in ((fail, "oom"), (fail_again, "error")):
        with pytest.raises((RuntimeError, KeyError)) as raised:
            attempt()
        assert failure_of(raised.value).status == status
        assert [ref() for ref in seen] == [None] * len(seen)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        MemoryError("the GPUs of this machine are out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=repr,
)
def test_every_way_of_saying_that_memory_is_full_is_understood(error):
    assert failure_of(error).status == "oom"
    assert failure_of(error).reason


@pytest.mark.parametrize(
    ("unused", "hint"),
    [
        ("12.30 GiB", " 12.30 GiB are reserved and not in use: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True keeps "
                      "them from being cut into pieces"),
        ("312.50 MiB", ""),
    ],
)  # fmt: skip
def test_a_gpu_whose_free_memory_is_in_pieces_comes_with_advice(unused, hint):
    failure = failure_of(torch.cuda.OutOfMemoryError(CUDA.format(unused=unused)))
    assert failure.reason == f"CUDA out of memory. Tried to allocate 2.00 GiB.{hint}"


def test_memory_that_ends_while_a_step_is_made_ready_ends_the_arm_and_not_the_run(folder, monkeypatch):
    prepare = ReadyStep.prepare

    def hungry(self, run):
        if isinstance(self.step.method, DraftModel):
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        prepare(self, run)

    monkeypatch.setattr(ReadyStep, "prepare", hungry)
    rows = Store(run(folder, ONE_CELL).folder).read("requests")
    statuses = {arm: set(own["status"]) for arm, own in rows.groupby("arm")}
    assert statuses.pop("draft_model") == {"oom"}
    assert set.union(*statuses.values()) == {"ok"}


class Faulty(DraftModel):
    """Asks for what no GPU survives, once the first batch of two has been stored."""

    batches: list

    def begin(self, view, prefill):
        self.batches.append(len(view.root))
        super().begin(view, prefill)
        if len(self.batches) == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_gpu_that_has_faulted_ends_the_run_and_no_arm_is_blamed_for_it(folder, monkeypatch):
    kind = type("Faulty", (Faulty,), {"batches": []})

    class Dead(HostTimeline):
        def wall(self):
            if len(kind.batches) >= 5:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().wall()

    monkeypatch.setattr("specbench.bench.arms.timeline", lambda device: Dead())
    with pytest.raises(DeviceFaultError, match="draft_model: the GPU has faulted"):
        run(folder, ONE_CELL, method_class=lambda name: kind if name == "draft_model" else registry.load(name))
    [results] = (folder / "results" / "one-cell").iterdir()
    assert set(Store(results).read("requests")["status"]) == {"ok"}
