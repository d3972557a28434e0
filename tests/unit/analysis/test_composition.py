"""specbench.analysis.composition"""

import math

import numpy as np
import pandas as pd
import pytest

from specbench.analysis.choosing import Choosing
from specbench.analysis.composition import Estimate, Setting, compose, independent, together
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.replay import Replay, RowReplay
from specbench.errors import ResultsError

FORWARD_MS = {("target", 1): 10.0, ("target", 2): 10.5, ("target", 4): 11.0, ("draft", 1): 1.0, ("draft", 2): 1.2}


DRAWN = Choosing(0.8, "rejection", "sample")
CHOICE_MS = {("draw", "draft", 1): 0.3, ("accept", "target", 1): 0.6, ("accept", "target", 2): 0.9,
             ("accept", "target", 4): 1.1}  # fmt: skip


def chosen(half_width=0.02, **changed):
    rows = [
        {"run_id": "r", "model": model, "kind": kind, "mode": "eager", "query_tokens": query, "batch_size": batch,
         "temperature": 0.8, "rule": "rejection", "proposal": "sample", "top_k": None, "top_p": None,
         "choice_s": batch * ms / 1000, "choice_low_s": (1 - half_width) * batch * ms / 1000,
         "choice_high_s": (1 + half_width) * batch * ms / 1000, "status": "ok", "reason": None,
         "device": "cpu", "dtype": "float32", "threads": 1, "attention": "sdpa", "burst": 4}
        for (kind, model, query), ms in CHOICE_MS.items() for batch in (1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changed)


def table(half_width=0.02, chosen=None, **changed):
    rows = [
        {"run_id": "r", "point_id": f"{model} {query} {batch} {context}", "model": model, "mode": "eager",
         "query_tokens": query, "batch_size": batch, "context_tokens": context, "status": "ok", "reason": None,
         "forward_s": ms / 1000, "forward_low_s": (1 - half_width) * ms / 1000,
         "forward_high_s": (1 + half_width) * ms / 1000,
         "device": "cpu", "dtype": "float32", "threads": 1, "attention": "sdpa", "burst": 4, "parameters": 1}
        for (model, query), ms in FORWARD_MS.items() for batch in (1, 2) for context in (64, 192)
    ]  # fmt: skip
    return LatencyTable(pd.DataFrame(rows).assign(**changed), chosen)


def setting(batch_size=1, context_tokens=100, half_width=0.02, chosen=None, **changed):
    step = Estimate(0.0108, 0.0001)
    forwards = table(half_width, chosen)
    return Setting(forwards, "target", "draft", batch_size, context_tokens, step, **{"how": DRAWN} | changed)


def row(prompt, accepted, gamma=3, tokens=None):
    """A text whose steps kept so many of gamma draft tokens, the last one cut where the tokens say so."""
    steps = np.zeros((len(accepted), gamma + 1))
    steps[np.arange(len(accepted)), accepted] = 1
    drafted = np.zeros_like(steps)
    drafted[:, gamma] = 1
    return RowReplay(prompt, tokens or sum(accepted) + len(accepted), steps, drafted)


def walked(*rows, gamma=3):
    return Replay(f"gamma {gamma}", gamma, rows)


def test_a_step_is_its_forwards_and_the_autoregressive_arms_host_time():
    found = compose(walked(row(0, [3, 1, 0, 2])), setting())
    assert found.draft_s.value == pytest.approx(0.0012 + 2 * 0.0010)  # the first reads two tokens
    assert found.verify_s.value == pytest.approx(0.011)
    assert found.host_s.value == pytest.approx(0.0008)
    assert found.tokens_per_s == pytest.approx(10 / 4 / 0.015)
    assert found.latency_mode == "composed"


def test_a_batch_waits_for_its_slowest_row_and_a_partial_one_is_left_out():
    rows = [row(0, [3, 3]), row(1, [0, 1, 1, 0]), row(2, [3])]
    found = compose(walked(*rows), setting(batch_size=2))
    assert found.tokens_per_step.value == pytest.approx((8 + 6) / 4)


def test_drafts_that_end_early_cost_what_they_are_long():
    drafted = np.zeros((2, 4))
    drafted[0, 1] = drafted[1, 3] = 1
    found = compose(walked(RowReplay(0, 4, drafted, drafted)), setting())
    assert found.draft_s.value == pytest.approx(((0.0012) + (0.0012 + 2 * 0.0010)) / 2)
    assert found.verify_s.value == pytest.approx((0.0105 + 0.011) / 2)


@pytest.mark.parametrize("latency_ms", [0.0, 0.5, 5.0])
def test_a_draft_latency_replaces_the_tables_also_below_it(latency_ms):
    found = compose(walked(row(0, [3, 1, 0, 2])), setting(), latency_ms)
    assert found.draft_s == Estimate(pytest.approx(3 * latency_ms / 1000), 0.0)
    assert found.tokens_per_s == pytest.approx(2.5 / (0.0118 + 3 * latency_ms / 1000))


def test_to_draft_nothing_is_the_autoregressive_arm_again():
    found = compose(walked(row(0, [0] * 9, gamma=0), gamma=0), setting())
    assert found.tokens_per_s == pytest.approx(1 / 0.0108)


def test_the_interval_covers_what_comes_of_uncertain_parts():
    """Acceptance and times are drawn again and again; 95 % of what is composed of them lies in the interval."""
    rng = np.random.default_rng(3)
    rows = [row(prompt, rng.binomial(3, 0.5, size=20).tolist()) for prompt in range(12)]
    found = compose(walked(*rows), setting(half_width=0.1))
    widths = [found.tokens_per_step, found.draft_s, found.verify_s, found.host_s]
    draws = [part.value + part.half_width / 1.96 * rng.standard_normal(20_000) for part in widths]
    rates = draws[0] / (draws[1] + draws[2] + draws[3])
    low, high = found.interval
    assert ((low < rates) & (rates < high)).mean() == pytest.approx(0.95, abs=0.01)


def test_without_intervals_of_all_parts_there_is_none():
    texts = [row(prompt, [prompt % 4, 1]) for prompt in range(6)]
    assert compose(walked(*texts), setting()).interval is not None
    assert compose(walked(*texts), setting(half_width=math.nan)).interval is None
    assert compose(walked(*texts[:3]), setting()).interval is None  # three prompts tell no spread


# --- choosing tokens


def test_a_step_draws_every_draft_token_and_accepts_more_than_the_autoregressive_arm_does():
    found = compose(walked(row(0, [3, 1, 0, 2])), setting(chosen=chosen()))
    assert found.lacks is None
    assert found.draft_s.value == pytest.approx(0.0032 + 3 * 0.0003)
    assert found.verify_s.value == pytest.approx(0.011)
    assert found.host_s.value == pytest.approx(0.0008 + 0.0011 - 0.0006)
    # Three draws, all wrong in one direction; accepting with a draft and without one, likewise; then the host's.
    assert found.draft_s.half_width == pytest.approx(0.02 * (0.0032 + 0.0009))
    assert found.host_s.half_width == pytest.approx(math.hypot(0.0001, 0.02 * 0.010, 0.02 * 0.0017))


def test_a_draft_that_ends_early_is_drawn_and_accepted_as_long_as_it_is():
    """Half of the steps draft one token, half of them three; accepting three nodes lies half way to four."""
    drafted = np.zeros((2, 4))
    drafted[0, 1] = drafted[1, 3] = 1
    without, found = (compose(walked(RowReplay(0, 4, drafted, drafted)), setting(chosen=rows))
                      for rows in (None, chosen()))  # fmt: skip
    assert found.draft_s.value - without.draft_s.value == pytest.approx(2 * 0.0003)
    assert found.host_s.value - without.host_s.value == pytest.approx((0.0009 + 0.0011) / 2 - 0.0006)


def test_a_step_that_drafts_nothing_chooses_as_the_autoregressive_arm_does():
    found = compose(walked(row(0, [0] * 9, gamma=0), gamma=0), setting(chosen=chosen()))
    assert found.tokens_per_s == pytest.approx(1 / 0.0108)
    assert found.lacks is None


def test_draws_are_taken_between_forwards_whose_latency_is_kept():
    found = compose(walked(row(0, [3, 1, 0, 2])), setting(chosen=chosen()), 5.0)
    assert found.draft_s.value == pytest.approx(0.015 + 3 * 0.0003)


def test_choices_of_a_batch_are_those_of_its_size_and_go_at_its_pace():
    rows = [row(0, [3, 3]), row(1, [0, 1, 1, 0])]
    found = compose(walked(*rows), setting(batch_size=2, chosen=chosen(), pace=2.0))
    assert found.draft_s.value == pytest.approx(2 * (0.0032 + 3 * 2 * 0.0003))


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (None, {}, "this table holds forwards alone, and no time of choosing tokens"),
        (chosen(dtype="bfloat16"), {}, "this table holds forwards alone, and no time of choosing tokens"),
        (
            chosen(),
            {"how": Choosing(0.8, "match", "sample", top_k=50)},
            "no time of drawing a draft token from draft, eager, T = 0.8, match, drafts drawn, top_k 50 in this table",
        ),
        (
            chosen(status="oom", reason="full"),
            {},
            "no time of drawing a draft token from draft, eager, T = 0.8, rejection, drafts drawn in this table "
            "(oom: full)",
        ),
        (
            chosen()[lambda rows: rows["query_tokens"] < 4],
            {},
            "accept, target, eager, T = 0.8, rejection, drafts drawn: query_tokens 4 lies outside of what was "
            "measured, 1 to 2",
        ),
    ],
    ids=["an old table", "another dtype", "another rule", "a failure", "too few nodes"],
)
def test_what_a_table_lacks_is_said_and_left_out(rows, changed, words):
    found = compose(walked(row(0, [3, 1, 0, 2])), setting(chosen=rows, **changed))
    assert found.lacks == words
    assert (found.draft_s.value, found.host_s.value) == (pytest.approx(0.0032), pytest.approx(0.0008))


