"""One draft against another, each at the gamma that is best for it.

Source: Yan et al., Decoding Speculative Decoding (arXiv 2402.01528): throughput from acceptance, draft latency and
target latency, solved for the latency or the acceptance at which two drafts are equally fast. Beyond the paper, a
verification costs what it was measured to cost at each gamma, and a draft that changes may change its gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from specbench.analysis import closed_forms


@dataclass(frozen=True)
class Contender:
    """A draft: what it gives and costs at every gamma at which that is known.

    Attributes:
        name: The draft.
        tokens: Gamma -> tokens that a step emits, the target's own included.
        draft_s: Gamma -> seconds of a step's draft phase.
        rest_s: Gamma -> seconds of a step without it: verify, accept, update and host.
        kept: Gamma -> share of the tokens emitted that stand in the text; the rest is behind its end. 1 if absent.
        is_chain: Whether gamma draft forwards follow one another. If not, the draft is of one shape that stands under
            gamma 1, and its whole draft phase counts as its forward.
    """

    name: str
    tokens: Mapping[int, float]
    draft_s: Mapping[int, float]
    rest_s: Mapping[int, float]
    kept: Mapping[int, float]
    is_chain: bool = True

    @classmethod
    def of_numbers(cls, name: str, alpha: float, forward_s: float, rest_s: Mapping[int, float]) -> Contender:
        """A chain of which no step was counted.

        Args:
            name: The draft.
            alpha: Chance that a draft token is accepted, the same at every position.
            forward_s: Seconds of a draft forward.
            rest_s: Gamma -> seconds of a step without its drafts.

        Source: `closed_forms.chain_speedup`, its terms apart.
        """
        tokens = {gamma: closed_forms.expected_tokens(alpha, gamma) for gamma in rest_s}
        return cls(name, tokens, {gamma: gamma * forward_s for gamma in rest_s}, rest_s, kept={})

    @property
    def gammas(self) -> list[int]:
        """At which something is known."""
        return sorted(self.tokens)

    def step_s(self, gamma: int) -> float:
        """Seconds of a step."""
        return self.draft_s[gamma] + self.rest_s[gamma]

    def delivered(self, gamma: int) -> float:
        """Tokens of a step that stand in the text."""
        return self.tokens[gamma] * self.kept.get(gamma, 1.0)

    def s_per_token(self, gamma: int) -> float:
        """Seconds a token of one row."""
        return self.step_s(gamma) / self.delivered(gamma)

    @property
    def best_gamma(self) -> int:
        """The gamma of the fewest seconds a token."""
        return min(self.gammas, key=self.s_per_token)

    @property
    def best_s_per_token(self) -> float:
        """Seconds a token there."""
        return self.s_per_token(self.best_gamma)

    def forward_s(self, gamma: int) -> float:
        """Mean seconds of a draft forward; of the draft phase where forwards do not follow one another."""
        return self.draft_s[gamma] / max(1, gamma)

    def alpha(self, gamma: int) -> float | None:
        """The chance that a draft token is accepted, were it the same everywhere; None but for chains."""
        if not self.is_chain or gamma < 1:
            return None
        return closed_forms.alpha_from_tokens(min(max(self.tokens[gamma], 1.0), gamma + 1.0), gamma)

    def with_forward_s(self, seconds: float) -> Contender:
        """The same draft, were each of its forwards to take so long."""
        return replace(self, draft_s={gamma: gamma * seconds for gamma in self.gammas})


@dataclass(frozen=True)
class Tie:
    """What makes a contender exactly as fast as a rival.

    Attributes:
        gamma: The contender's gamma there, the best one by then.
        value: Seconds of a draft forward, or tokens a step.
        alpha: Of a tie by tokens, the acceptance that they take; None but for chains.
    """

    gamma: int
    value: float
    alpha: float | None = None


def latency_tie(contender: Contender, rival_s_per_token: float) -> Tie | None:
    """The longest draft forward with which the contender is as fast as a rival; None if even one for nothing is not.

    Args:
        contender: Whose draft forward may change, and its gamma with it.
        rival_s_per_token: Of the rival at its own best gamma.

    Source: `closed_forms.break_even_draft_s`, the largest over all gammas.
    """
    longest = {
        gamma: closed_forms.break_even_draft_s(
            contender.delivered(gamma),
            gamma,
            rest_s=contender.rest_s[gamma],
            reference_s_per_token=rival_s_per_token,
        )
        for gamma in contender.gammas
        if gamma
    }
    gamma = max(longest, key=lambda gamma: longest[gamma], default=0)
    return Tie(gamma, longest[gamma]) if gamma and longest[gamma] > 0 else None


def acceptance_tie(contender: Contender, rival_s_per_token: float) -> Tie | None:
    """The least acceptance with which the contender is as fast as a rival; None if even full acceptance is too little.

    Gammas differ in the tokens that are theirs to win, so they are compared by the alpha that they would take.

    Args:
        contender: Whose acceptance may change, and its gamma with it.
        rival_s_per_token: Of the rival at its own best gamma.

    Source: `closed_forms.break_even_alpha`, the smallest over all gammas; of a draft that is no chain, only the tokens.
    """
    needed = {gamma: needed_tokens(contender, gamma, rival_s_per_token) for gamma in contender.gammas if gamma}
    if not contender.is_chain:
        gamma, tokens = next(iter(needed.items()))
        return Tie(gamma, tokens)
    alphas = {gamma: closed_forms.break_even_alpha(tokens, gamma) for gamma, tokens in needed.items()}
    possible = {gamma: alpha for gamma, alpha in alphas.items() if alpha is not None}
    gamma = min(possible, key=lambda gamma: possible[gamma], default=0)
    return Tie(gamma, max(1.0, needed[gamma]), possible[gamma]) if gamma else None


def needed_tokens(contender: Contender, gamma: int, rival_s_per_token: float) -> float:
    """Tokens that a step of that gamma would have to emit for the contender to be as fast as a rival.

    Source: Yan et al., required acceptance: ``TAR_i (n_j t_dj + t_v) / (n_i t_di + t_v)``.
    """
    needed = closed_forms.break_even_tokens(contender.step_s(gamma), rival_s_per_token)
    return needed / contender.kept.get(gamma, 1.0)
