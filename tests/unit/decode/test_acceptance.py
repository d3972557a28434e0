"""specbench.decode.acceptance: each rule against a plain sequential program, and the synthetic rule's prescriptions."""

from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from torch import Tensor

from specbench.decode import acceptance
from specbench.decode.acceptance import (
    Decision,
    Greedy,
    Match,
    RedrafterPaper,
    Rejection,
    Rule,
    Synthetic,
    Typical,
    Verification,
    rule_for,
)
from specbench.decode.sampling import Sampler, Stream
from specbench.decode.tree import Layout, lay_out, lay_out_chain, sibling_ranks
from specbench.errors import ConfigError, ContractError
from support import sequential, trees

VOCAB = 6


def _sampler(batch: int, temperature: float, seed: int) -> Sampler:
    return Sampler(
        temperature=temperature,
        top_k=None,
        top_p=None,
        min_new_tokens=0,
        eos_ids=torch.tensor([], dtype=torch.int64),
        vocab_size=VOCAB,
        seed=seed,
        keys=torch.arange(batch, dtype=torch.int32) + 1000,
        prompt_lengths=torch.full((batch,), 3),
        needs_draft_probs=True,
    )


def _step(
    layout: Layout, tokens: Tensor, logits: Tensor, seed: int, temperature: float = 1.0, **extra: object
) -> Verification:
    batch = len(tokens)
    lengths = torch.arange(batch) + 4
    usual = {"proposal": "point", "draft_probs": None, "draft_rows": None}
    return Verification(
        layout=layout,
        tokens=tokens,
        logits=logits,
        positions=lengths[:, None] + layout.depth + 1,
        sampler=_sampler(batch, temperature, seed),
        steps=torch.zeros(batch, dtype=torch.int64),
        **{**usual, "max_depth": int(layout.depth.max()), "max_children": 99, **extra},
    )


def _random_step(
    seed: int, proposal: str, *, chain: bool = False, pad: float = 0.0
) -> tuple[list[list[int]], Verification]:
    """Eight trees of 12 nodes, whose siblings are drawn from a known q, node by node."""
    generator = torch.Generator().manual_seed(seed)
    batch, nodes, depth = 8, 12, 12 if chain else 4
    logits = torch.randn(batch, nodes + 1, VOCAB, generator=generator)
    q = (logits + torch.randn(batch, nodes + 1, VOCAB, generator=generator)).softmax(-1)
    if chain:
        stops = torch.randint(0, nodes + 1, (batch,), generator=generator)
        drafted = torch.arange(nodes) < stops[:, None]
        rows = [[i - 1 if i < stop else -2 for i in range(nodes)] for stop in stops.tolist()]
        layout = lay_out_chain(nodes, drafted, batch, torch.device("cpu"))
    else:
        rows = trees.random_parents(batch, nodes, generator, max_depth=depth, pad=pad, max_children=3)
        layout = lay_out(torch.tensor(rows), depth)
    tokens = torch.randint(0, VOCAB, (batch, nodes + 1), generator=generator)
    for row, parents in enumerate(rows):
        for above in range(-1, nodes):
            left = q[row, above + 1].clone()
            for node in (i for i in range(nodes) if parents[i] == above and trees.path(parents, i) is not None):
                tokens[row, node + 1] = torch.multinomial(left, 1, generator=generator)[0]
                if proposal == "without_replacement":
                    left[tokens[row, node + 1]] = 0
    probs = None if proposal == "point" else q
    return rows, _step(
        layout, tokens, logits, seed, proposal=proposal, draft_probs=probs, max_depth=depth, max_children=3
    )


# ---- greedy, match and point proposals -------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0.0, 0.3])
@pytest.mark.parametrize(
    ("rule", "stream"), [(Greedy(), None), (Match(), Stream.TARGET), (Rejection(), Stream.RESIDUAL)]
)
@pytest.mark.parametrize("seed", range(6))
def test_following_the_targets_choice_equals_a_walk_down_the_tree(rule, stream, seed, pad):
    rows, step = _random_step(seed, "point", pad=pad)
    if stream is None:
        step = replace(step, sampler=replace(step.sampler, temperature=0.0))
        chosen = step.logits.argmax(-1)
    else:
        chosen = (step.logits.log_softmax(-1) + step.sampler.noise(step.positions, stream)).argmax(-1)
    # Let half of the drafts agree with the target, so that long paths occur, and make some nodes probes.
    generator = torch.Generator().manual_seed(seed)
    agree = torch.rand(step.tokens.shape, generator=generator) < 0.6
    tokens = torch.where(agree, chosen.gather(1, step.layout.parent), step.tokens)
    probe = torch.rand(len(rows), 12, generator=generator) < 0.15
    step = replace(step, tokens=tokens, layout=lay_out(torch.tensor(rows), 4, probe))
    decision = rule.decide(step)
    depths = set()
    for row, parents in enumerate(rows):
        best, depth = sequential.follow(parents, probe[row].tolist(), tokens[row].tolist(), chosen[row].tolist())
        assert int(decision.best[row]) == min(best)
        assert int(decision.target_token[row]) == int(chosen[row, decision.best[row]])
        depths.add(depth)
    assert len(depths) > 1


