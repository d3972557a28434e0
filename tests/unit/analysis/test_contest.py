"""specbench.analysis.contest"""

import pytest

from specbench.analysis.contest import Contender, acceptance_tie, latency_tie, needed_tokens


def chain(name, alpha, forward_s, gammas=range(1, 13), verify=lambda gamma: 0.010 + 0.0002 * gamma, kept=1.0):
    """A draft of one acceptance, drafting at any of the gammas."""
    return Contender(
        name,
        tokens={gamma: sum(alpha**i for i in range(gamma + 1)) for gamma in gammas},
        draft_s={gamma: gamma * forward_s for gamma in gammas},
        rest_s={gamma: verify(gamma) for gamma in gammas},
        kept=dict.fromkeys(gammas, kept),
    )


def fixed(name, tokens, gamma, forward_s, verify_s):
    return Contender(name, {gamma: tokens}, {gamma: gamma * forward_s}, {gamma: verify_s}, {})


def test_the_requirements_of_the_paper_by_hand():
    """Two drafts at gammas 4 and 5, verified in 50 ms: TAR 3 at 5 ms a forward against TAR 3.5 at 12 ms."""
    small, large = fixed("small", 3.0, 4, 0.005, 0.050), fixed("large", 3.5, 5, 0.012, 0.050)
    rival = small.best_s_per_token  # 70 ms for 3 tokens
    assert rival == pytest.approx(0.070 / 3)
    assert needed_tokens(large, 5, rival) == pytest.approx(3 * 0.110 / 0.070)
    assert latency_tie(large, rival).value == pytest.approx((3.5 / 3 * 0.070 - 0.050) / 5)
    assert acceptance_tie(large, rival).value == pytest.approx(3 * 0.110 / 0.070)


@pytest.fixture(params=[1.0, 0.97], ids=["nothing cut", "the last step cut"])
def pair(request):
    """A small draft, and a larger one that is accepted more often and loses all the same."""
    return (chain(name, *numbers, kept=request.param) for name, numbers in (("s", (0.6, 0.001)), ("l", (0.8, 0.004))))


def test_at_the_latency_of_the_tie_both_are_equally_fast_each_at_its_own_best_gamma(pair):
    small, large = pair
    tie = latency_tie(large, small.best_s_per_token)
    tied = large.with_forward_s(tie.value)
    assert tied.best_s_per_token == pytest.approx(small.best_s_per_token, rel=1e-12)
    assert tied.best_gamma == tie.gamma > large.best_gamma  # a faster draft drafts further
    assert large.with_forward_s(1.001 * tie.value).best_s_per_token > small.best_s_per_token


def test_at_the_acceptance_of_the_tie_both_are_equally_fast_each_at_its_own_best_gamma(pair):
    small, large = pair
    tie = acceptance_tie(large, small.best_s_per_token)
    tied = chain("tied", tie.alpha, 0.004, kept=large.kept[1])
    assert tied.best_s_per_token == pytest.approx(small.best_s_per_token, rel=1e-9)
    assert (tied.best_gamma, tied.tokens[tie.gamma]) == (tie.gamma, pytest.approx(tie.value, rel=1e-9))
    assert tie.alpha > 0.8


def test_the_winner_may_rise_and_fall_to_a_tie(pair):
    small, large = pair
    assert latency_tie(small, large.best_s_per_token).value > 0.001
    assert acceptance_tie(small, large.best_s_per_token).alpha < 0.6


def test_where_no_latency_and_no_acceptance_would_do_there_is_no_tie():
    hopeless = chain("h", 0.3, 0.020, gammas=[1, 2])
    assert latency_tie(hopeless, rival_s_per_token=0.005) is None
    assert acceptance_tie(hopeless, rival_s_per_token=0.005) is None


def test_a_draft_that_is_no_chain_needs_tokens_and_a_shorter_draft_phase():
    tree = Contender("t", {1: 2.0}, {1: 0.010}, {1: 0.020}, {}, is_chain=False)
    assert tree.alpha(1) is None
    assert latency_tie(tree, 0.012).value == pytest.approx(0.004)
    tie = acceptance_tie(tree, 0.012)
    assert (tie.value, tie.alpha) == (pytest.approx(2.5), None)


def test_to_draft_nothing_is_a_rival_that_cannot_change():
    nothing = Contender("autoregressive", {0: 1.0}, {0: 0.0}, {0: 0.010}, {})
    assert (nothing.best_gamma, nothing.best_s_per_token) == (0, 0.010)
    assert latency_tie(nothing, 0.008) is None
    assert acceptance_tie(nothing, 0.008) is None