def test_at_temperature_zero_nothing_but_that_says_how_tokens_are_chosen():
    assert Choosing.of(0.0, "match", "sample", 50, 0.9) == Choosing(0.0, "greedy", "argmax")
    assert Choosing.of(0.8, "match", "argmax", 50, 0.9).words == "T = 0.8, match, drafts by argmax, top_k 50, top_p 0.9"


def test_an_arm_takes_the_times_of_its_own_execution():
    both = table(chosen=pd.concat([chosen(), chosen(mode="graphs").assign(choice_s=0.0001)]))
    both = LatencyTable(pd.concat([both.rows, both.rows.assign(mode="graphs", forward_s=0.002)]), both._chosen)
    own = Setting(both, "target", "draft", 1, 100, Estimate(0.003, None), DRAWN, "graphs")
    found = compose(walked(row(0, [3, 1, 0, 2])), own)
    assert (found.draft_s.value, found.verify_s.value) == (pytest.approx(0.0063), pytest.approx(0.002))
    assert found.host_s.value == pytest.approx(0.001)
    with pytest.raises(ResultsError, match="no latency of draft in mode 'compiled' in this table"):
        compose(walked(row(0, [3, 1, 0, 2])), setting(chosen=chosen(), mode="compiled"))


def test_errors_of_one_kind_add_and_those_of_two_do_so_as_squares():
    parts = [Estimate(5.0, 3.0), Estimate(1.0, 4.0)]
    assert together(parts) == Estimate(6.0, 7.0)
    assert independent(parts) == Estimate(6.0, 5.0)
    assert independent(parts, signs=[1, -1]) == Estimate(4.0, 5.0)


def test_a_gamma_that_the_table_does_not_reach_is_one_clear_line():
    with pytest.raises(ResultsError, match="query_tokens 6 lies outside of what was measured, 1 to 4"):
        compose(walked(row(0, [2, 5], gamma=5), gamma=5), setting())
    with pytest.raises(ResultsError, match="context_tokens 500 lies outside"):
        compose(walked(row(0, [2, 1])), setting(context_tokens=500))
