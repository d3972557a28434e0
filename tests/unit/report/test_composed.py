"""specbench.report.composed: a run drawn from known latencies, whose steps are those of a trace"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from specbench.analysis.latencies import LatencyTable
from specbench.analysis.replay import replay
from specbench.analysis.stop_rules import Features, Fixed
from specbench.analysis.traces import Provenance, Trace, TracedText
from specbench.errors import ResultsError
from specbench.report.composed import compare, composed_grid
from specbench.report.metrics import load
from tests.unit.report import synthetic
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

GAMMA, NEW_TOKENS, PROMPTS = 4, 48, 12
SLOWED_BY_TWO = 2**0.15
"""What the model makes of every time at batch size 2."""


def texts():
    """How many draft tokens match at every place, at even chances."""
    rng = np.random.default_rng(7)
    for prompt in range(PROMPTS):
        places = NEW_TOKENS - 1
        kept = np.cumprod(rng.random((places, GAMMA)) < 0.7, axis=1).astype(np.float32)
        silent = Features(np.zeros_like(kept), np.zeros_like(kept))
        yield TracedText(
            prompt=prompt, prompt_id=f"prompt-{prompt}", output_tokens=NEW_TOKENS, drafted=silent, kept=kept,
            on_text=silent, overlap=kept[:, 0],
        )  # fmt: skip


TRACE = Trace(
    Provenance(
        target="pico", target_sha="f00d", draft="small", draft_sha="2", tokenizer_sha="3", dataset="stdlib",
        prompts_sha="beef", dtype="bfloat16", device="cpu Example 3000", temperature=0.0, top_k=None, top_p=None,
        rule="greedy", proposal="argmax", seed=0, min_new_tokens=0, max_new_tokens=NEW_TOKENS, ignore_eos=False,
        gamma_max=GAMMA,
    ),
    tuple(texts()),
    PROMPTS,
)  # fmt: skip


def arm(gamma, draft="small", draft_s=0.001, name="", **changed):
    settings = {"draft": draft, "gamma": gamma, "proposal": "auto", "tree": None, "stop": {"kind": "fixed"}}
    name = name or f"draft_model draft={draft} gamma={gamma}"
    return Arm(name, gamma=gamma, draft_s=draft_s, verify_s=verify_s(gamma + 1), settings=settings, **changed)


def verify_s(query):
    return 0.0098 + 0.0002 * query


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a run whose rows take the very steps that the trace has."""
    drawn = synthetic._Batch.accept, synthetic._Batch.row

    def accept(batch, prompt):
        text = drawn[0](batch, prompt)
        steps = replay(TRACE, Fixed(batch.arm.gamma)).rows[prompt].accepted_per_step
        drafted = [batch.arm.gamma] * len(steps)
        return text | {
            "overshoot_tokens": 1 + sum(steps) + len(steps) - NEW_TOKENS, "steps": len(steps),
            "drafted_tokens": sum(drafted), "accepted_tokens": sum(steps), "accepted_per_step": steps,
            "drafted_depth_per_step": drafted, "drafted_nodes_per_step": drafted,
        }  # fmt: skip

    def row(batch, *arguments):
        return drawn[1](batch, *arguments) | {"draft": batch.arm.options.get("draft") if batch.arm.gamma else None}

    monkeypatch.setattr(synthetic._Batch, "accept", accept)
    monkeypatch.setattr(synthetic._Batch, "row", row)

    def writing(*arms, **plan):
        usual = {"batch_sizes": (1, 2), "prompts": PROMPTS, "repeats": 1, "max_new_tokens": NEW_TOKENS}
        return load(write_results(tmp_path / "run", Plan(arms=(AUTOREGRESSIVE, TWIN, *arms), **usual | plan)))

    return writing


def chosen(draw_ms=1e-6, accept_ms=0.0):
    """Times of a draw, and of what each node more takes to be accepted; nothing to speak of where not asked for."""
    kinds = {("draw", "small", 1): draw_ms} | {("accept", "pico", n): 1e-6 + accept_ms * (n - 1) for n in range(1, 6)}
    return pd.DataFrame([
        {"run_id": "r", "model": model, "kind": kind, "mode": "eager", "query_tokens": query, "batch_size": batch,
         "temperature": 0.0, "rule": "greedy", "proposal": "argmax", "top_k": None, "top_p": None,
         "choice_s": ms / 1000, "choice_low_s": ms / 1000, "choice_high_s": ms / 1000, "status": "ok", "reason": None,
         "device": "cpu Example 3000", "dtype": "bfloat16", "threads": 1, "attention": "sdpa", "burst": 4}
        for (kind, model, query), ms in kinds.items() for batch in (1, 2)
    ])  # fmt: skip


