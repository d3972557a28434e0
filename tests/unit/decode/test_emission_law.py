"""On real models, the law of what a step emits, computed from the stored p, q and tree, equals the target's to 1e-6.

The rule itself is driven as a black box: uniforms are replaced by chosen numbers to find, by bisection, the chance that
it accepts each possible draft, and the weights it would draw a recovered token from are read where they are drawn. With
a(x) the chance to accept x and R_x the law of the recovered token, the law of what is emitted is
sum_x q(x) (a(x) [y = x] + (1 - a(x)) R_x(y)), which must be p(y).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specbench.decode.acceptance import Decision, Match, Rejection, Verification
from specbench.decode.method import Method
from specbench.decode.sampling import Sampler, Stream
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace
from support import decoding, models

TEMPERATURE = 0.8


@dataclass(frozen=True)
class _Driven(Sampler):
    """A sampler whose luck is given, (batch,) for each rank, and that notes the weights it is asked to draw from."""

    luck: tuple[Tensor, ...] = ()
    seen: tuple[list[Tensor], ...] = ([],)

    def uniforms(self, positions: Tensor, ranks: Tensor | int, stream: Stream) -> Tensor:
        assert stream is Stream.ACCEPT
        assert isinstance(ranks, int)
        return self.luck[ranks][:, None].expand(positions.shape)

    def draw_from(self, weights: Tensor, positions: Tensor, stream: Stream) -> Tensor:
        self.seen[0].append(weights)
        return super().draw_from(weights, positions, stream)


class _Recorder(Rejection):
    """Rejection that keeps every step it decides."""

    def __init__(self) -> None:
        self.steps: list[Verification] = []

    def decide(self, step: Verification) -> Decision:
        self.steps.append(step)
        return super().decide(step)


def _record(
    name: str, method: Callable[[CachedModel], Method], **options: object
) -> tuple[list[Verification], BatchTrace]:
    target, rule = decoding.family(name), _Recorder()
    trace = decoding.decode(
        target, method(target), models.PROMPTS[:4], 12, rule=rule, temperature=TEMPERATURE, seed=1, **options
    )
    return rule.steps, trace


def _pick(step: Verification, row: int, siblings: Tensor) -> Verification:
    """One row of a step, many times over, each with other tokens for the root's first children, (copies, siblings)."""
    copies = len(siblings)
    tokens = step.tokens[row].expand(copies, -1).clone()
    first = [
        node
        for node in range(1, tokens.shape[1])
        if step.layout.parent[row, node] == 0 and step.layout.eligible[row, node]
    ]
    tokens[:, first[: siblings.shape[1]]] = siblings
    layout = step.layout._replace(
        **{
            field: getattr(step.layout, field)[row : row + 1].expand(
                copies, *[-1] * (getattr(step.layout, field).dim() - 1)
            )
            for field in ("parent", "padding", "eligible", "ancestors", "depth")
        }
    )
    return replace(
        step,
        layout=layout,
        tokens=tokens,
        logits=step.logits[row].expand(copies, -1, -1),
        positions=step.positions[row].expand(copies, -1),
        draft_probs=step.draft_probs[row].double().expand(copies, -1, -1),
        draft_rows=None if step.draft_rows is None else step.draft_rows[row].expand(copies, -1),
        steps=step.steps[row].expand(copies),
        sampler=replace(
            step.sampler,
            keys=step.sampler.keys[row].expand(copies),
            prompt_lengths=step.sampler.prompt_lengths[row].expand(copies),
        ),
    )


def _drive(step: Verification, *luck: Tensor) -> tuple[Tensor, Tensor]:
    """Which child of the root was taken (its rank among the root's children, -1 for none), and the drawing weights."""
    seen: list[Tensor] = []
    given = {field.name: getattr(step.sampler, field.name) for field in fields(Sampler)}
    ranks = tuple(luck) + (torch.zeros(len(step.tokens), dtype=torch.float64),) * (step.max_children - len(luck))
    best = Rejection().decide(replace(step, sampler=_Driven(**given, luck=ranks, seen=(seen,)))).best
    parent = step.layout.parent
    while bool((parent.gather(1, best[:, None])[:, 0] > 0).any()):
        above = parent.gather(1, best[:, None])[:, 0]
        best = torch.where(above > 0, above, best)
    children = (parent == 0) & step.layout.eligible
    rank = children.long().cumsum(1).gather(1, best[:, None])[:, 0] - 1
    return torch.where(best > 0, rank, -1), seen[-1].double()


def _chance(step: Verification, rank: int, *before: Tensor) -> Tensor:
    """The chance that the child of that rank is accepted, given that those before it were refused, by bisection."""
    count = len(step.tokens)
    low, high = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    for _ in range(26):
        middle = (low + high) / 2
        taken = _drive(step, *before, middle)[0] == rank
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    return low


