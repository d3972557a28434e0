"""methods.medusa: heads and their files in every published layout, trees, and the text."""

import json
from itertools import combinations, product
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from methods.medusa import Medusa, MedusaOptions, TreeName, trees
from methods.medusa.heads import HeadSettings, MedusaHeads
from specbench.decode.method import LoadContext
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError, UnsupportedError
from support import decoding, models

HIDDEN, VOCAB = 32, models.VOCAB


def target() -> CachedModel:
    return CachedModel(models.target("llama"), "llama")


def published_weights(heads: int = 3, layers: int = 1, rows: int = VOCAB) -> dict[str, torch.Tensor]:
    """Heads under the names of Medusa's own files."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for head in range(heads):
        for layer in range(layers):
            found[f"{head}.{layer}.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=generator) * 0.2
            found[f"{head}.{layer}.linear.bias"] = torch.randn(HIDDEN, generator=generator) * 0.2
        found[f"{head}.{layers}.weight"] = torch.randn(rows, HIDDEN, generator=generator) * 0.2
    return found


def said(weights: dict[str, torch.Tensor], state: torch.Tensor, heads: int, layers: int = 1) -> torch.Tensor:
    """Their logits by the formula of arXiv 2401.10774, (heads, rows)."""
    rows = []
    for head in range(heads):
        x = state
        for layer in range(layers):
            block = f"{head}.{layer}.linear"
            x = x + torch.nn.functional.silu(weights[f"{block}.weight"] @ x + weights[f"{block}.bias"])
        rows.append(weights[f"{head}.{layers}.weight"] @ x)
    return torch.stack(rows)


def config(folder, **values) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def as_own_safetensors(folder, weights):
    save_file(weights, folder / "medusa_lm_head.safetensors")
    config(folder, base_model_name_or_path="llama", medusa_num_heads=3, medusa_num_layers=1)


def as_own_pickle_whose_config_claims_fewer(folder, weights):
    torch.save(weights, folder / "medusa_lm_head.pt")
    config(folder, base_model_name_or_path="llama", medusa_num_heads=2, medusa_num_layers=1)


def as_part_of_a_whole_model(folder, weights):
    model = {"model.embed_tokens.weight": torch.zeros(VOCAB, HIDDEN), "lm_head.weight": torch.zeros(VOCAB, HIDDEN)}
    names = list(weights)
    first = {f"medusa_head.{name}": weights[name] for name in names[:4]}
    save_file(model | first, folder / "model-00001-of-00002.safetensors")
    save_file({f"medusa_head.{name}": weights[name] for name in names[4:]}, folder / "model-00002-of-00002.safetensors")
    config(folder, model_type="llama", hidden_size=HIDDEN)


def as_vllms(folder, weights):
    renamed = {}
    for name, weight in weights.items():
        head, layer, part = name.split(".", 2)
        renamed[f"lm_heads.{head}.weight" if part == "weight" else f"blocks.{head}.layers.{layer}.{part[7:]}"] = weight
    save_file(renamed, folder / "model.safetensors")
    config(folder, model_type="medusa", num_heads=3, num_hidden_layers=1, hidden_size=HIDDEN, vocab_size=VOCAB)


LAYOUTS = [as_own_safetensors, as_own_pickle_whose_config_claims_fewer, as_part_of_a_whole_model, as_vllms]


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("layers", [1, 2])
def test_heads_of_every_published_layout_say_what_the_formula_says(write, layers, tmp_path):
    weights = published_weights(layers=layers)
    write(tmp_path, weights)
    heads = MedusaHeads.load(tmp_path, target()).bind(target())
    assert heads.depth == 3
    state = torch.randn(2, HIDDEN)
    for row, logits in zip(state, heads.logits(state, 3), strict=True):
        assert torch.allclose(logits, said(weights, row, 3, layers), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"shared_output": True}, {"heads": 2, "layers": 3}])
def test_saved_heads_say_the_same_when_they_are_loaded(settings, tmp_path):
    bound = target()
    heads = MedusaHeads.new(HeadSettings(**settings), bound).bind(bound)
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(torch.randn(weight.shape))
    heads.rank_accuracy = ((0.5, 0.1),) * heads.depth
    heads.save(tmp_path, "llama")
    again = MedusaHeads.load(tmp_path, bound).bind(bound)
    state = torch.randn(2, HIDDEN)
    assert torch.equal(again.logits(state, heads.depth), heads.logits(state, heads.depth))
    assert again.rank_accuracy == heads.rank_accuracy


def test_untrained_heads_all_say_what_the_targets_head_says():
    for settings in ({}, {"shared_output": True}):
        bound = target()
        heads = MedusaHeads.new(HeadSettings(**settings), bound).bind(bound)
        state = torch.randn(2, HIDDEN)
        assert torch.allclose(heads.logits(state, 5), bound.head(state)[:, None].expand(-1, 5, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: {}, "no Medusa heads in it"),
        (
            lambda weights: {k: v for k, v in weights.items() if k != "1.0.linear.bias"},
            r"1\.0\.linear\.bias is missing",
        ),
        (lambda weights: {k: v for k, v in weights.items() if k != "2.1.weight"}, r"2\.1\.weight is missing"),
        (lambda weights: {k: v[..., :16] for k, v in weights.items()}, r"16 numbers, and that of llama has 32"),
        (lambda weights: published_weights(rows=60), r"60 tokens, and llama has 83"),
    ],
)
def test_heads_that_do_not_fit_are_one_clear_error(change, words, tmp_path):
    weights = {name: weight.contiguous() for name, weight in change(published_weights()).items()}
    as_own_safetensors(tmp_path, weights or {"x": torch.zeros(1)})
    with pytest.raises(ConfigError, match=words) as error:
        MedusaHeads.load(tmp_path, target())
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_heads_over_the_first_tokens_of_a_map_draft_those_alone(tmp_path):
    """vLLM cuts the output matrices of some heads down; its config says so."""
    weights = published_weights(rows=60)
    save_file(weights, tmp_path / "model.safetensors")
    config(tmp_path, truncated_vocab_size=60)
    bound = target()
    method = Medusa(MedusaOptions(heads="cut", tree={"branching": [2, 2]}))
    loaded = MedusaHeads.load(tmp_path, bound).bind(bound)
    method.load(LoadContext(bound, lambda _: bound, lambda _, __: loaded))
    trace = decoding.decode(bound, method, models.PROMPTS[:3], 12)
    assert decoding.ids(trace) == [models.greedy_continuation("llama", prompt, 12) for prompt in models.PROMPTS[:3]]


# --- trees


def test_every_published_tree_has_a_name_in_the_options_and_63_nodes():
    assert set(get_args(TreeName)) == {"chain", *trees.PUBLISHED}
    for name in trees.PUBLISHED:
        paths = trees.published(name)
        topology, ordered = trees.topology(paths, torch.device("cpu"))
        assert len(set(ordered)) == len(topology.parents) == 63
        assert max(max(path) for path in paths) == 9 - (name == "")
        assert max(map(len, paths)) <= 4


def test_the_first_published_tree_begins_as_its_paper_draws_it():
    """Ten guesses of the first head; behind the first of them ten of the second's (Medusa, figure 6)."""
    paths = trees.published("mc_sim_7b_63")
    assert sorted(path[0] for path in paths if len(path) == 1) == list(range(10))
    assert sorted(path[1] for path in paths if len(path) == 2 and path[0] == 0) == list(range(10))
    assert [path for path in paths if len(path) == 4] == [(0, 0, 0, 0), (0, 0, 0, 1)]


