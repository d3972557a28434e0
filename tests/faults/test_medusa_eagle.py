"""Faults found in Medusa's and EAGLE's evaluation scripts, and that specbench does not have them."""

import pytest

from specbench.analysis.acceptance import block_efficiency_uncut, mean_accepted, survival
from specbench.analysis.throughput import batch_tokens_per_s


@pytest.mark.parametrize("copies", [1, 3])
def test_no_divisor_knows_how_many_prompts_there_are(rows, copies):
    """Its script divided by 16,100: the 805 prompts and 20 runs that one paper had."""
    names = [f"b{i}" for i in range(2 * copies)]
    table = rows(batch_id=names, output_tokens=[11, 21] * copies, decode_s=[1.0, 2.0] * copies)
    assert batch_tokens_per_s(table) == pytest.approx(10.0)


def test_accepted_tokens_and_tokens_a_step_differ_by_one_and_have_two_names(headline):
    """EAGLE's alpha and its acceptance length were off by one from each other."""
    drafted = headline[headline["label"] == "small draft"]
    assert block_efficiency_uncut(drafted) == pytest.approx(mean_accepted(drafted) + 1)
    assert block_efficiency_uncut(drafted) == pytest.approx(1 + survival(drafted).sum())
    assert mean_accepted(drafted) > 0


def test_a_name_of_an_arm_comes_from_the_experiment_and_stands_in_every_row(headline):
    """Their speed scripts had the file names of one evaluation written into them."""
    named = headline[headline["label"] == "small draft"]
    assert set(named["method"]) == {"draft_model"}
    assert len(named) == 10


def test_one_loop_serves_every_arm(finished):
    """Twelve near-copies of one script of 450 lines drifted apart: which columns an arm has is not its own affair."""
    per_arm = finished.groupby("arm").apply(
        lambda arm: frozenset(arm.columns[arm.notna().any()]) - {"draft", "verdict"}
    )
    assert len(set(per_arm)) == 1
