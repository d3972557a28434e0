"""Which attention is fastest on a run's own shapes: the choice of ``decode.attention``, with a clock.

On a CPU nothing is timed here: one backend is ahead at all short queries, and a choice that hung on the mood of the
machine would part the rows of a run that was resumed.
"""

import math
import traceback
from collections.abc import Callable, Iterable
from functools import partial

import torch

from specbench.bench import timing
from specbench.bench.timing import Timeline
from specbench.decode.attention.choice import Shape, choose
from specbench.decode.graphs import capture
from specbench.decode.target import CachedModel

_CALLS = 5
_DRAFTS = (4, 63)  # nodes of a usual chain, and of the largest tree that papers draw


def shapes_of(batch_size: int, context: int) -> list[Shape]:
    """The forwards of a run: single tokens, and drafts from short to long as a line and as a tree.

    Args:
        batch_size: Rows.
        context: Committed tokens of a row, at most.
    """
    lines = [Shape(batch_size, 1 + nodes, context, is_tree=False) for nodes in (0, *_DRAFTS)]
    return lines + [shape._replace(is_tree=True) for shape in lines[1:]]


def settle(model: CachedModel, shapes: Iterable[Shape], clock: Timeline, *, captured: bool = True) -> None:
    """Let a model on a GPU attend as is fastest on these shapes; what was asked for by name stays.

    To be called before graphs are captured, and never while anything is measured.

    Args:
        model: The model.
        shapes: The forwards of the run.
        clock: How time is read.
        captured: Whether steps run as CUDA graphs, which do not have the host's part of a call.
    """
    if model.device.type != "cuda" or model.attention.is_asked_for or model.attention.lines is None:
        return
    seconds_of = partial(_best_seconds, clock=clock, captured_on=model.device if captured else None)
    try:
        found = choose(model.module, model.windows, "auto", list(shapes), seconds_of)
    except torch.cuda.OutOfMemoryError as error:  # a try is larger than what it is a try of
        traceback.clear_frames(error.__traceback__)
        return
    finally:
        torch.cuda.empty_cache()
    if found.lines is not None:
        model.attention = found


def _best_seconds(work: Callable[[], object], clock: Timeline, *, captured_on: torch.device | None) -> float:
    """Best seconds of some calls; what cannot be captured where it should be takes for ever."""
    try:
        call = capture(work, captured_on)[1].replay if captured_on else work
        call()
    except Exception:  # noqa: BLE001  (whatever it is: such a backend is of no use here)
        clock.wall()
        return math.inf
    return min(timing.seconds_of(call, clock) for _ in range(_CALLS))
