"""What every method owes, one sentence a test.

A statement about chance comes with its false alarm: the fixed seeds that pass here pass again.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from specbench.decode.acceptance import Match, Rejection, Rule, Synthetic
from specbench.decode.graphs import RecordedStep
from specbench.decode.method import Caps, Method, RowView, StepResult, TokenTree
from specbench.decode.static import hosted
from specbench.decode.step import Decoding, Step
from specbench.decode.target import CachedModel
from specbench.decode.trace import PHASES, BatchTrace, NullWatch
from specbench.errors import ContractError, SpecbenchError

from . import decoding, laws, models
from .cases import FAMILY, PROMPTS, TOKENS, Case, find
from .devices import method_on
from .fake_cuda import NO_VALUES, FakeCuda
from .imports import foreign_imports
from .tape import TapeRecorder

_GREEDY_OR_SAMPLED = pytest.mark.parametrize(
    "how", [{}, {"rule": Rejection(), "temperature": 0.8}], ids=["greedy", "rejection"]
)
_EVERY_RULE = pytest.mark.parametrize(
    "how",
    [{}, {"rule": Match(), "temperature": 0.8}, {"rule": Rejection(), "temperature": 0.8}],
    ids=["greedy", "match", "rejection"],
)


def _greedy(
    prompts: Sequence[tuple[int, ...]] = PROMPTS, most: int = TOKENS, eos: tuple[int, ...] = (), family: str = FAMILY
) -> list[list[int]]:
    return [models.greedy_continuation(family, prompt, most, eos) for prompt in prompts]


def _autoregressive(**how: Any) -> list[list[int]]:
    target = decoding.family(how.pop("family", FAMILY))
    return decoding.ids(decoding.decode(target, decoding.autoregressive(), PROMPTS, TOKENS, **how))


# --- what it is


def test_the_method_can_be_loaded(method_name: str) -> None:
    fault = None
    try:
        find(method_name)
    except SpecbenchError as error:
        fault = str(error)
    if fault:
        pytest.fail(fault, pytrace=False)


def test_its_name_can_stand_in_an_experiment(kind: type[Method]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.name), "small letters, digits and underscores"


def test_its_options_are_strict_frozen_and_described(kind: type[Method]) -> None:
    options = kind.Options
    assert options.model_config.get("extra") == "forbid", "derive Options from specbench.decode.method.Options"
    assert options.model_config.get("frozen") is True
    undescribed = [name for name, field in options.model_fields.items() if not field.description]
    assert not undescribed, "say in description= what these options do, and in which unit"


def test_its_options_survive_json_and_the_method_its_pickling(case: Case) -> None:
    """Options are a column of the results; classes travel to other processes by name."""
    options = case.parsed()
    assert case.kind.Options.model_validate(json.loads(options.model_dump_json())) == options
    assert pickle.loads(pickle.dumps(case.kind)) is case.kind
    assert pickle.loads(pickle.dumps(options)) == options


def test_an_unknown_option_is_refused(case: Case) -> None:
    with pytest.raises(ValidationError):
        case.kind.Options.model_validate({**case.options, "no_such_option": 1})


def test_it_imports_the_contract_and_no_clock_no_loop_no_other_method(kind: type[Method]) -> None:
    assert foreign_imports(kind) == []


def test_it_runs_one_row_at_temperature_zero_and_gives_a_reason_for_what_it_refuses(case: Case) -> None:
    method = case.method(decoding.family(FAMILY))
    assert method.unsupported(1, "greedy") is None, "a method that can run nothing cannot be tested"
    for batch_size in (1, 8):
        for rule in ("greedy", "match", "rejection"):
            reason = method.unsupported(batch_size, rule)
            assert reason is None or (isinstance(reason, str) and reason.strip())


# --- its text at temperature 0


def test_greedy_text_equals_that_of_autoregressive_and_of_transformers(case: Case) -> None:
    assert decoding.ids(case.run()) == _autoregressive() == _greedy()


@pytest.mark.parametrize("family", models.FAMILIES[1:])
def test_greedy_text_equals_that_of_transformers_in_every_family(kind: type[Method], family: str) -> None:
    """The method's examples take turns, a family each."""
    options = next(islice(cycle(kind.examples), models.FAMILIES.index(family), None))
    target, drafts = decoding.family(family), decoding.drafts_of(family)
    assert decoding.ids(Case(kind, options).run(target=target, drafts=drafts)) == _greedy(family=family)


