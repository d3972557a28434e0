"""specbench.report.designs, and design_tables: shapes set against a draft that is known"""

import pandas as pd
import pytest
import yaml
from rich.console import Console

from specbench.analysis.latencies import LatencyTable
from specbench.config import open_document
from specbench.errors import ResultsError
from specbench.grid import read_plan
from specbench.models.draft_list import read_draft_list
from specbench.records.store import Store
from specbench.registry import options_class
from specbench.report import plots
from specbench.report.design_bars import Numbers
from specbench.report.design_tables import design_table, sentences
from specbench.report.designs import design_rows, judged, write_designs
from specbench.report.plots.designs import designs as drawn
from tests.unit.report.shapes_of_drafts import CONTEXT, SHAPES, latency, rows_of


@pytest.fixture(scope="module")
def bar():
    """That of a draft that is called small, as numbers say it."""
    return Numbers(0.7, "small", None, 0.0008, 8).bar(LatencyTable(rows_of()), "pico", 1, CONTEXT)


@pytest.fixture
def found(bar):
    return judged(rows_of(*SHAPES), bar, "pico", budget_s=None, keep=4, prefix="pico")


def test_shapes_come_by_depth_and_those_worth_training_by_what_they_need(found):
    assert [entry.shape for entry in found.designs] == ["1x64x1x160", "2x64x1x160", "2x96x1x160", "4x64x1x160"]
    assert [entry.on_front for entry in found.designs] == [True, True, False, True]
    assert [*found.recommended] == ["pico-1x64x1x160", "pico-2x64x1x160"]
    assert found.designs[-1].needed is None
    assert found.known.needed.alpha == pytest.approx(found.bar.alpha, abs=0.02)


def test_a_budget_that_nothing_fits_says_how_fast_the_fastest_is(bar):
    with pytest.raises(ResultsError, match=r"no shape has a forward of 0.05 ms; the fastest, 1x64x1x160, takes 0.1 ms"):
        judged(rows_of(*SHAPES), bar, "pico", budget_s=0.00005, keep=4, prefix="pico")


def test_without_any_time_the_reason_is_the_error(bar):
    failed = latency("1x64x1x160", None, status="oom", reason="it needs 9 GB")
    with pytest.raises(ResultsError, match="no shape could be measured: it needs 9 GB"):
        judged(rows_of(failed), bar, "pico", budget_s=None, keep=4, prefix="pico")


def test_a_shape_that_failed_keeps_its_reason_and_has_no_number(bar, tmp_path):
    failed = latency("8x64x1x160", None, status="oom", reason="it needs 9 GB")
    found = judged(rows_of(*SHAPES, failed), bar, "pico", budget_s=None, keep=4, prefix="pico")
    (row,) = [row for row in design_rows(found) if row["model"] == "8x64x1x160"]
    assert (row["status"], row["reason"], row["forward_s"], row["needed_alpha"]) == ("oom", "it needs 9 GB", None, None)
    assert sentences(found)[-1] == "1 shape could not be measured: it needs 9 GB."
    write_designs(found, tmp_path, name="tried", like={})


def test_the_table_holds_every_shape_and_the_known_draft(found, tmp_path):
    write_designs(found, tmp_path, name="tried", like={})
    rows = Store(tmp_path).read("designs").set_index("model")
    assert {*rows.index} == {"small", *(entry.shape for entry in found.designs)}
    assert rows.loc["small", "kind"] == "known"
    assert rows.loc["small", "alpha"] == pytest.approx(found.bar.alpha)
    assert {entry.shape: entry.on_front for entry in found.designs} == rows["on_front"].drop("small").to_dict()
    best = rows.loc["1x64x1x160"]
    assert (best["name"], best["needed_alpha"]) == ("pico-1x64x1x160", found.designs[0].needed.alpha)
    assert best["needed_alpha_low"] < best["needed_alpha"] < best["needed_alpha_high"]
    text = pd.read_csv(tmp_path / "designs.csv").set_index("model")
    assert text.loc["1x64x1x160", "needed_alpha"] == pytest.approx(best["needed_alpha"])