def test_a_match_after_the_first_mismatch_does_not_count():
    layout = lay_out_chain(4, None, 1, torch.device("cpu"))
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 4, 5]]), VOCAB).float()
    step = _step(layout, torch.tensor([[0, 1, 2, 0, 4]]), logits, 0, temperature=0.0)
    decision = Greedy().decide(step)
    assert (decision.best.item(), decision.target_token.item()) == (2, 3)


def test_rejection_at_temperature_zero_is_greedy():
    _, step = _random_step(1, "iid")
    step = replace(step, sampler=replace(step.sampler, temperature=0.0))
    greedy, rejection = Greedy().decide(step), Rejection().decide(step)
    assert torch.equal(greedy.best, rejection.best)
    assert torch.equal(greedy.target_token, rejection.target_token)


# ---- rejection -------------------------------------------------------------------------------------------------------


def _assert_equals_sequential(
    rows: list[list[int]], step: Verification, draft_rows: list[list[int]] | None = None
) -> int:
    decision = Rejection().decide(step)
    target = step.logits.double().softmax(-1)
    longest = 0
    for row, parents in enumerate(rows):
        end, weights = sequential.reject(parents, step, row, target[row], draft_rows[row] if draft_rows else None)
        assert int(decision.best[row]) == end
        assert int(decision.target_token[row]) == sequential.gumbel_choice(step, row, weights, end)
        longest = max(longest, len(trees.path_nodes(parents, end)) - 1)
    return longest


@pytest.mark.parametrize("seed", range(10))
def test_rejection_along_a_chain_equals_the_sequential_program(seed: int):
    rows, step = _random_step(seed, "iid", chain=True)
    _assert_equals_sequential(rows, step)


@pytest.mark.parametrize("pad", [0.0, 0.3])
@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
@pytest.mark.parametrize("seed", range(10))
def test_rejection_along_a_tree_equals_the_sequential_program(seed: int, proposal: str, pad: float):
    rows, step = _random_step(seed, proposal, pad=pad)
    _assert_equals_sequential(rows, step)


def test_rejections_of_many_steps_reach_every_depth():
    deepest = [_assert_equals_sequential(*_random_step(seed, "iid")) for seed in range(10)]
    assert max(deepest) >= 3


def test_a_chain_laid_out_as_a_tree_decides_the_same():
    for seed in range(10):
        rows, step = _random_step(seed, "iid", chain=True)
        tree = replace(step, layout=lay_out(torch.tensor(rows), 12), max_children=1)
        one, other = Rejection().decide(step), Rejection().decide(tree)
        assert torch.equal(one.best, other.best)
        assert torch.equal(one.target_token, other.target_token)


@pytest.mark.parametrize("chain", [False, True], ids=["tree", "chain"])
def test_draft_rows_say_which_distribution_belongs_to_which_node(chain: bool):
    """The same q, its rows stored in another order."""
    for seed in range(6):
        rows, step = _random_step(seed, "iid", chain=chain)
        order = torch.stack([torch.randperm(13, generator=torch.Generator().manual_seed(row)) for row in range(8)])
        stored = torch.empty_like(step.draft_probs)
        stored[torch.arange(8)[:, None], order] = step.draft_probs
        shuffled = replace(step, draft_probs=stored, draft_rows=order)
        one, other = Rejection().decide(step), Rejection().decide(shuffled)
        assert torch.equal(one.best, other.best)
        assert torch.equal(one.target_token, other.target_token)
        _assert_equals_sequential(rows, shuffled, order.tolist())


