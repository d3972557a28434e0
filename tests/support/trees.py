"""Random token trees, and what they mean in plain loops: the oracle of everything in ``specbench.decode.tree``.

Parents are in a method's numbering: -1 the root, -2 padding. Nodes of a path are numbered with the root as 0.
"""

import torch


def random_parents(
    batch: int, num_nodes: int, generator: torch.Generator, *, max_depth: int, pad: float = 0.0, max_children: int = 99
) -> list[list[int]]:
    """Trees no deeper than ``max_depth``; each node is padding with chance ``pad``, and may hang below padding."""

    def one() -> list[int]:
        parents: list[int] = []
        for node in range(num_nodes):
            if float(torch.rand((), generator=generator)) < pad:
                parents.append(-2)
                continue
            open_to = [
                above
                for above in range(-1, node)
                if parents.count(above) < max_children
                and len(path_nodes_even_below_padding(parents, above + 1)) <= max_depth
            ]
            parents.append(open_to[int(torch.randint(len(open_to), (), generator=generator))])
        return parents

    return [one() for _ in range(batch)]


def late_chain(num_nodes: int, children: int) -> list[int]:
    """A chain that hangs from the last of several children of the root, so that node numbers run ahead of depths."""
    return [-1] * children + list(range(children - 1, num_nodes - 1))


def path_nodes_even_below_padding(parents: list[int], node: int) -> list[int]:
    """The way from the root (0) to ``node``, where padding counts as a child of the root."""
    way = [node]
    while way[0] != 0:
        way.insert(0, max(parents[way[0] - 1], -1) + 1)
    return way


def path(parents: list[int], draft_node: int) -> list[int] | None:
    """The way from the root to a draft node, in core numbering; None for padding and for what hangs below it."""
    way, here = [draft_node + 1], draft_node
    while parents[here] != -1:
        if parents[here] == -2:
            return None
        here = parents[here]
        way.insert(0, here + 1)
    return [0, *way]


def path_nodes(parents: list[int], node: int) -> list[int]:
    """The same for a node in core numbering, the root included."""
    way = [0] if node == 0 else path(parents, node - 1)
    assert way is not None
    return way
