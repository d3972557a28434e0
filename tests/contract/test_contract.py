"""What every registered method owes, one sentence a test, over the table ``methods.METHODS``.

A method that joins the table joins this suite: it needs a row in ``OPTIONS`` below, and nothing else.
"""

from importlib import import_module

import pytest
import torch
from torch import nn

from methods import METHODS
from specbench.decode.acceptance import Match, Rejection, Rule
from specbench.decode.method import Caps, LoadContext, Method, RowView, StepResult, TokenTree
from specbench.decode.target import CachedModel
from specbench.decode.trace import NullWatch
from support import checks, decoding, models

# For every method, option sets that between them reach all of its code. "near", "same" and "far" are draft models that
# are accepted in part, whole, and hardly ever.
OPTIONS: dict[str, list[dict[str, object]]] = {
    "autoregressive": [{}],
    "draft_model": [
        {"draft": "near", "gamma": 4},
        {"draft": "same", "gamma": 7},
        {"draft": "far", "gamma": 2},
        {"draft": "near", "gamma": 3, "proposal": "argmax"},
        {"draft": "near", "gamma": 6, "stop": {"kind": "heuristic", "start": 2}},
        {"draft": "near", "gamma": 6, "stop": {"kind": "confidence", "threshold": 0.3}},
        {"draft": "near", "tree": {"branching": [3, 2, 1]}},
        {"draft": "same", "tree": {"branching": [2, 2, 2]}},
        {"draft": "near", "tree": {"branching": [2, 2], "proposal": "iid"}},
        {"draft": "near", "tree": {"branching": [3, 2], "proposal": "without_replacement"}},
    ],
    "prompt_lookup": [{}, {"max_ngram": 1, "gamma": 3}, {"max_ngram": 5, "min_ngram": 2, "gamma": 12}],
}

CASES = [
    pytest.param(name, options, id=f"{name} {options or ''}".strip())
    for name in METHODS
    for options in OPTIONS.get(name, [])
]
every_method = pytest.mark.parametrize(("name", "options"), CASES)
FAMILY = "llama"
# Rows of 5, 2, 9, 1 and 12 tokens.
PROMPTS, TOKENS = models.PROMPTS[:5], 12


def _class(name: str) -> type[Method]:
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)


def _method(
    name: str, options: dict[str, object], target: CachedModel, drafts: dict[str, nn.Module] | None = None
) -> Method:
    kind = _class(name)
    drafts = drafts or decoding.drafts_of(FAMILY)
    return decoding.loaded(kind(kind.Options(**options)), target, drafts)


def _run(name: str, options: dict[str, object], prompts=PROMPTS, most: int = TOKENS, **how: object):
    target = decoding.family(FAMILY)
    return decoding.decode(target, _method(name, options, target), prompts, most, **how)


def _greedy(most: int = TOKENS, eos: tuple[int, ...] = ()) -> list[list[int]]:
    return [models.greedy_continuation(FAMILY, prompt, most, eos) for prompt in PROMPTS]


@pytest.mark.parametrize("name", METHODS)
def test_every_registered_method_has_a_row_in_the_table_of_this_suite(name: str):
    assert OPTIONS.get(name), f"add option sets of {name} to OPTIONS in tests/contract/test_contract.py"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_calls_itself_what_the_table_calls_it(name: str):
    assert _class(name).name == name
    assert issubclass(_class(name), Method)


@pytest.mark.parametrize("name", METHODS)
def test_options_are_strict_frozen_and_described(name: str):
    options = _class(name).Options
    assert options.model_config["extra"] == "forbid"
    assert options.model_config["frozen"] is True
    assert all(field.description for field in options.model_fields.values())


@every_method
def test_greedy_text_equals_that_of_autoregressive_and_of_transformers(name: str, options: dict[str, object]):
    assert decoding.ids(_run(name, options)) == decoding.ids(_run("autoregressive", {})) == _greedy()


@every_method
def test_greedy_text_equals_that_of_autoregressive_even_where_every_token_is_a_tie(
    name: str, options: dict[str, object]
):
    """Each row of the output head stands twice, so the two best tokens are always equal to the last bit."""
    module = models.scaled(models._BUILDERS[FAMILY][1](), seed=12)
    with torch.no_grad():
        module.lm_head.weight[1::2] = module.lm_head.weight[: models.VOCAB - 1 : 2]
    drafts = {**decoding.drafts_of(FAMILY), "same": module}
    target = CachedModel(module, "ties")
    assert torch.equal(*models.plain_logits(module, [5, 6])[-1].topk(2).values)
    expected = decoding.ids(decoding.decode(target, decoding.autoregressive(), PROMPTS, TOKENS))
    assert expected == [models.hf_greedy(module, prompt, TOKENS) for prompt in PROMPTS]
    assert decoding.ids(decoding.decode(target, _method(name, options, target, drafts), PROMPTS, TOKENS)) == expected


_SAMPLED = pytest.mark.parametrize("rule", [Match(), Rejection()], ids=["match", "rejection"])