def test_a_draft_equal_to_the_target_is_never_refused():
    for chain in (True, False):
        rows, step = _random_step(3, "iid", chain=chain)
        decision = Rejection().decide(replace(step, draft_probs=step.logits.softmax(-1)))
        for row, parents in enumerate(rows):
            assert int(decision.best[row]) in {0, *range(1, 13)}
            assert not any(
                above == int(decision.best[row]) - 1 and trees.path(parents, i) for i, above in enumerate(parents)
            )


def test_siblings_that_the_draft_could_not_draw_are_passed_over():
    """q = (0, 0, 1/2, 1/2), p = (1/2, 1/2, 0, 0), three children without replacement: the third is nobody's draw."""
    batch = 4000
    layout = lay_out(torch.tensor([[-1, -1, -1]]).expand(batch, -1), 1)
    tokens = torch.tensor([[5, 2, 3, 0]]).expand(batch, -1)
    logits = torch.full((batch, 4, VOCAB), -torch.inf)
    logits[..., :2] = 0
    q = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0, 0.0]).expand(batch, 1, -1)
    step = _step(layout, tokens, logits, 0, proposal="without_replacement", draft_probs=q, max_depth=1, max_children=3)
    decision = Rejection().decide(step)
    assert decision.best.tolist() == [0] * batch
    assert 1850 < int((decision.target_token == 0).sum()) < 2150


# ---- typical acceptance ----------------------------------------------------------------------------------------------


def _with_probes(rows: list[list[int]], step: Verification, seed: int) -> tuple[list[list[bool]], Verification]:
    probe = torch.rand(len(rows), 12, generator=torch.Generator().manual_seed(seed)) < 0.15
    return probe.tolist(), replace(step, layout=lay_out(torch.tensor(rows), 4, probe))


def _assert_ends_as(decision: Decision, step: Verification, row: int, expected: tuple[int, Tensor]) -> int:
    """The same path, and the token that the core's noise draws from those weights; returns the path's length."""
    end, weights = expected
    assert int(decision.best[row]) == end
    assert int(decision.target_token[row]) == sequential.gumbel_choice(step, row, weights, end)
    return int(step.layout.depth[row, end])


@pytest.mark.parametrize("pad", [0.0, 0.3])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.09, 0.3), (0.3, 0.8), (0.02, 5.0)])
def test_typical_acceptance_equals_the_sequential_program(epsilon: float, delta: float, pad: float):
    lengths: list[int] = []
    for seed in range(8):
        rows, step = _random_step(seed, "point", pad=pad)
        probe, step = _with_probes(rows, step, seed)
        decision, target = Typical(epsilon, delta).decide(step), step.logits.double().softmax(-1)
        for row, parents in enumerate(rows):
            expected = sequential.typical(parents, probe[row], step, row, target[row], epsilon, delta)
            lengths.append(_assert_ends_as(decision, step, row, expected))
    assert set(lengths) >= {1, 2, 3}


@pytest.mark.parametrize("seed", range(6))
def test_typical_acceptance_along_a_chain_equals_the_sequential_program(seed: int):
    rows, step = _random_step(seed, "point", chain=True)
    decision, target = Typical(0.3, 0.6).decide(step), step.logits.double().softmax(-1)
    for row, parents in enumerate(rows):
        expected = sequential.typical(parents, [False] * 12, step, row, target[row], 0.3, 0.6)
        _assert_ends_as(decision, step, row, expected)


@pytest.mark.parametrize(
    ("epsilon", "delta", "accepted"),
    [
        pytest.param(0.2, 0.42, {0, 1, 2, 3}, id="0.42 exp(-H) = 0.1249"),
        pytest.param(0.2, 0.43, {0, 1}, id="0.43 exp(-H) = 0.1278"),
        pytest.param(0.124, 1.0, {0, 1, 2, 3}, id="epsilon below 1/8"),
        pytest.param(0.126, 1.0, {0, 1}, id="epsilon above 1/8"),
        pytest.param(0.9, 0.84, {0, 1}, id="0.84 exp(-H) = 0.2497"),
        pytest.param(0.9, 0.85, {0}, id="0.85 exp(-H) = 0.2527"),
    ],
)
def test_the_typical_threshold_is_the_smaller_of_epsilon_and_delta_over_the_perplexity(
    epsilon: float, delta: float, accepted: set[int]
):
    """p = (1/2, 1/4, 1/8, 1/8, 0, 0) has an entropy of 1.75 bits, so exp(-H) = 2 ** -1.75 = 0.2973."""
    p = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0, 0.0])
    layout = lay_out_chain(1, None, VOCAB, torch.device("cpu"))
    tokens = torch.stack([torch.zeros(VOCAB, dtype=torch.int64), torch.arange(VOCAB)], dim=1)
    best = Typical(epsilon, delta).decide(_step(layout, tokens, p.log().expand(VOCAB, 2, -1), 0)).best
    assert {token for token in range(VOCAB) if best[token] == 1} == accepted