def test_a_tree_by_accuracy_is_the_best_of_all_trees_of_its_size():
    accuracies = [[0.5, 0.2, 0.1], [0.4, 0.15], [0.35, 0.05]]
    every = [path for depth in (1, 2, 3) for path in product(*(range(len(row)) for row in accuracies[:depth]))]

    def worth(paths) -> float:
        """Tokens that are accepted on average, if heads err independently."""
        return sum(torch.tensor([accuracies[i][rank] for i, rank in enumerate(path)]).prod().item() for path in paths)

    for nodes in range(1, 6):
        closed = (
            chosen
            for chosen in combinations(every, nodes)
            if all(path[:-1] in chosen for path in chosen if len(path) > 1)
        )
        assert worth(trees.likeliest(accuracies, nodes)) == pytest.approx(max(map(worth, closed)))


def test_no_node_is_spent_on_a_guess_that_is_never_right():
    assert trees.likeliest([[0.5, 0.0], [0.5]], 10) == [(0,), (0, 0)]


def test_a_cartesian_tree_holds_every_combination():
    paths = trees.cartesian([2, 3])
    assert len(paths) == 2 + 6
    assert set(paths) == {(0,), (1,), *product(range(2), range(3))}


@pytest.mark.parametrize("paths", [[[0], [1, 0]], [[0], [0]]])
def test_paths_that_make_no_tree_are_refused_with_the_path(paths):
    with pytest.raises(UnsupportedError, match=r"tree: (the path \[1, 0\] has no \[1\] before it|a path stands twice)"):
        decoding.loaded(Medusa(MedusaOptions(heads="far", tree={"paths": paths})), target())


