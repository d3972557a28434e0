"""specbench.bench.traces: what is replayed from a trace is what a run does, step by step"""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from methods.draft_model import DraftModelOptions
from specbench.analysis.intervals import LEVEL, Totals, jackknife_interval
from specbench.analysis.replay import replay
from specbench.analysis.stop_rules import Fixed, stop_rule
from specbench.analysis.traces import differences, require, select, traces, wanted_by
from specbench.bench import traces as recording
from specbench.bench.arms import Measured, live_arm
from specbench.bench.cells import ready
from specbench.bench.traces import record
from specbench.decode import rollout
from specbench.decode.target import CachedModel
from specbench.decode.trace import RowTrace
from specbench.errors import ConfigError, ResultsError, UnsupportedError
from specbench.grid import AUTOREGRESSIVE
from specbench.models.loader import ModelPool
from specbench.records.store import Store
from support import models
from tests.unit.bench.bench_plans import plan_of
from tests.unit.models import tiny

PROMPTS = [
    "import os", "def f(x):\n    return", "for", "class Stack:\n    def push(self, item):\n        self",
    "while True:\n    pass", "x = [1, 2, 3, 4, 5, 6, 7]\nprint(", "try:", "from a import b, c, d, e, f, g, h",
]  # fmt: skip

PLAN = """
name: traced
targets: [{model: pico}]
prompts: {source: prompts.jsonl, count: 8}
decode: {max_new_tokens: 20, batch_size: [1, 4], temperature: 0.0}
methods:
  - draft_model: {draft: pico-wide, gamma: [1, 2, 3, 4, 5, 6, 7, 8]}
machine: {device: cpu, dtype: float32}
"""

STOPS = """
  - draft_model: {draft: pico-wide, gamma: 8, label: heuristic, stop: {kind: heuristic, start: 3}}
  - draft_model: {draft: pico-wide, gamma: 5, label: low heuristic, stop: {kind: heuristic, start: 5}}
  - draft_model: {draft: pico-wide, gamma: 8, label: sure, stop: {kind: confidence, threshold: 0.3}}
  - draft_model: {draft: pico-wide, gamma: 4, label: surer, stop: {kind: confidence, threshold: 0.7}}
machine:"""


GREEDY, MATCH = "temperature: 0.0", "temperature: 0.8, rule: match"
ALL = "[1, 2, 3, 4, 5, 6, 7, 8]"


def with_stops(text: str) -> str:
    return text.replace("\nmachine:", STOPS, 1)


