"""specbench.bench.baselines and the contract in specbench.decode.outside, against ``transformers`` called by hand."""

from copy import deepcopy

import pytest
import torch
from transformers import GenerationConfig

from specbench.bench import baselines
from specbench.bench.baselines import (
    TransformersAssisted,
    TransformersGenerate,
    TransformersPromptLookup,
    generation_config,
)
from specbench.decode.acceptance import Greedy, Synthetic
from specbench.decode.loop import Requests
from specbench.decode.method import LoadContext
from specbench.decode.outside import row_trace
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.decode.trace import NullWatch
from specbench.errors import UnsupportedError
from specbench.testing import models

PROMPTS = models.PROMPTS[:5]
CPU = torch.device("cpu")
# What models bring along from the hub, and what must not act.
FOREIGN = {
    "repetition_penalty": 1.3, "top_k": 50, "top_p": 0.5, "temperature": 0.3, "do_sample": True, "min_new_tokens": 20,
    "suppress_tokens": [1, 2, 3], "no_repeat_ngram_size": 2, "eos_token_id": list(range(40)), "max_length": 7,
    "num_assistant_tokens": 9, "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.9,
}  # fmt: skip


def loaded(kind, module, drafts=None, **options):
    baseline = kind(kind.Options(**options))
    baseline.load(LoadContext(CachedModel(module, "target"), lambda name: CachedModel(drafts[name], name)))
    return baseline


def plain(family="llama", **options):
    return loaded(TransformersGenerate, models.target(family), **options)


def assisted(family="llama", draft="near", gamma=4):
    drafts = {
        "near": models.perturbed(family),
        "same": models.target(family),
        "copy": deepcopy(models.target(family)),
        "far": models.stranger(),
    }
    return loaded(TransformersAssisted, models.target(family), drafts, draft=draft, gamma=gamma)


def lookup(family="llama", **options):
    return loaded(TransformersPromptLookup, models.target(family), **options)


def decode(baseline, prompts, tokens=24, watch=None, **decoding):
    requests = Requests([list(prompt) for prompt in prompts], list(range(len(prompts))))
    return baseline.generate(requests, Decoding(tokens, **decoding), watch or NullWatch())


def texts(trace):
    return [row.output_ids for row in trace.rows]


class Spy(NullWatch):
    """Notes what it is told, in order."""

    def __init__(self):
        self.heard = []

    def start(self):
        self.heard.append("start")

    def first_token(self):
        self.heard.append("first token")

    def prefilled(self):
        self.heard.append("prefilled")

    def step(self):
        self.heard.append("step")

    def finish(self, steps):
        self.heard.append(steps)


@pytest.fixture
def hub_settings(monkeypatch):
    """Models that bring settings along."""
    for module in (models.target("llama"), models.perturbed("llama")):
        monkeypatch.setattr(module, "generation_config", GenerationConfig(**FOREIGN))


# ---- the text is that of transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_row_of_a_padded_batch_is_what_generate_writes_for_its_prompt_alone(family):
    expected = [models.greedy_continuation(family, prompt, 24) for prompt in PROMPTS]
    assert texts(decode(plain(family), PROMPTS)) == expected


@pytest.mark.parametrize("baseline", [assisted(), assisted(draft="same"), assisted(draft="far", gamma=2), lookup()])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_transformers_drafts_changes_no_greedy_text(baseline, prompt):
    assert texts(decode(baseline, [prompt])) == [models.greedy_continuation("llama", prompt, 24)]


@pytest.mark.parametrize("make", [plain, assisted, lookup])
def test_a_text_ends_with_its_first_eos_and_the_eos_stays(make):
    whole = models.greedy_continuation("llama", PROMPTS[0], 24)
    eos = whole[9]
    (row,) = decode(make(), PROMPTS[:1], eos_ids=(eos,)).rows
    assert row.output_ids == whole[: whole.index(eos) + 1]
    assert row.finish_reason == "eos"


