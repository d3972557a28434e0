"""specbench.decode.loop: cuts, counts, what methods may do and may not, and that a step asks the device nothing."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from specbench.decode import loop
from specbench.decode import target as target_module
from specbench.decode.acceptance import Match, RedrafterPaper, Rejection, Synthetic, Typical
from specbench.decode.method import Caps, Hidden, RowView, TokenTree
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, NullWatch
from specbench.decode.tree import Topology
from specbench.errors import ConfigError, ContractError, UnsupportedError
from support import decoding, models
from support.methods import Given, Listening, Scripted

PROMPTS = models.PROMPTS[:5]


def _texts(name: str = "llama", tokens: int = 24) -> list[list[int]]:
    return [models.greedy_continuation(name, prompt, tokens) for prompt in PROMPTS]


def _same(gamma: int = 4, name: str = "llama", **options: object):
    target = decoding.family(name)
    return target, decoding.draft_model(target, decoding.drafts_of(name), draft="same", gamma=gamma, **options)


def _counts(trace: BatchTrace) -> list[tuple[object, ...]]:
    return [
        (row.output_ids, row.finish_reason, row.accepted_per_step, row.drafted_depth_per_step,
         row.drafted_nodes_per_step, row.emitted_per_step, row.overshoot_tokens)
        for row in trace.rows
    ]  # fmt: skip


# ---- cuts ------------------------------------------------------------------------------------------------------------


def test_a_draft_is_cut_at_the_first_of_two_eos_ids_and_the_eos_stays():
    text = _texts()[0]
    first, second = [token for token in dict.fromkeys(text) if 6 <= text.index(token) <= 12][:2]
    end = text.index(first)
    target, method = _same(gamma=8)
    row = decoding.decode(target, method, PROMPTS[:1], eos_ids=(second, first)).rows[0]
    assert row.output_ids == text[: end + 1]
    assert row.finish_reason == "eos"
    assert row.overshoot_tokens > 0


def test_eos_as_the_very_first_token_ends_a_row_before_any_step():
    text = _texts()
    target, method = _same()
    trace = decoding.decode(target, method, PROMPTS, eos_ids=(text[0][0],))
    row = trace.rows[0]
    assert (row.output_ids, row.finish_reason, row.steps, row.overshoot_tokens) == ([text[0][0]], "eos", 0, 0)
    assert trace.rows[1].steps > 0


def test_a_batch_in_which_every_row_ends_at_once_takes_no_step():
    text = _texts()
    target, method = _same()
    trace = decoding.decode(target, method, PROMPTS, eos_ids=tuple(text[row][0] for row in range(5)))
    assert decoding.ids(trace) == [row[:1] for row in text]
    assert trace.steps == 0


def test_one_new_token_is_the_prefills_own_and_takes_no_step():
    target, method = _same()
    trace = decoding.decode(target, method, PROMPTS, 1)
    assert decoding.ids(trace) == [text[:1] for text in _texts()]
    assert trace.steps == 0
    assert {row.finish_reason for row in trace.rows} == {"length"}


@pytest.mark.parametrize("most", range(2, 12))
def test_the_length_is_exact_and_what_was_accepted_beyond_it_is_overshoot(most: int):
    target, method = _same(gamma=4)
    for text, row in zip(_texts(), decoding.decode(target, method, PROMPTS, most).rows, strict=True):
        assert row.output_ids == text[:most]
        # Everything is accepted: steps emit five tokens each until the cut.
        steps = -(-(most - 1) // 5)
        assert row.accepted_per_step == [4] * steps
        assert row.overshoot_tokens == 5 * steps - (most - 1)


def test_eos_at_exactly_the_last_allowed_token_counts_as_eos():
    text = _texts()[0]
    place = max(index for index in range(24) if text.index(text[index]) == index)
    target, method = _same()
    row = decoding.decode(target, method, PROMPTS[:1], place + 1, eos_ids=(text[place],)).rows[0]
    assert (row.output_ids, row.finish_reason) == (text[: place + 1], "eos")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("least", [1, 5, 12])
def test_min_new_tokens_gives_the_ids_of_transformers(name: str, least: int):
    eos = models.eos_for(name)
    expected = [models.greedy_continuation(name, prompt, 24, eos, least) for prompt in PROMPTS]
    assert expected != [models.greedy_continuation(name, prompt, 24, eos) for prompt in PROMPTS] or least < 12
    target = decoding.family(name)
    for method in (
        decoding.autoregressive(),
        decoding.draft_model(target, decoding.drafts_of(name), draft="near", gamma=4),
        decoding.draft_model(target, decoding.drafts_of(name), draft="near", tree={"branching": [2, 2]}),
    ):
        trace = decoding.decode(target, method, PROMPTS, min_new_tokens=least, eos_ids=eos)
        assert decoding.ids(trace) == expected


@pytest.mark.parametrize(
    "options", [{"gamma": 8}, {"tree": {"branching": [2, 2, 2]}}, {"gamma": 5, "stop": {"kind": "heuristic"}}]
)
def test_a_text_may_fill_the_context_to_the_last_position(options: dict[str, object]):
    """gpt2 has a table of 160 positions: an index beyond it is an error, and drafts near the end reach beyond it."""
    prompt = [(7 * i + 3) % models.VOCAB for i in range(models.POSITIONS - 12)]
    target = decoding.family("gpt2")
    method = decoding.draft_model(target, decoding.drafts_of("gpt2"), draft="near", **options)
    trace = decoding.decode(target, method, [prompt, *PROMPTS], 12)
    assert trace.rows[0].output_ids == models.greedy_continuation("gpt2", tuple(prompt), 12)


def test_a_prompt_that_does_not_fit_the_context_is_refused_before_anything_runs():
    target = decoding.family("gpt2")
    with pytest.raises(ConfigError, match="149 tokens and 12 new ones exceed the 160 positions"):
        decoding.decode(target, decoding.autoregressive(), [[1] * 149, [2]], 12)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="no tokens"):
        decoding.decode(decoding.family("llama"), decoding.autoregressive(), [[1], []], 4)


def test_a_prompt_of_one_token_is_enough():
    target, method = _same()
    assert decoding.ids(decoding.decode(target, method, [(17,)])) == [models.greedy_continuation("llama", (17,), 24)]


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["same", "near", "far"])
@pytest.mark.parametrize(
    "options",
    [{"gamma": 3}, {"gamma": 8}, {"tree": {"branching": [2, 2, 1]}}, {"gamma": 7, "stop": {"kind": "heuristic"}}],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_output_tokens_are_one_and_accepted_plus_one_a_step_less_the_overshoot(draft, options, temperature):
    target = decoding.family("llama")
    method = decoding.draft_model(target, decoding.drafts_of("llama"), draft=draft, **options)
    rule = Rejection() if temperature else Match()
    trace = decoding.decode(
        target, method, models.PROMPTS, 22, rule=rule, temperature=temperature, eos_ids=models.eos_for("llama")
    )
    caps = method.caps()
    for row in trace.rows:
        assert len(row.output_ids) == 1 + sum(n + 1 for n in row.accepted_per_step) - row.overshoot_tokens
        assert len(row.output_ids) == 1 + sum(row.emitted_per_step)
        assert all(0 < n <= caps.max_depth + 1 for n in row.emitted_per_step)
        assert all(
            a <= d <= caps.max_depth for a, d in zip(row.accepted_per_step, row.drafted_depth_per_step, strict=True)
        )
        assert all(
            d <= n <= caps.max_nodes
            for d, n in zip(row.drafted_depth_per_step, row.drafted_nodes_per_step, strict=True)
        )
        # Overshoot belongs to the last step alone.
        assert row.emitted_per_step[:-1] == [n + 1 for n in row.accepted_per_step[:-1]]


def test_rows_that_have_ended_change_neither_their_own_counts_nor_those_of_others():
    target = decoding.family("llama")
    method = decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", gamma=5)
    eos = models.eos_for("llama")
    together = _counts(decoding.decode(target, method, models.PROMPTS, eos_ids=eos))
    alone = [_counts(decoding.decode(target, method, [prompt], eos_ids=eos))[0] for prompt in models.PROMPTS]
    assert together == alone
    assert len({len(counts[0]) for counts in together}) >= 4


def test_the_steps_of_a_batch_are_those_of_its_longest_row():
    target, method = _same(gamma=2)
    trace = decoding.decode(target, method, models.PROMPTS, eos_ids=models.eos_for("llama"))
    assert trace.steps == max(row.steps for row in trace.rows) > min(row.steps for row in trace.rows)
    assert len(trace.syncs_per_step) == trace.steps


def test_a_synthetic_rule_emits_what_it_prescribes_and_ignores_what_was_drafted():
    target = decoding.family("llama")
    method = decoding.draft_model(target, decoding.drafts_of("llama"), draft="far", gamma=4)
    trace = decoding.decode(target, method, models.PROMPTS, 25, rule=Synthetic(trace=(2, 0, 4)), keys=[0] * 8)
    for row in trace.rows:
        assert row.accepted_per_step == ([2, 0, 4] * 9)[: row.steps]
        assert len(row.output_ids) == 25


def test_the_synthetic_mean_holds_over_a_whole_run():
    target = decoding.family("llama")
    method = decoding.draft_model(target, decoding.drafts_of("llama"), draft="far", gamma=4)
    trace = decoding.decode(target, method, models.PROMPTS * 8, 100, rule=Synthetic(mean_length=2.6))
    accepted = [n for row in trace.rows for n in row.accepted_per_step]
    assert set(accepted) == {1, 2}
    assert 1 + sum(accepted) / len(accepted) == pytest.approx(2.6, abs=4 * 0.5 / len(accepted) ** 0.5)


# ---- what a method may do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize("probes", [0.0, 0.3], ids=["no probes", "probes"])
def test_random_ragged_trees_with_padding_and_probes_leave_the_text_alone(name: str, probes: float):
    target, texts = decoding.family(name), _texts(name)
    for seed in range(3):
        method = Scripted(texts, models.VOCAB, seed=seed, probes=probes)
        trace = decoding.decode(target, method, PROMPTS)
        assert decoding.ids(trace) == texts
        assert sum(sum(row.accepted_per_step) for row in trace.rows) >= 20
        if probes:
            assert method.probes_with_the_right_token >= 10


def test_a_probe_is_never_accepted_however_right_it_is():
    text = models.greedy_continuation("llama", PROMPTS[0], 24)
    calls = []

    def make(view: RowView) -> TokenTree:
        at = int(view.lengths[0]) - len(PROMPTS[0]) + 1
        calls.append(at)
        right = [*text, 0, 0][at : at + 2]
        # Node 0 is right and a probe, node 1 hangs below it; node 2 is right and no probe.
        return TokenTree(
            torch.tensor([[right[0], right[1], right[0]]]),
            torch.tensor([[-1, 0, -1]]),
            probe=torch.tensor([[True, False, False]]),
        )

    row = decoding.decode(decoding.family("llama"), Given(make, Caps(3, 2, 2)), PROMPTS[:1], 9).rows[0]
    assert row.output_ids == text[:9]
    assert row.accepted_per_step == [1] * 4
    assert row.drafted_nodes_per_step == [3] * 4


def test_a_probe_counts_as_a_node_and_not_as_drafted_depth():
    def make(view: RowView) -> TokenTree:
        probe = torch.tensor([[False, True]]).expand(5, -1)
        return TokenTree(torch.zeros(5, 2, dtype=torch.int64), torch.tensor([[-1, 0]]).expand(5, -1), probe=probe)

    trace = decoding.decode(decoding.family("llama"), Given(make, Caps(2, 2)), PROMPTS, 6)
    for row in trace.rows:
        assert set(row.drafted_nodes_per_step) == {2}
        assert set(row.drafted_depth_per_step) == {1}


def test_a_probe_inside_a_chain_ends_what_can_be_accepted():
    text = models.greedy_continuation("llama", PROMPTS[0], 24)

    def make(view: RowView) -> TokenTree:
        at = int(view.lengths[0]) - len(PROMPTS[0]) + 1
        return TokenTree(torch.tensor([[*text, 0, 0, 0][at : at + 3]]), probe=torch.tensor([[False, True, False]]))

    row = decoding.decode(decoding.family("llama"), Given(make, Caps(3, 3)), PROMPTS[:1], 9).rows[0]
    assert row.output_ids == text[:9]
    assert row.accepted_per_step == [1] * 4


def test_duplicate_siblings_are_harmless():
    text = models.greedy_continuation("llama", PROMPTS[0], 24)

    def make(view: RowView) -> TokenTree:
        at = int(view.lengths[0]) - len(PROMPTS[0]) + 1
        one, two = [*text, 0, 0][at : at + 2]
        return TokenTree(torch.tensor([[one, one, two, two]]), torch.tensor([[-1, -1, 0, 1]]))

    row = decoding.decode(decoding.family("llama"), Given(make, Caps(4, 2, 2)), PROMPTS[:1], 10).rows[0]
    assert row.output_ids == text[:10]
    assert row.accepted_per_step == [2] * 3


def test_a_draft_may_have_another_number_of_nodes_each_step_and_none_at_times():
    sizes = iter([0, 3, 1, 0, 2] * 10)

    def make(view: RowView) -> TokenTree:
        return TokenTree.chain(torch.zeros(5, next(sizes), dtype=torch.int64))

    trace = decoding.decode(decoding.family("llama"), Given(make, Caps(3, 3)), PROMPTS)
    assert decoding.ids(trace) == _texts()


def _chain_of(length: int, rows: int = 5) -> TokenTree:
    return TokenTree.chain(torch.zeros(rows, length, dtype=torch.int64))


def _tree_of(parents: list[int], **extra: object) -> TokenTree:
    return TokenTree(torch.zeros(5, len(parents), dtype=torch.int64), torch.tensor(parents).expand(5, -1), **extra)


_CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("tree", "caps"),
    [
        pytest.param(lambda: _chain_of(2, rows=4), Caps(2, 2), id="a row is missing"),
        pytest.param(lambda: TokenTree(torch.zeros(5, dtype=torch.int64)), Caps(2, 2), id="tokens without a node axis"),
        pytest.param(lambda: _chain_of(4), Caps(3, 3), id="more nodes than the caps say"),
        pytest.param(lambda: _tree_of([-1, -1], proposal="iid"), Caps(2, 1, 2), id="a draw without its distribution"),
        pytest.param(lambda: _chain_of(3), Caps(3, 2), id="a chain deeper than the caps say"),
        pytest.param(
            lambda: TokenTree(torch.zeros(5, 2, dtype=torch.int64), Topology.from_branching((1, 1), _CPU)),
            Caps(2, 1), id="a topology deeper than the caps say",
        ),
        pytest.param(lambda: _tree_of([-1, 0, 1]), Caps(3, 2), id="a tree deeper than the caps say"),
        pytest.param(lambda: _tree_of([-1, 2, 0]), Caps(3, 3), id="a child that comes before its parent"),
        pytest.param(lambda: _tree_of([-1, -3]), Caps(2, 2, 2), id="a parent that is none"),
        pytest.param(lambda: _tree_of([-1, -1, -1]), Caps(3, 1, 2), id="more children than the caps say"),
        pytest.param(
            lambda: TokenTree(torch.zeros(5, 2, dtype=torch.int64), torch.tensor([[-1, 0]] * 4)),
            Caps(2, 2), id="a row of parents is missing",
        ),
        pytest.param(
            lambda: TokenTree(torch.zeros(5, 2, dtype=torch.int64), torch.tensor([[-1]] * 5)),
            Caps(2, 2), id="a node without a parent",
        ),
        pytest.param(lambda: TokenTree.chain(torch.full((5, 1), models.VOCAB)), Caps(1, 1), id="an unknown token"),
        pytest.param(lambda: TokenTree.chain(torch.full((5, 1), -1)), Caps(1, 1), id="a token below zero"),
        pytest.param(lambda: TokenTree.chain(torch.zeros(5, 1)), Caps(1, 1), id="tokens that are no integers"),
    ],
)  # fmt: skip
def test_a_method_that_breaks_the_contract_is_told_so(tree, caps):
    with pytest.raises(ContractError, match="given"):
        decoding.decode(decoding.family("llama"), Given(lambda view: tree(), caps), PROMPTS, 8)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_hidden_states_and_top_tokens_of_a_step_equal_those_of_plain_forwards(name: str):
    target, module = decoding.family(name), models.target(name)
    method = Listening(_texts(name), models.VOCAB, seed=4)
    decoding.decode(target, method, PROMPTS, 16)
    post_norm, layer_input = Hidden("post_norm"), Hidden("layer_input", 1)

    def plain(tokens: list[int]):
        with torch.no_grad():
            return module(input_ids=torch.tensor([tokens]), output_hidden_states=True, use_cache=False)

    for row, prompt in enumerate(PROMPTS):
        states = plain(list(prompt)).hidden_states
        torch.testing.assert_close(
            method.prefill.hidden[post_norm][row, : len(prompt)], states[-1][0], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            method.prefill.hidden[layer_input][row, : len(prompt)], states[1][0], atol=1e-4, rtol=1e-4
        )
    moved = 0
    for (tree, root, tokens, lengths), result in list(zip(method.drafts, method.results, strict=True))[:4]:
        nodes = torch.cat([root[:, None], tree.tokens], dim=1)
        for row in range(5):
            if not result.emitted_tokens[row]:
                continue
            committed = tokens[row, : int(lengths[row])].tolist()
            path = [node for node in result.path[row].tolist() if node >= 0]
            assert len(path) == int(result.accepted_tokens[row]) + 1
            output = plain([*committed, *nodes[row, path].tolist()])
            for column, node in enumerate(path):
                at = len(committed) + column
                assert result.node_topk[row, node].tolist() == output.logits[0, at].topk(3).indices.tolist()
                for key, layer in ((post_norm, -1), (layer_input, 1)):
                    torch.testing.assert_close(
                        result.hidden[key][row, column], output.hidden_states[layer][0, at], atol=1e-4, rtol=1e-4
                    )
            moved += len(path) > 1
    assert moved >= 5


# ---- the watch -------------------------------------------------------------------------------------------------------


class _Diary(NullWatch):
    def __init__(self) -> None:
        self.events: list[str] = []

    def start(self) -> None:
        self.events.append("start")

    def first_token(self) -> None:
        self.events.append("first_token")

    def prefilled(self) -> None:
        self.events.append("prefilled")

    def phase(self, name: str):
        self.events.append(name)
        return nullcontext()

    def step(self) -> None:
        self.events.append("step")

    def finish(self, steps: int) -> None:
        self.events.append(f"finish {steps}")


def test_the_watch_hears_of_everything_in_order():
    diary = _Diary()
    target, method = _same(gamma=4)
    decoding.decode(target, method, PROMPTS, 11, watch=diary)
    step = ["draft", "verify", "accept", "update", "step"]
    assert diary.events == ["start", "first_token", "prefilled", *step, *step, "finish 2"]


# ---- reading one step late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 3},
        {"gamma": 8},
        {"tree": {"branching": [2, 2, 1]}},
        {"gamma": 6, "stop": {"kind": "heuristic"}},
        {"gamma": 6, "stop": {"kind": "confidence", "threshold": 0.2}},
    ],
    ids=str,
)
@pytest.mark.parametrize(("draft", "temperature"), [("same", 0.0), ("near", 0.8)])
def test_reading_outcomes_one_step_late_changes_nothing(options, draft, temperature, monkeypatch):
    target = decoding.family("gemma2")

    def run(most: int, eos: tuple[int, ...]) -> BatchTrace:
        method = decoding.draft_model(target, decoding.drafts_of("gemma2"), draft=draft, **options)
        return decoding.decode(
            target,
            method,
            PROMPTS,
            most,
            eos_ids=eos,
            temperature=temperature,
            rule=Rejection() if temperature else Match(),
        )

    cases = [(16, models.eos_for("gemma2")), (1, ()), (9, ())]
    at_once = [run(*case) for case in cases]
    monkeypatch.setattr(loop, "read_lag", lambda device: 1)
    late = [run(*case) for case in cases]
    assert [_counts(trace) for trace in late] == [_counts(trace) for trace in at_once]
    assert [trace.steps for trace in late] == [trace.steps for trace in at_once]


def test_reading_late_costs_one_step_that_is_not_counted(monkeypatch):
    diary = _Diary()
    monkeypatch.setattr(loop, "read_lag", lambda device: 1)
    target, method = _same(gamma=4)
    trace = decoding.decode(target, method, PROMPTS, 11, watch=diary)
    assert diary.events.count("step") == 3
    assert diary.events[-1] == "finish 2"
    assert trace.steps == 2
    assert len(trace.syncs_per_step) == 2


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("options", [{"gamma": 3}, {"tree": {"branching": [2, 2, 1]}}], ids=str)
def test_a_view_is_long_enough_to_the_very_slot(options, lag, monkeypatch):
    """Views grow in strides, which hide a bound that is too low; with a stride of one it would be an error."""
    monkeypatch.setitem(target_module._VIEW_STRIDE, "cpu", 1)
    monkeypatch.setattr(loop, "read_lag", lambda device: lag)
    target = decoding.family("mistral")
    method = decoding.draft_model(target, decoding.drafts_of("mistral"), draft="same", **options)
    assert decoding.ids(decoding.decode(target, method, PROMPTS)) == _texts("mistral")


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_reading_late_changes_nothing_for_lookup_and_random_trees(name: str, monkeypatch):
    monkeypatch.setattr(loop, "read_lag", lambda device: 1)
    target, texts = decoding.family(name), _texts(name)
    for method in (decoding.autoregressive(), decoding.prompt_lookup(), Scripted(texts, models.VOCAB, probes=0.2)):
        assert decoding.ids(decoding.decode(target, method, PROMPTS)) == texts


# ---- no host synchronisation -----------------------------------------------------------------------------------------

_FORBIDDEN_OPS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "unique",
    "equal",
    "item",
    "_unique2",
    "argwhere",
    "repeat_interleave.Tensor",
    "bincount",
    "unique_consecutive",
    "nonzero_numpy",
    "allclose",
)
_FORBIDDEN_CALLS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy")


class _NoQuestions(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on every operation that would have to wait for a GPU, and counts those that launch work."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        assert not {name, name.split(".")[0]} & set(_FORBIDDEN_OPS), f"{name} waits for the device"
        if name.split(".")[0] in {"index", "index_put", "index_put_", "_index_put_impl_"}:
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            assert all(index.dtype is not torch.bool for index in indices), f"{name} by a mask waits for the device"
        assert name.split(".")[0] != "lift_fresh", (
            "a tensor is made from Python numbers: a copy that waits for the device"
        )
        if not func.is_view and name.split(".")[0] not in {"detach", "alias", "_unsafe_view"}:
            self.launches.append(name)
        return func(*args, **(kwargs or {}))


class _Sentry(NullWatch):
    """Lets no phase ask the device anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.launches: dict[str, list[int]] = {}

    def phase(self, name: str):
        sentry = self

        class Guard:
            def __enter__(self):
                self.patch = pytest.MonkeyPatch()
                for call in _FORBIDDEN_CALLS:
                    if hasattr(Tensor, call):
                        self.patch.setattr(Tensor, call, _asked(call))
                self.mode = _NoQuestions()
                self.mode.__enter__()

            def __exit__(self, *error):
                self.mode.__exit__(*error)
                self.patch.undo()
                sentry.launches.setdefault(name, []).append(len(self.mode.launches))

        return Guard()