def test_after_a_typical_path_the_target_draws_from_its_whole_distribution():
    """Refused or not, a token keeps its chance: that is where the bias towards drafted tokens comes from."""
    rows = 4000
    p = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0, 0.0])
    layout = lay_out_chain(1, None, rows, torch.device("cpu"))
    for drafted, threshold in ((0, 0.01), (2, 0.4)):  # accepted, and refused
        tokens = torch.tensor([[5, drafted]]).expand(rows, -1)
        decision = Typical(threshold, 9.0).decide(_step(layout, tokens, p.log().expand(rows, 2, -1), 1))
        assert decision.best.tolist() == [int(drafted == 0)] * rows
        share = torch.bincount(decision.target_token, minlength=VOCAB) / rows
        assert share.tolist() == pytest.approx(p.tolist(), abs=4 * 0.5 / rows**0.5)


# ---- ReDrafter's published rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0.0, 0.3])
def test_redrafters_rule_equals_the_sequential_program(pad: float):
    lengths: list[int] = []
    for seed in range(12):
        rows, step = _random_step(seed, "iid", pad=pad)
        probe, step = _with_probes(rows, step, seed)
        decision, target = RedrafterPaper().decide(step), step.logits.double().softmax(-1)
        for row, parents in enumerate(rows):
            expected = sequential.redrafter(parents, probe[row], step, row, target[row])
            lengths.append(_assert_ends_as(decision, step, row, expected))
    assert set(lengths) >= {0, 1, 2, 3}


def test_redrafters_rule_finds_each_nodes_distribution_through_draft_rows():
    for seed in range(6):
        rows, step = _random_step(seed, "iid")
        order = torch.stack([torch.randperm(13, generator=torch.Generator().manual_seed(row)) for row in range(8)])
        stored = torch.empty_like(step.draft_probs)
        stored[torch.arange(8)[:, None], order] = step.draft_probs
        step = replace(step, draft_probs=stored, draft_rows=order)
        decision, target = RedrafterPaper().decide(step), step.logits.double().softmax(-1)
        for row, parents in enumerate(rows):
            plain = sequential.redrafter(parents, [False] * 12, step, row, target[row], order[row].tolist())
            _assert_ends_as(decision, step, row, plain)


def test_a_single_beam_that_was_really_drawn_is_speculative_sampling():
    for seed in range(10):
        _, step = _random_step(seed, "iid", chain=True)
        one, other = Rejection().decide(step), RedrafterPaper().decide(step)
        assert torch.equal(one.best, other.best)
        assert torch.equal(one.target_token, other.target_token)


def test_with_q_equal_to_p_every_token_of_every_beam_is_accepted():
    for seed in range(10):
        rows, step = _random_step(seed, "point", pad=0.2)
        step = replace(step, draft_probs=step.logits.softmax(-1))
        best = RedrafterPaper().decide(step).best
        for row, parents in enumerate(rows):
            depths = [len(trees.path(parents, node) or [0]) - 1 for node in range(12)]
            assert int(best[row]) == (depths.index(max(depths)) + 1 if max(depths) else 0)


def test_a_node_that_two_beams_share_is_tried_once_for_each():
    """p / q = 1/2 for the shared token and 1 behind it: it stays with chance 3/4, not 1/2."""
    rows = 4000
    layout = lay_out(torch.tensor([[-1, 0, 0]]).expand(rows, -1), 2)
    p = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0]] + [[1.0, 0, 0, 0, 0, 0]] * 2)
    q = torch.cat([torch.tensor([[1.0, 0, 0, 0, 0, 0]]), p[1:]])
    step = _step(
        layout, torch.tensor([[5, 0, 2, 3]]).expand(rows, -1), p.log().expand(rows, -1, -1), 0,
        draft_probs=q.expand(rows, -1, -1),
    )  # fmt: skip
    decision = RedrafterPaper().decide(step)
    assert float((decision.best > 0).double().mean()) == pytest.approx(0.75, abs=4 * 0.5 / rows**0.5)
    assert set(decision.best.tolist()) == {0, 2, 3}
    assert set(decision.target_token[decision.best == 0].tolist()) == {1}  # the residual (p - q)+


