"""The acceptance rules as plain sequential programs, a row and a node at a time: what the tensor forms must equal.

They read the same uniforms and the same noise, so decisions are compared exactly, not in distribution.
"""

import math
from itertools import pairwise

from torch import Tensor

from specbench.decode.acceptance import Verification
from specbench.decode.sampling import Stream

from . import trees


def _children(parents: list[int], probe: list[bool], node: int) -> list[int]:
    """Children of a node (core numbering) that may be accepted, in order."""
    return [
        i + 1
        for i, above in enumerate(parents)
        if above == node - 1 and not probe[i] and trees.path(parents, i) is not None
    ]


def follow(parents: list[int], probe: list[bool], tokens: list[int], chosen: list[int]) -> tuple[set[int], int]:
    """The nodes at the end of the longest path that equals the target's choices, and its length."""
    best, depth = {0}, 0
    level = [0]
    while level:
        level = [child for node in level for child in _children(parents, probe, node) if tokens[child] == chosen[node]]
        if level:
            best, depth = set(level), depth + 1
    return best, depth


def reject(
    parents: list[int], step: Verification, row: int, target: Tensor, draft_rows: list[int] | None = None
) -> tuple[int, Tensor]:
    """Recursive rejection sampling for one row: where the walk ends, and the weights that the next token is drawn from.

    ``target`` holds the target's distribution after every node, (N1, V), float64.
    """
    assert step.draft_probs is not None
    probe = [False] * len(parents)
    here = 0
    while True:
        remaining = target[here].clone()
        children = _children(parents, probe, here)
        if not children:
            return here, remaining
        index = here if draft_rows is None else draft_rows[here]
        draft = step.draft_probs[row, index].double()
        for rank, child in enumerate(children):
            token = int(step.tokens[row, child])
            position = step.positions[row : row + 1, here : here + 1]
            luck = float(_row_uniform(step, row, position, rank))
            if luck * float(draft[token]) < float(remaining[token]):
                here = child
                break
            remaining = (remaining - draft).clamp_min(0)
            remaining = remaining / remaining.sum()
            if step.proposal == "without_replacement":
                draft = draft.clone()
                draft[token] = 0
                draft = draft / draft.sum()
        else:
            return here, remaining


def typical(
    parents: list[int], probe: list[bool], step: Verification, row: int, target: Tensor, epsilon: float, delta: float
) -> tuple[int, Tensor]:
    """Typical acceptance for one row: where the longest path ends, and what the next token is drawn from."""
    level = [0]
    while level:
        best, likely = min(level), []
        for node in level:
            p = target[node]
            entropy = -sum(float(chance) * float(chance.log()) for chance in p if chance > 0)
            threshold = min(epsilon, delta * math.exp(-entropy))
            likely += [
                child for child in _children(parents, probe, node) if float(p[step.tokens[row, child]]) > threshold
            ]
        level = likely
    return best, target[best]


def redrafter(
    parents: list[int],
    probe: list[bool],
    step: Verification,
    row: int,
    target: Tensor,
    draft_rows: list[int] | None = None,
) -> tuple[int, Tensor]:
    """ReDrafter's published sampling for one row: where the luckiest beam stops, and what the next token is drawn from.

    A beam is tried token by token, each with luck of its own.
    """
    assert step.draft_probs is not None
    longest, end, refused = -1, 0, False
    for number, beam in enumerate(_beams(parents, probe)):
        accepted = [0]
        for above, node in pairwise([0, *beam]):
            token = int(step.tokens[row, node])
            q = step.draft_probs[row, above if draft_rows is None else draft_rows[above]].double()
            luck = float(_row_uniform(step, row, step.positions[row : row + 1, above : above + 1], number))
            if luck >= float(target[above][token] / q[token]):
                break
            accepted.append(node)
        if len(accepted) > longest:
            longest, end, refused = len(accepted), accepted[-1], len(accepted) <= len(beam)
    if not refused:
        return end, target[end]
    q = step.draft_probs[row, end if draft_rows is None else draft_rows[end]].double()
    return end, (target[end] - q).clamp_min(0)


def _beams(parents: list[int], probe: list[bool]) -> list[list[int]]:
    """The paths from below the root to every leaf, in the leaves' order; probes and what hangs below them are none."""
    paths: list[list[int]] = []
    open_paths = [[child] for child in _children(parents, probe, 0)]
    while open_paths:
        way = open_paths.pop()
        children = _children(parents, probe, way[-1])
        open_paths += [[*way, child] for child in children]
        paths += [] if children else [way]
    return sorted(paths, key=lambda way: way[-1])


def _row_uniform(step: Verification, row: int, position: Tensor, rank: int) -> Tensor:
    every = position.expand(len(step.tokens), 1)
    return step.sampler.uniforms(every, rank, Stream.ACCEPT)[row, 0]


def gumbel_choice(step: Verification, row: int, weights: Tensor, node: int) -> int:
    """The token that the core's own noise draws from ``weights``."""
    position = step.positions[:, node]
    noise = step.sampler.noise(position[:, None], Stream.RESIDUAL)[row, 0].double()
    return int((weights.log() + noise).argmax())