def test_the_shapes_are_read_by_the_training_and_the_experiment_by_the_bench(found, tmp_path):
    write_designs(found, tmp_path, name="tried", like={"decode": {"batch_size": 1, "temperature": 0.0}})
    wanted = read_draft_list(tmp_path / "shapes.yaml")
    assert {draft.name: draft.shape for draft in wanted.drafts} == {
        "pico-1x64x1x160": "1x64x1x160", "pico-2x64x1x160": "2x64x1x160",
    }  # fmt: skip
    assert (wanted.target, wanted.out) == ("pico", str(tmp_path / "drafts"))
    _, plan = read_plan(open_document(tmp_path / "experiment.yaml"), options_class)
    (cell,) = plan.cells
    drafts = {str(arm.options["draft"]) for arm in cell.arms if arm.method == "draft_model"}
    assert drafts == {"small", *(f"{tmp_path}/drafts/pico-{shape}" for shape in ("1x64x1x160", "2x64x1x160"))}
    gammas = {arm.options["gamma"] for arm in cell.arms if arm.method == "draft_model"}
    assert {entry.needed.gamma for entry in found.recommended.values()} <= gammas
    assert "&" not in (tmp_path / "experiment.yaml").read_text().split("\n", 1)[1]


def test_without_a_shape_worth_training_no_older_list_is_left(found, bar, tmp_path):
    write_designs(found, tmp_path, name="tried", like={})
    none = judged(rows_of(SHAPES[-1]), bar, "pico", budget_s=None, keep=4, prefix="pico")
    write_designs(none, tmp_path, name="tried", like={})
    assert not {"shapes.yaml", "experiment.yaml"} & {path.name for path in tmp_path.iterdir()}
    assert "No shape is worth training" in sentences(none)[1]


def test_the_figure_shows_every_shape_at_its_depth_and_at_what_it_needs(found):
    frame = pd.DataFrame(design_rows(found))
    with plots.themed("light"):
        latencies, needed = drawn(frame, 0.001).axes
    points = sorted(tuple(float(value[0]) for value in bars.lines[0].get_data()) for bars in latencies.containers)
    at = [(1, 0.1), (2, 0.2), (2, 0.3), (2, 0.4), (4, 9.0)]
    assert points == [pytest.approx(point) for point in at]
    assert len(needed.containers) == 4  # the deepest needs more than there is


def test_yaml_of_prompts_is_taken_as_it_is(found, tmp_path):
    like = {"prompts": {"source": "mt_bench", "count": 4}}
    write_designs(found, tmp_path, name="tried", like=like)
    assert yaml.safe_load((tmp_path / "experiment.yaml").read_text())["prompts"] == like["prompts"]


def test_a_terminal_shows_the_known_draft_first_and_what_can_never_win(found):
    console = Console(width=120)
    with console.capture() as shown:
        console.print(design_table(found))
    lines = [line.split() for line in shown.get().splitlines() if "x160" in line or " known " in line]
    assert lines[0][:2] == ["small", "known"]
    assert lines[1][:2] == ["1x64x1x160", "*"]
    assert "never" in lines[-1]
    assert f"{found.bar.alpha:.2f}" in lines[0]


def test_what_to_train_is_said_with_what_it_needs(found):
    said = sentences(found)
    least = found.designs[0].needed.alpha
    assert said[0].startswith("To beat: small, ")
    assert f"1x64x1x160 needs the least acceptance, {least:.2f}, less than the best known draft has." in said[1]


def test_where_the_largest_gamma_is_the_best_that_is_said(bar):
    cheap = judged(rows_of(latency("1x64x1x160", 0.000001, layers=1)), bar, "pico", budget_s=None, keep=1, prefix="p")
    needed = cheap.recommended["p-1x64x1x160"].needed
    assert any("is the largest that was looked at" in sentence for sentence in sentences(cheap)) == (needed.gamma == 8)