def _law_of_first_token_chain(step: Verification, row: int) -> Tensor:
    vocab = step.sampler.vocab_size
    q = step.draft_probs_at(torch.zeros(len(step.tokens), dtype=torch.int64))[row].double()
    every = torch.arange(vocab)
    picked = _pick(step, row, every[:, None])
    accept = _chance(picked, 0)
    refused, weights = _drive(picked, torch.ones(vocab, dtype=torch.float64))
    recovered = weights / weights.sum(-1, keepdim=True)
    # Where nothing is ever refused the weights are those of a bonus token, and their share is zero.
    assert bool((refused[accept < 1 - 1e-6] == -1).all())
    return q * accept + ((q * (1 - accept))[:, None] * recovered).sum(0)


def _law_of_first_token_two_siblings(step: Verification, row: int) -> Tensor:
    vocab = step.sampler.vocab_size
    q = step.draft_probs_at(torch.zeros(len(step.tokens), dtype=torch.int64))[row].double()
    one, two = (grid.flatten() for grid in torch.meshgrid(torch.arange(vocab), torch.arange(vocab), indexing="ij"))
    share = q[one] * q[two]
    if step.proposal == "without_replacement":
        share = torch.where(one == two, 0.0, q[one] * q[two] / (1 - q[one]))
    drawn = share > 0
    one, two, share = one[drawn], two[drawn], share[drawn]
    picked = _pick(step, row, torch.stack([one, two], dim=1))
    first = _chance(picked, 0)
    never = torch.ones(len(one), dtype=torch.float64)
    second = _chance(picked, 1, never)
    _, weights = _drive(picked, never, never)
    recovered = weights / weights.sum(-1, keepdim=True)
    law = torch.zeros(vocab, dtype=torch.float64)
    law.index_add_(0, one, share * first)
    law.index_add_(0, two, share * (1 - first) * second)
    return law + ((share * (1 - first) * (1 - second))[:, None] * recovered).sum(0)


def _warped(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The oracle: transformers' own processors, then a softmax in float64."""
    warp = LogitsProcessorList([TemperatureLogitsWarper(TEMPERATURE)])
    warp += [TopKLogitsWarper(top_k)] if top_k else []
    warp += [TopPLogitsWarper(top_p)] if top_p else []
    return warp(None, logits[None].float().clone())[0].double().softmax(-1)


WARPS = [{}, {"top_k": 20}, {"top_p": 0.9}, {"top_k": 30, "top_p": 0.8}]


@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize(
    "name", ["llama", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "opt"))]
)
def test_the_first_token_of_a_chain_step_has_the_targets_law(name: str, warp: dict[str, float]):
    steps, _ = _record(
        name, lambda target: decoding.draft_model(target, decoding.drafts_of(name), draft="near", gamma=3), **warp
    )
    for step in steps[:3]:
        for row in range(0, 4, 2):
            law, expected = _law_of_first_token_chain(step, row), _warped(step.logits[row, 0], **warp)
            assert float((law - expected).abs().max()) < 1e-6
            assert float(law.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("warp", [{"top_k": 20}, {"top_p": 0.7}, pytest.param({}, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
def test_the_first_token_of_a_step_with_two_siblings_has_the_targets_law(proposal: str, warp: dict[str, float]):
    tree = {"branching": [2, 1], "proposal": proposal}
    steps, _ = _record(
        "llama",
        lambda target: decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", tree=tree),
        **warp,
    )
    for step in steps[1:2]:
        law, expected = _law_of_first_token_two_siblings(step, 1), _warped(step.logits[1, 0], **warp)
        assert float((law - expected).abs().max()) < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 3},
        {"tree": {"branching": [2, 2], "proposal": "iid"}},
        {"tree": {"branching": [2, 1], "proposal": "without_replacement"}},
    ],
    ids=["chain", "iid", "without replacement"],
)
@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_the_stored_q_is_the_drafts_own_distribution_after_each_node(
    options: dict[str, object], warp: dict[str, float]
):
    """Against plain forwards of the draft over the whole text and path; so q is what the tokens were drawn from."""
    draft = models.perturbed("llama")
    steps, trace = _record(
        "llama",
        lambda target: decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", **options),
        **warp,
    )
    texts = [[*prompt, *row.output_ids] for prompt, row in zip(models.PROMPTS, trace.rows, strict=False)]
    for step in steps[:3]:
        for row, text in enumerate(texts):
            committed = text[: int(step.positions[row, 0]) - 1]
            for node in range(step.draft_probs.shape[1]):
                way = [node]
                while way[0]:
                    way.insert(0, int(step.layout.parent[row, way[0]]))
                path = [int(step.tokens[row, i]) for i in way]
                expected = _warped(models.plain_logits(draft, [*committed, *path])[-1], **warp)
                got = step.draft_probs[row, node].double()
                # A token at the very edge of top-k or top-p may fall on either side.
                assert float((got - expected).abs().max()) < 1e-5


def test_a_matched_step_emits_the_targets_gumbel_choice_whatever_was_drafted():
    """Under match the law is exact because what is emitted never depends on the draft: here over every first token."""
    steps, _ = _record(
        "llama", lambda target: decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", gamma=2)
    )
    for step in steps[:3]:
        picked = replace(_pick(step, 0, torch.arange(models.VOCAB)[:, None]), proposal="point", draft_probs=None)
        decision = Match().decide(picked)
        first = torch.where(decision.best > 0, picked.tokens[:, 1], decision.target_token)
        assert len(set(first.tolist())) == 1
