"""specbench.analysis.closed_forms"""

import pytest

from specbench.analysis import closed_forms


# Leviathan et al. (2023), Table 1, at a cost of 0: speed is the expected number of tokens.
@pytest.mark.parametrize(
    ("alpha", "gamma", "tokens"),
    [(0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 2, 2.44), (0.8, 5, 3.69), (0.9, 2, 2.71), (0.9, 10, 6.86)],
)
def test_expected_tokens_are_those_of_the_papers_table(alpha, gamma, tokens):
    assert closed_forms.expected_tokens(alpha, gamma) == pytest.approx(tokens, abs=0.005)


# The same table: arithmetic over that of plain decoding, where a draft costs none.
@pytest.mark.parametrize(
    ("alpha", "gamma", "operations"),
    [(0.6, 2, 1.53), (0.7, 3, 1.58), (0.8, 2, 1.23), (0.8, 5, 1.63), (0.9, 2, 1.11), (0.9, 10, 1.60)],
)
def test_operations_are_those_of_the_papers_table(alpha, gamma, operations):
    assert closed_forms.operations_ratio(alpha, gamma) == pytest.approx(operations, abs=0.005)


def test_operations_of_the_draft_come_on_top():
    # 4 drafts of 0.05 and 5 tokens of the target, for 3.3616 tokens.
    assert closed_forms.operations_ratio(0.8, 4, 0.05) == pytest.approx(5.2 / 3.3616)


def test_expected_tokens_at_the_ends():
    assert closed_forms.expected_tokens(0.0, 5) == 1.0
    assert closed_forms.expected_tokens(1.0, 5) == 6.0
    assert closed_forms.expected_tokens(1 - 1e-14, 5) == pytest.approx(6.0, abs=1e-12)
    assert closed_forms.expected_tokens(0.7, 0) == 1.0


@pytest.mark.parametrize(("alpha", "gamma"), [(-0.1, 2), (1.1, 2), (0.5, -1)])
def test_what_is_no_probability_or_length_is_refused(alpha, gamma):
    with pytest.raises(ValueError, match="0 <= alpha <= 1"):
        closed_forms.expected_tokens(alpha, gamma)


@pytest.mark.parametrize(("tokens", "gamma", "alpha"), [(1.0, 3, 0.0), (4.0, 3, 1.0), (1.75, 2, 0.5)])
def test_alpha_is_found_from_tokens(tokens, gamma, alpha):
    assert closed_forms.alpha_from_tokens(tokens, gamma) == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize("gamma", [1, 2, 4, 7, 16, 64])
@pytest.mark.parametrize("alpha", [1e-9, 0.01, 0.3, 0.5, 0.7371, 0.9, 0.999, 1 - 1e-9])
def test_the_inversion_gives_back_the_alpha_of_the_geometric_sum(alpha, gamma):
    tokens = sum(alpha**power for power in range(gamma + 1))
    assert closed_forms.alpha_from_tokens(tokens, gamma) == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize(("tokens", "gamma"), [(0.9, 3), (4.1, 3), (1.0, 0)])
def test_tokens_that_no_alpha_gives_are_refused(tokens, gamma):
    with pytest.raises(ValueError, match="1 <= tokens <= gamma"):
        closed_forms.alpha_from_tokens(tokens, gamma)


# The maximum of theorem 3.8 over whole gammas, worked out apart from this code: gamma and speed-up by cost, for an
# alpha of .5, .6, .7, .8 and .9.
BEST = {
    0.01: [(5, 1.88), (7, 2.30), (9, 2.97), (14, 4.23), (24, 7.49)],
    0.02: [(4, 1.79), (6, 2.17), (8, 2.76), (11, 3.82), (19, 6.37)],
    0.05: [(3, 1.63), (4, 1.92), (6, 2.35), (8, 3.09), (13, 4.67)],
    0.10: [(2, 1.46), (3, 1.67), (4, 1.98), (6, 2.47), (10, 3.43)],
    0.20: [(1, 1.25), (2, 1.40), (3, 1.58), (4, 1.87), (7, 2.37)],
    0.30: [(1, 1.15), (1, 1.23), (2, 1.37), (3, 1.55), (5, 1.87)],
}


