"""Shapes that a draft might have: of one size and every depth, or of every size up to one.

They are as ``specbench train draft`` builds drafts: Llama-like, with as many heads of keys and values as others, and
with one matrix for embedding and output head.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from specbench.errors import ConfigError
from specbench.models.shapes import ModelShape

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Depths that are looked at where none are named."""

PROPORTION = 8 / 3
"""Feed-forward width over width as Llama has it: three matrices that hold what two of four times the width would."""

_MULTIPLE = 32
"""Feed-forward widths are multiples of it, as kernels like them."""


@dataclass(frozen=True)
class Build:
    """What all shapes of a search have in common.

    Attributes:
        vocab: Rows of the embedding: those of the target.
        head_dim: Width of a head; the width of the residual stream is a multiple of it.
        context: Positions, in tokens.
        tied: Whether embedding and output head are one matrix.
        proportions: Least and largest feed-forward width, over the width of the residual stream.

    Raises:
        ConfigError: No model can be built like that.
    """

    vocab: int = 32000
    head_dim: int = 64
    context: int = 2048
    tied: bool = True
    proportions: tuple[float, float] = (1.0, 4.5)

    def __post_init__(self) -> None:
        least, most = self.proportions
        if not 0 < least <= most:
            raise ConfigError(f"the feed-forward width is {least:g} to {most:g} times the width: no number lies there")
        self.shape(1, self.head_dim, _MULTIPLE)

    def shape(self, layers: int, hidden: int, feed_forward: int) -> ModelShape:
        """The shape of these numbers.

        Raises:
            ConfigError: Heads do not divide the width, or no model has these numbers.
        """
        if hidden % self.head_dim:
            raise ConfigError(f"heads that are {self.head_dim} wide do not divide a width of {hidden}")
        heads = hidden // self.head_dim
        return ModelShape(
            layers, hidden, feed_forward, heads, heads, vocab=self.vocab, context=self.context, tied=self.tied
        )

    def widths(self, given: Sequence[int] = ()) -> Iterable[int]:
        """The widths that are named, else every multiple of a head's, without end.

        Raises:
            ConfigError: Heads do not divide one that is named.
        """
        for hidden in given:
            self.shape(1, hidden, _MULTIPLE)
        return sorted(set(given)) if given else count(self.head_dim, self.head_dim)

    def filled(self, layers: int, hidden: int, parameters: int) -> ModelShape:
        """The shape of this depth and width whose feed-forward brings it nearest to a number of parameters."""
        # A model's parameters are linear in its feed-forward width, so two of them give all.
        least, next_to_it = (self.shape(layers, hidden, inner).parameters for inner in (1, 2))
        return self.shape(layers, hidden, self._within(hidden, 1 + (parameters - least) / (next_to_it - least)))

    def proportioned(self, layers: int, hidden: int, proportion: float) -> ModelShape:
        """The shape of this depth and width with a feed-forward so many times as wide."""
        return self.shape(layers, hidden, self._within(hidden, proportion * hidden))

    def _within(self, hidden: int, feed_forward: float) -> int:
        low, high = (proportion * hidden / _MULTIPLE for proportion in self.proportions)
        low = max(1, math.ceil(low))
        return _MULTIPLE * min(max(round(feed_forward / _MULTIPLE), low), max(low, math.floor(high)))


def equal_parameter_shapes(
    parameters: int,
    depths: Iterable[int],
    build: Build = Build(),
    *,
    widths: Sequence[int] = (),
    per_depth: int = 1,
    tolerance: float = 0.05,
) -> list[ModelShape]:
    """Shapes of one size and several depths: what the claim that latency follows depth is tried on.

    Of each depth and width the feed-forward takes what the rest leaves, so that all shapes have the same parameters.

    Args:
        parameters: Of each, tied ones counted once.
        depths: In layers; one that nothing fits is left out.
        build: What the shapes have in common.
        widths: The widths to look at; every multiple of a head's where none are named.
        per_depth: Shapes of a depth, at most: 1 takes the one nearest to Llama's `PROPORTION`, more are spread from
            the narrowest to the widest.
        tolerance: How far a shape's parameters may lie from those asked for, as a share of them.

    Returns:
        Ordered by depth, then by width.

    Raises:
        ConfigError: Nothing fits at any depth, or the heads do not divide a width.
    """
    depths = sorted(set(depths))
    possible = {layers: list(_filled(parameters, layers, build, widths, tolerance)) for layers in depths}
    found = [
        shape
        for shapes in possible.values()
        for shape in _spread([shape for shape in shapes if _is_near(shape, parameters, tolerance)], per_depth)
    ]
    if not found:
        near = min((shape for shapes in possible.values() for shape in shapes), key=lambda s: _distance(s, parameters))
        raise ConfigError(
            f"no shape of {_listed(depths)} layers with heads {build.head_dim} wide has {parameters:,} parameters "
            f"within {100 * tolerance:g} %; the nearest, {shape_text(near, build)}, has {near.parameters:,}"
        )
    return found


