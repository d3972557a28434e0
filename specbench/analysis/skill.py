"""How skilled a model is, how sure that is, and whether skill goes along with acceptance over several drafts.

Skill is what ``specbench score`` measures: perplexity, next-token accuracy, accuracy on multiple choice. Whether it
tells which draft is accepted more often is a question of ranks: `rank_correlation` answers it with an interval and an
exact test, since there are never many drafts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest, kendalltau, rankdata, spearmanr

from specbench.analysis.intervals import LEVEL, MIN_UNITS, Floats
from specbench.errors import ResultsError, did_you_mean

MIN_DRAFTS = 6
"""Fewest drafts with a rank correlation; with five, not even a perfect order is surprising at 1 in 100."""

_EXACT_UP_TO = 8
_RESAMPLES = 20_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: It.
        low: Lower end; None where there are too few units to tell.
        high: Upper end.
        standard_error: Of the value; None as before.
    """

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None


def proportion(hits: int, count: int) -> Estimate:
    """The share of hits among independent trials, with Wilson's interval.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (JASA 1927); the standard
    error is the binomial one.
    """
    share = hits / count
    interval = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Estimate(share, float(interval.low), float(interval.high), math.sqrt(share * (1 - share) / count))


def ratio_of_totals(numerators: Floats, denominators: Floats) -> Estimate:
    """Sum over sum, with an interval whose unit is the entry: what is inside one text hangs together.

    Args:
        numerators: One an entry, such as the hits in each text.
        denominators: One an entry, such as its tokens.

    Source: the ratio estimator of sampling theory; Cochran, Sampling Techniques (1977), eq. 6.13, with a t quantile.
    """
    value = float(numerators.sum() / denominators.sum())
    count = len(numerators)
    if count < MIN_UNITS:
        return Estimate(value)
    residuals = numerators - value * denominators
    error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / float(denominators.sum())
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    return Estimate(value, value - reach, value + reach, error)


def perplexity(nats: Floats, tokens: Floats) -> Estimate:
    """The exponential of the mean loss per token; the unit of its interval is the text.

    Args:
        nats: Loss of each text, summed over its tokens.
        tokens: Of each text.
    """
    loss = ratio_of_totals(nats, tokens)
    value = math.exp(loss.value)
    if loss.low is None or loss.high is None or loss.standard_error is None:
        return Estimate(value)
    return Estimate(value, math.exp(loss.low), math.exp(loss.high), value * loss.standard_error)


# --- skill against acceptance


@dataclass(frozen=True)
class RankCorrelation:
    """How far two columns have the same order.

    Attributes:
        kind: Which coefficient.
        value: From -1 to 1; 0 where there is no order in common.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Chance of a value as far from 0, were the columns independent; exact up to eight drafts.
        drafts: What it rests on.
    """

    kind: Literal["spearman", "kendall"]
    value: float
    low: float
    high: float
    p_value: float
    drafts: int


def rank_correlation(
    first: Sequence[float], second: Sequence[float], kind: Literal["spearman", "kendall"] = "spearman"
) -> RankCorrelation:
    """Spearman's rho or Kendall's tau-b over drafts.

    The interval is Fisher's, on ``atanh``, with the variance ``(1 + rho^2 / 2) / (n - 3)`` for rho and
    ``0.437 / (n - 4)`` for tau. A perfect order counts there as half a step short of one: so few drafts could not show
    the difference, and the interval would have no width. The p-value goes through every order of one column, up to
    eight drafts, and through 20,000 of them beyond.

    Error: for columns from a bivariate normal distribution 93 to 98 % of the intervals hold the true value with six to
    twelve drafts, and 88 to 99 % where its correlation is .9.

    Raises:
        ResultsError: There are fewer than six drafts, or a column says the same of all of them.

    Source: Bonett & Wright, Sample size requirements for estimating Pearson, Kendall and Spearman correlations
    (Psychometrika 2000); for tau, Fieller, Hartley & Pearson, Tests for rank correlation coefficients (1957).
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    count = len(x)
    if count < MIN_DRAFTS:
        raise ResultsError(f"a rank correlation wants at least {MIN_DRAFTS} drafts, got {count}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ResultsError("no rank correlation: one of the two columns says the same of every draft")
    value = float((spearmanr if kind == "spearman" else kendalltau)(x, y).statistic)
    low, high = _fisher_interval(value, count, kind)
    return RankCorrelation(kind, value, low, high, _permutation_p(x, y, kind), count)


def _fisher_interval(value: float, count: int, kind: str) -> tuple[float, float]:
    steps = count * (count**2 - 1) / 12 if kind == "spearman" else count * (count - 1) / 4
    most = 1 - 0.5 / steps
    centre = math.atanh(max(-most, min(most, value)))
    variance = (1 + value**2 / 2) / (count - 3) if kind == "spearman" else 0.437 / (count - 4)
    reach = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(variance)
    return min(value, math.tanh(centre - reach)), max(value, math.tanh(centre + reach))


def _permutation_p(x: Floats, y: Floats, kind: str) -> float:
    """Share of the orders of ``x`` whose coefficient is as far from 0; all of them, or the given one and some drawn."""
    ranks = rankdata(x)
    if len(x) <= _EXACT_UP_TO:
        orders = np.array(list(permutations(ranks)))
    else:
        drawn = np.random.default_rng(0).permuted(np.tile(ranks, (_RESAMPLES, 1)), axis=1)
        orders = np.vstack([ranks, drawn])
    # Only what varies from one order to another is computed; the coefficient grows with it.
    if kind == "spearman":
        agreement = orders @ (rankdata(y) - (len(y) + 1) / 2)
    else:
        first, second = np.triu_indices(len(y), 1)
        agreement = np.sign(orders[:, first] - orders[:, second]) @ np.sign(y[first] - y[second])
    return float((np.abs(agreement) >= abs(agreement[0]) - _ROUNDING).mean())


def skill_and_acceptance(
    scores: pd.DataFrame, acceptance: Mapping[str, float], *, data: str, metric: str
) -> pd.DataFrame:
    """One row a draft: ``draft, skill, skill_low, skill_high, acceptance``, in the order of ``acceptance``.

    Args:
        scores: The table ``scores``.
        acceptance: Of each draft by its name, such as its tokens per step.
        data: The data set that the skill was measured on.
        metric: Which of its metrics.

    Raises:
        ResultsError: The table has no such data set or metric, or lacks a draft.
    """
    rows = scores
    for column, wanted in (("data", data), ("metric", metric)):
        known = sorted(map(str, rows[column].unique()))
        if wanted not in known:
            raise ResultsError(f"no scores with {column} {wanted!r}. {did_you_mean(wanted, known)}")
        rows = rows[rows[column] == wanted]
    rows = rows.drop_duplicates("model", keep="last").set_index("model")
    if missing := [draft for draft in acceptance if draft not in rows.index]:
        raise ResultsError(f"no score of {', '.join(missing)} on {data}: specbench score {' '.join(missing)}")
    found = rows.loc[list(acceptance), ["value", "low", "high"]].reset_index()
    found.columns = ["draft", "skill", "skill_low", "skill_high"]
    return found.assign(acceptance=list(acceptance.values()))
