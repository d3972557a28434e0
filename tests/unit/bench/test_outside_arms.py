"""Outside baselines in a run: their rows beside those of the core, and the path that speed-ups are taken against."""

import json

import pytest

from specbench import registry
from specbench.bench import arms
from specbench.bench.arms import CoreArm, OutsideArm
from specbench.bench.baselines import TransformersGenerate
from specbench.errors import ConfigError, UnsupportedError
from specbench.records.store import Store
from specbench.rehearsal import rehearsal
from tests.unit.bench.bench_plans import plan_of, run

BESIDE = """
name: beside
targets: [{model: pico}]
prompts: {source: stdlib, count: 5, max_prompt_tokens: 24}
decode: {max_new_tokens: 10, temperature: 0.0, batch_size: [1, 2]}
methods:
  - transformers-generate: {cache: [dynamic, static]}
  - transformers-assisted: {draft: pico-wide, gamma: 3}
  - transformers-prompt-lookup: {max_ngram: 3, gamma: 8}
  - draft_model: {draft: pico-wide, gamma: 3}
measure: {repeats: 1, warmup: 1}
machine: {device: cpu}
"""
ONE = BESIDE.replace("[1, 2]", "1").replace("count: 5", "count: 2").replace("warmup: 1", "warmup: 0")
GENERATE, ASSISTED = "transformers-generate", "transformers-assisted"
DYNAMIC, STATIC = "transformers-generate cache=dynamic", "transformers-generate cache=static"


def only(*methods, text=ONE):
    """The experiment with these methods alone."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("  - ") or line.split()[1].rstrip(":") in methods)


@pytest.fixture(scope="module")
def beside(tmp_path_factory, family):
    """A run at batch sizes 1 and 2, and its rows."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "zoo").symlink_to(family)
    summary = run(folder, BESIDE)
    return summary, Store(summary.folder).read("requests")


def notes(summary):
    """The notes of every run, the oldest first."""
    return [json.loads(text) for text in Store(summary.folder).read("runs")["notes"]]


def of(rows, method, batch_size=1):
    return rows[(rows["method"] == method) & (rows["batch_size"] == batch_size)]


def test_every_baseline_runs_in_the_blocks_of_the_core_on_the_same_prompts(beside):
    _, rows = beside
    headline = rows[rows["pass"] == "headline"]
    prompts = headline.groupby(["batch_size", "block", "arm"])["prompt_id"].agg(tuple)
    assert prompts.groupby(["batch_size", "block"]).nunique().max() == 1
    arms_of_a_block = headline.groupby(["batch_size", "block"])["arm"].nunique()
    assert set(arms_of_a_block) == {7}
    orders = headline.groupby(["batch_size", "block"])["order_in_block"].nunique()
    assert set(orders) == {7}


def test_greedy_texts_of_transformers_are_the_cores_own(beside):
    _, rows = beside
    measured = rows[rows["method"].str.startswith("transformers") & (rows["status"] == "ok")]
    assert set(measured["arm"]) == {DYNAMIC, STATIC, "transformers-assisted", "transformers-prompt-lookup"}
    assert set(measured["verdict"]) == {"equal"}
    assert set(measured["rule"]) == {"greedy"}
    assert measured["lossless"].all()


def test_rows_of_transformers_are_whole(beside):
    _, rows = beside
    measured = rows[rows["method"].str.startswith("transformers") & (rows["status"] == "ok")]
    assert measured[["output_ids", "finish_reason", "steps", "drafted_tokens", "row_done_s"]].notna().all().all()
    assert (measured["prefill_s"] > 0).all()
    assert (measured["ttft_s"] <= measured["prefill_s"]).all()
    assert (measured["row_done_s"] <= measured["decode_s"] + 1e-12).all()
    assert set(of(measured, "transformers-generate", 2)["prefill_tokens"]) == {1}
    assert (of(measured, "transformers-assisted")["prefill_tokens"] > 1).any()
    assert set(of(rows, "transformers-assisted")["draft"]) == {"pico-wide"}


def test_what_cannot_run_is_rows_with_the_reason(beside):
    _, rows = beside
    for method in ("transformers-assisted", "transformers-prompt-lookup"):
        assert set(of(rows, method, 2)["status"]) == {"unsupported"}
        assert set(of(rows, method, 2)["reason"]) == {
            "assisted generation of transformers takes one prompt at a time, not 2"
        }


