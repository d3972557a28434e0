"""specbench.analysis.replay, stop_rules: by hand, against closed forms, and against the algorithm with all its draws"""

from functools import cache
from itertools import product

import numpy as np
import pytest

from specbench.analysis.closed_forms import expected_tokens
from specbench.analysis.replay import replay
from specbench.analysis.stop_rules import Confidence, Entropy, Features, Fixed, Heuristic, Oracle, stop_rule
from specbench.analysis.traces import Provenance, Trace, TracedText
from specbench.errors import ConfigError, ResultsError

GAMMA = 4


def trace(*texts: TracedText, rule: str = "greedy", gamma: int = GAMMA) -> Trace:
    provenance = Provenance(
        target="t", target_sha="1", draft="d", draft_sha="2", tokenizer_sha="3", dataset="p", prompts_sha="4",
        dtype="float32", device="cpu", temperature=0.0 if rule == "greedy" else 0.8, top_k=None, top_p=None, rule=rule,
        proposal="argmax", seed=0, min_new_tokens=0, max_new_tokens=99, ignore_eos=False, gamma_max=gamma,
    )  # fmt: skip
    return Trace(provenance, texts, len(texts))


def text(kept, *, prompt: int = 0, confidence=None, entropy=None, output_tokens: int | None = None) -> TracedText:
    """A text whose drafts are kept with these chances (places, gamma); features say nothing unless given."""
    kept = np.asarray(kept, dtype=np.float32)
    silent = np.zeros_like(kept)
    features = Features(
        silent if confidence is None else np.asarray(confidence, dtype=np.float32),
        silent if entropy is None else np.asarray(entropy, dtype=np.float32),
    )
    return TracedText(prompt, f"p{prompt}", output_tokens or len(kept) + 1, features, kept, features, kept[:, 0])


def matched(*counts: int, prompt: int = 0, gamma: int = GAMMA, **features) -> TracedText:
    return text(np.arange(gamma) < np.array(counts)[:, None], prompt=prompt, **features)


def only(found):
    (row,) = found.rows
    return row


# --- by hand

# Ten tokens; from the places 0 to 8 so many draft tokens are the text's own.
BY_HAND = (2, 9, 0, 3, 1, 0, 4, 0, 2)


@pytest.mark.parametrize(
    ("gamma", "accepted", "overshoot"),
    [
        (0, [0] * 9, 0),
        (1, [1, 0, 1, 0, 1, 1], 1),  # places 0, 2, 3, 5, 6, 8
        (2, [2, 2, 2], 0),  # 0, 3, 6
        (4, [2, 3, 0, 2], 2),  # 0, 3, 7, 8
    ],
)
def test_a_walk_by_hand(gamma, accepted, overshoot):
    row = only(replay(trace(matched(*BY_HAND)), Fixed(gamma)))
    assert row.accepted_per_step == accepted
    assert row.drafted_per_step == [gamma] * len(accepted)
    assert (row.steps, row.tokens, row.overshoot_tokens) == (len(accepted), 9, overshoot)


def test_the_figures_of_a_walk_by_hand():
    found = replay(trace(matched(*BY_HAND)), Fixed(4))
    assert found.block_efficiency == 9 / 4
    assert found.block_efficiency_uncut == (2 + 3 + 0 + 2) / 4 + 1
    assert found.acceptance_rate == 7 / 16
    assert found.drafted_per_step == 4
    assert found.interval is None  # one prompt


def test_the_oracle_takes_the_steps_of_the_longest_draft_and_drafts_nothing_in_vain():
    walked, oracle = (only(replay(trace(matched(*BY_HAND)), kind(4))) for kind in (Fixed, Oracle))
    assert oracle.accepted_per_step == walked.accepted_per_step == oracle.drafted_per_step
    assert replay(trace(matched(*BY_HAND)), Oracle(4)).acceptance_rate == 1


def test_the_heuristic_by_hand():
    """From 2: a whole draft of 2, then 4 of which 3 are kept, then 3 and nothing, then 2 and whole once more."""
    row = only(replay(trace(matched(*BY_HAND)), Heuristic(4, 2)))
    assert row.drafted_per_step == [2, 4, 3, 2]
    assert row.accepted_per_step == [2, 3, 0, 2]


