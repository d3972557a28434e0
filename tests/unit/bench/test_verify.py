"""specbench.bench.verify"""

import pytest

from methods.draft_model import DraftModel
from specbench import registry
from specbench.analysis.verdicts import outcome
from specbench.bench.verify import REFERENCE, verify
from specbench.decode.method import TokenTree
from specbench.errors import ConfigError
from specbench.report.verdicts import remark
from support import wrong
from tests.unit.bench.bench_plans import plan_of

GREEDY = """
name: v
targets: [{model: pico}]
prompts: {source: stdlib, count: 3, max_prompt_tokens: 20}
decode: {max_new_tokens: 8, batch_size: [1, 2]}
methods:
  - draft_model: {draft: pico-wide, gamma: 2, draft_latency_ms: [null, 5.0, 9.0]}
machine: {device: cpu, dtype: float32}
"""


def checks(folder, text=GREEDY, **options):
    return list(verify(plan_of(folder, text), zoo=folder / "zoo", **options))


def wrong_class(method_class):
    """The registry with another draft model."""
    return lambda name: method_class if name == "draft_model" else registry.load(name)


def test_greedy_text_is_compared_with_autoregressive_decoding_at_batch_size_1(folder):
    found = {(check.cell.rpartition(", ")[2], check.arm): check for check in checks(folder)}
    assert list(found) == [
        ("T=0", REFERENCE), ("batch 1", "draft_model"), ("batch 2", "autoregressive"), ("batch 2", "draft_model"),
    ]  # fmt: skip
    assert all((check.requests, check.equal, check.faults) == (3, 3, ()) for check in found.values())
    assert found["batch 1", "draft_model"].tokens_per_step > 1  # a draft that is never accepted would test nothing


def test_under_match_sampled_text_is_compared_token_for_token(folder):
    text = GREEDY.replace("batch_size: [1, 2]", "batch_size: 2, temperature: 0.8, rule: match")
    found = checks(folder, text)
    assert [(check.kind, check.equal) for check in found] == [("ids", 3)] * 3


def test_a_target_that_writes_other_text_than_its_own_is_wrong(folder, monkeypatch):
    """The loop is made to emit another token once in a while, for the draft model's batches only."""
    from specbench.bench import arms

    generate = arms.generate

    def spoilt(target, method, *arguments, **named):
        trace = generate(target, method, *arguments, **named)
        if isinstance(method, DraftModel):
            trace.rows[0].output_ids[3] = (trace.rows[0].output_ids[3] + 1) % 320
        return trace

    monkeypatch.setattr(arms, "generate", spoilt)
    found = {check.arm: check for check in checks(folder, GREEDY.replace("[1, 2]", "1"))}
    assert (found["draft_model"].equal, found["draft_model"].wrong) == (0, 3)
    assert {entry.position for entry in found["draft_model"].divergences} == {3}
    assert found[REFERENCE].equal == 3


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda trace: trace.rows.pop(), "batch 0: 0 texts for 1 prompts"),
        (lambda trace: trace.rows[0].output_ids.clear(), "batch 0: empty text for "),
    ],
    ids=["a row is missing", "a text is empty"],
)
def test_missing_rows_and_empty_texts_are_faults_and_never_equal(folder, monkeypatch, spoil, fault):
    from specbench.bench import arms

    generate = arms.generate

    def spoilt(target, method, *arguments, **named):
        trace = generate(target, method, *arguments, **named)
        if isinstance(method, DraftModel):
            spoil(trace)
        return trace

    monkeypatch.setattr(arms, "generate", spoilt)
    found = {check.arm: check for check in checks(folder, GREEDY.replace("[1, 2]", "1"))}
    assert found["draft_model"].equal == 0
    assert found["draft_model"].faults[0].startswith(fault)


def test_a_method_that_breaks_the_contract_is_told_and_the_others_go_on(folder):
    class NoTree(DraftModel):
        def draft(self, view):
            return TokenTree(view.root[:, None].expand(-1, 9))

    text = GREEDY.replace("methods:", "methods:\n  - prompt_lookup: {gamma: 3}").replace("[1, 2]", "1")
    found = {check.arm: check for check in checks(folder, text, method_class=wrong_class(NoTree))}
    status, reason = found["draft_model"].failure
    assert (status, reason.partition(":")[0]) == ("error", "ContractError")
    assert found["prompt_lookup"].equal == 3


