"""Drafts that do not exist yet, as shapes: which come into question for a target, and how long their forwards take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from specbench.bench.latencies import Study, measure
from specbench.config import RandomModel
from specbench.errors import ConfigError
from specbench.models.designs import DEPTHS, Build, equal_parameter_shapes, shape_text, shapes_up_to
from specbench.models.shapes import ModelShape, numbers_of, shape_of
from specbench.models.source import Source
from specbench.models.zoo import ZOO

_LARGEST_DRAFT = 0.5
"""Of a target's parameters, where no number of them is asked for."""


@dataclass(frozen=True)
class Search:
    """Which shapes are looked at.

    Attributes:
        parameters: That each has; None for every size.
        any_size: Whether sizes are looked at where no number of parameters is given.
        depths: In layers; `DEPTHS` as far as the target's own where none are named.
        widths: Of the residual stream; every possible one where none are named.
        head_dim: Width of a head; None for the target's.
        per_depth: Shapes of equal parameters of a depth, at most.
        shapes: Further ones, in the words of `shapes.shape_of`.
    """

    parameters: int | None = None
    any_size: bool = False
    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    head_dim: int | None = None
    per_depth: int = 3
    shapes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.depths and min(self.depths) < 1:
            raise ConfigError(f"depths must be at least 1, got {min(self.depths)}")
        if self.widths and min(self.widths) < 1:
            raise ConfigError(f"widths must be at least 1, got {min(self.widths)}")


def candidates(search: Search, target: Source) -> list[ModelShape]:
    """The shapes that a search finds for a target: with its vocabulary, and its positions.

    Raises:
        ConfigError: Nothing fits, or a shape that is named cannot exist.
    """
    numbers = numbers_of(target.config)
    context = target.max_positions or Build().context
    build = Build(numbers.vocab, search.head_dim or numbers.head_dim, context)
    depths = search.depths or tuple(depth for depth in DEPTHS if depth <= numbers.layers)
    found = [_of_target(text, build) for text in search.shapes]
    if search.parameters is not None:
        found += equal_parameter_shapes(
            search.parameters, depths, build, widths=search.widths, per_depth=search.per_depth
        )
    elif search.any_size:
        found += shapes_up_to(int(_LARGEST_DRAFT * target.parameters), depths, build, widths=search.widths)
    return list({shape_text(shape): shape for shape in found}.values())


def _of_target(text: str, build: Build) -> ModelShape:
    """A shape that is named, with the target's vocabulary: a draft of another one could not be its draft."""
    shape = shape_of(text)
    if type(shape) is not ModelShape or shape.head_dim is not None or shape.kv_heads != shape.heads:
        raise ConfigError(
            f"shape {text}: a training builds drafts of Llama's kind, whose heads share the width and have keys and "
            "values of their own"
        )
    return replace(shape, vocab=build.vocab, context=build.context, tied=build.tied, hub_ids=(), origin="")


def measure_shapes(
    shapes: Sequence[ModelShape],
    target: str,
    study: Study,
    folder: Path,
    *,
    largest_gamma: int,
    known: str | None = None,
    argv: Sequence[str] = (),
    zoo: Path = ZOO,
    say: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Measure a forward of one token of every shape, with random weights, interleaved with target and known draft.

    The target's verifications follow, for themselves: a shape needs one point, the target one for every gamma.

    Args:
        shapes: Candidates.
        target: Whose drafts they would be.
        study: Batch size, context and all that does not differ between models; its models are not looked at.
        folder: Where ``latencies`` is kept; what it holds is not measured again.
        largest_gamma: The target's forwards are measured up to so many tokens and one more.
        known: A draft to compare with; None for none.
        argv: The command line, for the record.
        zoo: Where the embedded family lies.
        say: Told what is on.

    Returns:
        Rows of ``latencies``; a shape's ``model`` is its `shape_text`.

    Raises:
        SpecbenchError: As `latencies.measure`.
    """
    drafts: list[str | RandomModel] = [RandomModel(shape=shape_text(shape)) for shape in shapes]
    beside = [target] if known is None else [target, known]
    alone = replace(study, models=(*beside, *drafts), query_tokens=(1,))
    verified = replace(study, models=(target,), query_tokens=tuple(range(2, largest_gamma + 2)))
    rows = [measure(own, folder, argv=argv, zoo=zoo, say=say).forwards for own in (alone, verified)]
    return pd.concat(rows, ignore_index=True)