def test_every_node_holds_the_guess_of_its_head_and_rank():
    bound = target()
    method = decoding.loaded(Medusa(MedusaOptions(heads="near", tree={"branching": [2, 3]})), bound)
    drafts = []
    make = method.draft
    method.draft = lambda view: drafts.append((make(view), method._state.clone())) or drafts[-1][0]
    decoding.decode(bound, method, models.PROMPTS[:3], 8)
    _, ordered = trees.topology(trees.cartesian([2, 3]), torch.device("cpu"))
    for tree, state in drafts:
        best = method._heads.logits(state, 2)[..., :VOCAB].argsort(-1, descending=True)
        for row in range(3):
            expected = [int(best[row, len(path) - 1, path[-1]]) for path in ordered]
            assert tree.tokens[row].tolist() == expected


# --- options


def test_a_length_belongs_to_a_chain():
    with pytest.raises(ValidationError, match=r"gamma is how long a chain is"):
        MedusaOptions(heads="x", gamma=3)


def test_a_tree_deeper_than_the_heads_are_many_is_unsupported():
    with pytest.raises(UnsupportedError, match=r"the tree is 6 deep, and near has 5 heads"):
        decoding.loaded(Medusa(MedusaOptions(heads="near", tree={"branching": [1] * 6})), target())


def test_heads_of_unknown_accuracy_get_no_tree_by_accuracy(tmp_path):
    as_own_safetensors(tmp_path, published_weights())
    bound = target()
    loaded = MedusaHeads.load(tmp_path, bound).bind(bound)
    method = Medusa(MedusaOptions(heads="foreign", tree={"nodes": 8}))
    with pytest.raises(UnsupportedError, match=r"foreign does not say how often its guesses are right"):
        method.load(LoadContext(bound, lambda _: bound, lambda _, __: loaded))


@pytest.mark.slow
@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize(
    "tree", ["chain", "vicuna_7b_stage2", {"branching": [4, 3, 2, 1]}, {"nodes": 1}, {"nodes": 64}]
)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_text_is_autoregressives_with_any_tree(family, tree, batch_size):
    bound = decoding.family(family)
    method = decoding.loaded(Medusa(MedusaOptions(heads="same", tree=tree)), bound)
    trace = decoding.decode(bound, method, models.PROMPTS[:batch_size], 24)
    expected = [models.greedy_continuation(family, prompt, 24) for prompt in models.PROMPTS[:batch_size]]
    assert decoding.ids(trace) == expected
    assert max(step for row in trace.rows for step in row.accepted_per_step) >= min(3, method.caps().max_depth)