def test_the_heuristic_stays_between_one_and_gamma():
    whole = only(replay(trace(matched(*[4] * 30)), Heuristic(4, 3)))
    assert whole.drafted_per_step == [3, 4, 4, 4, 4, 4, 4]
    assert only(replay(trace(matched(*[0] * 5)), Heuristic(4, 3))).drafted_per_step == [3, 2, 1, 1, 1]
    assert only(replay(trace(matched(*[0] * 2)), Heuristic(4, 9))).drafted_per_step == [4, 3]


CONFIDENCE = [[0.9, 0.5, 0.3, 0.9]] * 9


@pytest.mark.parametrize(("threshold", "drafted"), [(0.0, 4), (0.3, 4), (0.4, 3), (0.5, 3), (0.6, 2), (0.95, 1)])
def test_a_confidence_stop_keeps_the_token_that_ends_the_draft(threshold, drafted):
    row = only(replay(trace(matched(*BY_HAND, confidence=CONFIDENCE)), Confidence(4, threshold)))
    assert set(row.drafted_per_step) == {drafted}
    expected = only(replay(trace(matched(*BY_HAND)), Fixed(drafted)))
    assert row.accepted_per_step == expected.accepted_per_step


@pytest.mark.parametrize(
    ("bound", "drafted"),
    # 1 - sqrt(.2 H) of these entropies is .8, .6 and .3.
    [(0.85, 1), (0.75, 2), (0.55, 3), (0.25, 4)],
)
def test_an_entropy_stop_follows_its_bound(bound, drafted):
    entropy = [[0.2, 0.8, 2.45, 0.0]] * 9
    row = only(replay(trace(matched(*BY_HAND, entropy=entropy)), Entropy(4, bound)))
    assert set(row.drafted_per_step) == {drafted}


def test_a_rule_of_ones_own_needs_four_names():
    class EverySecondPlace:
        gamma, label = 4, "every second step"

        def start(self):
            return 0

        def goes_on(self, memory, features):
            return np.full(features.confidence.shape, memory % 2 == 0)

        def learn(self, memory, accepted, *, whole):
            return memory + 1

    row = only(replay(trace(matched(*BY_HAND)), EverySecondPlace()))
    assert row.drafted_per_step == [4, 1, 4, 1, 4]
    assert row.accepted_per_step == [2, 1, 0, 1, 2]


def test_a_rule_that_never_forgets_has_no_expectation():
    class Counts(Fixed):
        def learn(self, memory, accepted, *, whole):
            return (memory, accepted)

    with pytest.raises(ResultsError, match="remembers too much"):
        replay(trace(text(np.full((60, 4), 0.5)), rule="rejection"), Counts(4))
    assert replay(trace(matched(*BY_HAND)), Counts(4)).steps == 4  # one way through leaves one memory a step


def test_a_replay_cannot_draft_beyond_the_trace():
    with pytest.raises(ResultsError, match="holds drafts of 4 tokens; record it with gamma 5"):
        replay(trace(matched(*BY_HAND)), Fixed(5))


def test_a_text_of_one_token_takes_no_step():
    short = text(np.empty((0, GAMMA)))
    found = replay(trace(short, matched(1, 0, prompt=1)), Fixed(2))
    assert [row.steps for row in found.rows] == [0, 1]
    assert found.rows[0].accepted_per_step == []
    assert replay(trace(short), Fixed(2)).block_efficiency is None


# --- batches


def test_the_slowest_row_of_a_batch_decides():
    """Rows of 1, 3 and 2 steps with gamma 1; the last batch is partial."""
    rows = [matched(1, 1, prompt=0), matched(0, 0, 0, prompt=1), matched(1, 0, 0, prompt=2)]
    found = replay(trace(*rows), Fixed(1))
    assert [row.steps for row in found.rows] == [1, 3, 2]
    assert [(batch.prompts, batch.steps, batch.tokens) for batch in found.batches(2)] == [((0, 1), 3, 5), ((2,), 2, 3)]
    assert [batch.draft_forwards for batch in found.batches(2)] == [3, 2]
    assert found.batch_efficiency(2) == (5 + 3) / (3 * 2 + 2)
    assert found.batch_efficiency(1) == found.block_efficiency