@pytest.mark.parametrize(
    ("alpha", "cost", "gamma", "speedup"),
    [
        (alpha, cost, *found)
        for cost, line in BEST.items()
        for alpha, found in zip([0.5, 0.6, 0.7, 0.8, 0.9], line, strict=True)
    ],
)
def test_the_best_gamma_and_its_speed_up(alpha, cost, gamma, speedup):
    assert closed_forms.best_gamma(alpha, cost) == gamma
    assert closed_forms.chain_speedup(alpha, gamma, cost) == pytest.approx(speedup, abs=0.005)


def test_a_verification_that_grows_by_the_token_makes_shorter_drafts_best():
    assert closed_forms.best_gamma(0.8, 0.05) == 8
    assert closed_forms.best_gamma(0.8, 0.05, verify_slope=0.1) == 5
    assert closed_forms.best_gamma(0.8, 0.05, verify_slope=0.1, overhead=2.5) == 0  # no draft pays for that


def test_the_acceptance_at_which_a_step_pays():
    # 1 + alpha + alpha^2 = 1.75 at one half.
    assert closed_forms.break_even_alpha(1.75, 2) == pytest.approx(0.5)
    assert closed_forms.break_even_alpha(0.9, 2) == 0.0
    assert closed_forms.break_even_alpha(3.1, 2) is None


def test_no_draft_pays_whose_cost_is_its_acceptance():
    assert closed_forms.best_gamma(0.3, 0.3) == 0
    assert closed_forms.best_gamma(0.3, 0.29) == 1


def test_a_prediction_and_its_break_even_points():
    # 3 tokens a step of 20 ms against 10 ms a token.
    assert closed_forms.predicted_speedup(3.0, 0.020, 0.010) == pytest.approx(1.5)
    assert closed_forms.break_even_tokens(0.020, 0.010) == pytest.approx(2.0)
    # The step may last 30 ms, 12 ms of it are not drafts, and there are 4 draft forwards.
    drafted = closed_forms.break_even_draft_s(3.0, 4, rest_s=0.012, reference_s_per_token=0.010)
    assert drafted == pytest.approx(0.0045)


# Goel et al. report an MBSU of 2.4 for a draft of 1.64 % of its target: that takes 2.52 tokens at gamma 3, 2.60 at 5.
@pytest.mark.parametrize(("tokens", "gamma"), [(2.52, 3), (2.60, 5)])
def test_a_memory_bound_speed_up_is_that_of_reading_weights(tokens, gamma):
    assert closed_forms.memory_bound_speedup(tokens, gamma, 0.0164) == pytest.approx(2.4, abs=0.005)


def test_a_memory_bound_speed_up_never_exceeds_the_tokens_and_a_small_draft_gains():
    assert closed_forms.memory_bound_speedup(2.3, 3, 0.0) == 2.3
    assert 1 < closed_forms.memory_bound_speedup(2.3, 3, 0.0164) < 2.3
    assert closed_forms.memory_bound_speedup(4.0, 3, 1.0) == 1.0  # the target as its own draft


def test_target_efficiency_is_one_over_what_the_verification_costs():
    assert closed_forms.target_efficiency(0.010, 0.0125) == pytest.approx(0.8)


def test_the_steps_of_a_short_text_by_hand():
    # A step keeps its one draft token or does not, at even chances.
    coin = [0.5, 0.5]
    assert closed_forms.expected_steps(coin, 1) == 1
    assert closed_forms.expected_steps(coin, 2) == pytest.approx(1.5)  # kept: done; refused: one more
    assert closed_forms.expected_steps(coin, 3) == pytest.approx(1 + 0.5 * 1.5 + 0.5 * 1)
    assert closed_forms.expected_steps([1.0], 12) == 12
    assert closed_forms.expected_steps([0.0, 0.0, 1.0], 7) == 3  # three tokens a step: the last one is cut


def test_over_a_long_text_a_step_gives_what_it_emits():
    kept = [0.2, 0.3, 0.1, 0.4]
    assert 2000 / closed_forms.expected_steps(kept, 2000) == pytest.approx(1 + 0.3 + 0.2 + 1.2, rel=2e-3)


@pytest.mark.parametrize(("kept", "tokens"), [([0.5, 0.4], 3), ([1.0], 0)])
def test_steps_of_nothing_are_refused(kept, tokens):
    with pytest.raises(ValueError, match="chances that sum to 1"):
        closed_forms.expected_steps(kept, tokens)
