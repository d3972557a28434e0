"""specbench.report.published, against the tables of arXiv 2403.09919 v5."""

import pandas as pd
import pytest

from specbench.config import PUBLISHED
from specbench.report import published
from specbench.report.findings import QUESTIONS, answers
from specbench.report.metrics import frames, load
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results


def test_what_an_experiment_may_name_is_what_there_are_numbers_of():
    assert {point.beside for point in published.PUBLISHED} == set(PUBLISHED)


def test_the_tables_are_whole():
    counts = published.frame()["beside"].value_counts()
    assert dict(counts) == {
        "redrafter-table-1": 3 * 3 * 2, "redrafter-table-3": 8 * 7, "redrafter-table-4": 5 * 2, "redrafter-figure-6": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "where", "column", "value"),
    [
        ("redrafter-table-1", {"method": "redrafter", "model": "Vicuna 13B", "dataset": "MT-bench"}, "speedup", 2.80),
        (
            "redrafter-table-1",
            {"method": "medusa", "model": "Vicuna 33B", "dataset": "Alpaca"},
            "tokens_per_step",
            2.31,
        ),
        ("redrafter-table-1", {"method": "eagle", "model": "Vicuna 7B", "dataset": "Alpaca"}, "tokens_per_step", 3.61),
        ("redrafter-table-3", {"batch_size": 1, "width": 64}, "tokens_per_s", 110.64),
        ("redrafter-table-3", {"batch_size": 20, "width": 4}, "tokens_per_s", 57.35),
        ("redrafter-table-4", {"width": 16, "distilled": True}, "speedup", 1.92),
        ("redrafter-table-4", {"width": 64, "distilled": False}, "tokens_per_step", 3.30),
        ("redrafter-figure-6", {"width": 70}, "saved_high", 0.60),
    ],
)
def test_a_published_number_stands_where_the_paper_has_it(name, where, column, value):
    found = published.frame((name,))
    for key, wanted in where.items():
        found = found[found[key] == wanted]
    assert found[column].tolist() == [value]


def test_the_total_of_table_3_peaks_at_batch_80_and_two_beams_as_the_paper_says():
    found = published.frame(("redrafter-table-3",))
    best = found.loc[(found["tokens_per_s"].astype(float) * found["batch_size"]).idxmax()]
    assert (best["batch_size"], best["width"], round(best["tokens_per_s"] * best["batch_size"])) == (80, 2, 1636)


# What all requests of a batch get together, in whole tokens per second: batch size -> by beam width.
TOTALS = {
    2: (117, 140, 152, 173, 199, 215, 223),
    4: (230, 270, 299, 328, 389, 396, 341),
    8: (425, 484, 556, 649, 668, 587, 433),
    10: (536, 588, 663, 715, 736, 653, 442),
    20: (903, 981, 1147, 1077, 975, 713, 466),
    40: (1308, 1343, 1467, 1373, 1057, 766, 484),
    80: (1515, 1636, 1572),
}


def test_every_rate_of_table_3_comes_to_the_total_of_its_batch():
    found = published.frame(("redrafter-table-3",)).dropna(subset=["tokens_per_s"])
    for batch_size, totals in TOTALS.items():
        own = found[found["batch_size"] == batch_size].sort_values("width")
        assert (own["tokens_per_s"] * batch_size).tolist() == pytest.approx(totals, abs=0.5 + 0.005 * batch_size)


def test_distillation_gains_at_every_width_of_table_4_in_speed_and_tokens():
    found = published.frame(("redrafter-table-4",))
    for column, gains in (("speedup", (0.04, 0.12)), ("tokens_per_step", (0.06, 0.11))):
        table = found.pivot_table(index="width", columns="distilled", values=column)
        gain = table[True] / table[False] - 1
        assert gain.between(*gains).all()


def test_what_ran_out_of_memory_has_no_number():
    found = published.frame()
    out = found[found["status"] == "oom"]
    assert out["batch_size"].tolist() == [80] * 4
    assert out["width"].tolist() == [8, 16, 32, 64]
    assert out["tokens_per_s"].isna().all()


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ("redrafter-table-4", {"redrafter-table-4"}),
        ("[redrafter-table-1, redrafter-figure-6]", {"redrafter-table-1", "redrafter-figure-6"}),
        ("null", set()),
    ],
)
def test_a_report_takes_what_the_experiment_names_and_says_where_it_is_from(tmp_path, beside, names):
    run = {"experiment": f"name: x\nbeside: {beside}\n"}
    arms = (AUTOREGRESSIVE, TWIN, Arm("fast", alpha=0.8, gamma=4))
    results = load(write_results(tmp_path, Plan(arms, (1,), prompts=4, repeats=1, max_new_tokens=8, run=run)))
    built = frames(results)
    assert set(built.published["beside"]) == names
    last = answers(results, built)[-1]
    assert last.question == QUESTIONS[-1]
    said = [sentence for sentence in last.sentences if "arXiv 2403.09919" in sentence]
    assert len(said) == len(names)
    assert ("names no claim" in " ".join(last.sentences)) == (not names)


def test_the_origin_of_points_names_table_targets_and_hardware():
    one, four = (published.frame((f"redrafter-table-{number}",)) for number in (1, 4))
    assert published.origin(one) == "Cheng et al. (2024), table 1: Vicuna on NVIDIA H100"
    assert published.origin(four).endswith("table 4: Vicuna 7B, hardware not stated")


def test_no_two_published_points_are_the_same():
    keys = ["beside", "model", "dataset", "method", "batch_size", "width", "distilled"]
    assert not published.frame().astype(object).where(pd.notna, None)[keys].duplicated().any()
