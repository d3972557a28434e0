"""Trees of ranks: which guesses of which heads a Medusa step verifies.

A path (0, 2) is the second head's third guess behind the first head's first.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import product

import torch

from specbench.decode.tree import Topology

Path = tuple[int, ...]

# The trees that were published with Medusa's weights (github.com/FasterDecoding/Medusa, medusa_choices.py), a word a
# path and a digit a rank. Each has 63 nodes.
PUBLISHED: dict[str, str] = {
    "mc_sim_7b_63": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 30 31 40 50 60 70 80 90 000 "
        "001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001"
    ),
    "vicuna_7b_stage1": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 23 30 31 32 40 41 50 51 60 "
        "70 80 90 000 001 002 003 004 005 006 007 008 010 011 012 020 021 030 040 050 100 101 200 0000"
    ),
    "vicuna_7b_stage2": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 20 21 30 31 40 50 60 70 000 001 002 003 004 "
        "005 006 007 008 010 011 012 013 020 021 030 040 050 100 101 102 110 200 0000 0001 0002 0003 0010 0020 0100"
    ),
    "vicuna_13b_stage1": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 23 30 31 40 41 50 60 70 80 "
        "000 001 002 003 004 005 006 007 008 009 010 011 012 013 020 021 030 040 050 100 101 110 200 0000"
    ),
    "vicuna_13b_stage2": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 20 21 30 40 50 000 001 002 003 004 005 006 007 "
        "008 009 010 011 012 013 020 021 030 040 050 100 101 102 110 200 300 0000 0001 0002 0003 0010 0011 0020 0100 "
        "1000"
    ),
    "vicuna_33b_stage1": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 20 21 22 23 24 30 31 32 40 41 50 "
        "51 60 70 80 90 000 001 002 003 004 005 006 007 008 010 011 012 020 021 030 040 100 101 200"
    ),
    "vicuna_33b_stage2": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 20 21 22 30 31 40 50 60 70 000 001 002 003 "
        "004 005 006 007 008 009 010 011 012 013 020 021 030 040 050 100 101 102 110 200 0000 0001 0002 0010 0100"
    ),
    "zephyr_stage2": (
        "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 20 21 22 23 30 31 40 41 50 60 70 000 001 "
        "002 003 004 005 006 007 008 009 010 011 012 013 020 021 030 040 050 100 101 110 200 0000 0001 0010"
    ),
}


def published(name: str) -> list[Path]:
    """The paths of a published tree."""
    return [tuple(map(int, word)) for word in PUBLISHED[name].split()]


def chain(depth: int) -> list[Path]:
    """The likeliest token of every head, one after the other: blockwise parallel decoding."""
    return [(0,) * length for length in range(1, depth + 1)]


def cartesian(branching: Sequence[int]) -> list[Path]:
    """Every combination of the first ranks of each head."""
    return [
        path
        for depth in range(1, len(branching) + 1)
        for path in product(*(range(children) for children in branching[:depth]))
    ]


def likeliest(accuracies: Sequence[Sequence[float]], nodes: int) -> list[Path]:
    """The ``nodes`` paths that are right most often, if heads erred independently of one another.

    A path is right as often as the product of its ranks' accuracies. A longer path is never more often right than its
    beginning, so the best ones always form a tree. Source: Cai et al. (Medusa), arXiv 2401.10774, section 3.3.

    Args:
        accuracies: How often rank r of head i is the right token, for every head.
        nodes: The budget; a smaller tree comes out where no further path is ever right.
    """
    best: list[Path] = []
    waiting: list[tuple[float, Path]] = []

    def offer(path: Path, chance: float) -> None:
        if len(path) <= len(accuracies) and path[-1] < len(accuracies[len(path) - 1]):
            value = chance * accuracies[len(path) - 1][path[-1]]
            if value > 0:
                heappush(waiting, (-value, path))

    offer((0,), 1.0)
    while waiting and len(best) < nodes:
        value, path = heappop(waiting)
        best.append(path)
        above = -value / accuracies[len(path) - 1][path[-1]]
        offer((*path[:-1], path[-1] + 1), above)
        offer((*path, 0), -value)
    return best


def topology(paths: Sequence[Path], device: torch.device) -> tuple[Topology, list[Path]]:
    """The tree of these paths, level by level, and the path of every node.

    Raises:
        ValueError: A path whose beginning is missing, or one given twice.
    """
    ordered = sorted(set(paths), key=lambda path: (len(path), path))
    number = {path: index for index, path in enumerate(ordered)}
    if len(ordered) < len(paths):
        raise ValueError("a path stands twice in the tree")
    orphans = [path for path in ordered if len(path) > 1 and path[:-1] not in number]
    if orphans:
        raise ValueError(f"the path {list(orphans[0])} has no {list(orphans[0][:-1])} before it")
    parents = [number[path[:-1]] if len(path) > 1 else -1 for path in ordered]
    depth = len(ordered[-1])
    levels = [sum(len(path) <= level for path in ordered) for level in range(depth + 1)]
    return Topology(torch.tensor(parents, device=device), tuple(levels)), ordered
