"""Is the text the target's own: ids against those of the core's autoregressive arm, and a judgement where they differ.

In float32 the ids are equal. In half precision a forward over five tokens rounds otherwise than one over a single
token, so two logits that nearly tie may change places: that is no fault of a method. Whether it was a near tie is
settled by running the target over the text in one plain forward, without tree, cache or draft.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch

from specbench.bench.likelihoods import last_logits
from specbench.decode.acceptance import Rule
from specbench.decode.sampling import Sampler, Stream
from specbench.decode.target import CachedModel

Word = Literal["equal", "near-tie", "WRONG"]

# How many units in the last place, at the scale of the logits, two runs of one model may differ: what an order of
# summation costs over some tens of layers in float32, and rounding at every layer in half precision.
_TOLERANCE_ULP = {torch.float32: 256.0, torch.bfloat16: 8.0, torch.float16: 16.0}


@dataclass(frozen=True)
class Verdict:
    """What became of the comparison.

    Attributes:
        word: ``equal``, ``near-tie``, ``WRONG``, or None where it does not apply.
        first_divergence: First output position that differs.
        gap: The target's best score less that of the token chosen there, teacher-forced: a logit at T = 0; under the
            rule ``match`` a logit over temperature plus the noise of that position.
    """

    word: Word | None
    first_divergence: int | None = None
    gap: float | None = None


NOT_APPLICABLE = Verdict(None)


def claims(rule: Rule, *, drafts: bool = True) -> bool:
    """Whether text under a rule is said to have the target's own distribution.

    Args:
        rule: What decides on drafts.
        drafts: False for autoregressive decoding, which a lossy rule has nothing to bias by.
    """
    return rule.lossless or not (drafts or rule.simulated)


def applies(rule: Rule, temperature: float, *, drafts: bool = True) -> bool:
    """Whether the same ids as autoregressive decoding's are promised, and not only the same distribution."""
    return claims(rule, drafts=drafts) and (temperature == 0 or rule.name == "match")


def tolerance(dtype: torch.dtype, scale: float) -> float:
    """The largest gap that still counts as a near tie.

    Args:
        dtype: Precision of the target's forward.
        scale: Largest magnitude of its logits there.
    """
    return _TOLERANCE_ULP[dtype] * torch.finfo(dtype).eps * max(1.0, scale)


def compare(
    target: CachedModel, prompt: list[int], reference: list[int], output: list[int], sampler: Sampler
) -> Verdict:
    """Judge one text.

    Args:
        target: The target.
        prompt: The prompt's ids.
        reference: What autoregressive decoding made of it.
        output: What the method made of it.
        sampler: Of this prompt alone, as the batch had it.
    """
    if output == reference:
        return Verdict("equal")
    first = next((i for i, pair in enumerate(zip(reference, output, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        # One text is the beginning of the other: somebody stopped at the wrong place, and no logit excuses that.
        return Verdict("WRONG", min(len(reference), len(output)))
    gaps, scale = teacher_forced_gaps(target, prompt, output, sampler)
    other, _ = teacher_forced_gaps(target, prompt, reference[: first + 1], sampler)
    allowed = tolerance(target.dtype, scale)
    # All of the text is judged, from the divergence on: a later error must not hide behind a near tie.
    worst = max(*gaps[first:], other[first])
    return Verdict("near-tie" if worst <= allowed else "WRONG", first, gaps[first])


def judge_reference(target: CachedModel, prompt: list[int], output: list[int], sampler: Sampler) -> Verdict:
    """Judge autoregressive decoding itself, against one plain forward over its text without cache or tree."""
    gaps, scale = teacher_forced_gaps(target, prompt, output, sampler)
    worst = max(gaps)
    if worst == 0:
        return Verdict("equal")
    word: Word = "near-tie" if worst <= tolerance(target.dtype, scale) else "WRONG"
    first = next(index for index, gap in enumerate(gaps) if gap > 0)
    return Verdict(word, first, gaps[first])


@torch.no_grad()
def teacher_forced_gaps(
    target: CachedModel, prompt: list[int], output: list[int], sampler: Sampler
) -> tuple[list[float], float]:
    """How far each output token is from the target's choice given the tokens before it, and the scale of the logits.

    Returns:
        One gap a token, 0 where it is the choice itself; and the largest finite magnitude of the logits.
    """
    ids = torch.tensor([prompt + output], device=target.device)
    logits = last_logits(target.module, ids, len(output) + 1)[:, :-1].float()
    positions = torch.arange(len(prompt), len(prompt) + len(output), device=target.device)[None]
    scores = sampler.scores(logits, positions, Stream.TARGET)[0].float()
    chosen = scores.gather(1, ids[0, len(prompt) :, None])[:, 0]
    gaps = scores.amax(-1) - chosen
    return gaps.tolist(), float(logits.abs().amax())


def repeat_ngram_share(ids: list[int], size: int = 4) -> float | None:
    """Share of a text's n-grams that occurred before in it, in [0, 1]; None for a text shorter than one n-gram."""
    total = len(ids) - size + 1
    if total < 1:
        return None
    seen = Counter(tuple(ids[start : start + size]) for start in range(total))
    return 1.0 - len(seen) / total
