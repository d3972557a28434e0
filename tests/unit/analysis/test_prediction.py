"""specbench.analysis.prediction"""

import math

import pytest

from specbench.analysis.prediction import Chain, compose, predict


def test_free_verification_gives_theorem_3_8():
    found = predict(Chain(alpha=0.8, gamma=4, draft_cost=0.1))
    tokens = (1 - 0.8**5) / (1 - 0.8)
    assert found.tokens == pytest.approx(tokens)
    assert found.speedup == pytest.approx(tokens / 1.4)
    assert (found.best_gamma, round(found.best_speedup, 2)) == (6, 2.47)  # worked out apart from this code
    assert found.memory_bound_speedup == pytest.approx(tokens / 1.4)  # a draft whose size is its cost
    assert found.target_efficiency == 1.0


def test_a_measured_verification_and_overhead_slow_it():
    found = predict(Chain(alpha=0.8, gamma=4, draft_cost=0.1, verify_cost=1.2, overhead=0.05))
    assert found.speedup == pytest.approx(3.3616 / 1.65)
    # v(g) = 1 + 0.05 g, so a step costs 1.05 + 0.15 g: every gamma by hand.
    by_hand = {g: (1 - 0.8 ** (g + 1)) / 0.2 / (1.05 + 0.15 * g) for g in range(1, 65)}
    assert found.best_gamma == max(by_hand, key=by_hand.__getitem__)
    assert found.best_speedup == pytest.approx(max(by_hand.values()))


def test_at_its_break_even_points_a_chain_is_as_fast_as_autoregressive():
    chain = Chain(alpha=0.7, gamma=3, draft_cost=0.2, verify_cost=1.1, overhead=0.02)
    found = predict(chain)
    at_alpha = predict(Chain(found.break_even_alpha, 3, 0.2, 1.1, 0.02))
    at_cost = predict(Chain(0.7, 3, found.break_even_draft_cost, 1.1, 0.02))
    assert (at_alpha.speedup, at_cost.speedup) == (pytest.approx(1.0), pytest.approx(1.0))


def test_where_no_acceptance_would_do_there_is_no_break_even_and_no_gamma():
    found = predict(Chain(alpha=0.5, gamma=1, draft_cost=1.5))
    assert (found.break_even_alpha, found.best_gamma, found.best_speedup) == (None, 0, 1.0)
    assert predict(Chain(alpha=0.0, gamma=2, draft_cost=0.1, verify_cost=1.2)).break_even_draft_cost < 0


def test_noise_that_makes_verification_cheaper_than_one_token_is_no_reason_to_draft_without_end():
    assert predict(Chain(alpha=0.9, gamma=4, draft_cost=0.2, verify_cost=0.6)).best_gamma == 7  # as at a cost of 1


@pytest.mark.parametrize(
    "chain", [Chain(1.2, 4, 0.1), Chain(0.5, 0, 0.1), Chain(0.5, 4, -0.1), Chain(0.5, 4, 0.1, verify_cost=0.0)]
)
def test_what_is_no_chain_is_refused(chain):
    with pytest.raises(ValueError, match="need"):
        predict(chain)


def _row(arm, draft, verify, accept, update, host, tokens, rate):
    times = {"draft_ms": draft, "verify_ms": verify, "accept_ms": accept, "update_ms": update, "host_ms": host}
    names = {"title": "c", "arm": arm, "lossless": True, "simulated": False}
    return {"block_efficiency_uncut": tokens, "full_batch_tokens_per_s": rate, **names, **times}


AUTOREGRESSIVE = _row("autoregressive", 0.0, 9.0, 0.5, 0.0, 0.5, 1.0, 100.0)


def test_a_composition_is_tokens_times_step_over_step():
    # A step of 20 ms for 3 tokens against 10 ms a token.
    found = compose(_row("m", 8.0, 10.8, 0.5, 0.1, 0.6, 3.0, 155.0), AUTOREGRESSIVE, gamma=4)
    assert found.predicted == pytest.approx(1.5)
    assert found.measured == pytest.approx(1.55)
    assert found.error == pytest.approx(1.5 / 1.55 - 1)
    assert found.break_even_tokens == pytest.approx(2.0)
    assert found.break_even_draft_ms == pytest.approx(3 * 10 - 12)  # 30 ms may pass, 12 of them are no draft


def test_a_chain_made_of_a_composition_predicts_what_was_composed():
    found = compose(_row("m", 8.0, 10.8, 0.5, 0.1, 0.6, 3.0, 155.0), AUTOREGRESSIVE, gamma=4)
    assert found.chain.draft_cost == pytest.approx(0.2)
    assert found.prediction.speedup == pytest.approx(found.predicted)


def test_a_tree_has_no_gamma_and_so_no_chain():
    found = compose(_row("m", 8.0, 10.8, 0.5, 0.1, 0.6, 3.0, 155.0), AUTOREGRESSIVE, gamma=None)
    assert (found.chain, found.prediction) == (None, None)
    assert found.predicted == pytest.approx(1.5)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_without_phase_times_there_is_no_composition(missing):
    assert compose(_row("m", missing, 10.0, 0.5, 0.1, 0.6, 3.0, 155.0), AUTOREGRESSIVE, gamma=4) is None
    assert compose(_row("m", 1.0, 10.0, 0.5, 0.1, 0.6, 3.0, missing), AUTOREGRESSIVE, gamma=4).measured is None
