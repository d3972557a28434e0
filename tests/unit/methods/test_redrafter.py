"""methods.redrafter: beams, their prefix tree and Apple's files, against formulas written out plainly."""

import json

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from methods.redrafter import ReDrafter, ReDrafterOptions
from methods.redrafter.beams import Beams, Round, Search, prefix_tree
from methods.redrafter.drafter import RecurrentDrafter, RecurrentSettings
from specbench.decode.acceptance import RedrafterPaper, Rejection
from specbench.decode.method import LoadContext
from specbench.decode.target import CachedModel
from specbench.decode.tree import lay_out
from specbench.errors import ConfigError, UnsupportedError
from support import decoding, models

PROMPTS = models.PROMPTS[:4]
HIDDEN = 32


def beams_of(tokens: torch.Tensor, scores: torch.Tensor | None = None) -> Beams:
    """Drafted beams (B, W, D) as a search could have found them: each begins at the first that has its beginning."""
    batch, width, depth = tokens.shape
    places = torch.zeros(batch, width, depth, dtype=torch.int64)
    for row, found in enumerate(tokens.tolist()):
        for end in range(1, depth + 1):
            beginnings = [beam[:end] for beam in found]
            places[row, :, end - 1] = torch.tensor([beginnings.index(beginning) for beginning in beginnings])
    scores = torch.zeros_like(places) if scores is None else scores
    return Beams(tokens, places, [Round(tokens[:, :, i], scores[:, :, i], None) for i in range(depth)])


def packed_rows(beams: Beams, nodes: int | None = None) -> list[tuple[list[int], list[int]]]:
    """Every row's tokens and parents, without padding."""
    tree = prefix_tree(beams, nodes)
    tokens, parents = tree.packed(int(tree.counts.max()))
    rows = zip(tokens.tolist(), parents.tolist(), tree.counts.tolist(), strict=True)
    return [(row[:count], above[:count]) for row, above, count in rows]


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    """The tokens that lead to every node."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


# --- the prefix tree


def test_the_worked_example_is_packed_as_apples_code_packs_it():
    beams = beams_of(
        torch.tensor(
            [
                [[92, 93, 95], [92, 94, 96], [92, 93, 97]],
                [[94, 95, 92], [95, 96, 93], [94, 97, 96]],
            ]
        )
    )
    assert packed_rows(beams) == [
        ([92, 93, 95, 94, 96, 97], [-1, 0, 1, 0, 3, 1]),
        ([94, 95, 92, 95, 96, 93, 97, 96], [-1, 0, 1, -1, 3, 4, 0, 6]),
    ]
    tree = prefix_tree(beams)
    _, parents = tree.packed(8)
    seen = [row.nonzero().flatten().tolist() for row in lay_out(parents, 3).ancestors[1]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 4], [0, 4, 5], [0, 4, 5, 6], [0, 1, 7], [0, 1, 7, 8]]
    assert parents[0].tolist()[6:] == [-2, -2]


@pytest.mark.parametrize("vocab", [2, 3, 50])
@pytest.mark.parametrize(("width", "length"), [(1, 2), (4, 5), (16, 3), (7, 6)])
def test_no_beginning_is_verified_twice_and_none_is_lost(vocab, width, length):
    generator = torch.Generator().manual_seed(width * length * vocab)
    tokens = torch.randint(0, vocab, (6, width, length - 1), generator=generator)
    beams = beams_of(tokens)
    for row, (kept, parents) in enumerate(packed_rows(beams)):
        paths = paths_of(kept, parents)
        beginnings = {tuple(beam[:end]) for beam in tokens[row].tolist() for end in range(1, length)}
        assert len(paths) == len(set(paths))
        assert set(paths) == beginnings
        assert all(parent < node for node, parent in enumerate(parents))


@pytest.mark.parametrize("nodes", [1, 2, 5, 9, 40])
def test_a_budget_keeps_the_likeliest_nodes_and_they_form_a_tree(nodes):
    generator = torch.Generator().manual_seed(nodes)
    steps = torch.rand(5, 4, 4, generator=generator)
    steps[0] = 0  # certain tokens: every node is as likely as the one above it
    tokens = torch.randint(0, 30, (5, 4, 4), generator=generator)
    beams = beams_of(tokens, -steps.cumsum(2))
    everything, some = packed_rows(beams), packed_rows(beams, nodes)
    for row in range(5):
        score = {}
        for beam, scores in zip(tokens[row].tolist(), beams.scores[row].tolist(), strict=True):
            for end, value in enumerate(scores, start=1):
                score.setdefault(tuple(beam[:end]), value)
        whole, kept = paths_of(*everything[row]), paths_of(*some[row])
        assert len(kept) == min(nodes, len(whole))
        assert all(path[:-1] in kept for path in kept if len(path) > 1)
        if row:
            best = sorted(whole, key=lambda path: -score[path])[: len(kept)]
            assert sorted(kept) == sorted(best)


# --- the search, by the formulas


def made(target: CachedModel, seed: int = 3, **settings) -> RecurrentDrafter:
    """A drafter with noisy weights of the size of Apple's, so that its distributions have something to say."""
    torch.manual_seed(seed)
    drafter = RecurrentDrafter.new(RecurrentSettings(**settings), target).bind(target)
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return drafter.eval()