@dataclass(frozen=True)
class _Noting(Sampler):
    """A sampler that keeps the uniforms that it gives away."""

    given: list[Tensor] = field(default_factory=list)

    def uniforms(self, positions: Tensor, ranks: Tensor | int, stream: Stream) -> Tensor:
        self.given.append(super().uniforms(positions, ranks, stream))
        return self.given[-1]


def test_no_two_of_many_beams_share_their_luck():
    beams = 150
    layout = lay_out(torch.tensor([[-1] * beams + list(range(beams))]), 2)
    nodes = 2 * beams + 1
    q = torch.full((1, nodes, VOCAB), 1 / VOCAB)
    step = _step(layout, torch.zeros(1, nodes, dtype=torch.int64), q.log(), 3, draft_probs=q)
    sampler = _Noting(**{part.name: getattr(step.sampler, part.name) for part in fields(Sampler)})
    RedrafterPaper().decide(replace(step, sampler=sampler))
    luck = sampler.given[0].view(nodes, nodes)
    own = [(float(luck[beams + 1 + beam, beam + 1]), float(luck[beams + 1 + beam, beams + 1 + beam]))
           for beam in range(beams)]  # fmt: skip
    assert len({value for pair in own for value in pair}) == 2 * beams


def test_redrafters_rule_without_the_drafters_distribution_says_what_is_missing():
    _, step = _random_step(0, "point")
    with pytest.raises(ContractError, match="redrafter_paper needs draft_probs"):
        RedrafterPaper().decide(step)


# ---- what both lossy rules keep --------------------------------------------------------------------------------------

LOSSY = [pytest.param(Typical(), id="typical"), pytest.param(RedrafterPaper(), id="redrafter_paper")]


@pytest.mark.parametrize("rule", LOSSY)
@pytest.mark.parametrize("temperature", [0.0, 1e-5], ids=["at T = 0", "as T goes to 0"])
def test_a_lossy_rule_is_greedy_at_temperature_zero(rule: Rule, temperature: float):
    """Siblings carry different tokens, and at most nodes one of them is the target's."""
    for seed in range(10):
        _, step = _random_step(seed, "iid", pad=0.2)
        layout, likeliest = step.layout, step.logits.argmax(-1)
        right_rank = torch.randint(0, 3, likeliest.shape, generator=torch.Generator().manual_seed(seed))
        tokens = (likeliest - right_rank).gather(1, layout.parent) + sibling_ranks(layout)
        step = replace(step, tokens=tokens % VOCAB)
        greedy = Greedy().decide(replace(step, sampler=replace(step.sampler, temperature=0.0)))
        lossy = rule.decide(replace(step, sampler=replace(step.sampler, temperature=temperature)))
        assert len(set(greedy.best.tolist())) > 2
        assert torch.equal(greedy.best, lossy.best)
        assert torch.equal(greedy.target_token, lossy.target_token)


@pytest.mark.parametrize("rule", LOSSY)
def test_where_nothing_was_drafted_a_lossy_rule_draws_what_rejection_draws(rule: Rule):
    rows = 500
    logits = torch.randn(rows, 1, VOCAB, generator=torch.Generator().manual_seed(0))
    empty = _step(lay_out_chain(0, None, rows, torch.device("cpu")), torch.zeros(rows, 1, dtype=torch.int64), logits, 5)
    padded = _step(
        lay_out(torch.full((rows, 3), -2), 2), torch.zeros(rows, 4, dtype=torch.int64), logits.expand(-1, 4, -1), 5,
        draft_probs=torch.full((rows, 4, VOCAB), 1 / VOCAB),
    )  # fmt: skip
    expected = Rejection().decide(empty).target_token
    for step in (empty, padded):
        decision = rule.decide(step)
        assert decision.best.tolist() == [0] * rows
        assert torch.equal(decision.target_token, expected)


# ---- synthetic -------------------------------------------------------------------------------------------------------


def _synthetic_depths(rule: Synthetic, gamma: int = 5, rows: int = 4000, step_number: int = 0) -> Tensor:
    layout = lay_out_chain(gamma, None, rows, torch.device("cpu"))
    tokens = torch.zeros(rows, gamma + 1, dtype=torch.int64)
    step = _step(layout, tokens, torch.zeros(rows, gamma + 1, VOCAB), seed=step_number, max_depth=gamma)
    step = replace(step, steps=torch.full((rows,), step_number))
    return rule.decide(step).best


