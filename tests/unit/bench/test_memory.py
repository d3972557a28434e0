"""specbench.bench.memory and specbench.bench.footprint: estimates against what is really allocated"""

import gc
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from specbench import registry
from specbench.bench.cells import decoding_of
from specbench.bench.footprint import Footprints
from specbench.bench.memory import Holdings, LiveBytes, MemoryObserver, graph_bytes, step_memory, weight_bytes
from specbench.bench.runner import dry_run
from specbench.decode.loop import Requests
from specbench.decode.method import LoadContext
from specbench.decode.target import CachedModel
from specbench.models.loader import ModelPool, Placement
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, plan_of, run
from tests.unit.models import tiny

CPU = torch.device("cpu")


# --- counting


def test_live_bytes_are_those_of_storage_that_somebody_holds():
    with LiveBytes() as live:
        kept = torch.zeros(1000)
        view = kept[10:]
        for _ in range(3):
            passing = torch.ones(500) * 2
        del passing
    assert live.now == 4000
    assert 8000 <= live.peak <= 10_100  # the kept one, two factors and two products; a number is no tensor of size
    del kept
    gc.collect()
    assert live.now == 4000  # its view still holds it
    del view
    assert live.now == 0


def test_tensors_without_storage_count_as_if_they_had_some_and_answer_every_question():
    with LiveBytes() as live:
        flags = torch.zeros(10, 100, device="meta") > 0
        assert bool(flags.any())
        assert (flags[0, :2].long() + 1).tolist() == [1, 1]
        assert int(flags.sum()) > 1_000_000
    assert live.peak >= 5000


def test_weights_that_are_shared_count_once():
    shared, own = nn.Linear(8, 8, bias=False), nn.Linear(4, 4, bias=False)
    first = nn.Sequential(shared, own)
    own.register_buffer("table", torch.zeros(10, dtype=torch.bfloat16))
    assert weight_bytes([first, nn.Sequential(shared), first]) == 4 * (64 + 16) + 20


def test_only_pools_of_graphs_count_as_graphs_and_only_on_the_devices_asked_for():
    segments = [
        {"device": 0, "total_size": 100, "segment_pool_id": (0, 0)},
        {"device": 0, "total_size": 20, "segment_pool_id": (0, 1)},
        {"device": 0, "total_size": 3, "segment_pool_id": [2, 0]},
        {"device": 1, "total_size": 7000, "segment_pool_id": (0, 1)},
        {"device": 0, "total_size": 400},
    ]
    assert graph_bytes([torch.device("cuda", 0)], segments) == 23


# --- what a batch took


def test_every_batch_says_what_its_arm_holds(folder):
    summary = run(folder, ONE_CELL, limit=2)
    rows = Store(summary.folder).read("requests").drop_duplicates("batch_id").set_index("arm")
    target = weight_bytes([tiny.model()])
    assert set(rows.loc["autoregressive", "weight_bytes"]) == {target}
    assert set(rows.loc["draft_model", "weight_bytes"]) == {2 * target}
    slots = rows.loc["prompt_lookup", "cache_bytes"].max() / (2 * 2 * 2 * 32 * 4)  # layers, both, rows, width, float32
    assert slots == 24 + 10 + 3 + 2  # prompt, output, draft, root and trash
    assert (rows["steady_bytes"] == rows["weight_bytes"] + rows["cache_bytes"]).all()
    assert (rows["peak_rss_bytes"].dropna() > rows["steady_bytes"].max()).all()
    assert rows[["peak_bytes", "graph_bytes"]].isna().all(axis=None)


def test_the_high_water_mark_begins_anew_for_every_batch():
    holdings = Holdings([tiny.model()], [])
    observer = MemoryObserver(holdings)
    before = observer.stop().peak_rss_bytes
    if before is None:
        pytest.skip("this system does not let a process reset it")
    observer = MemoryObserver(holdings)
    torch.ones(1 << 26).sum()
    during = observer.stop().peak_rss_bytes
    after = MemoryObserver(holdings).stop().peak_rss_bytes
    assert during > before + (200 << 20) > after + (100 << 20)


def test_an_arm_that_was_never_loaded_holds_nothing():
    assert set(vars(MemoryObserver(None).stop()).values()) == {None}


# --- what a plan will take


def measured(cell, where, zoo, longest):
    """The same cell, with real models and a real step of every arm: weights, slabs, and the rest at its highest."""
    pool = ModelPool(where, zoo)
    target = pool.get(cell.target.model)
    modules, caches, target_caches, transients = [target.model.module], 0, [], []
    size = cell.decode.batch_size
    requests = Requests([[5] * longest] * size, list(range(size)))
    for arm in cell.arms:
        if arm.twin:
            continue
        drafts, drafters = [], []
        kind = registry.load(arm.method)
        method = kind(arm.build(kind.Options))

        def draft_model(name, drafts=drafts):
            drafts.append(pool.draft(name, target))
            return drafts[-1]

        def drafter(kind, name, drafters=drafters):
            drafters.append(pool.drafter(kind, name, target))
            return drafters[-1]

        method.load(LoadContext(target.model, draft_model, drafter))
        step = step_memory(target.model, method, drafts, requests, decoding_of(cell.decode, target.source))
        modules += [*(draft.module for draft in drafts), *drafters]
        target_caches.append(step.target_cache)
        caches += step.draft_caches
        transients.append(step.transient)
    return weight_bytes(modules), max(target_caches) + caches, max(transients)