def test_no_phase_of_a_baseline_is_timed_and_those_of_the_core_are(beside):
    summary, rows = beside
    phase = rows[rows["pass"] == "phase"]
    assert set(phase["arm"]) == {"autoregressive", "autoregressive-twin", "draft_model"}
    steps = Store(summary.folder).read("steps")
    assert set(steps["arm"]) == set(phase["arm"])


def test_a_run_with_unsupported_baselines_has_not_failed(beside):
    summary, _ = beside
    assert (summary.failed, summary.wrong, summary.outside_wrong, summary.unsupported) == (0, 0, 0, 2)


def test_sampled_texts_are_not_compared_even_where_the_core_matches_token_for_token(folder):
    text = ONE.replace("temperature: 0.0", "temperature: 0.8, rule: match")
    rows = Store(run(folder, text).folder).read("requests")
    assert set(of(rows, "draft_model")["verdict"]) == {"equal"}
    outside = rows[rows["method"].str.startswith("transformers") & (rows["status"] == "ok")]
    assert outside["verdict"].isna().all()
    assert set(outside["rule"]) == {"rejection"}


def test_acceptance_that_is_simulated_on_the_core_is_not_on_a_baseline(folder):
    text = only(GENERATE, ASSISTED).replace("batch_size: 1", "batch_size: 1, rule: {synthetic: {mean_length: 2.0}}")
    rows = Store(run(folder, text).folder).read("requests")
    assert set(of(rows, ASSISTED)["reason"]) == {"the acceptance of transformers cannot be simulated"}
    dynamic = rows[rows["arm"] == DYNAMIC]
    assert not dynamic["simulated_acceptance"].any()
    assert dynamic["verdict"].isna().all()
    assert set(dynamic["output_tokens"]) == {10}  # like the core, it ignores EOS


def test_a_draft_latency_cannot_be_kept_in_the_loop_of_another(folder):
    text = only(ASSISTED).replace("gamma: 3", "gamma: 3, draft_latency_ms: 5.0")
    rows = Store(run(folder, text).folder).read("requests")
    assert set(of(rows, "transformers-assisted")["reason"]) == {
        "a draft latency cannot be kept inside the loop of transformers-assisted"
    }


# ---- the fastest autoregressive path ---------------------------------------------------------------------------------


def warmed_up_in(monkeypatch, core_s, outside_s):
    """Let arms tell of warm-up passes of these lengths, whatever they took."""
    monkeypatch.setattr(CoreArm, "warm_up", lambda self, blocks, passes: core_s)
    monkeypatch.setattr(OutsideArm, "warm_up", lambda self, blocks, passes: [] if self.failure else outside_s)


def test_without_a_warm_up_speedups_are_taken_against_the_core(folder):
    (found,) = notes(run(folder, only(GENERATE), limit=1))
    assert set(found["fastest_autoregressive"].values()) == {"autoregressive"}


def test_the_path_that_was_fastest_in_the_warm_up_stands_when_the_run_is_resumed(folder, monkeypatch):
    warmed_up_in(monkeypatch, [0.5, 0.3], [9.0, 0.2])
    run(folder, only(GENERATE), limit=1)
    warmed_up_in(monkeypatch, [0.1], [0.5])
    first, second = notes(run(folder, only(GENERATE)))
    assert first["fastest_autoregressive"] == second["fastest_autoregressive"]
    assert set(first["fastest_autoregressive"].values()) == {DYNAMIC}


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_wrong_text_of_a_baseline_is_seen_and_is_no_fault_of_a_method(folder, monkeypatch):
    real = TransformersGenerate.generate

    def broken(self, requests, decoding, watch):
        trace = real(self, requests, decoding, watch)
        for row in trace.rows:
            row.output_ids[4] = (row.output_ids[4] + 1) % 300
        return trace

    monkeypatch.setattr(TransformersGenerate, "generate", broken)
    summary = run(folder, only(GENERATE, "draft_model"))
    rows = Store(summary.folder).read("requests")
    assert set(of(rows[rows["status"] == "ok"], "transformers-generate")["verdict"]) == {"WRONG"}
    assert (summary.wrong, summary.outside_wrong) == (0, 4)
    warnings = "\n".join(notes(summary)[0]["warnings"])
    for arm in (DYNAMIC, STATIC):
        assert f"texts of {arm} differ from those of the core's autoregressive" in warnings


