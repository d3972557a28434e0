"""specbench.analysis.latencies"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, linregress

from specbench.analysis.latencies import CONSTANT, LatencyTable, fit, median_interval
from specbench.errors import ResultsError

SETTING = {"device": "cpu one", "dtype": "float32", "threads": 1, "attention": "sdpa", "burst": 4}


def row(model="m", query=1, batch=1, context=128, seconds=1.0, **changes):
    return {
        "run_id": "1", "model": model, "mode": "eager", "query_tokens": query, "batch_size": batch,
        "context_tokens": context, "forward_s": seconds, "forward_low_s": None, "forward_high_s": None,
        "status": "ok", "reason": None, "layers": 2, "parameters": 1000, **SETTING, **changes,
    }  # fmt: skip


def table(*rows, **setting):
    numbered = [{"point_id": str(index), **own} for index, own in enumerate(rows)]
    return LatencyTable(pd.DataFrame(numbered), **setting)


def cube():
    """Seconds of tokens, rows and context, at two places each."""
    seconds = {
        (1, 1, 100): 1.0, (5, 1, 100): 2.0, (1, 4, 100): 3.0, (5, 4, 100): 8.0,
        (1, 1, 300): 2.0, (5, 1, 300): 4.0, (1, 4, 300): 6.0, (5, 4, 300): 9.0,
    }  # fmt: skip
    return table(*(row(query=q, batch=b, context=c, seconds=s) for (q, b, c), s in seconds.items()))


def test_a_measured_point_is_looked_up():
    assert cube().forward_s("m", 5, 4, 300) == 9.0
    assert cube().forward_s("m", 1, 1, 100) == 1.0


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        ((3, 1, 100), 1.5),
        ((2, 1, 100), 1.25),
        ((1, 2, 100), 1 + 2 / 3),
        ((1, 1, 150), 1.25),
        # Along tokens: 1.5 and 5.5 at context 100, 3 and 7.5 at 300; along rows, a third of the way: 17/6 and 4.5.
        ((3, 2, 100), 1.5 + (5.5 - 1.5) / 3),
        ((3, 2, 200), ((1.5 + 4 / 3) + (3 + 1.5)) / 2),
    ],
)
def test_between_points_the_time_is_linear_along_every_axis(at, seconds):
    assert cube().forward_s("m", *at) == pytest.approx(seconds, rel=1e-12)


def test_the_nearest_two_points_count_not_the_outermost():
    found = table(row(query=1), row(query=5, seconds=2.0), row(query=9, seconds=10.0))
    assert [found.forward_s("m", tokens) for tokens in (3, 7)] == pytest.approx([1.5, 6.0])


def test_contexts_may_differ_from_batch_to_batch():
    found = table(row(context=100, seconds=1.0), row(context=200, seconds=3.0), row(batch=3, context=150, seconds=5.0))
    assert found.forward_s("m", 1, 2, 150) == pytest.approx((2.0 + 5.0) / 2)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ((6, 1, 100), "m, eager: query_tokens 6 lies outside of what was measured, 1 to 5"),
        ((1, 8, 100), "m, eager: batch_size 8 lies outside of what was measured, 1 to 4"),
        ((1, 1, 99), "m, eager: context_tokens 99 lies outside of what was measured, 100 to 300"),
    ],
)
def test_nothing_is_said_beyond_what_was_measured(at, words):
    with pytest.raises(ResultsError) as error:
        cube().forward_s("m", *at)
    assert str(error.value) == words


def test_a_point_that_failed_is_none_and_its_reason_is_told():
    failed = row(query=5, seconds=None, status="oom", reason="no room")
    with pytest.raises(ResultsError, match=r"query_tokens 3 .* measured, 1 alone \(oom: no room\)"):
        table(row(), failed).forward_s("m", 3)
    only = row(mode="compiled", seconds=None, status="unsupported", reason="torch.compile: no compiler")
    with pytest.raises(ResultsError, match=r"in mode 'compiled' in this table \(unsupported: torch.compile: no comp"):
        table(row(), only).forward_s("m", mode="compiled")


def test_modes_are_kept_apart():
    both = table(row(seconds=4.0), row(seconds=1.0, mode="compiled"))
    assert both.forward_s("m") == 4.0
    assert both.forward_s("m", mode="compiled") == 1.0


def test_an_unknown_model_brings_the_nearest_name():
    with pytest.raises(ResultsError, match=r"no latency of 'pico-wied' in this table\. Did you mean 'pico-wide'"):
        table(row("pico-wide"), row("pico")).forward_s("pico-wied")


@pytest.mark.parametrize(
    ("column", "other"),
    [("device", "gpu two"), ("dtype", "bfloat16"), ("threads", 2), ("attention", "eager"), ("burst", 1)],
)
def test_a_table_of_another_setting_is_refused_in_one_line(column, other):
    with pytest.raises(ResultsError) as error:
        table(row(), **{column: other})
    words = f"a latency table of another setting: {column} is {SETTING[column]!r}, and {other!r} is asked for"
    assert str(error.value) == words
    with pytest.raises(ResultsError, match=f"{column} is {SETTING[column]!r} in some rows and {other!r} in others"):
        table(row(), row(**{column: other}))
    assert table(row(seconds=7.0, **{column: other}), row(), **{column: other}).forward_s("m") == 7.0


def test_a_setting_that_no_column_has_is_the_callers_fault():
    with pytest.raises(ValueError, match="no column of a table's setting: colour"):
        table(row(), colour="red")


def test_a_name_that_two_models_had_is_refused():
    both = table(row(run_id="1"), row(query=5, run_id="2", parameters=1200))
    with pytest.raises(ResultsError, match="several models are called m in this table: one has 1,000 parameters, ano"):
        both.forward_s("m")


def test_weights_of_the_same_size_under_an_old_name_replace_the_old_ones():
    retrained = table(row(run_id="2", seconds=3.0), row(run_id="1", seconds=1.0))
    assert retrained.forward_s("m") == 3.0
    assert len(retrained.rows) == 1


# --- fits


def line(layers, seconds, **more):
    return pd.DataFrame({"layers": layers, "forward_s": seconds, **more})


def test_a_fit_of_one_term_is_that_of_scipy():
    rows = line([1, 2, 4, 8, 8], np.array([1.1, 1.9, 4.2, 8.1, 7.8]) * 1e-3)
    ours, theirs = fit(rows, ["layers"]), linregress(rows["layers"], rows["forward_s"])
    half = theirs.stderr * 3.182446305284263  # t quantile of three degrees of freedom
    slope = ours.coefficients["layers"]
    assert (slope.value, slope.low, slope.high) == pytest.approx(
        (theirs.slope, theirs.slope - half, theirs.slope + half), rel=1e-9
    )
    constant = ours.coefficients[CONSTANT]
    assert constant.high - constant.value == pytest.approx(theirs.intercept_stderr * 3.182446305284263, rel=1e-9)
    assert ours.r_squared == pytest.approx(theirs.rvalue**2)
    assert ours.points == 5


def test_depth_and_bytes_are_told_apart():
    """200 us, 50 us a layer and 1 s per 200 GB, without noise: launches and memory, each found to the digit."""
    layers = np.array([1, 2, 4, 8, 1, 2, 4, 8])
    weights = np.array([1, 1, 1, 1, 3, 3, 3, 3]) * 1e9
    rows = line(layers, 2e-4 + 5e-5 * layers + weights / 200e9, weight_bytes=weights)
    found = fit(rows, ["layers", "weight_bytes"])
    assert found.coefficients["layers"].value == pytest.approx(5e-5, rel=1e-9)
    assert found.coefficients["weight_bytes"].value == pytest.approx(1 / 200e9, rel=1e-9)
    assert found.worst < 1e-9
    assert found.forward_s(layers=16, weight_bytes=2e9) == pytest.approx(2e-4 + 8e-4 + 1e-2)


def test_the_worst_error_is_a_share_of_that_points_time():
    rows = line([1, 2, 3, 1, 2, 3], [1.0, 2.0, 3.0, 1.0, 2.0, 3.6])
    found = fit(rows, ["layers"])
    at = [abs(found.forward_s(layers=x) - y) / y for x, y in zip(rows["layers"], rows["forward_s"], strict=True)]
    assert found.worst == pytest.approx(max(at))


def test_too_few_points_or_terms_that_vary_only_together_are_refused():
    with pytest.raises(ResultsError, match="a fit against layers needs 3 measured points, got 2"):
        fit(line([1, 2], [1.0, 2.0]), ["layers"])
    with pytest.raises(ResultsError, match="layers, twice: in these rows they do not vary, or only together"):
        fit(line([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], twice=[2, 4, 6, 8]), ["layers", "twice"])
    with pytest.raises(ResultsError, match="do not vary"):
        fit(line([2, 2, 2, 2], [1.0, 2.0, 3.0, 4.0]), ["layers"])


def test_rows_for_a_fit_are_selected_by_their_values():
    rows = table(row("a", layers=1), row("b", layers=2, seconds=2.0), row("b", query=5, layers=2, seconds=9.0)).select(
        query_tokens=1, mode="eager"
    )
    assert list(rows["forward_s"]) == [1.0, 2.0]


# --- the median's interval


def test_the_interval_of_a_median_is_two_of_the_samples_by_the_binomial():
    samples = list(range(20, 0, -1))
    assert median_interval(samples) == (6, 15)
    # The median lies between the 6th and the 15th unless fewer than 6, or more than 14, of 20 lie below it.
    assert binom.cdf(14, 20, 0.5) - binom.cdf(5, 20, 0.5) > 0.95
    assert binom.cdf(13, 20, 0.5) - binom.cdf(6, 20, 0.5) < 0.95


def test_below_six_samples_a_median_has_no_interval():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert median_interval([6.0, 2.0, 3.0, 4.0, 5.0, 1.0]) == (1.0, 6.0)
