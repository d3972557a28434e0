"""specbench.decode.attention.kernel: on Triton's interpreter, against attention that is written out."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from support.attention import Case, dense

pytest.importorskip("triton")

from specbench.decode.attention import kernel
from specbench.decode.attention.backend import Call, Sight
from specbench.decode.attention.kernel import Plan, plan
from specbench.decode.attention.split_kv import SplitKV, packed


def _found(case: Case, cut: Plan | None = None) -> torch.Tensor:
    words, depth = (None, None) if case.is_line else (packed(case.near()), case.depth)
    key, value = case.slab
    window = case.window or 0
    return kernel.attend(case.query, key, value, case.base, words, depth, case.nodes, case.scale, window, cut)


def _assert_right(case: Case, cut: Plan | None = None, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(_found(case, cut).double(), dense(case), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("queries", "group"), [(1, 1), (1, 4), (5, 1), (5, 4), (40, 1)])
def test_a_line_of_any_length_sees_what_stands_before_each_query(queries: int, group: int):
    _assert_right(Case.line(queries, group=group))


@pytest.mark.parametrize(("queries", "group"), [(2, 1), (8, 4), (64, 1), (65, 2), (130, 1)])
def test_a_tree_sees_the_committed_keys_and_its_ancestors_alone(queries: int, group: int):
    _assert_right(Case.tree(queries, group=group))


@pytest.mark.parametrize("dim", [8, 24, 128])
def test_a_head_may_be_of_any_width(dim: int):
    _assert_right(Case.tree(6, dim=dim))


@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("build", [Case.line, Case.tree])
def test_into_how_many_parts_the_keys_are_cut_changes_nothing(build, parts: int):
    """With eight parts some rows have fewer blocks of keys than parts, so that some parts see nothing."""
    _assert_right(build(5, lengths=(200, 3)), Plan(rows=16, tiles=1, keys=32, parts=parts))


@pytest.mark.parametrize("window", [1, 7, 64])
@pytest.mark.parametrize("build", [Case.line, Case.tree])
def test_a_window_counts_positions_and_not_slots(build, window: int):
    _assert_right(build(12, lengths=(110, 4), window=window))


def test_rows_on_the_edge_of_a_block_of_keys_see_all_of_theirs():
    _assert_right(Case.line(1, lengths=(30, 31, 32, 33, 63, 64)))
    _assert_right(Case.tree(3, lengths=(29, 30, 31, 32, 62, 64)))


def test_the_expansion_of_a_level_sees_nodes_of_earlier_levels_that_are_no_queries():
    """A draft model runs a tree level by level: four queries over ten nodes."""
    _assert_right(Case.tree(10).last_queries(4))


def test_trees_may_differ_from_row_to_row():
    _assert_right(Case.tree(9, shared=False))


@pytest.mark.parametrize("build", [Case.line, Case.tree])
def test_half_precision_is_off_by_its_own_rounding_alone(build):
    _assert_right(build(5, dtype=torch.float16), tolerance=4e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_one_preparation_serves_layers_with_and_without_a_window(shared: bool):
    """Paths here are deeper than the window."""
    case = Case.tree(12, window=3, shared=shared)
    backend, slots = SplitKV(is_interpreted=True), case.slab.shape[2]
    sight = Sight(case.base, 12, case.nodes, slots, case.depth, case.sees, case.key_depth, window=3)
    query, key, value = (part.transpose(1, 2) for part in (case.query, *case.slab))
    call = Call(query, key, value, torch.empty(0), case.scale, window=3)
    assert int(case.depth.max()) > 3
    for layer, wanted in ((call, case), (call._replace(window=None), replace(case, window=None))):
        found = backend.attend(layer, backend.prepare(sight))
        torch.testing.assert_close(found.double(), dense(wanted), atol=2e-6, rtol=2e-6)


def test_words_hold_sixty_four_flags_each_in_order():
    flags = torch.zeros(1, 2, 130, dtype=torch.bool)
    flags[0, 0, [0, 63, 64]] = True
    flags[0, 1, 129] = True
    assert packed(flags).tolist() == [[[1 - 2**63, 1, 0], [0, 0, 2]]]


def test_few_programs_cut_the_keys_and_many_leave_them_whole():
    on_h200 = partial(plan, multiprocessors=132, is_half=True)
    alone, crowd = on_h200(8, rows=1, slots=4096), on_h200(8 * 64, rows=1, slots=4096)
    assert 8 * alone.parts >= 1.5 * 132
    assert crowd == Plan(rows=16, tiles=1, keys=64, parts=1)
    assert on_h200(8, rows=1, slots=64).parts == 1  # one block of keys cannot be shared
    assert on_h200(8, rows=65, slots=64)[:2] == (64, 2)
    assert plan(8, 65, 64, 132, is_half=False)[:3] == (16, 5, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("build", [Case.line, Case.tree])
@pytest.mark.parametrize("queries", [1, 5, 65])
def test_on_a_gpu_the_compiled_kernel_is_right(build, queries: int, dtype: torch.dtype):
    case = build(queries, lengths=(700, 64, 3), group=4, dim=128, dtype=dtype, device="cuda")
    _assert_right(case, tolerance=1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps)