def test_a_baseline_that_breaks_becomes_rows_and_the_others_stay(folder, monkeypatch):
    def broken(self, requests, decoding, watch):
        raise ValueError("transformers changed")

    monkeypatch.setattr(TransformersGenerate, "generate", broken)
    rows = Store(run(folder, only(GENERATE, "draft_model")).folder).read("requests")
    failed = rows[rows["status"] == "error"]
    assert set(failed["arm"]) == {DYNAMIC, STATIC}
    assert set(failed["reason"]) == {"ValueError: transformers changed"}
    assert set(of(rows, "draft_model")["status"]) == {"ok"}


def test_a_batch_that_takes_too_long_is_a_timeout(folder):
    rows = Store(run(folder, only(GENERATE), batch_limit_s=1e-9).folder).read("requests")
    assert set(rows[rows["arm"] == DYNAMIC]["status"]) == {"timeout"}


def test_a_shape_of_batch_is_compiled_before_it_is_timed_and_only_once(folder, monkeypatch):
    batches = []
    real = TransformersGenerate.generate

    def noting(self, requests, decoding, watch):
        batches.append((len(requests.prompts), type(watch).__name__))
        return real(self, requests, decoding, watch)

    monkeypatch.setattr(TransformersGenerate, "compiled_for", lambda self, requests: len(requests.prompts))
    monkeypatch.setattr(TransformersGenerate, "generate", noting)
    text = BESIDE.replace("[dynamic, static]", "dynamic").replace("batch_size: [1, 2]", "batch_size: 2")
    run(folder, only(GENERATE, text=text))
    # Two blocks of two and one of one: three passes compile each shape, one warms up, three are timed.
    assert [rows for rows, _ in batches].count(2) == 3 + 1 + 2
    assert [rows for rows, _ in batches].count(1) == 3 + 1


# ---- names and options -----------------------------------------------------------------------------------------------


def test_a_misspelt_option_of_a_baseline_is_told_with_its_line(folder):
    with pytest.raises(ConfigError, match=r":8: methods\.1\.transformers-assisted\.gama: unknown key, .*'gamma'\?"):
        plan_of(
            folder,
            BESIDE.replace(
                "draft: pico-wide, gamma: 3}\n  - transformers", "draft: pico-wide, gama: 3}\n  - transformers"
            ),
        )


def test_a_misspelt_baseline_is_told_with_the_nearest_name(folder):
    with pytest.raises(
        ConfigError, match=r"unknown method 'transformers-generat'\. Did you mean 'transformers-generate'"
    ):
        plan_of(folder, BESIDE.replace("transformers-generate", "transformers-generat"))


def test_a_baseline_has_a_name_and_strict_options_and_is_no_method():
    assert set(registry.baselines()) <= set(registry.names())
    for name in registry.baselines():
        assert registry.load_baseline(name).name == name
        assert registry.options_class(name).model_config["extra"] == "forbid"
        with pytest.raises(UnsupportedError, match=f"{name} decodes by itself"):
            registry.load(name)


def test_a_rehearsal_drafts_with_the_embedded_family(folder):
    plan = plan_of(folder, BESIDE.replace("draft: pico-wide", "draft: owner/model"))
    (_, second) = rehearsal(plan).cells
    drafts = {arm.options["draft"] for arm in second.arms if "draft" in arm.options}
    assert drafts == {"pico-wide"}


def test_every_arm_is_of_the_kind_that_its_name_says(folder):
    plan = plan_of(folder, ONE)
    failure = arms.Failure("skipped", "not loaded here")
    kinds = {
        arm.name: type(arms.live_arm(arm, None, failure, None))
        for arm in plan.cells[0].arms  # type: ignore[arg-type]
    }
    assert {name for name, kind in kinds.items() if kind is CoreArm} == {
        "autoregressive", "autoregressive-twin", "draft_model"
    }  # fmt: skip
