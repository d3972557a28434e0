"""specbench.analysis.skill"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr, t

from specbench.analysis.skill import (
    perplexity,
    proportion,
    rank_correlation,
    ratio_of_totals,
    skill_and_acceptance,
)
from specbench.errors import ResultsError


def test_wilson_s_interval_is_the_published_one():
    # Agresti & Coull, Approximate is better than exact (1998), p. 121: the score interval of 0 of 25 is (0, .133).
    none = proportion(0, 25)
    assert (none.low, round(none.high, 3)) == (pytest.approx(0, abs=1e-12), 0.133)
    assert proportion(30, 100).standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 100))


def test_texts_of_one_length_have_the_interval_of_a_mean():
    hits = np.array([3.0, 5.0, 4.0, 8.0, 6.0])
    found = ratio_of_totals(hits, np.full(5, 10.0))
    error = np.std(hits / 10, ddof=1) / math.sqrt(5)
    assert found.value == pytest.approx(0.52)
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 4, loc=0.52, scale=error))


def test_the_interval_of_a_ratio_holds_the_true_value_in_95_of_100_cases():
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        tokens = generator.integers(50, 500, size=20).astype(float)
        hits = generator.binomial(tokens.astype(int), generator.beta(6, 9, size=20)).astype(float)
        found = ratio_of_totals(hits, tokens)
        held += found.low <= 0.4 <= found.high
    assert 0.90 <= held / 400 <= 0.98


def test_three_texts_have_no_interval():
    found = perplexity(np.array([10.0, 12.0, 9.0]), np.array([5.0, 5.0, 5.0]))
    assert (found.low, found.high, found.standard_error) == (None, None, None)
    assert found.value == pytest.approx(math.exp(31 / 15))


def test_perplexity_is_the_exponential_of_the_loss_and_so_is_its_interval():
    nats, tokens = np.array([10.0, 14.0, 9.0, 12.0]), np.array([5.0, 5.0, 4.0, 6.0])
    loss, found = ratio_of_totals(nats, tokens), perplexity(nats, tokens)
    assert (found.value, found.low, found.high) == pytest.approx(
        tuple(map(math.exp, (loss.value, loss.low, loss.high)))
    )
    assert found.standard_error == pytest.approx(found.value * loss.standard_error)


ORDERS = [
    # Two-sided exact p of rho for six: 2 * 12 / 720 at .886 (Ramsey, Critical values for Spearman's rank order, 1989)
    ([2, 1, 3, 4, 6, 5], "spearman", 31 / 35, 24 / 720),
    ([1, 2, 3, 4, 5, 6], "spearman", 1.0, 2 / 720),
    ([6, 5, 4, 3, 2, 1], "spearman", -1.0, 2 / 720),
    ([2, 1, 3, 4, 6, 5], "kendall", 11 / 15, 40 / 720),
    ([6, 5, 4, 3, 2, 1], "kendall", -1.0, 2 / 720),
]


@pytest.mark.parametrize(("order", "kind", "value", "p"), ORDERS)
def test_the_value_and_its_exact_p_are_those_of_the_tables(order, kind, value, p):
    found = rank_correlation(range(6), order, kind)
    assert found.value == pytest.approx(value)
    assert found.p_value == pytest.approx(p)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.2


@pytest.mark.parametrize("count", [6, 7, 8, 11])
def test_p_is_scipy_s(count):
    generator = np.random.default_rng(count)
    x = generator.normal(size=count)
    y = x + 2 * generator.normal(size=count)
    expected = kendalltau(x, y, method="exact").pvalue
    assert rank_correlation(x, y, "kendall").p_value == pytest.approx(expected, abs=0.01 if count > 8 else 1e-12)
    assert rank_correlation(x, y).value == pytest.approx(spearmanr(x, y).statistic)


def test_ties_count_as_scipy_counts_them():
    x, y = [1, 1, 2, 3, 4, 5], [2, 1, 3, 3, 5, 4]
    assert rank_correlation(x, y, "kendall").value == pytest.approx(kendalltau(x, y).statistic)
    assert rank_correlation(x, y).value == pytest.approx(spearmanr(x, y).statistic)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["spearman", "kendall"])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_interval_of_six_drafts_holds_the_true_value(kind, rho):
    truth = 6 / math.pi * math.asin(rho / 2) if kind == "spearman" else 2 / math.pi * math.asin(rho)
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        x, y = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 6).T
        found = rank_correlation(x, y, kind)
        held += found.low <= truth <= found.high
    assert held / 300 >= 0.90


def test_five_drafts_are_too_few_and_a_column_without_order_says_so():
    with pytest.raises(ResultsError, match="at least 6 drafts, got 5"):
        rank_correlation(range(5), range(5))
    with pytest.raises(ResultsError, match="says the same of every draft"):
        rank_correlation([1] * 6, range(6))


def a_table(models):
    rows = [
        {
            "model": model,
            "data": data,
            "metric": metric,
            "value": value + n,
            "low": value + n - 1,
            "high": value + n + 1,
        }
        for n, model in enumerate(models)
        for data, value in (("stdlib", 10.0), ("mmlu", 20.0))
        for metric in ("perplexity", "top1")
    ]
    return pd.DataFrame(rows)


def test_each_draft_s_skill_stands_beside_its_acceptance():
    found = skill_and_acceptance(a_table("abc"), {"c": 2.5, "a": 1.5}, data="mmlu", metric="top1")
    assert found.to_dict("list") == {
        "draft": ["c", "a"], "skill": [22, 20], "skill_low": [21, 19], "skill_high": [23, 21],
        "acceptance": [2.5, 1.5],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "mmul"}, "no scores with data 'mmul'. Did you mean 'mmlu'?"),
        ({"metric": "top2"}, "no scores with metric 'top2'. Did you mean 'top1'?"),
        ({"acceptance": {"a": 1, "d": 2}}, "no score of d on mmlu: specbench score d"),
    ],
)
def test_what_was_never_scored_is_named(change, words):
    asked = {"acceptance": {"a": 1.0}, "data": "mmlu", "metric": "top1"} | change
    with pytest.raises(ResultsError) as caught:
        skill_and_acceptance(a_table("abc"), **asked)
    assert words in str(caught.value)