def shapes_up_to(
    parameters: int, depths: Iterable[int], build: Build = Build(), *, widths: Sequence[int] = ()
) -> list[ModelShape]:
    """Shapes of every size up to one, in Llama's `PROPORTION`: what a budget of time is filled from.

    Args:
        parameters: That none exceeds.
        depths: In layers.
        build: What the shapes have in common.
        widths: The widths to look at; where none are named, multiples of a head's, each at least a third wider than
            the one before.

    Returns:
        Ordered by depth, then by width.

    Raises:
        ConfigError: Not even the smallest is so small, or the heads do not divide a width.
    """
    depths = sorted(set(depths))
    found = [
        shape
        for layers in depths
        for shape in takewhile(
            lambda shape: shape.parameters <= parameters,
            (build.proportioned(layers, hidden, PROPORTION) for hidden in _thinned(build, widths)),
        )
    ]
    if not found:
        least = build.proportioned(depths[0], next(iter(_thinned(build, widths))), PROPORTION)
        raise ConfigError(
            f"no shape has at most {parameters:,} parameters; the smallest, {shape_text(least, build)}, has "
            f"{least.parameters:,}"
        )
    return found


def shape_text(shape: ModelShape, usual: Build | None = None) -> str:
    """A shape as `shapes.shape_of` reads it: ``2x320x5x640,vocab=4096,tied=true``.

    Args:
        shape: Whose heads share its width.
        usual: What need not be said, since all shapes have it; None says all that ``shape_of`` would not guess.
    """
    numbers = f"{shape.layers}x{shape.hidden}x{shape.heads}x{shape.feed_forward}"
    if usual is not None:
        return numbers
    guessed = ModelShape(shape.layers, shape.hidden, shape.feed_forward, shape.heads, shape.heads)
    further = [
        f"{key}={str(value).lower()}"
        for key in ("kv_heads", "head_dim", "vocab", "context", "tied")
        if (value := getattr(shape, key)) != getattr(guessed, key)
    ]
    return ",".join([numbers, *further])


def _filled(
    parameters: int, layers: int, build: Build, widths: Sequence[int], tolerance: float
) -> Iterator[ModelShape]:
    """Of each width the shape nearest to the parameters, up to the first width that is too wide."""
    for hidden in build.widths(widths):
        shape = build.filled(layers, hidden, parameters)
        yield shape
        if shape.parameters > (1 + tolerance) * parameters:
            return


def _thinned(build: Build, widths: Sequence[int]) -> Iterator[int]:
    """Widths, each at least a third wider than the one before; all of them where they are named."""
    last = 0
    for hidden in build.widths(widths):
        if widths or 3 * hidden >= 4 * last:
            yield hidden
            last = hidden


def _is_near(shape: ModelShape, parameters: int, tolerance: float) -> bool:
    return abs(shape.parameters / parameters - 1) <= tolerance


def _distance(shape: ModelShape, parameters: int) -> float:
    return abs(math.log(shape.parameters / parameters))


def _spread(shapes: Sequence[ModelShape], most: int) -> list[ModelShape]:
    """So many of them at most, from the first to the last; of one alone, the one of the usual proportion."""
    if len(shapes) <= most:
        return list(shapes)
    if most == 1:
        return [min(shapes, key=lambda shape: abs(math.log(shape.feed_forward / shape.hidden / PROPORTION)))]
    return [shapes[round(place * (len(shapes) - 1) / (most - 1))] for place in range(most)]


def _listed(depths: Sequence[int]) -> str:
    *most, last = map(str, depths)
    return f"{', '.join(most)} or {last}" if most else last