@pytest.mark.parametrize("batch_size", range(1, 9))
def test_greedy_text_is_the_same_in_ragged_batches_of_one_to_eight(case: Case, batch_size: int) -> None:
    prompts = list(islice(cycle(models.PROMPTS), batch_size, 2 * batch_size))
    assert decoding.ids(case.run(prompts)) == _greedy(prompts)


def test_greedy_text_equals_that_of_autoregressive_even_where_every_token_is_a_tie(case: Case) -> None:
    module = models.with_ties(FAMILY)
    target, drafts = CachedModel(module, "ties"), {**decoding.drafts_of(FAMILY), "same": module}
    assert torch.equal(*models.plain_logits(module, [5, 6])[-1].topk(2).values)
    expected = [models.hf_greedy(module, prompt, TOKENS) for prompt in PROMPTS]
    assert decoding.ids(case.run(target=target, drafts=drafts)) == expected


def test_a_text_stops_at_its_first_eos_even_inside_a_draft(case: Case) -> None:
    eos = models.eos_for(FAMILY)
    trace = case.run(eos_ids=eos)
    assert decoding.ids(trace) == _greedy(eos=eos)
    for row in trace.rows:
        assert (row.finish_reason == "eos") == (row.output_ids[-1] in eos)
        assert not set(row.output_ids[:-1]) & set(eos)


@pytest.mark.parametrize("most", [1, 2, 5, 11])
def test_max_new_tokens_is_exact(case: Case, most: int) -> None:
    """One token leaves nothing to draft, two leave less than any gamma."""
    assert decoding.ids(case.run(max_new_tokens=most)) == [text[:most] for text in _greedy()]


# --- its text above temperature 0


