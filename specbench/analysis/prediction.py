"""What the closed forms say of one chain of drafts, and of the arms of a run beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from specbench.analysis import closed_forms


@dataclass(frozen=True)
class Chain:
    """A chain of drafts in units of one autoregressive step.

    Attributes:
        alpha: Chance that a draft token is accepted, given that its predecessors were.
        gamma: Draft tokens per step.
        draft_cost: One draft forward.
        verify_cost: Verifying gamma + 1 tokens.
        overhead: Accept, update and host beyond those of an autoregressive step.
    """

    alpha: float
    gamma: int
    draft_cost: float
    verify_cost: float = 1.0
    overhead: float = 0.0

    @property
    def verify_slope(self) -> float:
        """What each draft token adds to a verification, the same for every token; noise never makes it a gain."""
        return max(0.0, self.verify_cost - 1) / self.gamma


@dataclass(frozen=True)
class Prediction:
    """What follows for a `Chain`.

    Attributes:
        tokens: Expected tokens per step.
        speedup: Over autoregressive decoding.
        best_gamma: The gamma of the highest speed-up, 0 if none pays.
        best_speedup: The speed-up there.
        break_even_alpha: The acceptance at which this chain is as fast as autoregressive decoding; None if even full
            acceptance would not do.
        break_even_draft_cost: The draft forward at which it is; negative if even a draft for nothing would not do.
        operations_ratio: Arithmetic per token over that of autoregressive decoding.
        memory_bound_speedup: Were a forward's time that of reading its weights.
        target_efficiency: Forward of one token over that of gamma + 1.
    """

    tokens: float
    speedup: float
    best_gamma: int
    best_speedup: float
    break_even_alpha: float | None
    break_even_draft_cost: float
    operations_ratio: float
    memory_bound_speedup: float
    target_efficiency: float


def predict(chain: Chain, operations_cost: float | None = None) -> Prediction:
    """Everything that the closed forms say.

    Args:
        chain: The chain.
        operations_cost: Operations of one draft forward over those of one target forward, which for dense models is the
            ratio of their parameters; None takes the draft's cost.

    Raises:
        ValueError: alpha is no probability, gamma is below 1, or a cost is negative.

    Source: Leviathan et al. (2023), theorems 3.8 and 3.11, with measured costs.
    """
    costs = (chain.draft_cost, chain.overhead, operations_cost or 0.0)
    if chain.gamma < 1 or min(costs) < 0 or chain.verify_cost <= 0:
        raise ValueError(f"need gamma >= 1, no negative cost and a verification that costs something, got {chain}")
    alpha, gamma, draft, verify, overhead = asdict(chain).values()
    size_ratio = draft if operations_cost is None else operations_cost
    tokens = closed_forms.expected_tokens(alpha, gamma)
    best = closed_forms.best_gamma(alpha, draft, verify_slope=chain.verify_slope, overhead=overhead)
    return Prediction(
        tokens=tokens,
        speedup=closed_forms.chain_speedup(alpha, gamma, draft, verify_cost=verify, overhead=overhead),
        best_gamma=best,
        best_speedup=closed_forms.chain_speedup(
            alpha,
            best,
            draft,
            verify_cost=1 + chain.verify_slope * best,
            overhead=overhead if best else 0.0,
        ),
        break_even_alpha=closed_forms.break_even_alpha(gamma * draft + verify + overhead, gamma),
        break_even_draft_cost=closed_forms.break_even_draft_s(
            tokens, gamma, rest_s=verify + overhead, reference_s_per_token=1.0
        ),
        operations_ratio=closed_forms.operations_ratio(alpha, gamma, size_ratio),
        memory_bound_speedup=closed_forms.memory_bound_speedup(tokens, gamma, size_ratio),
        target_efficiency=closed_forms.target_efficiency(1.0, verify),
    )


@dataclass(frozen=True)
class Composition:
    """One arm of a run: the speed-up that its parts add up to, beside the measured one.

    Attributes:
        title: The cell.
        arm: The arm.
        tokens: Block efficiency with the last step whole.
        predicted: Speed-up put together from the phase times and the tokens.
        measured: Speed-up of the headline pass, while every row of a batch still decodes.
        draft_ms: The draft phase of a step.
        break_even_draft_ms: The draft phase at which the arm would be as fast as autoregressive decoding; negative if
            even a draft for nothing would not do.
        break_even_tokens: The block efficiency at which it would.
        gamma: Draft tokens per step; None where drafts are trees or of changing length.
        chain: The arm as a `Chain`, where gamma is known.
        prediction: What the closed forms say of that chain.
        lossless: Whether the measured text is the target's own.
        simulated: Whether it was never meant to be.
    """

    title: str
    arm: str
    tokens: float
    predicted: float
    measured: float | None
    draft_ms: float
    break_even_draft_ms: float
    break_even_tokens: float
    gamma: int | None
    chain: Chain | None
    prediction: Prediction | None
    lossless: bool
    simulated: bool

    @property
    def error(self) -> float | None:
        """Predicted over measured, less 1."""
        return None if self.measured is None else self.predicted / self.measured - 1


def compose(arm: Mapping[str, Any], baseline: Mapping[str, Any], gamma: int | None) -> Composition | None:
    """The composition of one arm; None where one of the two has no phase times or no steps.

    Args:
        arm: Phase times in ms (``draft_ms``, ...), ``block_efficiency_uncut`` and ``full_batch_tokens_per_s``; and
            what is known of its text, ``lossless`` and ``simulated``.
        baseline: The same of the cell's autoregressive arm.
        gamma: Depth of the arm's drafts where they are chains of one length, else None.

    Source: `closed_forms.predicted_speedup`, on measured times.
    """
    tokens = arm["block_efficiency_uncut"]
    parts = [_ms(arm, name) for name in ("draft", "verify", "accept", "update", "host")]
    reference_ms = math.fsum(_ms(baseline, name) for name in ("draft", "verify", "accept", "update", "host"))
    step_ms = math.fsum(parts)
    if tokens is None or not (step_ms > 0 and reference_ms > 0):  # a phase that was not timed is NaN
        return None
    draft_ms, verify_ms = parts[:2]
    chain = None
    if gamma is not None:
        # Overhead is all that a step costs beside its drafts and its verification, beyond what the baseline pays.
        verify_cost = (verify_ms + reference_ms - _ms(baseline, "verify")) / reference_ms
        overhead = (step_ms - draft_ms - verify_ms) / reference_ms - (1 - _ms(baseline, "verify") / reference_ms)
        alpha = closed_forms.alpha_from_tokens(min(max(tokens, 1.0), gamma + 1), gamma)
        chain = Chain(alpha, gamma, draft_ms / gamma / reference_ms, verify_cost, max(0.0, overhead))
    return Composition(
        title=str(arm["title"]),
        arm=str(arm["arm"]),
        tokens=tokens,
        predicted=closed_forms.predicted_speedup(tokens, step_ms, reference_ms),
        measured=_quotient(arm["full_batch_tokens_per_s"], baseline["full_batch_tokens_per_s"]),
        draft_ms=draft_ms,
        break_even_draft_ms=closed_forms.break_even_draft_s(
            tokens, 1, rest_s=step_ms - draft_ms, reference_s_per_token=reference_ms
        ),
        break_even_tokens=closed_forms.break_even_tokens(step_ms, reference_ms),
        gamma=gamma,
        chain=chain,
        prediction=None if chain is None else predict(chain),
        lossless=bool(arm["lossless"]),
        simulated=bool(arm["simulated"]),
    )


def _ms(row: Mapping[str, Any], phase: str) -> float:
    value = row[f"{phase}_ms"]
    return math.nan if value is None else float(value)


def _quotient(numerator: float | None, denominator: float | None) -> float | None:
    value = (math.nan if numerator is None else numerator) / (denominator or math.nan)
    return None if math.isnan(value) else value
