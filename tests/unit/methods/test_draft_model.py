"""methods.draft_model: what it drafts, against plain forwards of the draft model, and when it stops."""

import pytest
import torch
from pydantic import ValidationError

from methods.draft_model import DraftModelOptions
from specbench.decode.acceptance import Match, Rejection
from specbench.decode.method import Method, RowView, TokenTree
from specbench.decode.trace import BatchTrace
from specbench.errors import UnsupportedError
from support import decoding, models, trees

PROMPTS = models.PROMPTS[:5]


def _seen(draft: str = "near", family: str = "llama", most: int = 14, how: dict | None = None, **options: object):
    """A run, and every draft with the text it was made for: (tree, committed texts with the root, active)."""
    target = decoding.family(family)
    method = decoding.draft_model(target, decoding.drafts_of(family), draft=draft, **options)
    drafts: list[tuple[TokenTree, list[list[int]], list[bool]]] = []
    make = method.draft

    def noting(view: RowView) -> TokenTree:
        tree = make(view)
        texts = [row[: int(n) + 1].tolist() for row, n in zip(view.tokens, view.lengths, strict=True)]
        drafts.append((tree, texts, view.active.tolist()))
        return tree

    method.draft = noting
    trace = decoding.decode(target, method, PROMPTS, most, **(how or {}))
    return method, drafts, trace


def _live(drafts):
    return [(tree, row, text) for tree, texts, active in drafts for row, text in enumerate(texts) if active[row]]


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("gamma", [1, 5])
def test_a_greedy_chain_is_what_the_draft_model_would_write(family: str, gamma: int):
    _, drafts, _ = _seen(family=family, gamma=gamma)
    module = models.perturbed(family)
    for tree, row, text in _live(drafts)[:12]:
        assert tree.tokens[row].tolist() == models.hf_greedy(module, tuple(text), gamma)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt"])
def test_a_greedy_tree_holds_the_most_likely_children_of_every_node(family: str):
    _, drafts, _ = _seen(family=family, tree={"branching": [3, 2, 2]})
    module = models.perturbed(family)
    for tree, row, text in _live(drafts)[:6]:
        parents = tree.parents.parents.tolist()
        for above in range(-1, 9):
            way = [] if above < 0 else trees.path(parents, above)[1:]
            path = [int(tree.tokens[row, node - 1]) for node in way]
            children = [int(tree.tokens[row, i]) for i, parent in enumerate(parents) if parent == above]
            best = models.plain_logits(module, [*text, *path])[-1].topk(len(children)).indices.tolist()
            assert children == best


def test_under_match_the_draft_is_coupled_to_the_target():
    """With its own weights as the draft every sampled token is accepted, and a near draft does better than chance."""
    how = {"rule": Match(), "temperature": 0.8}
    _, _, own = _seen("same", gamma=4, how=how)
    assert all(n == 4 for row in own.rows for n in row.accepted_per_step)
    _, _, coupled = _seen("near", gamma=4, most=24, how=how)
    _, _, argmax = _seen("near", gamma=4, most=24, how=how, proposal="argmax")
    assert _accepted(coupled) > 1.5 * _accepted(argmax)


def _accepted(trace: BatchTrace) -> float:
    steps = [n for row in trace.rows for n in row.accepted_per_step]
    return sum(steps) / len(steps)


def test_under_rejection_the_targets_own_weights_are_accepted_whole():
    for options in (
        {"gamma": 4},
        {"tree": {"branching": [2, 2], "proposal": "iid"}},
        {"tree": {"branching": [2, 2], "proposal": "without_replacement"}},
    ):
        method, _, trace = _seen("same", how={"rule": Rejection(), "temperature": 0.8}, **options)
        assert all(n == method.caps().max_depth for row in trace.rows for n in row.accepted_per_step)


@pytest.mark.parametrize(
    ("proposal", "temperature", "kind"),
    [
        ("auto", 0.8, "iid"),
        ("sample", 0.8, "iid"),
        ("argmax", 0.8, "point"),
        ("auto", 0.0, "point"),
        ("sample", 0.0, "point"),
    ],
)
def test_a_chain_is_sampled_above_temperature_zero_unless_argmax_is_asked_for(
    proposal: str, temperature: float, kind: str
):
    _, drafts, _ = _seen(gamma=3, proposal=proposal, how={"rule": Rejection(), "temperature": temperature})
    assert {tree.proposal for tree, _, _ in drafts} == {kind}


@pytest.mark.parametrize(
    ("proposal", "kind"), [("top_k", "point"), ("iid", "iid"), ("without_replacement", "without_replacement")]
)
def test_a_tree_says_how_its_children_came_about(proposal: str, kind: str):
    tree = {"branching": [3, 2], "proposal": proposal}
    _, drafts, _ = _seen(tree=tree, how={"rule": Rejection(), "temperature": 0.8})
    assert {tree.proposal for tree, _, _ in drafts} == {kind}
    repeated = [len({int(tree.tokens[row, i]) for i in range(3)}) < 3 for tree, row, _ in _live(drafts)]
    assert any(repeated) is (proposal == "iid")


