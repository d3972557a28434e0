"""specbench.decode.tree against plain loops over random trees."""

import pytest
import torch

from specbench.decode.tree import (
    Layout,
    Topology,
    children_table,
    deepest,
    lay_out,
    lay_out_chain,
    path_to,
    sibling_ranks,
)
from support import trees

CPU = torch.device("cpu")
SHAPES = [
    pytest.param(1, 1, 0.0, id="one node"),
    pytest.param(7, 3, 0.0, id="small trees"),
    pytest.param(7, 3, 0.4, id="small trees with much padding"),
    pytest.param(63, 6, 0.1, id="63 nodes"),
    pytest.param(64, 64, 0.0, id="64 nodes of any depth"),
    pytest.param(30, 5, 1.0, id="nothing but padding"),
]


def _draw(nodes: int, depth: int, pad: float, seed: int = 0) -> tuple[list[list[int]], Layout]:
    generator = torch.Generator().manual_seed(seed)
    parents = trees.random_parents(4, nodes, generator, max_depth=depth, pad=pad)
    return parents, lay_out(torch.tensor(parents), depth)


@pytest.mark.parametrize(("nodes", "depth", "pad"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_ancestors_depths_parents_and_padding_equal_those_of_a_walk_to_the_root(nodes, depth, pad, seed):
    rows, layout = _draw(nodes, depth, pad, seed)
    for row, parents in enumerate(rows):
        for node in range(nodes):
            way = trees.path(parents, node)
            index = node + 1
            assert bool(layout.padding[row, index]) is (way is None)
            assert bool(layout.eligible[row, index]) is (way is not None)
            assert int(layout.depth[row, index]) == (0 if way is None else len(way) - 1)
            if way is not None:
                assert int(layout.parent[row, index]) == way[-2]
                assert layout.ancestors[row, index].nonzero().flatten().tolist() == way
        assert layout.ancestors[row, 0].nonzero().flatten().tolist() == [0]
        assert not layout.padding[row, 0]
        assert not layout.eligible[row, 0]


@pytest.mark.parametrize(("nodes", "depth", "pad"), SHAPES)
def test_the_path_to_any_node_is_the_walk_from_the_root(nodes, depth, pad):
    rows, layout = _draw(nodes, depth, pad)
    for node in range(nodes):
        got = path_to(layout, torch.full((4,), node + 1), depth + 1)
        for row, parents in enumerate(rows):
            way = trees.path(parents, node)
            if way is not None:
                assert got[row].tolist() == way + [-1] * (depth + 1 - len(way))


@pytest.mark.parametrize(("nodes", "depth", "pad"), SHAPES)
def test_children_stand_in_order_under_their_parents(nodes, depth, pad):
    rows, layout = _draw(nodes, depth, pad)
    table, ranks = children_table(layout, nodes), sibling_ranks(layout)
    for row, parents in enumerate(rows):
        alive = [node for node in range(nodes) if trees.path(parents, node) is not None]
        for above in range(-1, nodes):
            children = [node + 1 for node in alive if parents[node] == above]
            assert [child for child in table[row, above + 1].tolist() if child >= 0] == children
            assert [int(ranks[row, child]) for child in children] == list(range(len(children)))


def test_children_beyond_the_most_are_left_out():
    layout = lay_out(torch.tensor([[-1, -1, -1]]), 1)
    assert children_table(layout, 2)[0, 0].tolist() == [1, 2]


def test_the_deepest_accepted_node_wins_and_of_equals_the_first():
    layout = lay_out(torch.tensor([[-1, -1, 0, 1, 1]]), 2)
    assert deepest(layout, torch.tensor([[True, True, True, False, True, True]])).tolist() == [4]
    assert deepest(layout, torch.tensor([[True, False, False, False, False, False]])).tolist() == [0]


def test_probes_are_not_eligible_and_yet_no_padding():
    layout = lay_out(torch.tensor([[-1, 0, 0]]), 2, probe=torch.tensor([[False, True, False]]))
    assert layout.eligible.tolist() == [[False, True, False, True]]
    assert layout.padding.tolist() == [[False, False, False, False]]
    assert layout.depth.tolist() == [[0, 1, 2, 2]]


def test_children_of_padding_are_padding():
    layout = lay_out(torch.tensor([[-1, -2, 1, 2, 0]]), 4)
    assert layout.padding.tolist() == [[False, False, True, True, True, False]]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 8, 63, 64])
def test_a_chain_equals_the_tree_of_width_one(length: int):
    chain = lay_out_chain(length, None, 3, CPU)
    tree = lay_out(torch.arange(-1, length - 1).expand(3, -1), max(1, length))
    for field in ("parent", "padding", "eligible", "ancestors", "depth", "node"):
        assert torch.equal(getattr(chain, field), getattr(tree, field)), field
    assert chain.is_chain
    assert chain.num_nodes == length + 1


def test_a_chain_that_ends_early_equals_a_tree_with_padding():
    drafted = torch.arange(5) < torch.tensor([[0], [2], [5]])
    chain = lay_out_chain(5, drafted, 3, CPU)
    tree = lay_out(torch.arange(-1, 4).expand(3, -1).masked_fill(~drafted, -2), 5)
    for field in ("padding", "eligible", "depth"):
        assert torch.equal(getattr(chain, field), getattr(tree, field)), field
    assert torch.equal(chain.ancestors[2], tree.ancestors[2])


def test_a_chain_of_one_batch_is_not_changed_by_the_stops_of_another():
    lay_out_chain(4, torch.zeros(2, 4, dtype=torch.bool), 2, CPU)
    assert lay_out_chain(4, None, 1, CPU).eligible.tolist() == [[False, True, True, True, True]]


def test_a_topology_numbers_its_nodes_level_by_level():
    topology = Topology.from_branching((2, 3, 1), CPU)
    assert topology.parents.tolist() == [-1, -1, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7]
    assert topology.levels == (0, 2, 8, 14)
