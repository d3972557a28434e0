"""Does sampled text have the target's own distribution: many texts of a few prompts, place by place.

Given the text before it, a token is a draw from the target's distribution there, which one plain forward tells
exactly. So at each place the tokens are sorted into cells by their rank there (the most likely, the second, and so on,
less likely ones together), and what fell into each cell is held against what should have. Texts that begin alike are a
group of their own, where a rank is one token; the others are taken together.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, stats

from specbench.analysis.verdicts import PositionTest
from specbench.decode.loop import sampler_for
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel

FALSE_ALARM = 1e-4
"""How often a text that is the target's own is called wrong, over all places of one arm."""

POWER = 0.95
"""How often a deviation of the size that is said to be detectable would be found."""

_MIN_EXPECTED = 10.0
_MIN_GROUP = 100
_RANKS = 64
# A token that the target would never choose: rounding at the edge of a nucleus makes a few.
_IMPOSSIBLE_SHARE = 0.01
_ROWS = 32

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Texts that were drawn for one prompt, and the keys that their chance came from."""

    prompt: list[int]
    keys: list[int]
    texts: list[list[int]]


class _Choices(NamedTuple):
    """One place of some texts.

    Attributes:
        probs: The target's largest probabilities there, falling, (texts, ranks).
        rank: Where the chosen token stands among them; the number of ranks for any later one.
        chance: The chosen token's own probability.
    """

    probs: Floats
    rank: npt.NDArray[np.int64]
    chance: Floats


class _Pearson(NamedTuple):
    statistic: float
    freedom: int
    texts: int
    shifted: float = 0.0


def position_tests(target: CachedModel, samples: Sequence[Sample], decoding: Decoding) -> list[PositionTest]:
    """One test for every place at which there is something to test.

    Args:
        target: The target.
        samples: Texts of the method, at least some hundred a prompt.
        decoding: How they were decoded.

    Source: Pearson's chi-square with the exact covariance of a sum of unlike multinomial draws; non-central
    chi-square for the power.
    """
    by_place: dict[int, list[_Pearson]] = defaultdict(list)
    impossible: set[int] = set()
    for place, group in _groups(target, samples, decoding):
        by_place[place].append(_pearson(group))
        if (group.chance <= 0).sum() > max(1.0, _IMPOSSIBLE_SHARE * len(group.chance)):
            impossible.add(place)
    tested = {place: found for place, found in by_place.items() if any(part.freedom for part in found)}
    alarm = FALSE_ALARM / max(1, len(tested))
    tests = []
    for place in sorted(set(tested) | impossible):
        parts = [part for part in by_place[place] if part.freedom]
        statistic, freedom = sum(part.statistic for part in parts), sum(part.freedom for part in parts)
        p_value = 0.0 if place in impossible else float(stats.chi2.sf(statistic, freedom))
        texts = sum(part.texts for part in parts)
        shift = max(0.0, sum(part.shifted for part in parts)) / max(1, texts)
        detectable = _detectable(freedom, texts, alarm)
        tests.append(PositionTest(place, texts, statistic, freedom, p_value, detectable, shift))
    return tests


def is_wrong(tests: Sequence[PositionTest]) -> bool:
    """Whether any place strays further than chance, at `FALSE_ALARM` over all of them together."""
    return any(test.p_value < FALSE_ALARM / len(tests) for test in tests)


def _groups(target: CachedModel, samples: Sequence[Sample], decoding: Decoding) -> Iterator[tuple[int, _Choices]]:
    """The choices at every place: those behind a common beginning together, all the others together."""
    others: dict[int, list[_Choices]] = defaultdict(list)
    for sample in samples:
        choices = _choices(target, sample, decoding)
        for place in range(choices.rank.shape[1]):
            by_beginning: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for row, text in enumerate(sample.texts):
                if len(text) > place:
                    by_beginning[tuple(text[:place])].append(row)
            uncommon = []
            for rows in by_beginning.values():
                if len(rows) >= _MIN_GROUP:
                    yield place, _at(choices, rows, place)
                else:
                    uncommon += rows
            others[place].append(_at(choices, uncommon, place))
    for place, parts in others.items():
        if any(len(part.rank) for part in parts):
            yield place, _joined(parts)


def _at(choices: _Choices, rows: list[int], place: int) -> _Choices:
    return _Choices(choices.probs[rows, place], choices.rank[rows, place], choices.chance[rows, place])


@torch.no_grad()
def _choices(target: CachedModel, sample: Sample, decoding: Decoding) -> _Choices:
    """What the target held of every token of every text, by plain forwards: (texts, places, ...).

    Places behind the end of a text hold nothing of use.
    """
    longest = max(map(len, sample.texts))
    parts = []
    for start in range(0, len(sample.texts), _ROWS):
        texts = [text + [0] * (longest - len(text)) for text in sample.texts[start : start + _ROWS]]
        chosen = torch.tensor(texts, device=target.device)
        prompt = torch.tensor(sample.prompt, device=target.device).expand(len(texts), -1)
        ids = torch.cat([prompt, chosen], dim=1)
        logits = target.module(input_ids=ids, use_cache=False).logits[:, len(sample.prompt) - 1 : -1]
        keys = sample.keys[start : start + _ROWS]
        sampler = sampler_for(target, keys, [len(sample.prompt)] * len(texts), decoding)
        positions = torch.arange(len(sample.prompt), ids.shape[1], device=target.device).expand(len(texts), -1)
        probs = sampler.probs(logits, positions)
        chance = probs.gather(-1, chosen[..., None])
        top = probs.topk(min(_RANKS, probs.shape[-1]), dim=-1)
        is_chosen = top.indices == chosen[..., None]
        rank = torch.where(is_chosen.any(-1), is_chosen.int().argmax(-1), top.indices.shape[-1])
        columns = (top.values.double(), rank, chance[..., 0].double())
        parts.append(_Choices(*(column.cpu().numpy() for column in columns)))
    return _joined(parts)


def _joined(parts: Sequence[_Choices]) -> _Choices:
    probs, rank, chance = zip(*parts, strict=True)
    return _Choices(np.concatenate(probs), np.concatenate(rank), np.concatenate(chance))


def _pearson(choices: _Choices) -> _Pearson:
    """Chi-square of one group; no degree of freedom where the target leaves next to no choice."""
    by_rank, texts = choices.probs.sum(axis=0), len(choices.rank)
    ends = _cell_ends(by_rank)
    if ends and texts - by_rank[: ends[-1]].sum() < _MIN_EXPECTED:
        ends.pop()  # what is left is too little for a cell of its own
    if not ends:
        return _Pearson(0.0, 0, texts)
    probs = np.add.reduceat(choices.probs[:, : ends[-1]], [0, *ends[:-1]], axis=1)
    seen = np.bincount(np.searchsorted(ends, choices.rank, side="right"), minlength=len(ends) + 1)[: len(ends)]
    expected = probs.sum(axis=0)
    excess = seen - expected
    covariance = np.diag(expected) - probs.T @ probs
    variances, directions = np.linalg.eigh(covariance)
    varies = variances > 1e-9 * variances.max()  # a cell that all texts are certain of tells nothing
    parts = (directions.T @ excess)[varies]
    statistic = float((parts**2 / variances[varies]).sum())
    return _Pearson(statistic, int(varies.sum()), texts, _shifted(excess, covariance))


def _shifted(excess: Floats, covariance: Floats) -> float:
    """Texts that fell into another cell than they should have, less those that chance alone would move.

    The rarest tokens are a cell as well, whose excess is what all the others lack. Chance alone makes an excess of
    ``sqrt(2 variance / pi)`` either way, the mean of a normal deviate's size.
    """
    moved = np.append(excess, excess.sum())
    variances = np.append(np.diag(covariance), max(0.0, covariance.sum()))
    return float(np.abs(moved).sum() - np.sqrt(2 * variances / np.pi).sum()) / 2


def _cell_ends(by_rank: Floats) -> list[int]:
    """Where each cell of consecutive ranks ends: as few ranks as expect enough together."""
    ends, expected = [], 0.0
    for rank, count in enumerate(by_rank):
        expected += float(count)
        if expected >= _MIN_EXPECTED:
            ends.append(rank + 1)
            expected = 0.0
    return ends


def _detectable(freedom: int, texts: int, alarm: float) -> float:
    """The total variation, averaged over texts, from which on the test finds it with `POWER`.

    A shift of t between cells adds at least ``4 texts t^2`` to the statistic, for the covariance is never larger than
    that of draws from the mean distribution.
    """
    if freedom == 0:
        return 1.0
    limit = stats.chi2.isf(alarm, freedom)

    def shortfall(noncentrality: float) -> float:
        return float(stats.ncx2.sf(limit, freedom, noncentrality)) - POWER

    most = 10.0 * (limit + 10.0)
    return float(min(1.0, np.sqrt(optimize.brentq(shortfall, 1e-9, most) / (4 * texts))))