def test_distributions_are_not_computed_where_no_rule_asks_for_them():
    _, drafts, _ = _seen(gamma=3, how={"rule": Match(), "temperature": 0.8})
    assert all(tree.draft_probs is None for tree, _, _ in drafts)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0])
def test_a_confidence_stop_keeps_the_unlikely_token_and_drafts_none_after_it(threshold: float):
    _, drafts, _ = _seen(gamma=5, stop={"kind": "confidence", "threshold": threshold})
    module, lengths = models.perturbed("llama"), []
    for tree, row, text in _live(drafts)[:15]:
        length = int(tree.drafted[row].sum())
        probs = []
        for index in range(length):
            path = tree.tokens[row, :index].tolist()
            probs.append(float(models.plain_logits(module, [*text, *path])[-1].softmax(-1)[tree.tokens[row, index]]))
        assert all(p >= threshold for p in probs[:-1])
        assert length == 5 or probs[-1] < threshold
        assert tree.drafted[row].tolist() == [True] * length + [False] * (tree.tokens.shape[1] - length)
        lengths.append(length)
    if threshold in (0.0, 1.0):
        assert set(lengths) == {5 if threshold == 0 else 1}


def _heuristic(accepted: list[int], start: int, gamma: int) -> list[int]:
    """The schedule of transformers' AssistedCandidateGenerator, as a plain program: drafted tokens, step by step."""
    limit, drafted = min(start, gamma), []
    for n in accepted:
        drafted.append(limit)
        limit = limit + 2 if n == limit else max(1, limit - 1)
        limit = min(limit, gamma)
    return drafted


@pytest.mark.parametrize("draft", ["same", "near", "far"])
def test_the_heuristic_grows_by_two_after_a_whole_draft_and_shrinks_by_one_else(draft: str):
    _, _, trace = _seen(draft, most=40, gamma=9, stop={"kind": "heuristic", "start": 3})
    for row in trace.rows:
        assert row.drafted_nodes_per_step == _heuristic(row.accepted_per_step, 3, 9)


def test_caps_follow_from_the_options():
    for options, expected in (
        ({"gamma": 7}, (7, 7, 1)),
        ({"tree": {"branching": [3, 2, 1]}}, (3 + 6 + 6, 3, 3)),
        ({"tree": {"branching": [1, 4]}}, (5, 2, 4)),
    ):
        method, _, _ = _seen(most=2, **options)
        caps = method.caps()
        assert (caps.max_nodes, caps.max_depth, caps.max_children) == expected


@pytest.mark.parametrize(
    "options",
    [{}, {"draft": "d", "gamma": 0}, {"draft": "d", "gamma": 65}, {"draft": "d", "tree": {"branching": []}},
     {"draft": "d", "tree": {"branching": [0]}}, {"draft": "d", "stop": {"kind": "sometimes"}},
     {"draft": "d", "stop": {"kind": "confidence", "threshold": 1.5}}, {"draft": "d", "gama": 3}],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, object]):
    with pytest.raises(ValidationError):
        DraftModelOptions(**options)


def test_a_stop_policy_together_with_a_tree_is_refused():
    """A tree has no stop: an option that is silently ignored would be measured under a wrong name."""
    with pytest.raises(ValidationError):
        DraftModelOptions(draft="d", tree={"branching": [2]}, stop={"kind": "heuristic"})


def test_more_children_than_the_vocabulary_has_tokens_is_refused_in_words():
    target = decoding.CachedModel(models.small_vocabulary(5), "five tokens")
    with pytest.raises(UnsupportedError, match="6 children, and the vocabulary has 5 tokens"):
        decoding.draft_model(target, {"d": models.small_vocabulary(5, 1)}, draft="d", tree={"branching": [6]})


def test_a_draft_with_a_shorter_context_than_the_batch_needs_is_noticed():
    """The draft would go on with wrong positions: lossless, and its acceptance would be reported as its own."""
    short = models.scaled(models._llama_like("Llama", num_hidden_layers=1, max_position_embeddings=20), seed=1)
    target = decoding.family("llama")
    method: Method = decoding.draft_model(target, {"d": short}, draft="d", gamma=2)
    with pytest.raises(UnsupportedError, match="has 20 positions"):
        decoding.decode(target, method, [list(range(15))], 24)


def test_torch_seeds_have_no_say():
    how = {"rule": Rejection(), "temperature": 0.8}
    torch.manual_seed(1)
    _, _, one = _seen(gamma=3, how=how)
    torch.manual_seed(2)
    _, _, two = _seen(gamma=3, how=how)
    assert decoding.ids(one) == decoding.ids(two)
