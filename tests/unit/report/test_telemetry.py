"""specbench.report.telemetry, and where the report shows it"""

import json

import numpy as np
import pytest
from rich.console import Console

from specbench.records.store import Store
from specbench.report.build import build_report
from specbench.report.cautions import warnings
from specbench.report.metrics import frames, load
from specbench.report.phases import phase_times, shown
from specbench.report.telemetry import COLUMNS, telemetry
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, draw_block, run_row

FAST = Arm("fast", alpha=0.8, gamma=4, draft_s=0.0005)
BLOCKS = 4
QUIET = {
    "device": "NVIDIA H200", "gpu_energy_j": 90.0, "gpu_power_w": 300.0, "gpu_clock_mean_mhz": 1980.0,
    "gpu_memory_clock_mhz": 2619.0, "gpu_clock_mhz": 1980, "gpu_utilisation": 0.9, "gpu_temperature_c": 55,
    "gpu_memory_bytes": 2**34, "gpu_throttle": "", "gpu_throttled_by": "", "gpu_throttled_share": 0.0,
    "gpu_other_processes": 0, "telemetry_looks": 4, "telemetry_busy_s": 0.001,
}  # fmt: skip
NOTHING = dict.fromkeys(QUIET) | {"device": "NVIDIA H200"}


def run_folder(folder, said=lambda row: QUIET, notes="on"):
    """A run on a GPU that said of each row what a test says: two rows a batch, of 12 tokens each."""
    plan = Plan(
        (AUTOREGRESSIVE, TWIN, FAST), (2,), prompts=2 * BLOCKS, repeats=1, max_new_tokens=12,
        run={"notes": json.dumps({"telemetry": notes})},
    )  # fmt: skip
    store, rng = Store(folder / "run" / "machine"), np.random.default_rng(0)
    store.write_run(run_row(plan))
    for block in range(BLOCKS):
        requests, steps = draw_block(plan, (2, 0.0, 0, block), rng)
        store.write_block(str(block), [row | said(row) for row in requests], steps)
    return store.folder


def table(folder, said=lambda row: QUIET):
    return telemetry(load(run_folder(folder, said))).set_index("arm")


def test_energy_per_token_is_of_the_batches_whose_energy_is_known(tmp_path):
    """90 J for two rows of 12 tokens in blocks 0 to 2, and 45 J for as many in block 1; block 3 was too short."""

    def said(row):
        joules = {0: 90.0, 1: 45.0, 2: 90.0, 3: None}[row["block"]]
        return QUIET | {"gpu_energy_j": joules, "gpu_power_w": None if joules is None else 300.0}

    row = table(tmp_path, said).loc["fast"]
    assert row["energy_j_per_token"] == pytest.approx(225 / (3 * 24))
    assert (row["batches"], row["energy_batches"], row["power_w"]) == (4, 3, 300.0)


def test_an_arm_whose_batches_are_all_too_short_has_no_energy(tmp_path):
    row = table(tmp_path, lambda row: QUIET | {"gpu_energy_j": None, "gpu_power_w": None}).loc["fast"]
    assert row[["energy_j_per_token", "power_w"]].isna().all()
    assert (row["energy_batches"], row["clock_mean_mhz"]) == (0, 1980.0)


def test_throttled_batches_are_flagged_by_arm_and_block(tmp_path):
    def said(row):
        held = row["arm"] == "fast" and row["block"] in {1, 3}
        return QUIET | ({"gpu_throttled_by": "power cap", "gpu_throttled_share": 0.4} if held else {})

    found = table(tmp_path, said)
    row = found.loc["fast"]
    assert (row["throttled_batches"], row["throttled_blocks"], row["throttled_by"]) == (2, "1, 3", "power cap")
    assert row["throttled_share"] == pytest.approx(0.2)
    assert found.loc["autoregressive", "throttled_batches"] == 0


def test_a_clock_held_down_for_a_hundredth_of_a_batch_is_none_to_speak_of(tmp_path):
    found = table(tmp_path, lambda row: QUIET | {"gpu_throttled_by": "power cap", "gpu_throttled_share": 0.009})
    assert found["throttled_batches"].max() == 0


def test_the_phase_pass_has_no_part_in_it(tmp_path):
    found = table(tmp_path, lambda row: QUIET | {"gpu_energy_j": 90.0 if row["pass"] == "headline" else 9e9})
    assert found["energy_j_per_token"].max() == pytest.approx(90 / 24)


def test_a_run_on_a_cpu_has_no_such_table_and_no_caution(odd_results, odd_frames):
    assert odd_frames.telemetry.empty
    assert tuple(odd_frames.telemetry.columns) == COLUMNS
    assert not any("GPU was not asked" in sentence for sentence in warnings(odd_results, odd_frames))


def cautions(folder, said=lambda row: QUIET, notes="on"):
    results = load(run_folder(folder, said, notes))
    return warnings(results, frames(results))


def test_throttling_and_other_programs_are_told_before_the_numbers(tmp_path):
    def said(row):
        return QUIET | {"gpu_throttled_by": "thermal", "gpu_throttled_share": 0.3, "gpu_other_processes": 2}

    found = cautions(tmp_path, said)
    assert any(
        "clock was held down in 12 of 12 batches (thermal), for up to 30.0 % of a batch" in text for text in found
    )
    assert any("up to 2 other programs computed on the GPU, in 12 of 12 batches" in text for text in found)
    assert not any("held down" in text or "other program" in text for text in cautions(tmp_path / "quiet"))


def test_a_gpu_that_was_not_asked_is_told_with_the_reason(tmp_path):
    (sentence,) = (text for text in cautions(tmp_path, lambda row: NOTHING, "no driver") if "not asked" in text)
    assert sentence.startswith("The GPU was not asked what it did (no driver): throttling")


def test_the_page_and_the_tables_show_it(tmp_path):
    folder = run_folder(tmp_path)
    [report] = build_report(folder, Console(width=200, quiet=True))
    page = report.path.read_text(encoding="utf-8")
    assert '<h2 id="telemetry">What the GPU did</h2>' in page
    assert 'href="#telemetry"' in page
    assert "energy_j_per_token" in page
    assert (folder / "tables" / "telemetry.csv").exists()
    assert "host and other" in (folder / "figures" / "step_time.svg").read_text()
    assert "host and other ms" in page


def test_what_no_phase_accounts_for_is_host_and_other(odd_results):
    phases = phase_times(odd_results)
    named = shown(phases)
    assert list(named["host and other ms"]) == list(phases["host_ms"])
    parts = named[["draft ms", "verify ms", "accept ms", "update ms", "host and other ms"]].sum(axis=1)
    assert parts.to_numpy() == pytest.approx(named["step ms"].to_numpy())


def test_rows_older_than_the_hosts_launches_have_none_and_others_count_their_own_steps(odd_results, odd_folder):
    steps = odd_results.steps.assign(launch_s=np.nan)
    older = type(odd_results)(odd_folder, odd_results.requests, steps, odd_results.runs)
    assert phase_times(older)["launch_ms"].isna().all()
    half = steps.index % 2 == 0
    steps.loc[half, "launch_s"] = 0.002 * steps.loc[half, "steps"]
    mixed = type(odd_results)(odd_folder, odd_results.requests, steps, odd_results.runs)
    assert phase_times(mixed)["launch_ms"].dropna().to_numpy() == pytest.approx(2.0)
