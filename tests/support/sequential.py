"""The acceptance rules as plain sequential programs, a row and a node at a time: what the tensor forms must equal.

They read the same uniforms and the same noise, so decisions are compared exactly, not in distribution.
"""

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


def _row_uniform(step: Verification, row: int, position: Tensor, rank: int) -> Tensor:
    every = position.expand(len(step.tokens), 1)
    return step.sampler.uniforms(every, rank, Stream.ACCEPT)[row, 0]


def gumbel_choice(step: Verification, row: int, weights: Tensor, node: int) -> int:
    """The token that the core's own noise draws from ``weights``."""
    position = step.positions[:, node]
    noise = step.sampler.noise(position[:, None], Stream.RESIDUAL)[row, 0].double()
    return int((weights.log() + noise).argmax())