@pytest.fixture(scope="module")
def near_family(tmp_path_factory):
    """A target, a draft that agrees with it for a while, and two tokens of its own texts that end them."""
    zoo = tmp_path_factory.mktemp("near")
    target, draft = (tiny.model(seed=1, layers=1) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.ndim == 2:
                weight.add_(0.12 * weight.std() * torch.randn(weight.shape, generator=generator))
    written = [models.hf_greedy(target, tuple(tiny.tokenizer()(text)["input_ids"]), 20) for text in PROMPTS]
    late = Counter(token for text in written for token in set(text[3:]) - set(text[:3]))
    ends = [token for token, _ in late.most_common(2)]
    for name, module in (("pico", target), ("pico-wide", draft)):
        module.config.eos_token_id = module.generation_config.eos_token_id = ends
        module.save_pretrained(zoo / name)
        tiny.tokenizer().save_pretrained(zoo / name)
    return zoo


@pytest.fixture
def place(tmp_path, near_family, monkeypatch):
    """A working folder that holds the family and the prompts."""
    (tmp_path / "zoo").symlink_to(near_family)
    write_prompts(tmp_path, PROMPTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_prompts(folder, prompts):
    rows = [json.dumps({"id": f"p{index}", "prompt": prompt}) for index, prompt in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")


def recorded(place, text=PLAN, **options):
    """The traces of a plan."""
    record(plan_of(place, text), place / "traces", zoo=place / "zoo", **options)
    return traces(Store(place / "traces").read("traces"))


def runs(place, text):
    """Every arm of a plan with a draft, run: (cell, arm, its rows in the order of the prompts, its batches)."""
    cells = ready(plan_of(place, text), place / "zoo")
    pool = ModelPool(cells[0].where, place / "zoo")
    for cell in cells:
        target = pool.get(cell.cell.target.model)
        for arm in cell.cell.arms:
            if arm.method == AUTOREGRESSIVE:
                continue
            live = live_arm(arm, cell, target, pool)
            outcomes = [live.run(block, "headline") for block in cell.blocks()]
            assert all(isinstance(outcome, Measured) for outcome in outcomes), outcomes
            batches = [outcome.trace for outcome in outcomes]
            yield cell, arm, [row for batch in batches for row in batch.rows], batches


def as_run(row: RowTrace) -> tuple:
    return row.accepted_per_step, row.drafted_depth_per_step, row.overshoot_tokens, len(row.output_ids) - 1


def as_replayed(row) -> tuple:
    return row.accepted_per_step, row.drafted_per_step, row.overshoot_tokens, row.tokens


def widths(batch) -> list[int]:
    """The longest draft of each step of a batch."""
    drafted = [row.drafted_depth_per_step for row in batch.rows]
    return [max(row[step] for row in drafted if step < len(row)) for step in range(batch.steps)]


# --- replay equals run


@pytest.mark.parametrize(
    ("decode", "gammas", "stops"),
    [
        (GREEDY, ALL, False),
        (GREEDY, "8", True),
        (MATCH, "[1, 3, 8]", False),
        (f"{MATCH}, top_k: 20, seed: 7", "8", True),
    ],
    ids=["greedy", "greedy, stops", "match", "match, stops"],
)
def test_a_replay_is_the_run_step_by_step(place, decode, gammas, stops):
    """Rows alone and four together, with texts that end by EOS and by length, inside a draft and at its end."""
    text = (with_stops(PLAN) if stops else PLAN).replace(GREEDY, decode).replace(ALL, gammas)
    (trace,) = recorded(place, text)
    assert trace.is_exact
    finished, kept = set(), set()
    for cell, arm, rows, batches in runs(place, text):
        found = replay(trace, stop_rule(arm.options))
        assert [as_replayed(row) for row in found.rows] == [as_run(row) for row in rows], arm.name
        size = cell.cell.decode.batch_size
        for batch, expected in zip(found.batches(size), batches, strict=True):
            assert batch.steps == expected.steps
            assert batch.steps_by_width.tolist() == np.bincount(widths(expected), minlength=found.gamma + 1).tolist()
        finished |= {(row.finish_reason, row.overshoot_tokens > 0) for row in rows}
        kept |= {count for row in rows for count in row.accepted_per_step}
    assert finished == {(reason, cut) for reason in ("eos", "length") for cut in (False, True)}
    assert {0, 1, 2, 3} <= kept


def test_an_argmax_draft_under_match_is_replayed_as_it_runs(place):
    text = PLAN.replace(GREEDY, "temperature: 0.8, rule: match")
    text = text.replace(ALL, "[2, 6], proposal: argmax")
    (trace,) = recorded(place, text)
    assert trace.provenance.proposal == "argmax"
    for _, arm, rows, _ in runs(place, text):
        found = replay(trace, stop_rule(arm.options))
        assert [as_replayed(row) for row in found.rows] == [as_run(row) for row in rows]


@pytest.mark.parametrize("extra", ["min_new_tokens: 9", "ignore_eos: true"])
def test_a_replay_ends_a_text_where_the_run_does(place, extra):
    text = PLAN.replace(GREEDY, extra).replace("[1, 4]", "4").replace(ALL, "[1, 5]")
    (trace,) = recorded(place, text)
    for _, arm, rows, _ in runs(place, text):
        found = replay(trace, stop_rule(arm.options))
        assert [as_replayed(row) for row in found.rows] == [as_run(row) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["pico-small", "pico-wide"])
@pytest.mark.parametrize("decode", [GREEDY, "temperature: 0.8, rule: match"])
def test_a_replay_is_the_run_on_the_embedded_family(tmp_path, draft, decode):
    text = with_stops(PLAN).replace("pico-wide", draft).replace(GREEDY, decode)
    text = text.replace("max_new_tokens: 20", "max_new_tokens: 64")
    text = text.replace("source: prompts.jsonl, count: 8", "source: stdlib, count: 6, max_prompt_tokens: 48")
    (tmp_path / "zoo").symlink_to(recording.ZOO)
    (trace,) = recorded(tmp_path, text)
    for _, arm, rows, _ in runs(tmp_path, text):
        found = replay(trace, stop_rule(arm.options))
        assert [as_replayed(row) for row in found.rows] == [as_run(row) for row in rows], arm.name


def test_one_prompt_of_the_embedded_family_is_replayed_as_it_runs(tmp_path):
    text = PLAN.replace("[1, 4]", "1").replace("pico-wide", "pico-small").replace(ALL, "[3, 8]")
    text = text.replace("source: prompts.jsonl, count: 8", "source: stdlib, count: 1, max_prompt_tokens: 32")
    (tmp_path / "zoo").symlink_to(recording.ZOO)
    (trace,) = recorded(tmp_path, text)
    for _, arm, rows, _ in runs(tmp_path, text):
        found = replay(trace, stop_rule(arm.options))
        assert [as_replayed(row) for row in found.rows] == [as_run(row) for row in rows]


# --- what a trace does not hang on


def test_a_trace_depends_on_neither_the_groups_nor_the_places_at_once(place, monkeypatch):
    (whole,) = recorded(place)
    monkeypatch.setattr(rollout, "_NODES_AT_ONCE", 24)
    (apart,) = traces(record_to(place / "apart", place, group=3))
    for one, other in zip(whole.texts, apart.texts, strict=True):
        assert np.array_equal(one.kept, other.kept)
        assert np.allclose(one.drafted.confidence, other.drafted.confidence, atol=1e-5)
        assert np.allclose(one.drafted.entropy, other.drafted.entropy, atol=1e-4)


def record_to(folder, place, text=PLAN, **options):
    record(plan_of(place, text), folder, zoo=place / "zoo", **options)
    return Store(folder).read("traces")


def test_a_trace_of_longer_drafts_holds_those_of_shorter_ones(place):
    (long,) = recorded(place)
    (short,) = traces(record_to(place / "short", place, PLAN.replace(ALL, "3")))
    assert replay(long, Fixed(3)).rows[2].accepted_per_step == replay(short, Fixed(3)).rows[2].accepted_per_step
    for one, other in zip(long.texts, short.texts, strict=True):
        assert np.array_equal(one.kept[:, :3], other.kept)


# --- resume


def test_what_was_recorded_is_not_recorded_again_and_what_was_not_is(place, monkeypatch):
    made = []
    real = recording._rows

    def cut_after_two(*given):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*given)

    monkeypatch.setattr(recording, "_rows", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        recorded(place, group=3)
    (partial,) = traces(Store(place / "traces").read("traces"))
    assert (len(partial.texts), partial.is_complete) == (6, False)
    monkeypatch.setattr(recording, "_rows", lambda *given: made.append(1) or real(*given))
    (trace,) = recorded(place, group=3)
    assert (len(trace.texts), trace.is_complete, len(made)) == (8, True, 3)
    recorded(place, group=3)
    assert len(made) == 3


def test_two_drafts_of_one_target_are_two_traces_in_one_folder(place):
    text = PLAN.replace("  - draft_model:", "  - draft_model: {draft: pico, gamma: 2}\n  - draft_model:", 1)
    own, near = recorded(place, text)
    assert [trace.provenance.draft for trace in (own, near)] == ["pico", "pico-wide"]
    assert replay(own, Fixed(2)).acceptance_rate == 1  # the target as its own draft
    assert replay(near, Fixed(2)).acceptance_rate < 1


# --- rejection


def under_rejection(place, methods: str) -> str:
    """Every prompt thirty times under names of its own: chance differs, the question does not."""
    write_prompts(place, PROMPTS * 30)
    text = PLAN.replace("count: 8", "count: 240")
    text = text.replace("batch_size: [1, 4], temperature: 0.0", "batch_size: 60, temperature: 0.8, seed: 3")
    return text.replace("draft_model: {draft: pico-wide, gamma: [1, 2, 3, 4, 5, 6, 7, 8]}", methods)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "methods",
    [
        "draft_model: {draft: pico-wide, gamma: 5}",
        "draft_model: {draft: pico-wide, gamma: 5, stop: {kind: confidence, threshold: 0.3}}",
        pytest.param(
            "draft_model: {draft: pico-wide, gamma: 5, stop: {kind: heuristic, start: 2}}", marks=pytest.mark.slow
        ),
        pytest.param("draft_model: {draft: pico-wide, gamma: 4, proposal: argmax}", marks=pytest.mark.slow),
    ],
    ids=["fixed", "confidence", "heuristic", "argmax"],
)
def test_the_expectation_under_rejection_is_what_runs_come_to(place, methods):
    """Runs and traces take their chances apart from one another, so both have an error; 4 of them, one in 16,000."""
    text = under_rejection(place, methods)
    (trace,) = recorded(place, text, group=60)
    assert not trace.is_exact
    for _, arm, rows, _ in runs(place, text):
        found = replay(trace, stop_rule(arm.options)).rows
        pairs = {
            "tokens": ([len(row.output_ids) - 1 for row in rows], [row.tokens for row in found]),
            "accepted": ([sum(row.accepted_per_step) for row in rows], [row.accepted_tokens for row in found]),
            "drafted": ([sum(row.drafted_depth_per_step) for row in rows], [row.drafted_tokens for row in found]),
        }
        steps = [row.steps for row in rows], [row.steps for row in found]
        for what, counts in pairs.items():
            (one, error), (other, other_error) = map(_per_step, counts, steps)
            assert abs(one - other) <= 4 * np.hypot(error, other_error) + 1e-12, (arm.name, what)
            # A share of the count; of a token, where steps have less than one of it.
            assert min(1.0, np.exp(one)) * np.hypot(error, other_error) < 0.04, "too few texts to tell"


def _per_step(counts, steps) -> tuple[float, float]:
    """The logarithm of a ratio of totals, and its standard error over prompts."""
    counts, steps = np.array(counts, dtype=float), np.array(steps, dtype=float)
    interval = jackknife_interval(Totals(counts, counts), Totals(steps, counts))
    quantile = 1.97  # of t with 239 degrees of freedom
    assert LEVEL == 0.95
    return float(np.log(counts.sum() / steps.sum())), interval.half_width / quantile


@pytest.mark.slow
@pytest.mark.statistical
def test_a_batch_under_rejection_waits_for_its_slowest_row_as_long_as_expected(place):
    text = under_rejection(place, "draft_model: {draft: pico-wide, gamma: 4}").replace(
        "batch_size: 60", "batch_size: 4"
    )
    (trace,) = recorded(place, text, group=60)
    ((_, arm, _, batches),) = runs(place, text)
    expected = replay(trace, stop_rule(arm.options)).batches(4)
    apart = np.array([batch.steps for batch in batches]) - [batch.steps for batch in expected]
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(len(apart))
    assert apart.std() / np.sqrt(len(apart)) < 0.04 * np.mean([batch.steps for batch in expected])


def test_a_draft_that_is_its_target_is_always_believed(place):
    text = PLAN.replace(GREEDY, "temperature: 0.8").replace("draft: pico-wide", "draft: pico")
    (trace,) = recorded(place, text)
    assert trace.provenance.rule == "rejection"
    assert trace.alpha == pytest.approx(1, abs=1e-4)
    assert replay(trace, Fixed(8)).acceptance_rate == pytest.approx(1, abs=1e-3)


def test_what_is_kept_under_rejection_are_the_chances_of_the_texts_own_tokens(place):
    """Against plain forwards of both models over the text, beyond its end as well."""
    text = PLAN.replace(GREEDY, "temperature: 0.7, top_k: 30").replace(ALL, "3")
    rows = record_to(place / "traces", place, text).to_dict("records")
    target, draft = (tiny.LlamaForCausalLM.from_pretrained(place / "zoo" / name) for name in ("pico", "pico-wide"))
    checked = 0
    prompts = {f"prompts/p{index}": prompt for index, prompt in enumerate(PROMPTS)}
    for row in rows:
        told = [*tiny.tokenizer()(prompts[row["prompt_id"]])["input_ids"], *row["output_ids"]]
        first, places = len(told) - len(row["output_ids"]), len(row["output_ids"]) - 1
        assert len(row["acceptance"]) == len(row["overlap"]) == places + 2
        for index in range(places):
            before, token = told[: first + index + 1], told[first + index + 1]
            raw = models.plain_logits(draft, before)[-1]
            p, q = _warped(models.plain_logits(target, before)[-1]), _warped(raw)
            assert row["acceptance"][index] == pytest.approx(min(1.0, float(q[token] / p[token])), abs=2e-3)
            assert row["overlap"][index] == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-3)
            assert row["text_confidence"][index] == pytest.approx(float(raw.softmax(-1)[token]), abs=1e-3)
            checked += 1
    assert checked > 60


def _warped(logits):
    logits = logits.double() / 0.7
    return logits.masked_fill(logits < logits.topk(30).values[-1], -torch.inf).softmax(-1)


# --- a trace of something else


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({"target": "other", "target_sha": "77"}, r"of target pico \(\w{16}\), but the run has target other \(77\)"),
        ({"draft": "pico-small"}, r"of draft pico \(\w{16}\), but the run has draft pico-small"),
        ({"tokenizer_sha": "77"}, r"of tokenizer \w{16}, but the run has tokenizer 77"),
        ({"dataset": "mt_bench", "prompts_sha": "77"}, r"prompts prompts \(\w+\), but the run has prompts mt_bench"),
        ({"temperature": 0.8}, "of temperature 0.7, but the run has temperature 0.8"),
        ({"rule": "match"}, "of rule rejection, but the run has rule match"),
        ({"dtype": "bfloat16"}, "of dtype float32, but the run has dtype bfloat16"),
        ({"seed": 3}, "of seed 0, but the run has seed 3"),
        ({"max_new_tokens": 64, "top_p": 0.9}, "of max_new_tokens 20, top_p none, but the run has max_new_tokens 64"),
        ({"gamma_max": 9}, "of gamma_max 3, but the run has gamma_max 9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_trace_of_anything_else_is_refused_in_one_line_with_both_sides(sampled, wanted, line):
    with pytest.raises(ResultsError, match=line) as caught:
        require(sampled, wanted, "the run")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, near_family):
    place = tmp_path_factory.mktemp("sampled")
    (place / "zoo").symlink_to(near_family)
    write_prompts(place, PROMPTS[:2])
    text = PLAN.replace(GREEDY, "temperature: 0.7").replace(ALL, "3")
    text = text.replace("draft: pico-wide", "draft: pico").replace(
        "prompts.jsonl, count: 8", f"{place / 'prompts.jsonl'}, count: 2"
    )
    return recorded(place, text)[0]


def test_what_fits_is_not_refused(sampled):
    require(sampled, {"target": "another name", "target_sha": sampled.provenance.target_sha, "gamma_max": 2}, "x")


def test_at_temperature_zero_every_rule_and_seed_is_the_same(place):
    (trace,) = recorded(place)
    assert differences(trace, {"temperature": 0.0, "rule": "match", "seed": 9, "top_k": 5, "proposal": "sample"}) == []


def test_of_several_traces_the_nearest_one_is_named(place):
    (greedy,) = recorded(place)
    longer = recorded(place, PLAN.replace("max_new_tokens: 20", "max_new_tokens: 12"))
    assert len(longer) == 2
    assert select(longer, {"max_new_tokens": 20}, "the run").provenance == greedy.provenance
    for length in (12, 20):
        with pytest.raises(ResultsError, match=r"the trace is of gamma_max 8, but the run has gamma_max 9$"):
            select(longer, {"max_new_tokens": length, "gamma_max": 9}, "the run")
    with pytest.raises(ResultsError, match="there is no trace here"):
        select([], {}, "the run")


def test_rows_of_several_settings_are_not_one_run(place):
    import pandas as pd

    columns = dict.fromkeys(["method", "options", "draft", "dataset", "prompts_sha", "dtype", "rule"], "x")
    rows = pd.DataFrame([columns | {"target": name, "target_sha": name, "temperature": 0.0} for name in "ab"])
    with pytest.raises(ResultsError, match="2 different values of target"):
        wanted_by(rows)


# --- what cannot be traced


@pytest.mark.parametrize(
    ("rule", "name"),
    [("typical", "typical"), ("redrafter_paper", "redrafter_paper"), ("{synthetic: {mean_length: 2}}", "synthetic")],
)
def test_rules_that_change_the_text_cannot_be_traced(place, rule, name):
    with pytest.raises(UnsupportedError, match=f"under the rule {name} a text depends on its drafts"):
        recorded(place, PLAN.replace(GREEDY, f"temperature: 0.8, rule: {rule}"))


def test_an_experiment_without_a_draft_model_has_nothing_to_trace(place):
    lookup = PLAN.replace("draft_model: {draft: pico-wide, gamma: [1, 2, 3, 4, 5, 6, 7, 8]}", "prompt_lookup")
    with pytest.raises(ConfigError, match="nothing to trace"):
        recorded(place, lookup)


def test_texts_may_reach_the_end_of_the_context(place):
    """Beyond it nothing can be kept; the text itself is traced whole."""
    text = PLAN.replace("max_new_tokens: 20", f"max_new_tokens: {tiny.CONTEXT - 30}, ignore_eos: true")
    text = text.replace("[1, 4]", "1").replace(ALL, "[4, 8]")
    write_prompts(place, PROMPTS[3:4])
    text = text.replace("count: 8", "count: 1, max_prompt_tokens: 30")
    (trace,) = recorded(place, text)
    for _, arm, rows, _ in runs(place, text):
        (row,) = replay(trace, stop_rule(arm.options)).rows
        assert row.accepted_per_step[:-2] == rows[0].accepted_per_step[:-2]
        assert row.steps == rows[0].steps


def test_a_draft_with_a_shorter_context_is_refused():
    draft = CachedModel(models.small_vocabulary(), "short")
    recording._check_context(draft, 32)
    with pytest.raises(UnsupportedError, match="the draft short has 32 positions, and prompts with new tokens take 33"):
        recording._check_context(draft, 33)


def test_the_stop_options_that_a_replay_knows_are_all_that_the_method_has():
    kinds = DraftModelOptions.model_fields["stop"].annotation.model_fields["kind"].annotation.__args__
    for kind in kinds:
        options = DraftModelOptions(draft="d", gamma=3, stop={"kind": kind}).model_dump(mode="json")
        assert stop_rule(options).gamma == 3
