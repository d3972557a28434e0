"""When a draft ends: rules that read what a trace holds of every draft token, and nothing else.

A rule of one's own needs no more than the four names of `StopRule`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from specbench.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


class Features(NamedTuple):
    """What a stop rule may read: (places, tokens) each; entry j is of draft token j + 1.

    Attributes:
        confidence: The draft's own probability of the token, before temperature.
        entropy: Of the distribution that the token came from, before temperature, in nats.
    """

    confidence: Floats
    entropy: Floats


class StopRule(Protocol):
    """When a row's draft ends; the token that ends it is kept.

    A rule may remember something of each row from step to step. What it remembers is a plain value that can be
    compared and hashed; only few different ones may occur.

    Attributes:
        gamma: No draft has more tokens; 0 is to draft nothing.
    """

    @property
    def gamma(self) -> int: ...  # noqa: D102  (an attribute, documented above)

    @property
    def label(self) -> str:
        """What tables call it."""

    def start(self) -> Hashable:
        """What it remembers of a row that has taken no step."""

    def goes_on(self, memory: Hashable, features: Features) -> Flags:
        """Whether another token is drafted after each one, (places, tokens).

        Entry j may depend on entries up to j alone: a draft that is being written does not know its future.
        """

    def learn(self, memory: Hashable, accepted: int, *, whole: bool) -> Hashable:
        """What it remembers after a step that kept ``accepted`` draft tokens, or the ``whole`` draft."""


@dataclass(frozen=True)
class Fixed:
    """Always gamma tokens."""

    gamma: int

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"gamma {self.gamma}"

    def start(self) -> Hashable:
        """Nothing."""

    def goes_on(self, memory: Hashable, features: Features) -> Flags:
        """Always."""
        return np.ones(features.confidence.shape, dtype=bool)

    def learn(self, memory: Hashable, accepted: int, *, whole: bool) -> Hashable:
        """Nothing."""
        return memory


@dataclass(frozen=True)
class Heuristic(Fixed):
    """The schedule of ``transformers``: two tokens more after a draft that was kept whole, else one less."""

    first: int = 5

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"heuristic from {self.first}, at most {self.gamma}"

    def start(self) -> Hashable:
        """The length of the next draft."""
        return min(self.first, self.gamma)

    def goes_on(self, memory: Any, features: Features) -> Flags:
        """Up to that length."""
        index = np.arange(features.confidence.shape[1])
        return np.broadcast_to(index + 1 < memory, features.confidence.shape)

    def learn(self, memory: Any, accepted: int, *, whole: bool) -> Hashable:
        """Another length, between 1 and gamma."""
        return min(max(memory + 2 if whole else memory - 1, 1), self.gamma)


@dataclass(frozen=True)
class Confidence(Fixed):
    """On as long as the draft model holds its tokens at least this likely."""

    threshold: float = 0.4

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"confidence {self.threshold:g}, at most {self.gamma}"

    def goes_on(self, memory: Hashable, features: Features) -> Flags:
        """After a likely token."""
        found: Flags = features.confidence >= self.threshold
        return found


@dataclass(frozen=True)
class Entropy(Fixed):
    """On as long as entropy H leaves hope: 1 - sqrt(scale H), a lower bound on the acceptance, is at least this.

    Source: Agrawal, Jeon and Lee (AdaEDL), arXiv 2410.18351. There the bound moves while a text is written; here it
    stands still.
    """

    bound: float = 0.4
    scale: float = 0.2

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"entropy {self.bound:g}, at most {self.gamma}"

    def goes_on(self, memory: Hashable, features: Features) -> Flags:
        """After a token that came from a sure distribution."""
        found: Flags = 1 - np.sqrt(self.scale * features.entropy) >= self.bound
        return found


@dataclass(frozen=True)
class Oracle(Fixed):
    """Up to the first token that would be refused: as many tokens a step as gamma ever gives, and none for nothing.

    Source: the oracle of Mamou et al. (DISCO), arXiv 2405.04304.
    """

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"oracle, at most {self.gamma}"


def stop_rule(options: Mapping[str, Any]) -> StopRule:
    """The rule that options of the method ``draft_model`` stand for.

    Raises:
        ConfigError: They draft a tree, or name a stop rule that is not known here.
    """
    gamma, stop = int(options["gamma"]), dict(options.get("stop") or {})
    kind = stop.get("kind", "fixed")
    if options.get("tree") is not None:
        raise ConfigError("a trace holds chains, and these options draft a tree")
    if kind == "fixed":
        return Fixed(gamma)
    if kind == "heuristic":
        return Heuristic(gamma, int(stop["start"]))
    if kind == "confidence":
        return Confidence(gamma, float(stop["threshold"]))
    raise ConfigError(f"a replay knows no stop rule {kind!r}; it knows fixed, heuristic and confidence")
