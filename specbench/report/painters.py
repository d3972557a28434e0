"""Figures drawn side by side, one process each: drawing is most of a report's time, and matplotlib uses one core."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from specbench.report import plots
from specbench.report.metrics import Frames

Drawn = Iterable[tuple[str, bytes | None]]
"""Name -> SVG of each figure that the data has, None of the others."""


class Painters:
    """Draws figures with ``spread``, which is either ``map`` or that of a pool of processes."""

    def __init__(self, spread: Callable[..., Iterable[Any]]) -> None:
        self._spread = spread

    def draw(self, frames: Frames, footer: str, folder: Path) -> Drawn:
        """Write every figure that the data has into ``folder``, as PNG and SVG.

        Returns at once where there are processes to do it; what is asked of the result then waits for them.
        """
        return zip(plots.FIGURES, self._spread(partial(_drawn, frames, footer, folder), plots.FIGURES), strict=True)


@contextmanager
def painters() -> Iterator[Painters]:
    """Hire painters. Do so before the data is read: they set up, which takes a second, while that goes on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if cores == 1:
        yield Painters(map)
        return
    # Forked from a server that has only loaded this module: this process has threads, and is not safe to fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(cores, len(plots.FIGURES)), context) as pool:
        pool.submit(os.getpid)  # starts the server
        yield Painters(pool.map)


def _drawn(frames: Frames, footer: str, folder: Path, name: str) -> bytes | None:
    style = plots.look_of(frames)
    with plots.themed("light"):
        figure = plots.FIGURES[name].draw(frames, style, footer)
        if figure is None:
            return None
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", pil_kwargs={"compress_level": 1})
    (folder / f"{name}.svg").write_bytes(sink.getvalue())
    return sink.getvalue()
