"""specbench.bench.dry_run"""

import io

import pytest
from rich.console import Console

from specbench.bench.dry_run import dry_run, size_of
from specbench.models.source import locate
from tests.unit.bench.bench_plans import ONE_CELL, TWO_CELLS, plan_of


def printed(folder, text, **options):
    output = io.StringIO()
    dry_run(plan_of(folder, text), zoo=folder / "zoo", console=Console(file=output, width=160), **options)
    return output.getvalue()


def test_it_counts_cells_trials_and_batches(folder):
    text = printed(folder, TWO_CELLS)
    # 4 arms x (3 blocks x (2 repeats + 1 phase pass) + 1 warm-up) in each of two cells
    assert "2 cells, 8 trials, 80 batches to decode, roughly" in text
    assert "arms of pico:\n  autoregressive\n  autoregressive-twin\n  draft_model\n  prompt_lookup\n" in text


def test_it_says_what_precision_to_expect(folder):
    assert "cells with fewer than 4 full batches get no interval (the fewest is 2)" in printed(folder, ONE_CELL)
    assert "intervals rest on 8 full batches or more" in printed(folder, ONE_CELL.replace("count: 5", "count: 16"))


def test_it_says_what_a_better_precision_would_take(folder):
    text = printed(folder, ONE_CELL.replace("count: 5", "count: 16"))
    (line,) = [line for line in text.splitlines() if "usual noise" in line]
    assert line.split()[:6] == ["pico", "0", "2", "usual", "noise", "14.1%"]
    # t of 7 degrees is 2.365: 2.365 sqrt((.02 + .0016) / 8) = .1229 on the log scale
    assert "±13.1%" in line
    assert "one process: excludes run-to-run variation" in text


def test_cells_that_run_in_other_ways_are_told_apart(folder):
    text = printed(
        folder,
        ONE_CELL.replace(
            "device: cpu",
            "device: cuda, zip: {graphs: [true, false, true, true], compile: [false, false, pieces, true]}",
        ),
    )
    rows = [line for line in text.splitlines() if " x stdlib  " in line]
    told = [line.split(" x stdlib  ")[1].split("  ")[0] for line in rows]
    assert told == ["graphs", "eager", "graphs, compiled pieces", "graphs, compiled"]


def test_what_the_intervals_speak_of_depends_on_the_processes(folder):
    assert "from run to run (3 processes)" in printed(folder, ONE_CELL.replace("warmup: 1", "warmup: 1, processes: 3"))


def test_a_limit_is_rounded_up_to_whole_blocks(folder):
    assert "4 x stdlib" in printed(folder, ONE_CELL, limit=3)


def test_published_models_are_weighed_without_a_hub_and_without_a_gpu(folder):
    text = ONE_CELL.replace("model: pico", "model: lmsys/vicuna-7b-v1.3").replace("pico-wide", "JackFram/llama-68m")
    found = printed(folder, text.replace("device: cpu", "device: cpu, dtype: bfloat16"))
    assert "13.6 GB" in found or "13.7 GB" in found
    assert "missing here" not in found


def test_a_model_out_of_reach_is_unknown_and_named(folder, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    found = printed(folder, ONE_CELL.replace("model: pico", "model: nobody/nothing"))
    assert "unknown" in found
    assert "missing here: nobody/nothing: not in the local cache" in found


def test_nothing_is_written(folder):
    printed(folder, ONE_CELL)
    assert sorted(path.name for path in folder.iterdir()) == ["experiment.yaml", "zoo"]


@pytest.mark.parametrize(("name", "per_token"), [("random:vicuna-7b-v1.3", 524_288), ("random:tinyllama-1.1b", 22_528)])
def test_the_cache_grows_by_keys_and_values_of_every_layer(tmp_path, name, per_token):
    import torch

    assert size_of(locate(name, tmp_path), torch.bfloat16).kv_per_token == per_token


STUDIES = """
traces: {gamma: 4}
latencies: {query_tokens: [1, 5], models: [{shape: opt-125m}], modes: [eager, compiled]}
scores: {count: 3}
"""


def test_what_is_measured_beside_the_trials_is_counted_with_its_time(folder):
    lines = printed(folder, TWO_CELLS + STUDIES).splitlines()
    assert any(line.startswith("2 traces, roughly ") for line in lines)
    # target, draft and a shape; two lengths, one batch size, one context, two modes
    # and in each mode, at each of two temperatures, a draw and accepting behind one token and behind five
    assert any(line.startswith("12 forward times and 36 choice times of 3 models, roughly ") for line in lines)
    assert any(line.startswith("2 scores on stdlib, roughly ") for line in lines)


def test_arms_that_are_composed_are_no_trials(folder):
    text = ONE_CELL.replace("gamma: 2", "gamma: [2, 3], latency_mode: composed") + STUDIES
    found = printed(folder, text)
    assert "1 cells, 3 trials" in found
    assert "  draft_model gamma=2 (does not run)\n  draft_model gamma=3 (does not run)\n" in found


def test_a_file_of_studies_alone_has_no_trials_to_tell_of(folder):
    found = printed(folder, "name: x\nlatencies: {models: [pico, {shape: opt-66b}]}\nmachine: {device: cpu}\n")
    assert "batches to decode" not in found
    assert "2 forward times of 2 models, roughly" in found


def test_compiling_takes_its_time(folder):
    eager = "name: x\nlatencies: {models: [pico], modes: [eager]}\nmachine: {device: cpu}\n"
    assert "roughly 0 s" in printed(folder, eager)
    assert "roughly 10 s" in printed(folder, eager.replace("eager", "compiled"))
