"""specbench.analysis.acceptance"""

import numpy as np
import pytest

from specbench.analysis import acceptance


@pytest.fixture
def chain(rows):
    """Two requests of gamma 3: accepted 3, 0, 1 and 2, 3; the last step of the second is cut."""
    return rows(
        batch_id=["a", "b"],
        output_tokens=[8, 6],
        steps=[3, 2],
        drafted_tokens=[9, 6],
        accepted_tokens=[4, 5],
        accepted_per_step=[[3, 0, 1], [2, 3]],
        drafted_depth_per_step=[[3, 3, 3], [3, 3]],
    )


@pytest.fixture
def lookup(rows):
    """One request that drafted in two of four steps only, to different depths."""
    return rows(
        batch_id=["a"],
        output_tokens=[8],
        steps=[4],
        drafted_tokens=[5],
        accepted_tokens=[3],
        accepted_per_step=[[0, 2, 0, 1]],
        drafted_depth_per_step=[[0, 2, 0, 3]],
    )


def test_block_efficiency_is_what_a_step_emits_after_the_cut(chain):
    # 7 + 5 tokens came from 5 steps.
    assert acceptance.block_efficiency(chain) == pytest.approx(2.4)


def test_uncut_block_efficiency_takes_the_last_step_whole(chain):
    # 3 + 0 + 1 + 2 + 3 accepted, and one token of the target in each of 5 steps.
    assert acceptance.block_efficiency_uncut(chain) == pytest.approx(2.8)
    assert acceptance.mean_accepted(chain) == pytest.approx(1.8)


def test_acceptance_rate_is_accepted_over_drafted(chain):
    assert acceptance.acceptance_rate(chain) == pytest.approx(0.6)


def test_with_nothing_drafted_the_rate_is_null_and_not_zero(rows):
    autoregressive = rows(
        batch_id=["a"],
        output_tokens=[3],
        steps=[2],
        drafted_tokens=[0],
        accepted_tokens=[0],
        accepted_per_step=[[0, 0]],
        drafted_depth_per_step=[[0, 0]],
    )
    assert acceptance.acceptance_rate(autoregressive) is None
    assert acceptance.block_efficiency(autoregressive) == 1.0
    assert acceptance.survival(autoregressive).tolist() == []
    assert acceptance.alpha(autoregressive).tolist() == []


def test_survival_counts_steps_that_keep_at_least_so_many(chain):
    assert acceptance.survival(chain).tolist() == pytest.approx([0.8, 0.6, 0.4])


def test_one_plus_the_sum_of_survival_is_the_uncut_block_efficiency(chain, lookup):
    assert 1 + acceptance.survival(chain).sum() == pytest.approx(2.8)
    assert 1 + acceptance.survival(lookup).sum() == pytest.approx(1.75)


def test_conditional_acceptance_is_the_quotient_of_survivals(chain):
    assert acceptance.conditional_acceptance(chain).tolist() == pytest.approx([0.8, 0.75, 2 / 3])


def test_alpha_equals_conditional_acceptance_where_all_drafts_have_one_depth(chain):
    assert acceptance.alpha(chain).tolist() == pytest.approx([0.8, 0.75, 2 / 3])


def test_alpha_asks_only_steps_that_drafted_the_position(lookup):
    # Position 1: both drafts kept it. 2: one of two. 3: only the deeper draft had it, and had lost before.
    assert acceptance.alpha(lookup)[:2].tolist() == [1.0, 0.5]
    assert np.isnan(acceptance.alpha(lookup)[2])
    assert acceptance.reached(lookup).tolist() == [2.0, 2.0, 0.0]
    assert acceptance.survival(lookup).tolist() == [0.5, 0.25, 0.0]
    assert acceptance.drafted_share(lookup).tolist() == [0.5, 0.5, 0.25]


def test_failed_requests_are_no_part_of_any_mean(rows):
    frame = rows(
        batch_id=["a", "b"],
        status=["ok", "oom"],
        output_tokens=[4, None],
        steps=[1, None],
        drafted_tokens=[2, None],
        accepted_tokens=[2, None],
        accepted_per_step=[[2], None],
        drafted_depth_per_step=[[2], None],
    )
    assert acceptance.block_efficiency(frame) == 3.0
    assert acceptance.acceptance_rate(frame) == 1.0
    assert acceptance.acceptance_rate(frame[frame["status"] == "oom"]) is None
    assert acceptance.block_efficiency(frame[frame["status"] == "oom"]) is None


def test_the_shares_of_accepted_lengths_sum_to_one_and_have_the_mean(chain, lookup):
    assert acceptance.accepted_lengths(chain) == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert acceptance.accepted_lengths(lookup) == pytest.approx([0.5, 0.25, 0.25, 0.0])
    for rows in (chain, lookup):
        shares = acceptance.accepted_lengths(rows)
        assert np.arange(len(shares)) @ shares == pytest.approx(acceptance.mean_accepted(rows))


def test_a_chain_has_one_gamma_and_neither_a_lookup_nor_a_tree_has(chain, lookup):
    nodes = chain["drafted_depth_per_step"]
    assert acceptance.chain_depth(chain.assign(drafted_nodes_per_step=nodes)) == 3
    assert (
        acceptance.chain_depth(chain.assign(drafted_nodes_per_step=nodes.map(lambda depth: 2 * np.array(depth))))
        is None
    )
    assert acceptance.chain_depth(lookup.assign(drafted_nodes_per_step=lookup["drafted_depth_per_step"])) is None


def test_a_chain_may_be_shorter_in_a_tenth_of_its_steps(rows):
    for short, gamma in ((1, 4), (3, None)):
        depth = [4] * (10 - short) + [2] * short
        row = rows(
            batch_id=["a"], accepted_per_step=[[0] * 10], drafted_depth_per_step=[depth], drafted_nodes_per_step=[depth]
        )
        assert acceptance.chain_depth(row) == gamma


def test_what_was_measured_is_not_copied_where_nothing_failed(chain):
    assert acceptance.measured(chain) is chain
    failed = chain.assign(status=["ok", "oom"])
    assert list(acceptance.measured(failed)["batch_id"]) == ["a"]
    assert acceptance.measured(failed) is acceptance.measured(failed)
