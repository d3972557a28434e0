"""The exact law of a few tokens, and how far a sample may stray from it."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats
from transformers import PreTrainedModel

from . import models


def next_token_law(module: PreTrainedModel, text: Sequence[int], temperature: float) -> np.ndarray:
    """The target's own distribution after a text, from a plain forward, in float64."""
    logits = models.plain_logits(module, list(text))[-1].double()
    return (logits / temperature).softmax(-1).numpy()


def joint_law(module: PreTrainedModel, prompt: Sequence[int], tokens: int, temperature: float) -> np.ndarray:
    """The law of the first ``tokens`` tokens, by enumeration, (V,) * tokens."""
    vocab = int(module.config.vocab_size)
    law = np.empty((vocab,) * tokens)
    for index in range(tokens):
        shape = (vocab,) * index
        step = np.empty((*shape, vocab))
        for before in product(range(vocab), repeat=index):
            step[before] = next_token_law(module, [*prompt, *before], temperature)
        law = step if index == 0 else law[..., None] * step
    return law


def counts(texts: Sequence[Sequence[int]], vocab: int, tokens: int) -> np.ndarray:
    """How often each beginning of ``tokens`` tokens occurs."""
    table = np.zeros((vocab,) * tokens)
    np.add.at(table, tuple(np.array(texts)[:, :tokens].T), 1)
    return table


def p_value(observed: np.ndarray, law: np.ndarray) -> float:
    """Pearson's chi-square over all cells, the rare ones pooled until each expects at least ten."""
    total = observed.sum()
    expected = law.ravel() * total
    order = np.argsort(expected)
    sums = np.cumsum(expected[order])
    pooled = int(np.searchsorted(sums, 10.0)) + 1
    while expected[order[pooled]] < 10.0:
        pooled += 1
    rare, common = order[:pooled], order[pooled:]
    seen = np.append(observed.ravel()[common], observed.ravel()[rare].sum())
    wanted = np.append(expected[common], expected[rare].sum())
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)