def _asked(call: str):
    def fail(self: Tensor, *args: object) -> None:
        raise AssertionError(f"Tensor.{call} asks the device")

    return fail


_RULES = [
    pytest.param(None, 0.0, id="greedy"),
    pytest.param(Match(), 0.8, id="match"),
    pytest.param(Rejection(), 0.8, id="rejection"),
]
_QUIET = {
    "autoregressive": lambda target: decoding.autoregressive(),
    "chain": lambda target: decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", gamma=3),
    "tree": lambda target: decoding.draft_model(
        target, decoding.drafts_of("llama"), draft="near", tree={"branching": [2, 2]}
    ),
    "tree drawn with replacement": lambda target: decoding.draft_model(
        target, decoding.drafts_of("llama"), draft="near", tree={"branching": [2, 2], "proposal": "iid"}
    ),
    "tree drawn without replacement": lambda target: decoding.draft_model(
        target, decoding.drafts_of("llama"), draft="near", tree={"branching": [2, 2], "proposal": "without_replacement"}
    ),
}  # fmt: skip


def _watched(method: str, rule, temperature: float, prompts, monkeypatch, **options: object) -> _Sentry:
    target, sentry = decoding.family("llama"), _Sentry(monkeypatch)
    build = _QUIET[method]
    chosen = {"rule": rule} if rule else {}
    decoding.decode(
        target, build(target), prompts, 8, watch=sentry, temperature=temperature, eos_ids=(3, 5), **chosen, **options
    )
    return sentry