@pytest.mark.parametrize("rule", [Match(), Rejection()], ids=["match", "rejection"])
def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(case: Case, rule: Rule) -> None:
    runs = [decoding.ids(case.run(max_new_tokens=9, rule=rule, temperature=0.8, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert all(one != other for one, other in zip(runs[0], runs[2], strict=True))


def test_under_match_sampled_text_equals_that_of_autoregressive(case: Case) -> None:
    how: dict[str, Any] = {"rule": Match(), "temperature": 0.8, "seed": 3}
    assert decoding.ids(case.run(**how)) == _autoregressive(**how)
    warped = {**how, "top_k": 20, "top_p": 0.9, "min_new_tokens": 6, "eos_ids": models.eos_for(FAMILY)}
    assert decoding.ids(case.run(**warped)) == _autoregressive(**warped)


def test_under_match_sampled_text_equals_that_of_autoregressive_behind_a_sliding_window(case: Case) -> None:
    how: dict[str, Any] = {"rule": Match(), "temperature": 0.8, "seed": 9}
    target, drafts = decoding.family("mistral"), decoding.drafts_of("mistral")
    assert decoding.ids(case.run(target=target, drafts=drafts, **how)) == _autoregressive(family="mistral", **how)


@pytest.mark.statistical
def test_rejection_leaves_the_joint_law_of_the_first_tokens_as_the_targets(case: Case) -> None:
    """Four tokens over a vocabulary of five: a table of 625 numbers, and 4,000 texts.

    Pearson's chi-square passes above a p-value of 1e-4: an honest method fails once in 10,000 seeds.
    """
    prompt, tokens, temperature = (1, 3, 1), 4, 0.8
    module, other = models.small_vocabulary(5, 0, 0.4), models.small_vocabulary(5, 1, 0.4)
    drafts = {"same": module, "near": other, "far": models.small_vocabulary(5, 37, 0.4)}
    target = CachedModel(module, "five tokens")
    trace = case.run(
        [prompt] * 4_000,
        tokens + 1,
        target=target,
        drafts=drafts,
        rule=Rejection(),
        temperature=temperature,
        seed=5,
    )
    seen = laws.counts(decoding.ids(trace), 5, tokens)
    assert laws.p_value(seen, laws.joint_law(module, prompt, tokens, temperature)) > 1e-4


# --- what its text may depend on


@_EVERY_RULE
def test_a_prompts_tokens_depend_on_neither_its_batch_nor_its_slot_nor_a_fresh_start(
    case: Case, how: dict[str, Any]
) -> None:
    """Every run below has a method of its own, as a run that was resumed has."""
    prompts, keys = models.PROMPTS, [11, 7, 5, 900, 13, 2**31 - 1, 3, 0]
    together = decoding.ids(case.run(prompts, keys=keys, seed=4, **how))
    for order in ([5], [6, 2, 0]):
        elsewhere = case.run([prompts[i] for i in order], keys=[keys[i] for i in order], seed=4, **how)
        assert decoding.ids(elsewhere) == [together[i] for i in order]


def test_the_same_prompt_under_two_keys_gets_two_samples_and_one_greedy_text(case: Case) -> None:
    prompts = [models.PROMPTS[0]] * 2
    sampled = decoding.ids(case.run(prompts, keys=[1, 2], rule=Match(), temperature=0.8))
    assert sampled[0] != sampled[1]
    greedy = decoding.ids(case.run(prompts, keys=[1, 2]))
    assert greedy[0] == greedy[1]


def _drafts_noted(method: Method) -> list[list[list[int]]]:
    """What the method drafts from now on, step by step; -1 for padding and for rows that are done."""
    drafts, draft, depth = [], method.draft, method.caps().max_depth

    def noting(view: RowView) -> TokenTree:
        tree = draft(view)
        idle = tree.layout(depth).padding[:, 1:] | ~view.active[:, None]
        drafts.append(tree.tokens.masked_fill(idle, -1).tolist())
        return tree

    method.draft = noting  # type: ignore[method-assign]
    return drafts


@_GREEDY_OR_SAMPLED
def test_nothing_of_one_batch_reaches_the_next(case: Case, how: dict[str, Any]) -> None:
    """Batches of other prompts, sizes and lengths, one after the other, equal fresh runs of each, drafts included."""
    target = decoding.family(FAMILY)
    used = case.able(target, rule=how.get("rule"))
    if used.caps().cross_request_state:
        pytest.skip(f"{case}: it says that it learns from one request to the next")
    drafts = _drafts_noted(used)
    batches = [(models.PROMPTS[:3], 16), (models.PROMPTS[3:6], 12), (models.PROMPTS[6:8], 5), (models.PROMPTS[:3], 7)]
    for prompts, most in batches:
        drafts.clear()
        fresh = case.method(target)
        expected = _drafts_noted(fresh)
        one, other = (decoding.decode(target, method, prompts, most, **how) for method in (used, fresh))
        assert drafts == expected
        assert [vars(row) for row in one.rows] == [vars(row) for row in other.rows]


# --- how it behaves


class _Guarded:
    """Wraps a method's verbs: its drafts keep to its caps, and what it is shown stays as it was."""

    def __init__(self, method: Method) -> None:
        self.caps, self.trees = method.caps(), 0
        self._draft, self._update = method.draft, method.update
        method.draft = self.draft  # type: ignore[method-assign]
        method.update = self.update  # type: ignore[method-assign]

    def draft(self, view: RowView) -> TokenTree:
        with self._untouched(view):
            tree = self._draft(view)
        self._keeps_to_caps(tree)
        parts = (tree.tokens, tree.drafted, tree.draft_probs, tree.probe)
        assert all(part is None or part.device == view.root.device for part in parts)
        if tree.draft_probs is not None:
            torch.testing.assert_close(tree.draft_probs.sum(-1), torch.ones(tree.draft_probs.shape[:-1]))
        self.trees += 1
        return tree

    def update(self, view: RowView, result: StepResult) -> None:
        shown = (result.path, result.accepted_tokens, result.emitted_tokens, result.emitted, result.lengths_before)
        with self._untouched(view, *shown, *result.hidden.values()):
            self._update(view, result)

    def _keeps_to_caps(self, tree: TokenTree) -> None:
        layout = tree.layout(max(self.caps.max_depth, tree.tokens.shape[1]))
        children = (layout.eligible[:, None, :] & (layout.parent[:, None, :] == layout.node[:, None])).sum(-1)
        assert tree.tokens.shape[1] <= self.caps.max_nodes
        assert int(layout.depth.max()) <= self.caps.max_depth
        assert int(children.max()) <= self.caps.max_children

    @contextmanager
    def _untouched(self, view: RowView, *shown: Tensor) -> Iterator[None]:
        tensors = [view.root, view.lengths, view.tokens, view.active, view.budget, *shown]
        before = [tensor.clone() for tensor in tensors]
        yield
        same = all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))
        assert same, "a view and a result are the core's own tensors: read them, never write to them"


@_GREEDY_OR_SAMPLED
def test_it_keeps_to_its_caps_and_writes_to_nothing_that_it_is_shown(case: Case, how: dict[str, Any]) -> None:
    target = decoding.family(FAMILY)
    method = case.able(target, rule=how.get("rule"))
    guarded = _Guarded(method)
    trace = decoding.decode(target, method, PROMPTS, TOKENS, **how)
    assert guarded.trees >= trace.steps > 0
    for row in trace.rows:
        assert max(row.emitted_per_step) <= guarded.caps.max_depth + 1
        assert max(row.drafted_nodes_per_step, default=0) <= guarded.caps.max_nodes


_BREACHES: dict[str, Callable[[RowView, Caps], TokenTree]] = {
    "more nodes than its caps": lambda view, caps: TokenTree.chain(view.root[:, None].repeat(1, caps.max_nodes + 1)),
    "a row too few": lambda view, _caps: replace(TokenTree.empty(view), tokens=view.root[1:, None]),
    "tokens of another type": lambda view, _caps: TokenTree(view.root.new_empty((len(view.root), 0)).float()),
    "draws without what they were drawn from": lambda view, _caps: replace(TokenTree.empty(view), proposal="iid"),
}


@pytest.mark.parametrize("breach", _BREACHES)
def test_a_breach_of_the_contract_ends_with_exit_code_3_and_its_name(kind: type[Method], breach: str) -> None:
    target = decoding.family(FAMILY)
    method = Case(kind, kind.examples[0]).able(target)
    caps = method.caps()
    method.draft = lambda view: _BREACHES[breach](view, caps)  # type: ignore[method-assign]
    with pytest.raises(ContractError, match=f"^method {kind.name}: ") as caught:
        decoding.decode(target, method, PROMPTS, TOKENS)
    assert caught.value.exit_code == 3


def _replayed(case: Case, rows: int, **how: Any) -> tuple[RecordedStep, TapeRecorder, BatchTrace]:
    """A step that was recorded on other prompts, its recorder, and what its replays make of these."""
    target = decoding.family(FAMILY)
    method = case.able(target, rows=rows, rule=how.get("rule"))
    recorder = TapeRecorder()
    step = RecordedStep(Step(target, method, Decoding(TOKENS, **how)), recorder, bound_stride=8)
    prompts = list(islice(cycle(PROMPTS), rows))
    others = [[(token + 7) % models.VOCAB for token in prompt] for prompt in prompts]
    decoding.decode(target, method, others, step=step)
    step.settle()
    return step, recorder, decoding.decode(target, method, prompts, step=step)


@_EVERY_RULE
def test_recorded_on_other_prompts_and_replayed_without_python_its_text_is_the_same(
    case: Case, how: dict[str, Any]
) -> None:
    """What a CUDA graph does: addresses, shapes and numbers of the recording stay, and nothing is recorded anew."""
    step, _, trace = _replayed(case, len(PROMPTS), **how)
    plain = case.run(**how)
    assert decoding.ids(trace) == decoding.ids(plain)
    accepted, as_before = ([row.accepted_per_step for row in run.rows] for run in (trace, plain))
    assert accepted == as_before, "its drafts are others: name in carries whatever lives from step to step"
    assert step.notes.missed == 0, "a draft had a shape that none of the warm-up had"
    if step.method.carries() is not None:
        assert step.notes.refused == {}, "a method that says what it carries must not look at the host"
        assert set(step.captured_phases) == {"draft", "verify", "accept", "update"}


@_EVERY_RULE
def test_a_step_takes_as_many_operations_for_32_rows_as_for_one(case: Case, how: dict[str, Any]) -> None:
    one, many = (_replayed(case, rows, **how)[1].operations for rows in (1, 32))
    assert one == many


_ON_A_GPU: tuple[dict[str, Any], ...] = (
    {"rule": Rejection(), "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_new_tokens": 6},
    {},
    {"rule": Match(), "temperature": 0.8},
    {"rule": Synthetic(rates=(0.7, 0.4))},
)


def test_on_a_gpu_its_phases_stay_on_the_device_and_a_graph_could_hold_them(case: Case) -> None:
    """As far as a machine without one can tell. The method's examples take turns, a rule each."""
    if reason := FakeCuda.unavailable():
        pytest.skip(reason)
    tried = [dict(options) for options in case.kind.examples]
    turn = tried.index(dict(case.options)) if dict(case.options) in tried else 0
    rows, how = 2, _ON_A_GPU[turn % len(_ON_A_GPU)]
    case.able(decoding.family(FAMILY), rows=rows, rule=how.get("rule"))  # what is trained, is trained with values
    with FakeCuda() as gpu:
        target = gpu.target()
        plain = Step(target, method_on(case, target, gpu.model), Decoding(TOKENS, eos_ids=(3, 5), **how))
        on_host, step = hosted(plain), RecordedStep(plain, gpu)
        try:
            decoding.decode(target, plain.method, PROMPTS[:rows], step=step)
        except NO_VALUES:
            if not on_host:
                raise
            pytest.skip(f"{case}: it goes by what it reads on the host, and here is nothing to read")
        step.settle()
    assert step.notes.refused == on_host, "a phase that names what it carries keeps to the device"
    assert set(step.captured_phases) == set(PHASES) - set(on_host)


class _Counting(NullWatch):
    """Notes how many tokens the drafts have read before decoding begins, and in the first step."""

    def __init__(self, drafts: dict[str, nn.Module]) -> None:
        self.read = self.at_prefilled = 0
        self.after_first_step: int | None = None
        self._handles = [module.register_forward_pre_hook(self._hook, with_kwargs=True) for module in drafts.values()]

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.read += kwargs["input_ids"].numel()

    def prefilled(self) -> None:
        self.at_prefilled = self.read

    def step(self) -> None:
        if self.after_first_step is None:
            self.after_first_step = self.read

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def test_it_reads_the_prompts_in_begin_and_not_in_its_first_step(case: Case) -> None:
    """Forty tokens of prompt: were they read in the first step, prefill would be charged to decoding."""
    drafts = {"near": models.perturbed("qwen2"), "same": models.perturbed("qwen2", 0.01), "far": models.stranger()}
    target = decoding.family(FAMILY)
    prompt = [(5 * i + 2) % models.VOCAB for i in range(40)]
    method = case.able(target, drafts, rows=2)
    watch = _Counting(drafts)
    try:
        decoding.decode(target, method, [prompt, prompt], 12, watch=watch)
    finally:
        watch.remove()
    if watch.read:
        assert watch.at_prefilled >= 2 * 40, "read the prompts in begin: what draft reads is charged to decoding"
    assert watch.after_first_step is not None
    assert watch.after_first_step - watch.at_prefilled <= 2 * (method.caps().max_nodes + 2)