def table(draft_ms=1.0, verify_ms=0.0, choices=None, **changed):
    forwards = {("pico", query): 1000 * verify_s(query) + verify_ms * (query > 1) for query in range(1, 6)}
    forwards |= {("small", query): draft_ms for query in (1, 2)}
    rows = [
        {"run_id": "r", "point_id": f"{model} {query} {batch} {context}", "model": model, "mode": "eager",
         "query_tokens": query, "batch_size": batch, "context_tokens": context, "status": "ok", "reason": None,
         "forward_s": slow * ms / 1000, "forward_low_s": 0.99 * slow * ms / 1000,
         "forward_high_s": 1.01 * slow * ms / 1000, "device": "cpu Example 3000", "dtype": "bfloat16", "threads": 1,
         "attention": "sdpa", "burst": 4, "parameters": 1}
        for (model, query), ms in forwards.items()
        for batch, slow in ((1, 1.0), (2, SLOWED_BY_TWO))
        for context in (64, 256)
    ]  # fmt: skip
    return LatencyTable(pd.DataFrame(rows).assign(**changed), chosen() if choices is None else choices)


def test_a_run_is_composed_of_its_trace_and_its_latencies(write):
    found = compare(write(arm(1), arm(2), arm(4)), [TRACE], table())
    assert len(found.cells) == 6
    assert found.share_met == 1.0
    assert found.frame["error"].abs().max() < 0.03
    assert found.frame["tokens_error"].abs().max() < 1e-9  # the steps of a greedy trace are those of the run
    assert (found.frame["composed_low"] < found.frame["composed_tokens_per_s"]).all()
    assert found.sentences == ["Composed throughput is within 10 % of the measured one in 6 of 6 cells."]


@pytest.mark.parametrize(
    ("changed", "part", "words"),
    [
        ({"draft_ms": 3.0}, "draft", "below what was measured, most of it by the draft phase"),
        ({"verify_ms": -4.0}, "verify", "above what was measured, most of it by the verification"),
    ],
)
def test_what_a_cell_is_missed_by_is_found(write, changed, part, words):
    found = compare(write(arm(4), batch_sizes=(1,)), [TRACE], table(**changed))
    (cell,) = found.cells
    assert (cell.is_met, cell.explained_by) == (False, part)
    assert words in found.sentences[1]
    parts = [cell.tokens_error, cell.draft_error, cell.verify_error, cell.host_error]
    assert sum(parts) == pytest.approx(np.log1p(cell.error), abs=1e-9)


def test_a_trace_of_other_steps_is_what_explains_a_miss(write):
    """The trace holds twice as many matches as the run had."""
    kept = np.ones((NEW_TOKENS - 1, GAMMA), dtype=np.float32)
    better = replace(TRACE, texts=tuple(replace(text, kept=kept) for text in TRACE.texts))
    (cell,) = compare(write(arm(4), batch_sizes=(1,)), [better], table()).cells
    assert (cell.is_met, cell.explained_by) == (False, "tokens")


def test_an_injected_latency_is_composed_as_well(write):
    slow = arm(2, draft_s=0.005, latency_ms=5.0, name="slowed")
    (cell,) = compare(write(slow, batch_sizes=(1,)), [TRACE], table()).cells
    assert (cell.latency_mode, cell.draft_latency_ms, cell.draft_ms) == ("injected", 5.0, pytest.approx(10.0))
    assert cell.is_met


def test_without_phases_a_miss_has_no_part(write):
    results = write(arm(4), batch_sizes=(1,))
    (cell,) = compare(replace(results, steps=results.steps[:0]), [TRACE], table(draft_ms=3.0)).cells
    assert (cell.is_met, cell.explained_by, cell.draft_error) == (False, None, None)


def test_an_arm_without_a_trace_is_left_out_with_the_reason(write):
    found = compare(write(arm(2), arm(2, draft="large"), batch_sizes=(1,)), [TRACE], table())
    assert [cell.draft for cell in found.cells] == ["small"]
    (reason,) = found.left_out.values()
    assert "the trace is of draft small" in reason
    assert "the run has draft large" in reason


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"device": "NVIDIA H200"}, "device is 'NVIDIA H200', and 'cpu Example 3000' is asked for"),
        ({"dtype": "float32"}, "dtype is 'float32', and 'bfloat16' is asked for"),
        ({"model": "other"}, "no latency of 'small' in this table"),
    ],
)
def test_a_table_of_something_else_is_one_clear_line(write, changed, words):
    with pytest.raises(ResultsError, match=words) as caught:
        compare(write(arm(2), batch_sizes=(1,)), [TRACE], table(**changed))
    assert "\n" not in str(caught.value)


