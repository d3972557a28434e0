"""specbench.report.design_bars: on results drawn from known latencies and a known acceptance"""

from dataclasses import replace

import pytest

from specbench.analysis.closed_forms import expected_tokens
from specbench.analysis.latencies import LatencyTable
from specbench.errors import ResultsError
from specbench.report.cells import BASELINE
from specbench.report.design_bars import Numbers, check_same_setting, known_cell
from tests.unit.report.shapes_of_drafts import CONTEXT, HOST_S, LOOKUP, PLAN, TABLE_S, arm, drawn_results, rows_of
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return drawn_results(tmp_path_factory.mktemp("designs"))


@pytest.fixture(scope="module")
def bar(results):
    return known_cell(results, "pico", "f00d", 1).bar(LatencyTable(rows_of()), "pico", CONTEXT, 8)


def test_the_best_draft_model_of_the_cell_sets_the_bar(results, bar):
    known = known_cell(results, "pico", "f00d", 1)
    assert (known.draft, bar.draft, bar.rival) == ("small", "small", "draft_model draft=small")
    assert bar.plain_s_per_token == pytest.approx(0.010 + HOST_S, rel=0.03)
    assert bar.draft_s == pytest.approx(0.0008, rel=0.03)
    assert bar.s_per_token == pytest.approx(known.best.contender.best_s_per_token)
    assert bar.alpha == pytest.approx(0.7, abs=0.05)


def test_latencies_are_brought_to_the_pace_of_the_run_and_to_what_a_step_adds(bar):
    assert bar.pace == pytest.approx(2, rel=0.03)
    assert bar.extra_s == pytest.approx(0.0008 - 2 * 0.0003, abs=0.00006)
    assert bar.in_step(TABLE_S["small"]) == pytest.approx(bar.draft_s)


def test_a_step_without_its_drafts_is_the_runs_and_goes_on_as_the_table_does(bar):
    for gamma in range(1, 9):
        assert bar.rest_s[gamma] == pytest.approx(0.010 + 0.0002 * gamma + HOST_S, rel=0.03)
    assert [*bar.tokens] == [*range(1, 9)]
    assert bar.tokens[8] > bar.tokens[4] + 0.7**5


def test_a_method_that_is_faster_than_every_draft_model_is_the_rival(tmp_path):
    fast = replace(LOOKUP, alpha=0.9, gamma=4)
    results = drawn_results(tmp_path, replace(PLAN, arms=(*PLAN.arms, fast), batch_sizes=(1,)))
    found = known_cell(results, "pico", "f00d", 1).bar(LatencyTable(rows_of()), "pico", CONTEXT, 8)
    assert (found.rival, found.draft) == ("lookup", "small")
    assert found.s_per_token < found.plain_s_per_token / 2


def test_drafts_that_do_not_pay_leave_decoding_without_them_as_the_rival(tmp_path):
    arms = (AUTOREGRESSIVE, TWIN, arm("small", 0.1, 4, 0.004))
    results = drawn_results(tmp_path, replace(PLAN, arms=arms, batch_sizes=(1,)))
    assert known_cell(results, "pico", "f00d", 1).bar(LatencyTable(rows_of()), "pico", CONTEXT, 8).rival == BASELINE


def test_what_an_experiment_like_the_run_says_is_that_of_the_cell(results):
    assert known_cell(results, "pico", "f00d", 4).experiment == {
        "decode": {"batch_size": 4, "temperature": 0.0, "max_new_tokens": 64, "seed": 0}
    }


def refused(results, *arguments):
    with pytest.raises(ResultsError) as caught:
        known_cell(results, *arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_run_that_cannot_be_the_bar_says_why(results, tmp_path):
    assert "it is of other targets than nano, or of other weights: pico" in refused(results, "nano", "beef", 1)
    assert "0 cells of pico at batch size 3; choose one" in refused(results, "pico", "f00d", 3)
    assert "0 cells of pico at batch size 1 with 'T = 1' in its title" in refused(results, "pico", "f00d", 1, "T = 1")
    lookup = drawn_results(tmp_path, replace(PLAN, arms=(AUTOREGRESSIVE, TWIN, LOOKUP), batch_sizes=(1,)))
    assert "no draft model was run in batch 1, T = 0" in refused(lookup, "pico", "f00d", 1)


def test_of_cells_that_are_alike_the_title_chooses(tmp_path):
    results = drawn_results(tmp_path, replace(PLAN, batch_sizes=(1,), temperatures=(0.0, 0.8)))
    assert "2 cells of pico at batch size 1" in refused(results, "pico", "f00d", 1)
    assert known_cell(results, "pico", "f00d", 1, "T = 0.8").fit.title == "batch 1, T = 0.8"


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"device": "cpu Other"}, "its device is 'cpu Example 3000', and here it is 'cpu Other'"),
        ({"dtype": "float32"}, "its dtype is 'bfloat16', and here it is 'float32'"),
        ({"threads": 2}, "its threads is 1, and here it is 2"),
    ],
)
def test_a_run_of_another_device_or_setting_is_refused(results, here, words):
    with pytest.raises(ResultsError, match=words):
        check_same_setting(results, known_cell(results, "pico", "f00d", 1), {"attention": "sdpa", **here})


# --- numbers instead of a run


def test_numbers_say_of_a_draft_what_a_run_would():
    table = LatencyTable(rows_of())
    bar = Numbers(0.7, "small", None, 0.001, 8).bar(table, "pico", 1, CONTEXT)
    fastest = min(
        (gamma * 0.0003 + 0.005 + 0.0001 * gamma + 0.001) / expected_tokens(0.7, gamma) for gamma in range(1, 9)
    )
    assert (bar.rival, bar.draft_s) == ("small", 0.0003)
    assert bar.s_per_token == pytest.approx(fastest)
    assert bar.plain_s_per_token == pytest.approx(0.006)


def test_a_draft_of_which_only_its_latency_is_known_is_not_looked_up():
    bar = Numbers(0.1, "the known draft", 0.004, 0.0, 8).bar(LatencyTable(rows_of()), "pico", 1, CONTEXT)
    assert (bar.rival, bar.s_per_token, bar.draft_s) == (BASELINE, 0.005, 0.004)


def test_without_a_draft_decoding_without_one_is_the_rival():
    bar = Numbers(None, "the known draft", None, 0.0, 8).bar(LatencyTable(rows_of()), "pico", 1, CONTEXT)
    assert (bar.rival, bar.draft, bar.tokens) == (BASELINE, None, None)