def test_synthetic_rates_are_the_chances_that_so_many_are_accepted():
    depths = _synthetic_depths(Synthetic(rates=(0.9, 0.5, 0.2)))
    survival = [float((depths >= i).double().mean()) for i in (1, 2, 3, 4)]
    assert survival == pytest.approx([0.9, 0.5, 0.2, 0.0], abs=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize(("mean", "values"), [(1.0, {0}), (2.3, {1, 2}), (3.0, {2}), (4.75, {3, 4})])
def test_a_synthetic_mean_length_counts_the_targets_token_and_has_the_least_spread(mean: float, values: set[int]):
    depths = _synthetic_depths(Synthetic(mean_length=mean))
    assert set(depths.tolist()) == values
    assert float(depths.double().mean()) + 1 == pytest.approx(mean, abs=4 * 0.5 / 4000**0.5)


def test_a_synthetic_mean_beyond_the_draft_is_cut_at_its_depth():
    assert set(_synthetic_depths(Synthetic(mean_length=9.0), gamma=3).tolist()) == {3}


def test_a_synthetic_trace_is_walked_one_entry_a_step_from_a_place_of_the_prompt():
    rule = Synthetic(trace=(0, 3, 1, 4))
    walks = [_synthetic_depths(rule, rows=3, step_number=number).tolist() for number in range(8)]
    # Keys are 1000, 1001, 1002: places 0, 1, 2.
    assert [walk[0] for walk in walks] == [0, 3, 1, 4, 0, 3, 1, 4]
    assert [walk[1] for walk in walks] == [3, 1, 4, 0, 3, 1, 4, 0]
    assert [walk[2] for walk in walks] == [1, 4, 0, 3, 1, 4, 0, 3]


def test_synthetic_acceptance_follows_first_children_and_never_a_probe():
    layout = lay_out(torch.tensor([[-1, -1, 0, 0, 2]]), 3, probe=torch.tensor([[False, False, True, False, False]]))
    step = _step(layout, torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, 6, VOCAB), 0, max_depth=3)
    assert Synthetic(mean_length=4.0).decide(step).best.tolist() == [4]


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ({}, "exactly one"),
        ({"rates": (0.5,), "mean_length": 2.0}, "exactly one"),
        ({"rates": (0.2, 0.5)}, "must not rise"),
        ({"mean_length": 0.5}, "at least 1"),
    ],
)
def test_a_synthetic_rule_that_cannot_be_is_refused(sources: dict[str, object], problem: str):
    with pytest.raises(ConfigError, match=problem):
        Synthetic(**sources)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "temperature", "expected"),
    [
        ("auto", 0.0, "greedy"),
        ("auto", 0.8, "rejection"),
        ("match", 0.8, "match"),
        ("match", 0.0, "match"),
        ("rejection", 0.0, "rejection"),
        ("typical", 0.8, "typical"),
        ("redrafter_paper", 0.0, "redrafter_paper"),
    ],
)
def test_auto_is_greedy_at_zero_and_rejection_above(name: str, temperature: float, expected: str):
    assert rule_for(name, temperature).name == expected


def test_greedy_above_temperature_zero_is_refused():
    with pytest.raises(ConfigError, match="temperature 0"):
        rule_for("greedy", 0.5)


def test_every_rule_says_whether_it_is_lossy_and_whether_it_is_simulated():
    assert [(rule.lossless, rule.simulated) for rule in (Greedy(), Match(), Rejection())] == [(True, False)] * 3
    assert [(rule.lossless, rule.simulated) for rule in (Typical(), RedrafterPaper())] == [(False, False)] * 2
    assert (Synthetic(mean_length=2.0).lossless, Synthetic(mean_length=2.0).simulated) == (False, True)


def test_compiled_a_prescription_is_not_made_on_the_host_in_every_step():
    graphs = []

    def note(graph, _inputs):
        graphs.append(graph.graph)
        return graph

    def accepted(luck: Tensor) -> Tensor:
        return (luck[:, None] < acceptance._constant((0.9, 0.5), luck.device)).sum(-1)

    depths = torch.compile(accepted, backend=note, fullgraph=True, dynamic=False)(torch.tensor([0.1, 0.6, 0.95]))
    assert depths.tolist() == [2, 1, 0]
    assert torch.tensor not in {node.target for graph in graphs for node in graph.nodes}
