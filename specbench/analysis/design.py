"""What acceptance a draft of some shape would have to reach, from nothing but how long its forward takes.

A shape has a latency before it has weights. Set against the fastest way to decode that is known, the latency says how
much has to be accepted for the shape to be as fast; whether training reaches that, only training tells.

Source: Yan et al., Decoding Speculative Decoding (arXiv 2402.01528), whose required acceptance is solved here for
drafts that do not exist yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from specbench.analysis import closed_forms
from specbench.analysis.contest import Contender, Tie, acceptance_tie

EQUAL_SIZE = 0.05
"""Parameters that differ by no more than this share count as equally many."""


@dataclass(frozen=True)
class Bar:
    """What a new draft has to beat, and what its steps cost beside its own forwards.

    Attributes:
        rival: What is fastest so far; it may be autoregressive decoding.
        s_per_token: Its seconds a token of one row.
        plain_s_per_token: Those of autoregressive decoding.
        rest_s: Gamma -> seconds of a step without its drafts.
        kept: Gamma -> share of the tokens emitted that stand in the text; 1 if absent.
        extra_s: What a draft forward takes in a step beyond the forward of its model: choosing a token, a host's work.
        pace: What a measured forward is multiplied by: above 1 where the machine was slower when the rest was timed.
        draft: The best draft model that is known; None where there is none.
        tokens: Gamma -> tokens that a step with it emits; empty without one.
        draft_s: A forward of it in a step; None without one.
        alpha: The chance that one of its tokens is accepted, at its best gamma; None without one.
    """

    rival: str
    s_per_token: float
    plain_s_per_token: float
    rest_s: Mapping[int, float]
    kept: Mapping[int, float]
    extra_s: float = 0.0
    pace: float = 1.0
    draft: str | None = None
    tokens: Mapping[int, float] | None = None
    draft_s: float | None = None
    alpha: float | None = None

    def in_step(self, forward_s: float) -> float:
        """Seconds that a forward takes as part of a step."""
        return self.pace * forward_s + self.extra_s

    def contender(self, name: str, forward_s: float, tokens: Mapping[int, float] | None = None) -> Contender:
        """A draft whose forwards take so long, with these tokens a step; where they are not known, with none."""
        gammas = [gamma for gamma in self.rest_s if gamma > 0]
        nothing = dict.fromkeys(gammas, 1.0)
        return Contender(name, tokens or nothing, {}, self.rest_s, self.kept).with_forward_s(self.in_step(forward_s))


@dataclass(frozen=True)
class Forward:
    """A measured forward over one token of each row.

    Attributes:
        value: Its median, in seconds.
        low: Lower end of the median's 95 % interval; the value where there is none.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Design:
    """A shape, what a forward of it takes, and what that asks for.

    Attributes:
        shape: Layers, width, heads and feed-forward width, as a training takes them.
        layers: Decoder layers.
        parameters: Those that it really has.
        forward: Of one token.
        draft_s: Such a forward as part of a step.
        needed: At which acceptance it is as fast as the rival, at its best gamma then; None if not even full
            acceptance would do.
        needed_low: The same were the forward as fast as its interval allows.
        needed_high: Or as slow.
        pays: At which acceptance it is as fast as autoregressive decoding.
        gain: Its speed over the rival's, were as much of it accepted as of the best draft that is known.
        within_budget: Whether a forward takes no longer than was asked for.
        on_front: Whether no other shape is faster with as many layers and parameters; of those within the budget.
    """

    shape: str
    layers: int
    parameters: int
    forward: Forward
    draft_s: float
    needed: Tie | None
    needed_low: Tie | None
    needed_high: Tie | None
    pays: Tie | None
    gain: float | None
    within_budget: bool
    on_front: bool = False


def design(shape: str, layers: int, parameters: int, forward: Forward, bar: Bar, budget_s: float | None) -> Design:
    """What a shape would have to reach.

    Error: the acceptance is taken to be the same at every position, as in `closed_forms.expected_tokens`; a draft's
    first forward of a step may read two tokens, which is charged to it as far as the best known draft's was.

    Args:
        shape: Its numbers.
        layers: Its depth.
        parameters: Its size.
        forward: What was measured.
        bar: What it has to beat.
        budget_s: The longest forward that is asked for, in seconds; None for any.
    """

    def tie(forward_s: float, rival_s_per_token: float) -> Tie | None:
        return acceptance_tie(bar.contender(shape, forward_s), rival_s_per_token)

    alike = bar.contender(shape, forward.value, bar.tokens) if bar.tokens else None
    return Design(
        shape=shape,
        layers=layers,
        parameters=parameters,
        forward=forward,
        draft_s=bar.in_step(forward.value),
        needed=tie(forward.value, bar.s_per_token),
        needed_low=tie(forward.low, bar.s_per_token),
        needed_high=tie(forward.high, bar.s_per_token),
        pays=tie(forward.value, bar.plain_s_per_token),
        gain=bar.s_per_token / alike.best_s_per_token if alike else None,
        within_budget=budget_s is None or forward.value <= budget_s,
    )


def with_front(designs: Sequence[Design]) -> list[Design]:
    """The same designs, those of the Pareto front marked.

    Depth and parameters are what a draft may learn with, and latency is what they cost: a shape is on the front if no
    other one within the budget is faster with at least its layers and, within `EQUAL_SIZE`, its parameters.
    """
    return [
        replace(found, on_front=found.within_budget and not any(_beats(other, found) for other in designs))
        for found in designs
    ]


def worth_training(designs: Iterable[Design], most: int) -> list[Design]:
    """So many shapes at most: of each depth the largest one on the front, those that need the least acceptance first.

    One that could not be as fast as the rival even if all its tokens were accepted is not worth it.
    """
    largest: dict[int, tuple[float, Design]] = {}
    for found in sorted(designs, key=lambda found: found.parameters):
        if found.on_front and found.needed is not None and found.needed.alpha is not None:
            largest[found.layers] = found.needed.alpha, found
    return [found for _, found in sorted(largest.values(), key=lambda pair: pair[0])[:most]]


def geometric_tokens(alpha: float, gammas: Iterable[int]) -> dict[int, float]:
    """Gamma -> tokens of a step, were each draft token accepted with the same chance.

    Source: `closed_forms.expected_tokens`.
    """
    return {gamma: closed_forms.expected_tokens(alpha, gamma) for gamma in gammas}


def _beats(other: Design, own: Design) -> bool:
    as_deep = other.layers >= own.layers
    return as_deep and other.parameters >= (1 - EQUAL_SIZE) * own.parameters and other.forward.value < own.forward.value