def test_a_step_of_a_batch_is_as_wide_as_its_longest_draft():
    shy, bold = [[0.1] * 4] * 4, [[0.9, 0.9, 0.1, 0.1]] * 2
    rows = [matched(0, 0, 0, 0, confidence=shy), matched(1, 1, prompt=1, confidence=bold)]
    (batch,) = replay(trace(*rows), Confidence(4, 0.5)).batches(2)
    assert batch.steps_by_width.tolist() == [0, 3, 0, 1, 0]  # the bold row ends with its first step, of three tokens
    assert (batch.steps, batch.draft_forwards) == (4, 3 + 3)


def test_the_expected_steps_of_a_batch_are_those_of_the_slowest_row():
    """Two places and gamma 1, kept by even chance: one step or two, so the slower of two rows takes 1.75."""
    rows = [text([[0.5]] * 2, prompt=index) for index in range(2)]
    found = replay(trace(*rows, rule="rejection", gamma=1), Fixed(1))
    assert [row.steps for row in found.rows] == [1.5, 1.5]
    assert found.batches(2)[0].steps == pytest.approx(1.75)


# --- expectations


@pytest.mark.parametrize("gamma", [0, 1, 3, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_where_all_tokens_are_alike_tokens_per_step_follow_the_closed_form(alpha, gamma):
    found = replay(trace(text(np.full((40, 8), alpha)), rule="rejection", gamma=8), Fixed(gamma))
    assert found.block_efficiency_uncut == pytest.approx(expected_tokens(alpha, gamma), rel=1e-6)


def test_the_interval_is_that_of_a_ratio_of_totals_over_prompts():
    rows = [matched(*counts, prompt=index) for index, counts in enumerate(([1, 0], [0, 0, 0], [1, 1, 0, 0], [0]))]
    found = replay(trace(*rows), Fixed(1))
    ratios = []  # the jackknife's, written out
    for left_out in range(4):
        kept = [row for index, row in enumerate(found.rows) if index != left_out]
        ratios.append(np.log(sum(row.tokens for row in kept) / sum(row.steps for row in kept)))
    spread = np.sqrt(3 / 4 * ((ratios - np.mean(ratios)) ** 2).sum())
    assert np.log(found.interval.high / found.block_efficiency) == pytest.approx(3.1824 * spread, rel=1e-4)


class Toy:
    """Target and draft over three tokens, each context with a distribution of its own; token 2 ends a text."""

    places, end = 3, 2

    @cache  # noqa: B019  (three toys, as long as the tests)
    def laws(self, context: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """p and q after a context."""
        generator = np.random.default_rng([7, *context])
        return tuple(generator.dirichlet([0.8] * 3) for _ in range(2))

    def has_ended(self, emitted: tuple[int, ...]) -> bool:
        return self.end in emitted or len(emitted) >= self.places

    # --- the algorithm of Leviathan et al., every draw and every decision of it

    @cache  # noqa: B019
    def run(self, rule, emitted: tuple[int, ...], memory) -> np.ndarray:
        """Expected steps, accepted and drafted tokens from a context on."""
        if self.has_ended(emitted):
            return np.zeros(3)
        total = np.array([1.0, 0.0, 0.0])
        for draft, chance in self.drafts(rule, memory, emitted):
            total[2] += chance * len(draft)
            for accepted, token, probability in self.decisions(emitted, draft):
                total[1] += chance * probability * accepted
                following = rule.learn(memory, accepted, whole=accepted == len(draft))
                then = self.run(rule, (*emitted, *draft[:accepted], token), following)
                total = total + chance * probability * then
        return total

    def drafts(self, rule, memory, emitted, draft=(), chance=1.0):
        """All drafts from a context, with their chances."""
        if len(draft) == rule.gamma or (draft and not self.goes_on(rule, memory, emitted, draft)):
            yield draft, chance
            return
        for token, share in enumerate(self.laws((*emitted, *draft))[1]):
            yield from self.drafts(rule, memory, emitted, (*draft, token), chance * share)

    def goes_on(self, rule, memory, emitted, draft) -> bool:
        context = (*emitted, *draft)
        features = Features(*(np.array([values], dtype=np.float32) for values in self.features(context, len(emitted))))
        return bool(rule.goes_on(memory, features)[0, -1])

    def features(self, context, first):
        """Confidence and entropy of the tokens of a context from one on."""
        laws = [self.laws(context[:index])[1] for index in range(first, len(context))]
        confidence = [law[token] for law, token in zip(laws, context[first:], strict=True)]
        return confidence, [float(-(law * np.log(law)).sum()) for law in laws]

    def decisions(self, emitted, draft):
        """All outcomes of the acceptance test: tokens accepted, the target's own token, the chance."""
        reached = 1.0
        for accepted in range(len(draft) + 1):
            p, q = self.laws((*emitted, *draft[:accepted]))
            if accepted == len(draft):
                own = p
            else:
                take = min(1.0, p[draft[accepted]] / q[draft[accepted]])
                own = np.maximum(p - q, 0) * (1 - take) / max(np.maximum(p - q, 0).sum(), 1e-300)
            for token, share in enumerate(own):
                if share:
                    yield accepted, token, reached * share
            if accepted < len(draft):
                reached *= take

    # --- and its trace

    def traced(self, gamma: int):
        """All texts with the tokens beyond their ends, and their chances."""
        for whole in product(range(3), repeat=self.places + gamma - 1):
            chance = np.prod([self.laws(whole[:index])[0][token] for index, token in enumerate(whole)])
            length = whole.index(self.end) + 1 if self.end in whole[: self.places] else self.places
            acceptance = []
            for index, token in enumerate(whole):
                p, q = self.laws(whole[:index])
                acceptance.append(min(1.0, q[token] / p[token]))
            features = self.features(whole, 0)
            windows = [
                np.lib.stride_tricks.sliding_window_view(np.array(values), gamma)[:length]
                for values in (acceptance, *features)
            ]
            drawn = Features(np.zeros((length, gamma)), np.zeros((length, gamma)))
            yield TracedText(0, "p", length + 1, drawn, windows[0], Features(*windows[1:]), windows[0][:, 0]), chance


@pytest.mark.parametrize(
    "rule",
    [Fixed(1), Fixed(3), Heuristic(3, 1), Heuristic(3, 2), Confidence(3, 0.3), Entropy(3, 0.6)],
    ids=lambda rule: rule.label,
)
def test_the_expectation_is_that_of_the_algorithm_with_all_its_draws(rule):
    """Steps and accepted tokens; drafted ones where a draft's length does not hang on what was drawn."""
    toy = Toy()
    steps, accepted, drafted = toy.run(rule, (), rule.start())
    found, total = np.zeros(3), 0.0
    for traced, chance in toy.traced(rule.gamma):
        row = only(replay(trace(traced, rule="rejection", gamma=rule.gamma), rule))
        found += chance * np.array([row.steps, row.accepted_tokens, row.drafted_tokens])
        total += chance
    assert total == pytest.approx(1)
    assert found[:2] == pytest.approx([steps, accepted], rel=1e-9)
    assert 1 < steps < 3
    if isinstance(rule, Heuristic) or type(rule) is Fixed:
        assert found[2] == pytest.approx(drafted, rel=1e-9)


def test_steps_that_took_the_text_for_given_and_chances_from_elsewhere_would_be_wrong():
    """Why chances are those of the text's own tokens: with the mean over all tokens, sum min(p, q), the walk is off."""
    toy, rule = Toy(), Fixed(3)
    steps, _, _ = toy.run(rule, (), rule.start())
    naive = 0.0
    for whole in product(range(3), repeat=toy.places + 2):
        chance = np.prod([toy.laws(whole[:index])[0][token] for index, token in enumerate(whole)])
        length = whole.index(2) + 1 if 2 in whole[:3] else 3
        overlaps = np.array([np.minimum(*toy.laws(whole[:index])).sum() for index in range(len(whole))])
        kept = np.lib.stride_tricks.sliding_window_view(overlaps, 3)[:length]
        naive += chance * replay(trace(text(kept), rule="rejection", gamma=3), rule).steps
    assert abs(naive - steps) > 0.005


# --- the options of the method


def test_stop_rules_follow_from_the_options_of_draft_model():
    assert stop_rule({"gamma": 3}) == Fixed(3)
    assert stop_rule({"gamma": 3, "stop": {"kind": "heuristic", "start": 7, "threshold": 0.4}}) == Heuristic(3, 7)
    assert stop_rule({"gamma": 3, "stop": {"kind": "confidence", "threshold": 0.25}}) == Confidence(3, 0.25)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"gamma": 3, "stop": {"kind": "lucky"}}, "no stop rule 'lucky'"), ({"gamma": 3, "tree": {}}, "draft a tree")],
)
def test_other_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        stop_rule(options)