def test_the_autoregressive_arm_is_all_that_a_grid_of_cells_needs(write):
    results = write()
    grid = composed_grid(results, [TRACE], table(), gammas=[1, 3], latencies_ms=[None, 0.25]).frame
    assert set(grid["latency_mode"]) == {"composed"}
    assert len(grid) == 2 * 2 * 2
    three = grid[(grid["batch_size"] == 1) & (grid["gamma"] == 3)].set_index("draft_latency_ms")
    tokens = replay(TRACE, Fixed(3)).block_efficiency
    # 0.8 ms of the host; the drafts at their own pace, and at a quarter of it, which no run could keep.
    for latency, draft_ms in ((np.nan, 3.0), (0.25, 0.75)):
        row = three.loc[latency]
        assert row["composed_tokens_per_s"] == pytest.approx(1000 * tokens / (draft_ms + 10.6 + 0.8), rel=0.03)
        assert row["composed_speedup"] == pytest.approx(tokens * 10.8 / (draft_ms + 11.4), rel=0.03)


def test_a_grid_without_a_fitting_trace_is_one_clear_line(write):
    other = replace(TRACE, provenance=replace(TRACE.provenance, prompts_sha="77"))
    with pytest.raises(ResultsError, match="no trace is of its target, prompts and settings"):
        composed_grid(write(batch_sizes=(1,)), [other], table(), gammas=[1])
    with pytest.raises(ResultsError, match="holds drafts of 4 tokens"):
        composed_grid(write(batch_sizes=(1,)), [TRACE], table(), gammas=[9])


def test_a_machine_that_was_slower_in_the_run_is_met_at_the_pace_of_its_autoregressive_arm(write):
    results, rows = write(arm(4), batch_sizes=(1,)), table().rows
    fast = LatencyTable(rows.assign(forward_s=rows["forward_s"] / 2))
    (strict,) = compare(results, [TRACE], fast).cells
    (paced,) = compare(results, [TRACE], fast, at_pace_of_run=True).cells
    assert not strict.is_met
    assert abs(paced.error) < 0.03
    assert (paced.draft_ms, paced.host_ms) == (pytest.approx(4.0, rel=0.03), pytest.approx(0.8, rel=0.05))


def test_a_table_that_was_slower_than_the_run_is_remarked(write):
    slow = table()
    rows = slow.rows.assign(forward_s=slow.rows["forward_s"] * 1.5)
    said = compare(write(arm(2), batch_sizes=(1,)), [TRACE], LatencyTable(rows, chosen())).sentences
    assert "the table and the run were not measured under the same conditions" in said[-1]


def test_what_choosing_tokens_takes_is_part_of_the_draft_and_of_the_host(write):
    """A run whose draft tokens take 0.5 ms each beside their forwards, and whose nodes 0.25 ms each to be accepted."""
    slow = arm(4, draft_s=0.0015, name="draws")
    slow = replace(slow, verify_s=slow.verify_s + 4 * 0.00025)
    results = write(slow, batch_sizes=(1,))
    (without,) = compare(results, [TRACE], table()).cells
    (cell,) = compare(results, [TRACE], table(choices=chosen(draw_ms=0.5, accept_ms=0.25))).cells
    assert (without.is_met, cell.is_met) == (False, True)
    assert abs(cell.error) < 0.03
    assert (cell.draft_ms, cell.host_ms) == (pytest.approx(6.0), pytest.approx(1.8, rel=0.02))
    assert cell.lacks is None


def test_a_table_of_forwards_alone_says_what_its_cells_lack(write):
    results = write(arm(1), arm(2), batch_sizes=(1,))
    old = table(choices=chosen()[:0])
    found = compare(results, [TRACE], old)
    reason = "this table holds forwards alone, and no time of choosing tokens"
    assert set(found.frame["lacks"]) == {reason}
    assert found.sentences[-1] == (
        f"In 2 of them steps are composed too short, without what drawing and accepting drafts take: {reason}."
    )
    assert set(composed_grid(results, [TRACE], old, gammas=[1, 2]).frame["lacks"]) == {reason}
    assert composed_grid(results, [TRACE], table(), gammas=[1, 2]).frame["lacks"].isna().all()


def test_cells_that_ran_with_compiled_pieces_are_not_composed_and_say_why(write):
    results = write(arm(2), batch_sizes=(1,))
    pieced = replace(results, requests=results.requests.assign(execution="graphs, compiled pieces"))
    for found in (lambda: compare(pieced, [TRACE], table()), lambda: composed_grid(pieced, [TRACE], table())):
        with pytest.raises(
            ResultsError, match=r"its forwards ran with compiled pieces, and no forward times are taken so"
        ):
            found()


def test_cells_that_ran_compiled_are_composed_of_compiled_forwards(write):
    results = write(arm(2), batch_sizes=(1,))
    compiled = replace(results, requests=results.requests.assign(execution="compiled"))
    with pytest.raises(ResultsError, match="no latency of small in mode 'compiled' in this table"):
        compare(compiled, [TRACE], table())
    eager = table()
    rows = pd.concat([eager.rows.assign(forward_s=1.0), eager.rows.assign(mode="compiled")])
    (cell,) = compare(compiled, [TRACE], LatencyTable(rows, chosen().assign(mode="compiled"))).cells
    assert cell.is_met
