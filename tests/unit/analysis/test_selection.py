"""specbench.analysis.selection"""

import numpy as np
import pytest

from specbench.analysis.selection import choose, halves


def arm(rows, name, seconds):
    """One batch a block, each of ten tokens."""
    blocks = np.arange(len(seconds))
    return rows(
        block=blocks, batch_id=[f"{name}{block}" for block in blocks], decode_s=seconds, row_done_s=seconds,
        output_tokens=11, steps=10,
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_the_halves_share_nothing_and_leave_nothing_out(count):
    first, second = halves(range(count), seed=3)
    assert sorted(first + second) == list(range(count))
    assert len(second) - len(first) == count % 2


def test_each_half_is_spread_over_the_whole_run():
    first, _ = halves(range(40))
    assert all(pair // 2 == place for place, pair in enumerate(sorted(first)))


def test_the_split_is_the_seeds():
    assert halves(range(40), seed=1) == halves(reversed(range(40)), seed=1)
    assert len({halves(range(40), seed=seed) for seed in range(5)}) == 5


def test_what_is_reported_had_no_say_in_the_choice(rows):
    """`lucky` is fast on the prompts that choose and slow on the others."""
    first, second = halves(range(12))
    lucky = np.where(np.isin(np.arange(12), first), 0.4, 0.9)
    found = choose(
        arm(rows, "a", np.ones(12)), {"lucky": arm(rows, "l", lucky), "solid": arm(rows, "s", np.full(12, 0.5))}
    )
    assert (found.arm, found.best_elsewhere, found.stable) == ("lucky", "solid", False)
    assert (found.chosen_on, found.reported_on) == (first, second)
    assert found.speedup_where_chosen.ratio == pytest.approx(1 / 0.4)
    assert found.speedup.ratio == pytest.approx(1 / 0.9)
    assert found.speedup.units == 6
    assert f"reported on batches {', '.join(map(str, second))}; the other half would choose solid." in found.explanation


def test_the_winners_curse_is_in_the_half_that_chose_and_not_in_the_other(rows):
    """Twelve arms, all of them as fast as the baseline: the best of them looks faster where it was chosen."""
    rng = np.random.default_rng(4)
    chosen, reported = [], []
    for _ in range(20):
        arms = {str(i): arm(rows, str(i), np.exp(0.1 * rng.standard_normal(8))) for i in range(12)}
        found = choose(arm(rows, "base", np.exp(0.1 * rng.standard_normal(8))), arms)
        chosen.append(np.log(found.speedup_where_chosen.ratio))
        reported.append(np.log(found.speedup.ratio))
    assert np.mean(chosen) > 0.06
    assert abs(np.mean(reported)) < 0.04  # four batches against four: a standard error of .016


def test_nothing_is_chosen_where_nothing_finished(rows):
    baseline = arm(rows, "a", np.ones(4))
    assert choose(baseline, {"broken": arm(rows, "b", np.ones(4)).assign(status="error")}) is None
    assert choose(baseline[:1], {"x": arm(rows, "x", np.ones(1))}) is None