EVERY_KIND = """
  - draft_model: {draft: pico-wide, gamma: 4}
  - draft_model: {draft: pico-wide, tree: {branching: [3, 2, 2]}}
  - medusa: {heads: heads, tree: {branching: [3, 2]}}
  - redrafter: {drafter: recurrent, width: 4, length: 4}
"""
HEAVY = {
    "weights": {"hidden": 128, "layers": 6},
    "slabs": {"hidden": 64, "layers": 4},
    "logits": {"hidden": 16, "layers": 1},
}


@pytest.fixture(params=["logits", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("weights", "slabs"))])
def zoo(request, tmp_path):
    """A family whose cells are made of weights, of slabs, or of logits, with heads and a drafter trained on nothing."""
    from methods.medusa.heads import HeadSettings, MedusaHeads
    from methods.redrafter.drafter import RecurrentDrafter, RecurrentSettings

    for name in ("pico", "pico-wide"):
        tiny.save(tmp_path / "zoo" / name, seed=1, **HEAVY[request.param])
    target = CachedModel(tiny.model(seed=1, **HEAVY[request.param]), "pico")
    MedusaHeads.new(HeadSettings(heads=2), target).save(tmp_path / "zoo" / "drafters" / "heads", "pico")
    RecurrentDrafter.new(RecurrentSettings(), target).save(tmp_path / "zoo" / "drafters" / "recurrent", "pico")
    return tmp_path / "zoo"


@pytest.mark.parametrize(("temperature", "dtype"), [(0.0, "float32"), (0.8, "bfloat16")])
def test_the_estimate_is_within_a_tenth_of_what_a_cell_really_takes(zoo, temperature, dtype):
    text = ONE_CELL[: ONE_CELL.index("\n  - draft_model")] + EVERY_KIND + ONE_CELL[ONE_CELL.index("measure:") :]
    text = text.replace("batch_size: 2", "batch_size: 6").replace("temperature: 0.0", f"temperature: {temperature}")
    cell = plan_of(zoo.parent, text).cells[0]
    where = Placement(CPU, getattr(torch, dtype), "sdpa")
    footprints = Footprints(zoo)
    found = footprints.of(cell, where, longest=24)
    assert not footprints.problems
    weights, caches, transient = measured(cell, where, zoo, longest=24)
    assert (found.weights, found.caches) == (weights, caches)
    assert found.transient == pytest.approx(transient, rel=0.1)
    assert found.total == pytest.approx(weights + caches + transient, rel=0.1)


def test_a_model_that_arms_share_is_weighed_once_and_so_is_a_draft_that_is_the_target(folder):
    def weights(drafts):
        arms = "".join(f"  - draft_model: {{draft: {name}, gamma: {2 + i}}}\n" for i, name in enumerate(drafts))
        text = ONE_CELL[: ONE_CELL.index("  - draft_model")] + arms + ONE_CELL[ONE_CELL.index("measure:") :]
        cell = plan_of(folder, text).cells[0]
        return Footprints(folder / "zoo").of(cell, Placement(CPU, torch.float32, None), 24).weights

    one = weight_bytes([tiny.model()])
    assert weights(["pico-wide"]) == weights(["pico-wide", "pico-wide"]) == 2 * one
    assert weights(["pico", "pico-wide"]) == 2 * one


def test_a_baseline_of_another_library_takes_caches_of_its_own(folder):
    def footprint(name):
        text = ONE_CELL[: ONE_CELL.index("  - draft_model")] + f"  - {name}\n" + ONE_CELL[ONE_CELL.index("measure:") :]
        cell = plan_of(folder, text).cells[0]
        return Footprints(folder / "zoo").of(cell, Placement(CPU, torch.float32, None), 24)

    plain, beside = footprint("autoregressive"), footprint("transformers-generate")
    assert (beside.weights, beside.caches) == (plain.weights, plain.caches)
    own_cache = 2 * (24 + 10) * 2 * 2 * 32 * 4  # rows, tokens, layers, both, width, float32
    assert beside.transient == plain.transient + own_cache


def test_a_method_that_cannot_be_weighed_leaves_the_memory_unknown_and_the_time_known(folder, monkeypatch):
    def refuse(self, context):
        raise ValueError("only on Tuesdays")

    monkeypatch.setattr(registry.load("prompt_lookup"), "load", refuse)
    output = io.StringIO()
    dry_run(plan_of(folder, ONE_CELL), zoo=folder / "zoo", console=Console(file=output, width=160))
    (line,) = [line for line in output.getvalue().splitlines() if line.startswith("pico ")][:1]
    assert line.split()[-3:-1] != ["unknown", "unknown"]
    assert "pico: its memory is not known: only on Tuesdays" in output.getvalue()


def test_a_cell_that_does_not_fit_is_named(folder, monkeypatch):
    monkeypatch.setattr("specbench.bench.dry_run.free_bytes", lambda device: 1000.0)
    output = io.StringIO()
    dry_run(plan_of(folder, ONE_CELL), zoo=folder / "zoo", console=Console(file=output, width=160))
    assert "pico, batch 2: more than the 1 kB that are free here" in output.getvalue()


@pytest.mark.gpu
def test_on_a_gpu_the_estimate_is_within_a_tenth_of_what_torch_counts(folder):
    # Beside a small model the workspaces of libraries would weigh more than the model.
    large = ONE_CELL.replace("model: pico", "model: {shape: opt-1.3b, weights: random}")
    large = large.replace("  - draft_model: {draft: pico-wide, gamma: 2}\n", "")
    summary = run(folder, large.replace("device: cpu", "device: cuda, dtype: float32"))
    peak = Store(summary.folder).read("requests")["peak_bytes"].max()
    cell = plan_of(folder, large).cells[0]
    found = Footprints(folder / "zoo").of(cell, Placement(torch.device("cuda", 0), torch.float32, None), 24)
    assert found.total == pytest.approx(peak, rel=0.1)