def test_simulated_acceptance_is_refused_with_the_reason(folder):
    text = GREEDY.replace("batch_size: [1, 2]", "rule: {synthetic: {mean_length: 2.0}}")
    found = checks(folder, text)
    assert [check.kind for check in found] == ["none", "none"]
    assert all("simulated acceptance" in check.note for check in found)


@pytest.mark.parametrize(
    ("rule", "proposal", "bias"),
    # Medusa's rule takes a likely enough token for granted; ReDrafter's is exact for one chain that was drawn.
    [("typical", "argmax", (0.1, 1.0)), ("redrafter_paper", "sample", (0.0, 0.06))],
)
def test_a_lossy_rule_is_told_by_its_bias_and_autoregressive_text_under_it_fits(folder, rule, proposal, bias):
    text = GREEDY.replace("batch_size: [1, 2]", f"batch_size: [1, 2], temperature: 1.5, rule: {rule}")
    text = text.replace("gamma: 2", f"gamma: 2, proposal: {proposal}")
    found = {check.arm: check for check in checks(folder, text, samples=400)}
    assert [(arm, check.kind, check.equal, check.wrong) for arm, check in found.items()] == [
        ("autoregressive", "distribution", 400, 0), ("draft_model", "bias", 0, 0),
    ]  # fmt: skip
    lossy = found["draft_model"]
    assert lossy.note == f"lossy by the rule {rule}"
    assert bias[0] <= max(test.shift for test in lossy.positions) <= bias[1]
    assert "% of the probability at tokens 1 to 8" in remark(lossy)
    assert outcome(list(found.values())).wrong == 0  # a bias that was announced is no broken promise


def test_a_lossy_rule_has_nothing_to_bias_at_temperature_0(folder):
    found = {check.arm: check for check in checks(folder, GREEDY.replace("batch_size: [1, 2]", "rule: typical"))}
    assert (found[REFERENCE].kind, found["draft_model"].kind) == ("ids", "none")
    assert "lossy by the rule typical, but not at temperature 0" in found["draft_model"].note


def test_sampled_text_under_rejection_is_checked_once_by_its_distribution(folder):
    text = GREEDY.replace("batch_size: [1, 2]", "batch_size: [1, 2], temperature: 0.8")
    found = checks(folder, text, samples=200)
    assert [(check.arm, check.kind, check.equal, check.wrong) for check in found] == [
        ("autoregressive", "distribution", 200, 0), ("draft_model", "distribution", 200, 0),
    ]  # fmt: skip
    assert all(0 < test.detectable < 0.5 for check in found for test in check.positions)


def test_a_draft_that_lies_about_its_proposal_fails_the_check_of_the_distribution(folder):
    text = GREEDY.replace("batch_size: [1, 2]", "batch_size: 4, temperature: 4.0")
    liar = wrong_class(wrong.ArgmaxSaidToBeDrawn)
    found = {check.arm: check for check in checks(folder, text, samples=200, method_class=liar)}
    assert (found["autoregressive"].wrong, found["draft_model"].wrong) == (0, 200)


def test_a_missing_model_is_said_before_anything_runs(folder):
    with pytest.raises(ConfigError, match="pico-huge"):
        checks(folder, GREEDY.replace("{model: pico}", "{model: pico-huge}"))


def test_later_turns_of_a_conversation_are_verified_as_well(folder):
    import json

    file = folder / "talk.jsonl"
    file.write_text("".join(json.dumps({"id": name, "turns": ["def f(x):", "class A:"]}) + "\n" for name in "ab"))
    text = GREEDY.replace("source: stdlib, count: 3, max_prompt_tokens: 20", f"source: {file}, count: 2")
    found = checks(folder, text.replace("batch_size: [1, 2]", "batch_size: 2, turns: 2"))
    assert [(check.requests, check.equal) for check in found] == [(4, 4)] * 3