@every_method
@_SAMPLED
def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(name: str, options: dict[str, object], rule: Rule):
    runs = [decoding.ids(_run(name, options, most=9, rule=rule, temperature=0.8, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert all(one != other for one, other in zip(runs[0], runs[2], strict=True))


@every_method
def test_under_match_sampled_text_equals_that_of_autoregressive(name: str, options: dict[str, object]):
    how = {"rule": Match(), "temperature": 0.8, "seed": 3}
    assert decoding.ids(_run(name, options, **how)) == decoding.ids(_run("autoregressive", {}, **how))
    warped = {**how, "top_k": 20, "top_p": 0.9, "min_new_tokens": 6, "eos_ids": checks.eos_for(FAMILY)}
    assert decoding.ids(_run(name, options, **warped)) == decoding.ids(_run("autoregressive", {}, **warped))


@every_method
@pytest.mark.parametrize(
    ("rule", "temperature"), [(Match(), 0.0), (Match(), 0.8), (Rejection(), 0.8)], ids=["greedy", "match", "rejection"]
)
def test_a_prompts_tokens_depend_on_neither_its_batch_nor_its_slot(name, options, rule, temperature):
    prompts, keys = models.PROMPTS, [11, 7, 5, 900, 13, 2**31 - 1, 3, 0]
    how = {"rule": rule, "temperature": temperature, "seed": 4}
    together = decoding.ids(_run(name, options, prompts, 12, keys=keys, **how))
    alone = decoding.ids(_run(name, options, prompts[5:6], 12, keys=keys[5:6], **how))
    assert alone == [together[5]]
    order = [6, 2, 0]
    elsewhere = decoding.ids(_run(name, options, [prompts[i] for i in order], 12, keys=[keys[i] for i in order], **how))
    assert elsewhere == [together[i] for i in order]


@every_method
def test_the_same_prompt_under_two_keys_gets_two_samples_and_one_greedy_text(name: str, options: dict[str, object]):
    prompts = [models.PROMPTS[0]] * 2
    sampled = decoding.ids(_run(name, options, prompts, keys=[1, 2], rule=Match(), temperature=0.8))
    assert sampled[0] != sampled[1]
    greedy = decoding.ids(_run(name, options, prompts, keys=[1, 2]))
    assert greedy[0] == greedy[1]


class _Inspecting:
    """Wraps a method and checks each draft against its caps."""

    def __init__(self, method: Method) -> None:
        self.method, self.caps, self.trees = method, method.caps(), 0
        draft = method.draft

        def checked(view: RowView) -> TokenTree:
            tree = draft(view)
            layout = tree.layout(self.caps.max_depth)
            assert tree.tokens.shape[1] <= self.caps.max_nodes
            assert int(layout.depth.max()) <= self.caps.max_depth
            assert tree.tokens.dtype == torch.int64
            assert tree.tokens.numel() == 0 or 0 <= int(tree.tokens.min()) <= int(tree.tokens.max()) < models.VOCAB
            children = (layout.eligible[:, None, :] & (layout.parent[:, None, :] == layout.node[:, None])).sum(-1)
            assert int(children.max()) <= self.caps.max_children
            if tree.draft_probs is not None:
                torch.testing.assert_close(tree.draft_probs.sum(-1), torch.ones(tree.draft_probs.shape[:-1]))
            for part in (tree.tokens, tree.drafted, tree.draft_probs, tree.probe):
                assert part is None or part.device == view.root.device
            self.trees += 1
            return tree

        method.draft = checked


@every_method
@pytest.mark.parametrize(("rule", "temperature"), [(Match(), 0.0), (Rejection(), 0.8)], ids=["greedy", "rejection"])
def test_a_draft_never_exceeds_the_caps_and_a_step_never_emits_more_than_depth_and_one(
    name, options, rule, temperature
):
    target = decoding.family(FAMILY)
    method = _method(name, options, target)
    inspecting = _Inspecting(method)
    trace = decoding.decode(target, method, PROMPTS, TOKENS, rule=rule, temperature=temperature)
    assert inspecting.trees >= trace.steps > 0
    for row in trace.rows:
        assert max(row.emitted_per_step) <= inspecting.caps.max_depth + 1
        assert max(row.drafted_nodes_per_step, default=0) <= inspecting.caps.max_nodes


@every_method
def test_a_text_stops_at_its_first_eos_even_inside_a_draft(name: str, options: dict[str, object]):
    eos = checks.eos_for(FAMILY)
    trace = _run(name, options, eos_ids=eos)
    assert decoding.ids(trace) == _greedy(eos=eos)
    for row in trace.rows:
        assert (row.finish_reason == "eos") == (row.output_ids[-1] in eos)
        assert not set(row.output_ids[:-1]) & set(eos)


@every_method
@pytest.mark.parametrize("most", [1, 2, 5, 11])
def test_max_new_tokens_is_exact(name: str, options: dict[str, object], most: int):
    assert decoding.ids(_run(name, options, most=most)) == [text[:most] for text in _greedy()]


@every_method
@pytest.mark.parametrize(("rule", "temperature"), [(Match(), 0.0), (Rejection(), 0.8)], ids=["greedy", "rejection"])
def test_nothing_of_one_batch_reaches_the_next(name, options, rule, temperature):
    """Batches of other prompts, sizes and lengths, one after the other, equal fresh runs of each, counts included."""
    how = {"rule": rule, "temperature": temperature}
    target = decoding.family(FAMILY)
    method = _method(name, options, target)
    batches = [(models.PROMPTS[:3], 16), (models.PROMPTS[3:6], 12), (models.PROMPTS[6:8], 5), (models.PROMPTS[:3], 7)]
    for prompts, most in batches:
        used = decoding.decode(target, method, prompts, most, **how)
        fresh = _run(name, options, prompts, most, **how)
        assert [vars(row) for row in used.rows] == [vars(row) for row in fresh.rows]


class _Counting(NullWatch):
    """Notes how many tokens every model but the target has read before decoding begins, and in the first step."""

    def __init__(self, drafts: dict[str, nn.Module]) -> None:
        self.read, self.at_prefilled = 0, None
        self.handles = [module.register_forward_pre_hook(self._hook, with_kwargs=True) for module in drafts.values()]

    def _hook(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.read += kwargs["input_ids"].numel()

    def prefilled(self) -> None:
        self.at_prefilled = self.read

    def step(self) -> None:
        self.after_first_step = getattr(self, "after_first_step", self.read)


@every_method
def test_a_method_reads_the_prompts_in_begin_and_not_in_its_first_step(name: str, options: dict[str, object]):
    """Forty tokens of prompt: were they read in the first step, prefill would be charged to decoding."""
    drafts = {"near": models.perturbed("qwen2"), "same": models.perturbed("qwen2", 0.01), "far": models.stranger()}
    target = decoding.family(FAMILY)
    prompt = [(5 * i + 2) % models.VOCAB for i in range(40)]
    method = _method(name, options, target, drafts)
    watch = _Counting(drafts)
    try:
        decoding.decode(target, method, [prompt, prompt], 12, watch=watch)
    finally:
        for handle in watch.handles:
            handle.remove()
    if watch.read:
        assert watch.at_prefilled >= 2 * 40
    caps: Caps = method.caps()
    assert watch.after_first_step - watch.at_prefilled <= 2 * (caps.max_nodes + 2)


@pytest.mark.parametrize("options", OPTIONS["draft_model"], ids=str)
def test_a_draft_before_begin_fails(options: dict[str, object]):
    target = decoding.family(FAMILY)
    method = _method("draft_model", options, target)
    method.begin = lambda view, prefill: None
    with pytest.raises((AssertionError, AttributeError)):
        decoding.decode(target, method, models.PROMPTS[:2], 8)


@every_method
def test_a_method_only_reads_what_it_is_shown(name: str, options: dict[str, object]):
    """Views and results are the core's own tensors; a method that wrote to one would change the text of others."""
    target = decoding.family(FAMILY)
    method = _method(name, options, target)
    for verb, call in (("draft", method.draft), ("update", method.update)):

        def guarded(view: RowView, *rest: StepResult, call=call):
            tensors = [view.root, view.lengths, view.tokens, view.active, view.budget]
            tensors += [part for result in rest for part in (result.path, result.accepted_tokens, result.emitted)]
            before = [tensor.clone() for tensor in tensors]
            outcome = call(view, *rest)
            assert all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))
            return outcome

        setattr(method, verb, guarded)
    assert decoding.ids(decoding.decode(target, method, PROMPTS, TOKENS)) == _greedy()


@every_method
def test_a_supported_batch_has_no_reason_against_it(name: str, options: dict[str, object]):
    method = _method(name, options, decoding.family(FAMILY))
    for rule in ("greedy", "match", "rejection"):
        reason = method.unsupported(8, rule)
        assert reason is None or (isinstance(reason, str) and reason)


@every_method
@pytest.mark.parametrize(
    "family",
    [
        "mistral",
        *(pytest.param(family, marks=pytest.mark.slow) for family in models.FAMILIES[1:] if family != "mistral"),
    ],
)
def test_under_match_sampled_text_equals_that_of_autoregressive_in_other_families(name, options, family):
    target = decoding.family(family)
    how = {"rule": Match(), "temperature": 0.8, "seed": 9}
    method = _method(name, options, target, decoding.drafts_of(family))
    expected = decoding.ids(decoding.decode(target, decoding.autoregressive(), PROMPTS, TOKENS, **how))
    assert decoding.ids(decoding.decode(target, method, PROMPTS, TOKENS, **how)) == expected


def test_a_context_hands_out_what_load_needs():
    target = decoding.family(FAMILY)
    asked = []
    method = _class("draft_model")(_class("draft_model").Options(draft="some-name"))
    method.load(LoadContext(target, lambda name: asked.append(name) or CachedModel(models.stranger(), name)))
    assert asked == ["some-name"]
