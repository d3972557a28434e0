"""What theory predicts from an acceptance and a few latencies; no row is needed.

Here ``alpha`` is the chance that a draft token is accepted, given that its predecessors were, the same at
every position; ``gamma`` the draft tokens per step; latencies are in seconds and only their ratios matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.optimize import brentq


def expected_tokens(alpha: float, gamma: int) -> float:
    """Expected tokens per step, the target's own included: ``(1 - alpha^(gamma + 1)) / (1 - alpha)``.

    Between 1 (alpha 0) and gamma + 1 (alpha 1).

    Raises:
        ValueError: alpha is outside [0, 1] or gamma is negative.

    Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding (2023), eq. 1.
    """
    if not 0 <= alpha <= 1 or gamma < 0:
        raise ValueError(f"need 0 <= alpha <= 1 and gamma >= 0, got alpha={alpha}, gamma={gamma}")
    # The sum itself, not its closed form: that is 0/0 at alpha 1 and loses its digits close to it.
    return math.fsum(alpha**power for power in range(gamma + 1))


def alpha_from_tokens(tokens: float, gamma: int) -> float:
    """The alpha whose `expected_tokens` are these: what a measured block efficiency says of one draft token.

    Error: 1e-12 by bisection. The model's own error is larger: real positions are not alike.

    Raises:
        ValueError: No alpha gives so many tokens; they must lie in [1, gamma + 1], with gamma at least 1.

    Source: Leviathan et al. (2023), eq. 1, inverted numerically.
    """
    if gamma < 1 or not 1 <= tokens <= gamma + 1:
        raise ValueError(f"need gamma >= 1 and 1 <= tokens <= gamma + 1, got gamma={gamma}, tokens={tokens}")
    if tokens in {1, gamma + 1}:
        return float(tokens > 1)
    return float(brentq(lambda alpha: expected_tokens(alpha, gamma) - tokens, 0.0, 1.0, xtol=1e-12))


def expected_steps(kept: Sequence[float], tokens: int) -> float:
    """Expected decode steps until a row has emitted so many tokens; the last step may emit more than are asked for.

    So a row of n tokens gets ``n / expected_steps`` of a step, a little less than a step emits.

    Args:
        kept: Chance that a step keeps exactly i draft tokens, for i = 0, 1, ...; they sum to 1.
        tokens: Tokens of the row that decode steps emit.

    Raises:
        ValueError: The chances do not sum to 1, or no token is asked for.

    Source: the renewal equation ``f(n) = 1 + sum_i kept(i) f(n - i - 1)``, as in Feller, An Introduction to Probability
    Theory and Its Applications (1968), XIII.
    """
    if tokens < 1 or not math.isclose(math.fsum(kept), 1, abs_tol=1e-9):
        raise ValueError(f"need tokens >= 1 and chances that sum to 1, got tokens={tokens}, kept={list(kept)}")
    steps = [0.0]
    for wanted in range(1, tokens + 1):
        steps.append(1 + math.fsum(chance * steps[max(0, wanted - i - 1)] for i, chance in enumerate(kept)))
    return steps[-1]


def predicted_speedup(tokens: float, step_s: float, autoregressive_s: float) -> float:
    """Speed-up over autoregressive decoding of a method that emits ``tokens`` per step of ``step_s`` seconds.

    Error: none beyond its inputs'; it is an identity for decode time without prefill.

    Source: Leviathan et al. (2023), proof of theorem 3.8.
    """
    return tokens * autoregressive_s / step_s


def chain_speedup(alpha: float, gamma: int, cost: float, *, verify_cost: float = 1.0, overhead: float = 0.0) -> float:
    """Speed-up of a chain of gamma draft forwards, in units of one autoregressive step.

    Error: as it stands in the paper it assumes that verifying gamma + 1 tokens takes as long as one and that the
    host adds nothing; both flatter, and the last two arguments take them in.

    Args:
        alpha: Chance that a draft token is accepted.
        gamma: Draft tokens per step.
        cost: One draft forward.
        verify_cost: Verifying gamma + 1 tokens.
        overhead: Accept, update and host beyond what an autoregressive step spends on them.

    Source: Leviathan et al. (2023), theorem 3.8: ``(1 - alpha^(gamma + 1)) / ((1 - alpha) (gamma cost +
    1))``; with the 1 replaced by what was measured.
    """
    return expected_tokens(alpha, gamma) / (gamma * cost + verify_cost + overhead)


def best_gamma(
    alpha: float, cost: float, *, verify_slope: float = 0.0, overhead: float = 0.0, largest: int = 64
) -> int:
    """The gamma of the highest `chain_speedup`; 0 if no draft pays, as where alpha is at most the cost.

    Args:
        alpha: Chance that a draft token is accepted.
        cost: One draft forward, in autoregressive steps.
        verify_slope: What each draft token adds to a verification, in autoregressive steps.
        overhead: As in `chain_speedup`; autoregressive decoding (gamma 0) has none.
        largest: No gamma beyond this is looked at: without a cost, none is best.

    Source: Leviathan et al. (2023), section 3.5 and corollary 3.9; the slope is that of a verification whose time
    grows by the token, as in Su et al., The Synergy of Speculative Decoding and Batching (2023).
    """

    def speedup(gamma: int) -> float:
        extra = overhead if gamma else 0.0
        return chain_speedup(alpha, gamma, cost, verify_cost=1 + verify_slope * gamma, overhead=extra)

    return max(range(largest + 1), key=speedup)


def memory_bound_speedup(tokens: float, gamma: int, size_ratio: float) -> float:
    """MBSU, the speed-up where a forward lasts as long as reading its weights: ``tokens / (size_ratio gamma + 1)``.

    Never above the tokens. Error: takes neither compute, KV traffic nor the host in, so it is a bound for batch 1.

    Args:
        tokens: Block efficiency.
        gamma: Draft forwards per step.
        size_ratio: Parameters of the draft over those of the target; in bytes where their data types differ.

    Source: Goel et al., Direct Alignment of Draft Model for Speculative Decoding with Chat-Fine-Tuned LLMs (arXiv
    2403.00858), for the quantity. The form that is quoted of it, ``c tokens / (c gamma + 1)``, cannot be meant: with c
    the draft's share of the target it is below 1 wherever the draft is the smaller of the two.
    """
    return tokens / (size_ratio * gamma + 1)


def target_efficiency(single_s: float, verify_s: float) -> float:
    """How nearly free a verification is: forward time of one token a row over that of gamma + 1, at the same batch.

    1 where the extra tokens cost nothing; 1 / (gamma + 1) where each costs a whole forward.

    Source: MoESD (arXiv 2505.19645), T(B, 1) / T(B, gamma); here with the gamma + 1 tokens that the target reads.
    """
    return single_s / verify_s


def operations_ratio(alpha: float, gamma: int, cost: float = 0.0) -> float:
    """Arithmetic per token over that of autoregressive decoding: what a compute-bound machine pays.

    Args:
        alpha: Chance that a draft token is accepted.
        gamma: Draft tokens per step.
        cost: Operations of one draft forward over those of one target forward, per token.

    Source: Leviathan et al. (2023), theorem 3.11: ``(1 - alpha) (gamma cost + gamma + 1) / (1 - alpha^(gamma + 1))``.
    """
    return (gamma * cost + gamma + 1) / expected_tokens(alpha, gamma)


def break_even_tokens(step_s: float, reference_s_per_token: float) -> float:
    """Block efficiency at which steps of ``step_s`` seconds are as fast as the reference.

    Source: `predicted_speedup` set to 1.
    """
    return step_s / reference_s_per_token


def break_even_alpha(step_cost: float, gamma: int) -> float | None:
    """Acceptance at which a step of ``step_cost`` autoregressive steps pays for itself; None if no acceptance does.

    Source: `chain_speedup` set to 1 and solved for alpha.
    """
    if step_cost > gamma + 1:
        return None
    return alpha_from_tokens(max(1.0, step_cost), gamma)


def break_even_draft_s(tokens: float, gamma: int, *, rest_s: float, reference_s_per_token: float) -> float:
    """Longest draft forward, in seconds, with which the method is still as fast as the reference.

    Negative if even a draft for nothing would not do.

    Args:
        tokens: Block efficiency.
        gamma: Draft forwards per step.
        rest_s: The step without its drafts: verify, accept, update and host.
        reference_s_per_token: What is to be matched, seconds a token.

    Source: `predicted_speedup` set to 1 and solved for the draft's share of the step.
    """
    return (tokens * reference_s_per_token - rest_s) / gamma