def plain_logp(weights: dict, embedding, h, tokens: list[int], *, rnn: bool, layers: int, top_k: int):
    """What the drafter says after a row of tokens: the formulas of arXiv 2403.09919, one vector at a time."""
    state = torch.zeros(HIDDEN)
    for token in tokens:
        x = embedding[token]
        if rnn:
            state = torch.nn.functional.silu(
                weights["rnn_w.weight"] @ x + weights["rnn_u.weight"] @ state + weights["rnn_u.bias"]
            )
        else:
            state = x + state
    z = torch.cat([h, state])
    if "input_proj.weight" in weights:
        z = weights["input_proj.weight"] @ z + weights["input_proj.bias"]
    for layer in range(layers):
        z = z + torch.nn.functional.silu(
            weights[f"lm_head.{layer}.linear.weight"] @ z + weights[f"lm_head.{layer}.linear.bias"]
        )
    z = weights[f"lm_head.{layers}.weight"] @ z
    z = z - z.max()
    z[z < z.topk(top_k).values[-1]] = -50000
    return z.log_softmax(-1)


def plain_beams(weights: dict, embedding, h, root: int, width: int, length: int, **how) -> list[list[int]]:
    """Beam search over whole prefixes: no state is carried, nothing is shared."""
    beams = [([root], 0.0)]
    for _ in range(length - 1):
        grown = []
        for tokens, score in beams:
            logp = plain_logp(weights, embedding, h, tokens, **how)
            grown += [
                ([*tokens, token], score + float(logp[token])) for token in range(len(logp)) if logp[token] > -1e4
            ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return [tokens for tokens, _ in beams]


@pytest.mark.parametrize(
    ("settings", "width", "length"),
    [
        ({"layers": 2}, 4, 5),
        ({"layers": 1, "rnn": False}, 3, 4),
        ({"layers": 0, "exit_dim": 24}, 6, 3),
    ],
)
def test_beams_and_tokens_of_every_step_are_those_of_the_formulas(settings, width, length, tmp_path):
    """Greedy: no tree, no cache, no batch on the side of the reference, which runs the target on every beam."""
    module = models.target("llama")
    target = CachedModel(module, "llama")
    drafter = made(target, **settings)
    drafter.save(tmp_path, "llama")
    method = ReDrafter(ReDrafterOptions(drafter="own", width=width, length=length, top_k=50))
    loaded = RecurrentDrafter.load(tmp_path, target).bind(target)
    method.load(LoadContext(target, lambda _: target, lambda _, __: loaded))
    trace = decoding.decode(target, method, PROMPTS, 12)
    weights, embedding = drafter.state_dict(), module.get_input_embeddings().weight
    how = {"rnn": drafter.settings.rnn, "layers": drafter.settings.layers, "top_k": 50}
    for prompt, row in zip(PROMPTS, trace.rows, strict=True):
        text, steps = list(prompt), []
        with torch.no_grad():
            states = module.model(torch.tensor([text])).last_hidden_state[0]
            root, h = int(module.lm_head(states[-1]).argmax()), states[-1]
            written = [root]
            while len(written) < 12:
                beams = plain_beams(weights, embedding, h, root, width, length, **how)
                outcomes = []
                for beam in beams:
                    states = module.model(torch.tensor([[*text, *beam]])).last_hidden_state[0]
                    best = module.lm_head(states).argmax(-1)[len(text) :].tolist()
                    right = 0
                    while right < length - 1 and beam[right + 1] == best[right]:
                        right += 1
                    outcomes.append((right, best[right], states[len(text) + right], beam))
                right, following, h, beam = max(outcomes, key=lambda outcome: outcome[0])
                steps.append(right)
                text += beam[: right + 1]
                written += [*beam[1 : right + 1], following]
                root = following
        assert row.accepted_per_step == steps
        assert row.output_ids == written[:12]


def test_a_search_that_finds_fewer_beginnings_than_beams_has_fewer_beams():
    target = CachedModel(models.small_vocabulary(5), "tiny")
    drafter = made(target)
    found = Search(9, 3, None, 1.0, 5).run(drafter, torch.randn(2, 16), torch.tensor([1, 2]), with_probs=False)
    assert found.tokens.shape == (2, 9, 2)
    two = Search(9, 3, 2, 1.0, 5).run(drafter, torch.randn(2, 16), torch.tensor([1, 2]), with_probs=False)
    assert two.tokens.shape == (2, 4, 2)


def test_scores_are_log_probabilities_and_the_distributions_are_those_that_were_searched():
    target = CachedModel(models.target("llama"), "llama")
    drafter, context = made(target), torch.randn(2, HIDDEN)
    for top_k, temperature in ((None, 1.0), (7, 0.6)):
        search = Search(4, 4, top_k, temperature, models.VOCAB)
        found = search.run(drafter, context, torch.tensor([5, 9]), with_probs=True)
        assert torch.allclose(found.probs.sum(-1), torch.ones(()))
        row = torch.arange(2)[:, None, None]
        taken_from = torch.nn.functional.pad(found.rows_below[:, :, :-1], (1, 0))
        chances = found.probs[row, taken_from, found.tokens]
        assert torch.allclose(chances.log().cumsum(2), found.scores, atol=1e-4)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that is made; what is a view of the weights is not made."""

    def __init__(self, drafter):
        super().__init__()
        self.numel, self._weights = 0, {weight.untyped_storage().data_ptr() for weight in drafter.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in self._weights:
            self.numel = max(self.numel, made.numel())
        return made


def test_greedy_drafting_holds_no_distributions_of_earlier_steps():
    target = CachedModel(models.target("llama"), "llama")
    drafter = made(target)
    width, length, batch = 8, 6, 2
    context, root = torch.randn(batch, HIDDEN), torch.tensor([5, 9])
    with torch.no_grad(), _Largest(drafter) as greedy:
        Search(width, length, None, 1.0, models.VOCAB).run(drafter, context, root, with_probs=False)
    with torch.no_grad(), _Largest(drafter) as sampled:
        Search(width, length, None, 1.0, models.VOCAB).run(drafter, context, root, with_probs=True)
    assert greedy.numel <= batch * width * max(models.VOCAB, 4 * HIDDEN)
    assert sampled.numel > batch * width * models.VOCAB * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize(("width", "length"), [(1, 2), (2, 6), (4, 5), (16, 3), (13, 6)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_text_is_autoregressives_at_any_width_and_length(family, width, length, batch_size):
    target = decoding.family(family)
    method = decoding.loaded(ReDrafter(ReDrafterOptions(drafter="same", width=width, length=length)), target)
    trace = decoding.decode(target, method, models.PROMPTS[:batch_size], 24)
    expected = [models.greedy_continuation(family, prompt, 24) for prompt in models.PROMPTS[:batch_size]]
    assert decoding.ids(trace) == expected
    assert max(step for row in trace.rows for step in row.accepted_per_step) == length - 1


# --- files


@pytest.mark.parametrize("settings", [{}, {"rnn": False}, {"exit_dim": 20}, {"shared_output": True, "exit_dim": 32}])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_saved_drafter_says_the_same_when_it_is_loaded(settings, pickled, tmp_path):
    target = CachedModel(models.target("llama"), "llama")
    drafter = made(target, **settings)
    drafter.rank_accuracy = ((0.5, 0.25), (0.25, 0.125))
    drafter.save(tmp_path, "llama")
    if pickled:
        torch.save(drafter.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    again = RecurrentDrafter.load(tmp_path, target).bind(target)
    context, state = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
    assert torch.equal(again.logits(context, state), drafter.logits(context, state))
    assert again.rank_accuracy == drafter.rank_accuracy


def test_files_have_the_keys_of_apples_checkpoints(tmp_path):
    """github.com/apple/ml-recurrent-drafter, modeling_drafter.py and configuration_drafter.py."""
    made(CachedModel(models.target("llama"), "llama"), layers=2, exit_dim=20).save(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    apples = {"model_type", "vocab_size", "hidden_size", "exit_dim", "num_draft_layers", "rnn"}
    assert apples <= config.keys()
    assert config["model_type"] == "recurrent_drafting_drafter"
    from safetensors.torch import load_file

    assert {name: tuple(weight.shape) for name, weight in load_file(tmp_path / "model.safetensors").items()} == {
        "input_proj.weight": (20, 64),
        "input_proj.bias": (20,),
        "lm_head.0.linear.weight": (20, 20),
        "lm_head.0.linear.bias": (20,),
        "lm_head.1.linear.weight": (20, 20),
        "lm_head.1.linear.bias": (20,),
        "lm_head.2.weight": (models.VOCAB, 20),
        "rnn_u.weight": (32, 32),
        "rnn_u.bias": (32,),
        "rnn_w.weight": (32, 32),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 48}, r"hidden_size 48.*llama is 32"),
        ({"vocab_size": 90}, r"vocab_size 90.*llama is 83"),
        ({"rnn": False}, r"rnn_u.bias that config.json knows nothing of \(config.json says rnn: false\)"),
        ({"num_draft_layers": 1}, r"lm_head.1.weight.*|lm_head.1.linear"),
        ({"num_draft_layers": 3}, r"asks for the weight lm_head.2.linear.bias"),
        ({"exit_dim": 30}, r"asks for the weight input_proj.bias"),
        ({"exit_dim": None}, r"exit_dim"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_clear_error(change, words, tmp_path):
    target = CachedModel(models.target("llama"), "llama")
    made(target).save(tmp_path, "llama")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ConfigError, match=words) as error:
        RecurrentDrafter.load(tmp_path, target)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_no_drafter(tmp_path):
    target = CachedModel(models.target("llama"), "llama")
    with pytest.raises(ConfigError, match=r"no config.json"):
        RecurrentDrafter.load(tmp_path, target)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32, "vocab_size": 83, "exit_dim": 64}))
    with pytest.raises(ConfigError, match=r"neither model.safetensors nor pytorch_model.bin"):
        RecurrentDrafter.load(tmp_path, target)


def test_an_untrained_drafter_says_what_the_targets_head_says():
    target = CachedModel(models.target("llama"), "llama")
    for settings in ({}, {"shared_output": True}, {"shared_output": True, "exit_dim": 32}, {"exit_dim": 32}):
        drafter = RecurrentDrafter.new(RecurrentSettings(**settings), target).bind(target)
        context, state = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
        assert torch.allclose(drafter.logits(context, state), target.head(context), atol=1e-5), settings


# --- options


def test_a_static_tree_takes_no_options_of_a_search():
    with pytest.raises(ValidationError, match=r"static tree without beams"):
        ReDrafterOptions(drafter="x", branching=[2, 1], nodes=4)


def test_a_static_tree_wider_than_the_vocabulary_is_unsupported():
    target = CachedModel(models.small_vocabulary(5), "tiny")
    with pytest.raises(UnsupportedError, match=r"6 children, and the vocabulary has 5"):
        decoding.loaded(ReDrafter(ReDrafterOptions(drafter="far", branching=[6])), target)


# --- the published sampling rule


@torch.inference_mode()
def test_the_published_rule_sees_the_drafters_own_distributions_and_accepts_more_than_it_may():
    """Every node's q is the drafter's at its parent, and beams that nobody drew pass as if they had been drawn."""
    target = decoding.family("llama")
    method = decoding.loaded(ReDrafter(ReDrafterOptions(drafter="near", width=5, length=4)), target)
    drafter, states, steps = method._drafter, [], []
    make = method.draft
    method.draft = lambda view: states.append(method._state.clone()) or make(view)

    class Noting(RedrafterPaper):
        def decide(self, step):
            steps.append(step)
            return super().decide(step)

    how = {"temperature": 0.8, "seed": 1}
    published = decoding.decode(target, method, PROMPTS, 12, rule=Noting(), **how)
    for step, state in zip(steps, states, strict=True):
        for row, node in step.layout.eligible.nonzero().tolist():
            way = [node]
            while way[0]:
                way.insert(0, int(step.layout.parent[row, way[0]]))
            walked = torch.zeros_like(state[row])
            for place in way[:-1]:
                walked = drafter.advance(walked, step.tokens[row, place])
            q = drafter.logits(state[row], walked)[: models.VOCAB].softmax(-1)
            given = step.draft_probs[row, step.draft_rows[row, step.layout.parent[row, node]]]
            assert torch.allclose(given, q, atol=1e-5)
    exact = decoding.decode(target, method, PROMPTS, 12, rule=Rejection(), **how)
    assert mean_accepted(published) > mean_accepted(exact) + 0.3


def mean_accepted(trace) -> float:
    counts = [count for row in trace.rows for count in row.accepted_per_step]
    return sum(counts) / len(counts)


def test_the_published_rule_knows_no_static_tree():
    method = ReDrafter(ReDrafterOptions(drafter="x", branching=[2, 1]))
    assert "branching is a static tree" in method.unsupported(1, "redrafter_paper")
    assert method.unsupported(1, "rejection") is None