@pytest.mark.parametrize(("rule", "temperature"), _RULES)
@pytest.mark.parametrize("method", _QUIET)
@pytest.mark.parametrize("warp", [{}, {"top_k": 20, "top_p": 0.9, "min_new_tokens": 4}], ids=["plain", "warped"])
def test_no_phase_of_a_step_asks_the_device_anything(method, rule, temperature, warp, monkeypatch):
    sentry = _watched(method, rule, temperature, PROMPTS, monkeypatch, **warp)
    assert set(sentry.launches) == {"draft", "verify", "accept", "update"}


@pytest.mark.parametrize(
    "rule",
    [Synthetic(mean_length=2.2), Synthetic(rates=(0.7, 0.2)), Synthetic(trace=(0, 2))],
    ids=["mean", "rates", "trace"],
)
def test_the_synthetic_rule_asks_the_device_nothing_once_its_table_is_there(rule, monkeypatch):
    target = decoding.family("llama")
    decoding.decode(target, _QUIET["chain"](target), PROMPTS, 8, rule=rule)
    _watched("chain", rule, 0.0, PROMPTS, monkeypatch)


@pytest.mark.parametrize(
    ("rule", "method"),
    [
        *((Typical(), method) for method in _QUIET),
        *((RedrafterPaper(), method) for method in ("autoregressive", "chain", "tree drawn with replacement")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_lossy_rule_asks_the_device_nothing_and_has_no_loop_over_rows(rule, method, monkeypatch):
    one = _watched(method, rule, 0.8, PROMPTS[:1], monkeypatch)
    many = _watched(method, rule, 0.8, (PROMPTS * 7)[:32], monkeypatch)
    assert set(one.launches["accept"]) == set(many.launches["accept"])
    assert len(set(one.launches["accept"])) == 1


@pytest.mark.parametrize("method", ["tree", "lookup"])
def test_a_draft_without_a_distribution_is_unsupported_under_a_rule_that_takes_points_for_draws(method: str):
    target = decoding.family("llama")
    build = {**_QUIET, "lookup": lambda target: decoding.prompt_lookup()}[method]
    with pytest.raises(UnsupportedError, match=f"^method {build(target).name} gives no draft_probs.*redrafter_paper"):
        decoding.decode(target, build(target), PROMPTS, 8, rule=RedrafterPaper(), temperature=0.8)
    greedy = decoding.decode(target, build(target), PROMPTS, 8, rule=RedrafterPaper(), temperature=0.0)
    assert decoding.ids(greedy) == decoding.ids(decoding.decode(target, decoding.autoregressive(), PROMPTS, 8))


@pytest.mark.parametrize("question", ["item", "bool", "tolist", "nonzero", "mask", "constant"])
def test_the_sentry_sees_a_question_when_there_is_one(question: str, monkeypatch):
    def ask(view: RowView) -> TokenTree:
        {
            "item": lambda: view.root[0].item(),
            "bool": lambda: bool(view.active.any()),
            "tolist": view.root.tolist,
            "nonzero": view.active.nonzero,
            "mask": lambda: view.root[view.active],
            "constant": lambda: torch.tensor([1, 2]),
        }[question]()
        return TokenTree.empty(view)

    target = decoding.family("llama")
    with pytest.raises(AssertionError, match="device"):
        decoding.decode(target, Given(ask, Caps(0, 0)), PROMPTS, 4, watch=_Sentry(monkeypatch))


@pytest.mark.parametrize(("rule", "temperature"), _RULES)
@pytest.mark.parametrize("method", _QUIET)
def test_accepting_launches_as_many_operations_for_32_rows_as_for_one(method, rule, temperature, monkeypatch):
    one = _watched(method, rule, temperature, PROMPTS[:1], monkeypatch)
    many = _watched(method, rule, temperature, (PROMPTS * 7)[:32], monkeypatch)
    assert set(one.launches["accept"]) == set(many.launches["accept"])
    assert len(set(one.launches["accept"])) == 1
    assert set(one.launches["update"]) == set(many.launches["update"])


def test_a_method_that_reads_the_text_on_the_host_is_counted_once_a_step():
    trace = decoding.decode(decoding.family("llama"), decoding.prompt_lookup(), PROMPTS)
    assert trace.syncs_per_step == [1] * trace.steps
    assert decoding.decode(*_same(gamma=3), PROMPTS).syncs_per_step == [0] * 6


def test_a_stopping_draft_is_counted_for_every_token_it_asks_about():
    target = decoding.family("llama")
    method = decoding.draft_model(
        target, decoding.drafts_of("llama"), draft="near", gamma=4, stop={"kind": "confidence", "threshold": 0.0}
    )
    trace = decoding.decode(target, method, PROMPTS)
    assert set(trace.syncs_per_step) == {3}


def test_prompts_of_a_batch_may_be_given_in_any_order():
    target = decoding.family("phi3")
    forward = decoding.ids(decoding.decode(target, decoding.autoregressive(), PROMPTS))
    backward = decoding.ids(decoding.decode(target, decoding.autoregressive(), PROMPTS[::-1]))
    assert forward == backward[::-1]


def test_a_target_with_padded_vocabulary_rows_never_emits_them():
    module = models.target("llama")
    whole = CachedModel(module, "llama")
    narrow = CachedModel(module, "llama", vocab_size=60)
    prompts = [[token % 60 for token in prompt] for prompt in PROMPTS]
    assert max(map(max, decoding.ids(decoding.decode(whole, decoding.autoregressive(), prompts)))) >= 60
    for rule, temperature in ((Match(), 0.0), (Match(), 1.5), (Rejection(), 1.5)):
        for method in (
            decoding.autoregressive(),
            decoding.draft_model(narrow, {"d": models.stranger()}, draft="d", gamma=3),
        ):
            trace = decoding.decode(narrow, method, prompts, rule=rule, temperature=temperature)
            assert max(map(max, decoding.ids(trace))) < 60
