"""What a device does in a second at best, measured on a model's own matrices.

A ceiling is the best of several rounds, as STREAM takes it: what disturbs a round says nothing about the machine. The
matrices are read one after the other in the order of a forward, by few rows: so the caches are as cold as in a step,
which no copy of a buffer tells on a CPU. On a GPU such a pass is captured, or launches would be what is timed.

Source: McCalpin, STREAM (1995), for the best of several rounds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbench.bench.machine import free_bytes
from specbench.bench.timing import Timeline, no_garbage_collection, seconds_of, timeline
from specbench.decode.graphs import capture

_PRODUCT_ROWS = (1, 2, 4, 8, 16, 32)
_BUDGET_S, _FEWEST, _MOST = 0.1, 2, 50
# Many launches or replays between two readings of the clock, so that reading it is no part of what is read.
_BURST_S = {"cuda": 0.01, "cpu": 0.0}
_SQUARE = {"cuda": 8192, "cpu": 1024}
_LARGEST_COPY_BYTES = 1 << 30
_LAUNCHES = 200
_BARE_MATRICES = 8


@dataclass(frozen=True)
class Ceiling:
    """What a device does in a second at best.

    Attributes:
        product_rows: With how many rows the matrices were multiplied.
        products_s: Seconds of all products, one after the other, for each of those.
        read_bytes_per_s: Bytes of the matrices over the least of those: how fast they can be read.
        copy_bytes_per_s: Bytes read and written by a copy whose two buffers together are as large as the matrices, or
            1 GiB where they are larger.
        operations_per_s: Of a product of two large square matrices.
        launch_s: Seconds of one operation on next to no data, one after the other from Python.
        captured_launch_s: The same within a CUDA graph; None on a CPU.
    """

    product_rows: tuple[int, ...]
    products_s: list[float]
    read_bytes_per_s: float
    copy_bytes_per_s: float
    operations_per_s: float
    launch_s: float
    captured_launch_s: float | None


def measure_ceiling(matrices: Sequence[Tensor], clock: Timeline | None = None) -> Ceiling:
    """Measure what the device of some matrices does at best; takes about a second, and longer for very large ones.

    Args:
        matrices: (in, out), or (n, in, out) for n products at once, all of one type on one device.
        clock: How time is read; the device's own where None.
    """
    first = matrices[0]
    clock = clock or timeline(first.device)
    with torch.inference_mode(), no_garbage_collection():
        products_s = [_products_s(matrices, rows, clock) for rows in _PRODUCT_ROWS]
        size = sum(matrix.nbytes for matrix in matrices)
        return Ceiling(
            product_rows=_PRODUCT_ROWS,
            products_s=products_s,
            read_bytes_per_s=size / min(products_s),
            copy_bytes_per_s=_copy_bytes_per_s(min(size, _LARGEST_COPY_BYTES, _room_bytes(first)), first, clock),
            operations_per_s=_operations_per_s(first, clock),
            launch_s=_launch_s(first.device, clock),
            captured_launch_s=_launch_s(first.device, clock, captured=True) if first.is_cuda else None,
        )


def bare_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """What a device does at best without any model: with a few matrices as wide as those of a 7B model."""
    return measure_ceiling([_noise(torch.Size([4096, 4096]), dtype, device) for _ in range(_BARE_MATRICES)])


def best_of(ceiling: Ceiling, before: Mapping[str, Any] | None) -> Ceiling:
    """What a device has done at best, in this try or in those that a row of ``ceilings`` tells of."""
    if before is None:
        return ceiling
    products_s = [min(pair) for pair in zip(ceiling.products_s, before["products_s"], strict=True)]
    launches = [seconds for seconds in (ceiling.captured_launch_s, before["captured_launch_s"]) if seconds is not None]
    return Ceiling(
        product_rows=ceiling.product_rows,
        products_s=products_s,
        read_bytes_per_s=max(ceiling.read_bytes_per_s, before["read_bytes_per_s"]),
        copy_bytes_per_s=max(ceiling.copy_bytes_per_s, before["copy_bytes_per_s"]),
        operations_per_s=max(ceiling.operations_per_s, before["operations_per_s"]),
        launch_s=min(ceiling.launch_s, before["launch_s"]),
        captured_launch_s=min(launches, default=None),
    )


def _products_s(matrices: Sequence[Tensor], rows: int, clock: Timeline) -> float:
    wanted = [(torch.Size([*matrix.shape[:-2], rows, matrix.shape[-2]]), matrix.device) for matrix in matrices]
    states = {(shape, device): _noise(shape, matrices[0].dtype, device) for shape, device in dict.fromkeys(wanted)}
    pairs = [(states[key], matrix) for key, matrix in zip(wanted, matrices, strict=True)]

    def products() -> None:
        for state, matrix in pairs:
            torch.matmul(state, matrix)

    return _best_s(products, matrices[0].device, clock)


def _noise(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros would be multiplied at less power, so at a higher clock; the global state of chance is left alone."""
    chance = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, dtype=dtype, device=device, generator=chance)


def _room_bytes(like: Tensor) -> int:
    """A quarter of what is free beside the arms that are loaded."""
    return int(free_bytes(like.device) / 4)


def _copy_bytes_per_s(size: int, like: Tensor, clock: Timeline) -> float:
    """Bytes a second, read and written counted both."""
    source = torch.zeros(max(1, size // 2), dtype=torch.uint8, device=like.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best_s(lambda: target.copy_(source), like.device, clock)


def _operations_per_s(like: Tensor, clock: Timeline) -> float:
    size = _SQUARE.get(like.device.type, 1024)
    square = _noise(torch.Size([size, size]), like.dtype, like.device)
    return 2.0 * size**3 / _best_s(lambda: square @ square, like.device, clock)


def _launch_s(device: torch.device, clock: Timeline, *, captured: bool = False) -> float:
    one = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            one.add_(1)

    return _best_s(launches, device, clock, captured=captured) / _LAUNCHES


def _best_s(work: Callable[[], object], device: torch.device, clock: Timeline, *, captured: bool = True) -> float:
    """Seconds of the fastest round."""
    work()
    run = _graph_of(work, device, clock) if captured and device.type == "cuda" else work
    once_s = seconds_of(run, clock)
    burst = max(1, math.ceil(_BURST_S.get(device.type, 0.0) / max(once_s, 1e-9)))
    round_ = partial(_repeat, run, burst)
    best_s, spent_s, rounds = once_s, once_s, 1
    while rounds < _FEWEST or (spent_s < _BUDGET_S and rounds < _MOST):
        seconds = seconds_of(round_, clock)
        best_s, spent_s, rounds = min(best_s, seconds / burst), spent_s + seconds, rounds + 1
    return best_s


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def _graph_of(work: Callable[[], object], device: torch.device, clock: Timeline) -> Callable[[], object]:
    """The work as a captured graph; as it is where it cannot be captured."""
    try:
        with torch.cuda.device(device):
            return capture(work, device)[1].replay
    except RuntimeError:
        clock.wall()  # what was begun ends before it is begun again
        return work
