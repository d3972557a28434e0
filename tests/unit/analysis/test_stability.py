"""specbench.analysis.stability"""

import numpy as np
import pandas as pd
import pytest

from specbench.analysis.stability import cautions

BLOCKS, REPEATS = 8, 3


@pytest.fixture
def run(rows):
    """A calm run of the two autoregressive arms: 1 ms a step, with 1 % of noise."""

    def make(scale=None, **columns):
        rng = np.random.default_rng(0)
        frames = []
        for order, arm in enumerate(("autoregressive", "autoregressive-twin")):
            repeat, block = (axis.ravel() for axis in np.mgrid[:REPEATS, :BLOCKS])
            seconds = 0.1 * np.exp(0.01 * rng.standard_normal(len(block)))
            frames.append(
                rows(
                    repeat=repeat, block=block, decode_s=seconds, row_done_s=seconds, output_tokens=101, steps=100,
                    batch_id=[f"{arm}{b}-{r}" for b, r in zip(block, repeat, strict=True)], arm=arm, cell="cell",
                    method="autoregressive", order_in_block=order, **{"pass": "headline"},
                )
            )  # fmt: skip
        frame = pd.concat(frames, ignore_index=True).assign(**columns)
        if scale is not None:
            slower = np.array([scale(row) for row in frame.to_dict("records")], dtype=float)
            frame[["decode_s", "row_done_s"]] = frame[["decode_s", "row_done_s"]].mul(slower, axis=0)
        return frame

    return make


def kinds(frame):
    return [caution.kind for caution in cautions(frame)]


def test_a_calm_run_has_no_caution(run):
    calm = run(
        load_average=1.0, cpu_wait_share=0.0, cpu_steal_share=0.0, major_faults=0, gpu_clock_mhz=1980, gpu_throttle="",
        gpu_alloc_retries=0, gpu_throttled_by="", gpu_throttled_share=0.0, gpu_other_processes=0,
    )  # fmt: skip
    assert cautions(calm) == []


def test_tables_without_the_machines_columns_are_judged_by_their_times(run):
    assert cautions(run()) == []


def test_steps_that_vary_by_more_than_a_tenth_are_unsteady(run):
    noise = np.random.default_rng(1)
    found = cautions(run(lambda row: np.exp(0.2 * noise.standard_normal())))
    assert [caution.kind for caution in found] == ["unsteady"]
    assert "varies by 17.7 %" in found[0].seen
    assert found[0].sentence.startswith("cell: the autoregressive step time varies by 17.7 %")
    assert found[0].sentence.endswith(found[0].remedy)


def test_twins_that_differ_are_named_with_their_interval(run):
    (found,) = cautions(run(lambda row: 1.03 if row["arm"].endswith("twin") else 1.0))
    assert found.kind == "twins differ"
    assert "95 % interval of their ratio 0.9" in found.seen


def test_a_short_warm_up_shows_in_the_first_batches(run):
    (found,) = cautions(run(lambda row: 1.1 if row["repeat"] == 0 and row["block"] < 3 else 1.0))
    assert found.kind == "slow start"
    assert "measure.warmup" in found.remedy


def test_every_process_has_a_start_of_its_own(run):
    second = run(lambda row: 1.2 if row["repeat"] == 0 and row["block"] < 3 else 1.0, process=1)
    second["batch_id"] += "p1"
    assert kinds(pd.concat([run(), second])) == ["slow start"]


def test_a_drift_over_the_run_is_told_with_its_direction(run):
    (found,) = cautions(run(lambda row: 1 + 0.04 * (row["repeat"] * BLOCKS + row["block"]) / BLOCKS))
    assert found.kind == "drift"
    assert "second half are" in found.seen
    assert "slower" in found.seen
    found = cautions(run(lambda row: 1.1 - 0.04 * (row["repeat"] * BLOCKS + row["block"]) / BLOCKS))
    assert "faster" in next(caution.seen for caution in found if caution.kind == "drift")


def test_fewer_than_four_batches_are_too_few(run):
    few = run()
    assert kinds(few[few["block"] < 3]) == ["few units"]


def test_a_partial_batch_counts_for_nothing(run):
    frame = run()
    of_two = pd.concat([frame, frame[frame["block"] < 3].assign(row=1)]).assign(batch_size=2)
    assert kinds(of_two) == ["few units"]


@pytest.mark.parametrize(
    ("columns", "kind", "words"),
    [
        ({"cpu_wait_share": 0.2, "load_average": 3.5}, "busy machine", "waited for a core in 20.0 % of the time"),
        ({"cpu_wait_share": 0.0, "cpu_steal_share": 0.05}, "busy machine", "hypervisor took 5.0 %"),
        ({"load_average": 4.0}, "busy machine", "load average 4.0 for 1 threads"),
        ({"gpu_throttle": "thermal,power cap"}, "throttled", "in 48 of 48 batches (power cap, thermal)"),
        (
            {"gpu_throttled_by": "power cap", "gpu_throttled_share": 0.25, "gpu_throttle": ""},
            "throttled",
            "in 48 of 48 batches (power cap), for up to 25.0 % of a batch",
        ),
        ({"gpu_other_processes": 1}, "shared GPU", "another program computed on the GPU, in 48 of 48 batches"),
        ({"gpu_other_processes": [0] * 24 + [3] * 24}, "shared GPU", "up to 3 other programs"),
        ({"gpu_clock_mhz": [1980.0] * 24 + [1500.0] * 24}, "clock moved", "between 1500 and 1980 MHz"),
        ({"major_faults": 400}, "short of memory", "400 pages a batch"),
        ({"gpu_alloc_retries": 1}, "short of memory", "ran full 48 times"),
    ],
)
def test_what_the_machine_did_is_told(run, columns, kind, words):
    (found,) = cautions(run(**columns))
    assert found.kind == kind
    assert words in found.seen


def test_a_clock_held_down_for_less_than_a_hundredth_of_a_batch_is_no_throttling(run):
    assert cautions(run(gpu_throttled_by="power cap", gpu_throttled_share=0.005, gpu_throttle="")) == []


def test_a_load_that_took_no_time_from_us_is_none_of_our_business(run):
    assert cautions(run(load_average=30.0, cpu_wait_share=0.0)) == []


def test_a_phase_pass_that_slows_steps_is_named_with_its_arm(run):
    phase = run(lambda row: 1.06).assign(**{"pass": "phase"})
    phase["batch_id"] += "phase"
    (found,) = cautions(pd.concat([run(), phase]))
    assert found.kind == "slow phase pass"
    assert "slowed autoregressive" in found.seen
    assert "by 6.0 %" in found.seen


def test_cells_are_judged_apart(run):
    other = run(lambda row: 1.03 if row["arm"].endswith("twin") else 1.0).assign(cell="other")
    other["batch_id"] += "other"
    assert [(caution.cell, caution.kind) for caution in cautions(pd.concat([run(), other]))] == [
        ("other", "twins differ")
    ]