def test_rows_of_a_batch_end_on_their_own():
    eos = models.greedy_continuation("llama", PROMPTS[0], 24)[9]
    trace = decode(plain(), PROMPTS, eos_ids=(eos,))
    assert texts(trace) == [models.greedy_continuation("llama", prompt, 24, (eos,)) for prompt in PROMPTS]
    assert [row.steps for row in trace.rows] == [len(row.output_ids) - 1 for row in trace.rows]
    assert len({row.steps for row in trace.rows}) > 1


def test_eos_is_impossible_before_min_new_tokens():
    eos = models.greedy_continuation("llama", PROMPTS[0], 24)[3]
    (row,) = decode(plain(), PROMPTS[:1], eos_ids=(eos,), min_new_tokens=12).rows
    assert row.output_ids == models.greedy_continuation("llama", PROMPTS[0], 24, (eos,), 12)


def test_a_sampled_text_is_that_of_a_call_by_hand_with_the_same_seed():
    decoding = Decoding(16, temperature=0.8, top_k=20, top_p=0.9, seed=5)
    requests = Requests([list(PROMPTS[0])], [3])
    ids = torch.tensor(requests.prompts)
    with baselines._seeded(5, [3], CPU):
        by_hand = models.target("llama").generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_k=20, top_p=0.9,
            max_new_tokens=16, pad_token_id=0,
        )  # fmt: skip
    assert texts(plain().generate(requests, decoding, NullWatch())) == by_hand[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("make", [plain, assisted, lookup])
def test_a_sampled_text_is_the_same_again_and_another_with_another_seed(make):
    draws = [texts(decode(make(), PROMPTS[:1], temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_the_generators_of_torch_go_on_where_they_were():
    before = torch.random.get_rng_state()
    decode(plain(), PROMPTS[:1], temperature=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- whose settings count --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [plain, assisted, lookup])
def test_what_a_model_brings_along_does_not_act_on_a_greedy_text(make, hub_settings):
    assert texts(decode(make(), PROMPTS[:1])) == [models.greedy_continuation("llama", PROMPTS[0], 24)]


@pytest.mark.parametrize("make", [plain, assisted, lookup])
def test_what_a_model_brings_along_does_not_act_on_a_sampled_text(make, monkeypatch):
    clean = texts(decode(make(), PROMPTS[:1], temperature=1.0))
    for module in (models.target("llama"), models.perturbed("llama")):
        monkeypatch.setattr(module, "generation_config", GenerationConfig(**FOREIGN))
    assert texts(decode(make(), PROMPTS[:1], temperature=1.0)) == clean


def test_without_top_k_every_token_may_be_drawn_and_not_only_the_fifty_of_the_library():
    prompts = [PROMPTS[0]] * 40
    kept = generation_config(Decoding(1, temperature=50.0))
    assert (kept.top_k, kept.top_p) == (0, 1.0)
    drawn = {token for text in texts(decode(plain(), prompts, 8, temperature=50.0)) for token in text}
    assert len(drawn) > 60


@pytest.mark.parametrize("draft", ["near", "far"])
def test_the_draft_is_of_constant_length_whatever_the_draft_model_brings_along(draft, hub_settings):
    (row,) = decode(assisted(draft=draft, gamma=3), PROMPTS[:1]).rows
    room = 24 - row.prefill_tokens
    for accepted, depth in zip(row.accepted_per_step, row.drafted_depth_per_step, strict=True):
        assert depth == min(3, room - 1)
        room -= accepted + 1


@pytest.mark.parametrize("make", [plain, assisted, lookup])
def test_the_models_are_left_as_they_were(make, hub_settings):
    modules = [models.target("llama"), models.perturbed("llama")]
    before = [dict(vars(module)) for module in modules]
    settings = [deepcopy(module.generation_config) for module in modules]
    hooks = [len(module._forward_pre_hooks) for module in modules]
    decode(make(), PROMPTS[:1], temperature=0.7)
    assert [dict(vars(module)) for module in modules] == before
    assert [module.generation_config for module in modules] == settings
    assert [len(module._forward_pre_hooks) for module in modules] == hooks


def test_the_models_are_left_as_they_were_when_a_batch_fails(hub_settings):
    class Broken(NullWatch):
        def step(self):
            raise MemoryError

    module = models.target("llama")
    before = dict(vars(module))
    with pytest.raises(MemoryError):
        decode(assisted(), PROMPTS[:1], watch=Broken())
    assert dict(vars(module)) == before
    assert not module._forward_pre_hooks


def test_what_generate_leaves_on_a_model_waits_for_the_next_batch_of_the_same_arm():
    module, own = torch.nn.Linear(1, 1), {}
    module.kept = "the user's"
    with baselines._on_loan(module, own):
        module.kept, module.compiled = "ours", 1
    assert module.kept == "the user's"
    assert not hasattr(module, "compiled")
    with baselines._on_loan(module, own):
        assert (module.kept, module.compiled) == ("ours", 1)


# ---- counts and stamps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [plain(), assisted(), assisted(draft="copy"), assisted(draft="far"), lookup()])
def test_steps_are_the_targets_forwards_after_the_first(baseline):
    forwards = []
    handle = models.target("llama").register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        (row,) = decode(baseline, PROMPTS[:1]).rows
    finally:
        handle.remove()
    assert row.steps == len(forwards) - 1


def test_a_draft_that_is_the_target_is_accepted_whole_and_one_that_is_not_hardly_ever():
    (whole,) = decode(assisted(draft="copy", gamma=3), PROMPTS[:1]).rows
    assert whole.accepted_per_step == whole.drafted_depth_per_step
    assert whole.prefill_tokens == 4
    (refused,) = decode(assisted(draft="far", gamma=3), PROMPTS[:1]).rows
    assert sum(refused.accepted_per_step) < sum(refused.drafted_depth_per_step) / 2


@pytest.mark.parametrize("baseline", [plain(), assisted(), assisted(draft="copy"), lookup()])
@pytest.mark.parametrize("end", [None, 5, 9])
def test_the_counts_of_a_row_add_up(baseline, end):
    eos = () if end is None else (models.greedy_continuation("llama", PROMPTS[0], 24)[end],)
    (row,) = decode(baseline, PROMPTS[:1], eos_ids=eos).rows
    steps = sum(accepted + 1 for accepted in row.accepted_per_step)
    assert len(row.output_ids) == row.prefill_tokens + steps - row.overshoot_tokens
    assert sum(row.emitted_per_step) == len(row.output_ids) - row.prefill_tokens
    lists = (row.accepted_per_step, row.drafted_depth_per_step, row.drafted_nodes_per_step, row.emitted_per_step)
    assert {len(counts) for counts in lists} == {row.steps}


def test_plain_decoding_drafts_nothing_and_its_prefill_yields_one_token():
    for row in decode(plain(), PROMPTS).rows:
        assert row.prefill_tokens == 1
        assert set(row.accepted_per_step) == set(row.drafted_depth_per_step) == {0}


@pytest.mark.parametrize("make", [plain, assisted, lookup])
def test_the_watch_hears_of_the_first_token_once_and_then_of_every_step(make):
    spy = Spy()
    (row,) = decode(make(), PROMPTS[:1], watch=spy).rows
    assert spy.heard == ["start", "first token", "prefilled", *["step"] * row.steps, row.steps]


def test_a_text_of_one_token_takes_no_step():
    spy = Spy()
    (row,) = decode(assisted(), PROMPTS[:1], tokens=1, watch=spy).rows
    assert row.output_ids == models.greedy_continuation("llama", PROMPTS[0], 1)
    assert spy.heard == ["start", "first token", "prefilled", 0]


DECODING = Decoding(8, eos_ids=(2,))


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ([5, 6, 2, 9, 9, 9], [1, 2, 6]),  # three tokens of a step run past EOS
        ([5, 6, 2, 9, 9, 9], [1, 6, 9]),  # a whole step runs on
        ([5, 6, 2], [1, 2, 3]),
        ([5, 6, 2], [2, 3]),
    ],
)
def test_who_overshoots_and_who_does_not_have_the_same_tokens(text, lengths):
    row = row_trace(text, lengths, [0] * len(lengths), DECODING)
    assert (row.output_ids, row.finish_reason) == ([5, 6, 2], "eos")
    assert len(row.output_ids) == row.prefill_tokens + sum(row.accepted_per_step) + row.steps - row.overshoot_tokens
    assert sum(row.emitted_per_step) + row.prefill_tokens == 3


def test_what_runs_past_the_length_is_cut_and_counted_apart():
    row = row_trace(list(range(10, 22)), [1, 5, 9, 12], [0, 4, 4, 4], DECODING)
    assert (row.output_ids, row.finish_reason) == (list(range(10, 18)), "length")
    assert (row.steps, row.overshoot_tokens, row.emitted_per_step) == (2, 1, [4, 3])


def test_a_text_that_ends_within_the_prefills_tokens_takes_no_step():
    row = row_trace([5, 2, 9, 9], [4], [3], DECODING)
    assert (row.output_ids, row.prefill_tokens, row.steps, row.overshoot_tokens) == ([5, 2], 2, 0, 0)


# ---- what cannot run -------------------------------------------------------------------------------------------------


def test_transformers_drafts_for_one_prompt_at_a_time():
    for baseline in (assisted(), lookup()):
        assert baseline.unsupported(1, Greedy(), CPU) is None
        assert baseline.unsupported(4, Greedy(), CPU) == (
            "assisted generation of transformers takes one prompt at a time, not 4"
        )
    assert plain().unsupported(4, Greedy(), CPU) is None


def test_the_acceptance_of_transformers_is_its_own():
    simulated = Synthetic(mean_length=2.0)
    assert assisted().unsupported(1, simulated, CPU) == "the acceptance of transformers cannot be simulated"
    assert plain().unsupported(1, simulated, CPU) is None


def test_a_cache_of_fixed_size_gives_the_same_text():
    expected = [models.greedy_continuation("llama", prompt, 24) for prompt in PROMPTS]
    assert texts(decode(plain(cache="static"), PROMPTS)) == expected


@pytest.mark.slow
def test_a_compiled_cache_gives_the_same_text_on_a_cpu_too():
    expected = [models.greedy_continuation("llama", prompt, 24) for prompt in PROMPTS]
    torch._dynamo.utils.counters.clear()
    assert texts(decode(plain(cache="compiled"), PROMPTS)) == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def compiled_for(baseline, *lengths):
    return baseline.compiled_for(Requests([[1] * length for length in lengths], list(range(len(lengths)))))


def test_code_is_compiled_for_the_rows_of_a_batch_and_for_whether_it_is_padded():
    compiled = plain(cache="compiled")
    assert compiled_for(compiled, 5, 5) == compiled_for(compiled, 3, 3)
    assert len({compiled_for(compiled, *lengths) for lengths in [(3, 3), (3, 4), (3,)]}) == 3
    assert compiled_for(plain(), 3, 4) is compiled_for(plain(cache="static"), 3) is None


def test_code_is_compiled_again_once_a_longer_prompt_has_made_the_cache_larger():
    compiled = plain(cache="compiled")
    before = compiled_for(compiled, 5, 5)
    compiled_for(compiled, 9)
    assert compiled_for(compiled, 5, 5) != before


def test_only_the_compiled_cache_leaves_transformers_free_to_compile():
    settings = {cache: plain(cache=cache).settings() for cache in ("dynamic", "static", "compiled")}
    assert settings["dynamic"] == {}
    assert settings["static"] == {"cache_implementation": "static", "disable_compile": True}
    assert settings["compiled"].keys() == {"cache_implementation", "compile_config"}


def test_a_draft_of_another_vocabulary_is_unsupported():
    with pytest.raises(UnsupportedError, match=r"draft small has 5 rows of vocabulary and the target 83"):
        loaded(
            TransformersAssisted,
            models.target("llama"),
            {"small": models.small_vocabulary()},
            draft="small",
        )


def test_a_draft_of_too_few_positions_is_unsupported(monkeypatch):
    baseline = assisted()
    monkeypatch.setattr(baseline._draft, "max_positions", 20)
    with pytest.raises(UnsupportedError, match=r"the draft near has 20 positions, and prompts with new tokens take 29"):
        decode(baseline, PROMPTS[:1])
