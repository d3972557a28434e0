"""Faults found in Spec-Bench, and that specbench does not have them."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import specbench
from methods.draft_model import DraftModel
from methods.prompt_lookup import PromptLookup
from specbench import cli
from specbench.analysis.speedup import speedup
from specbench.bench.lossless import compare
from specbench.decode.loop import sampler_for
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.records.store import Store
from specbench.testing import decoding, models
from tests.faults.conftest import plan, with_method
from tests.unit.bench.bench_plans import run
from tests.unit.models import tiny

PROMPT = list(models.PROMPTS[0])


@pytest.fixture(scope="module")
def judged():
    """Judge an output against the reference, as a run does."""
    target = decoding.family("llama")
    reference = models.greedy_continuation("llama", models.PROMPTS[0], 12)

    def judge(output):
        return compare(target, PROMPT, reference, output, sampler_for(target, [0], [len(PROMPT)], Decoding(12)))

    return reference, judge


def test_the_folder_that_a_user_names_is_the_folder_that_is_read(tmp_path):
    """Its speed script took a flag that was always on, so the documented paths were never looked at."""
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path / "my results")])
    assert result.exit_code == 1
    assert str(tmp_path / "my results") in result.stderr


@pytest.mark.parametrize("kept", [0, 3, 11])
def test_an_empty_or_short_answer_is_not_called_equal(judged, kept):
    """Its comparison walked two files side by side to the end of the shorter: no answers at all were "equal"."""
    reference, judge = judged
    verdict = judge(reference[:kept])
    assert (verdict.word, verdict.first_divergence) == ("WRONG", kept)


def test_a_difference_is_told_with_its_place_and_size(judged):
    """Its comparison said yes or no, and not where."""
    reference, judge = judged
    verdict = judge([*reference[:6], (reference[6] + 1) % models.VOCAB, *reference[7:]])
    assert (verdict.word, verdict.first_divergence) == ("WRONG", 6)
    assert verdict.gap > 0


def test_ids_are_compared_and_not_the_words_that_they_spell():
    """It compared stripped text, in which other ids, EOS and overshoot vanish."""
    tokenizer, target = tiny.tokenizer(), CachedModel(tiny.model(1), "tiny")
    whole, spelled = tokenizer("import")["input_ids"], [tokenizer(letter)["input_ids"][0] for letter in "import"]
    assert whole != spelled
    assert tokenizer.decode(whole) == tokenizer.decode(spelled)
    assert compare(target, [1], whole, spelled, sampler_for(target, [0], [1], Decoding(6))).word == "WRONG"


def test_tokens_are_counted_in_one_way_for_every_arm(finished):
    """Methods reported their own count, tokens behind EOS included; the baseline's text was tokenised again."""
    assert (finished["output_tokens"] == finished["output_ids"].map(len)).all()
    counts = finished.groupby("prompt_id")["output_tokens"].nunique()
    assert (counts == 1).all()


def test_what_was_accepted_beyond_eos_is_cut_and_counted_apart():
    """Its loops counted what stood behind EOS inside the last accepted run."""
    eos = models.eos_for("llama")
    target = decoding.family("llama")
    method = DraftModel(DraftModel.Options(draft="same", gamma=7))
    decoding.loaded(method, target, decoding.drafts_of("llama"))
    rows = decoding.decode(target, method, models.PROMPTS, 16, eos_ids=eos).rows
    ended = [row for row in rows if row.finish_reason == "eos" and row.overshoot_tokens]
    assert ended, "no draft went beyond an EOS: the test shows nothing"
    for row in ended:
        assert row.output_ids[-1] in eos
        assert len(row.output_ids) == 1 + sum(a + 1 for a in row.accepted_per_step) - row.overshoot_tokens


def test_max_new_tokens_is_exact_and_no_loop_goes_one_step_too_far(finished):
    """Its loops stopped only once the count was greater than the limit."""
    assert finished["output_tokens"].max() == 12
    assert set(finished["output_tokens"][finished["finish_reason"] == "length"]) == {12}


def test_a_speed_up_is_of_paired_totals_and_not_of_mean_rates(rows):
    """It divided the mean of one arm's rates by the mean of another's: here 4.7 instead of 2."""
    times = {"batch_id": ["a", "b"], "block": [0, 1], "prompt_id": ["p", "q"], "output_tokens": [101, 101]}
    baseline = rows(**times, decode_s=[1.0, 9.0])
    method = rows(**times, decode_s=[0.2, 4.8])
    assert speedup(baseline, method).ratio == pytest.approx(2.0)
    assert pytest.approx(4.6875) == ((100 / 0.2 + 100 / 4.8) / 2) / ((100 / 1.0 + 100 / 9.0) / 2)


def test_a_failed_batch_has_no_numbers_and_never_those_of_the_batch_before(half_failed):
    """A caught error wrote "ERROR" with the tokens, steps and time of the turn before, and they were published."""
    arm = half_failed[half_failed["label"] == "small draft"]
    failed = arm[arm["block"] > 0]
    assert set(arm[arm["block"] == 0]["status"]) == {"ok"}
    assert set(failed["status"]) == {"oom"}
    for column in ("output_tokens", "steps", "decode_s", "prefill_s", "accepted_tokens", "output_ids", "verdict"):
        assert failed[column].isna().all(), column
    assert failed["reason"].str.len().gt(0).all()


def test_a_failing_prompt_in_the_middle_leaves_the_other_arms_whole(half_failed):
    """The rest of a cell is measured, and planned rows of the failed arm are there."""
    others = half_failed[half_failed["label"] != "small draft"]
    assert set(others["status"]) == {"ok"}
    assert set(half_failed.groupby("arm").size()) == {5}


def test_no_hidden_number_of_steps_cuts_a_slow_method_short():
    """512 steps were the silent limit, so a method of low acceptance wrote less than its baseline."""
    small = models.small_vocabulary(5)
    config = type(small.config)(**{**small.config.to_dict(), "max_position_embeddings": 640})
    target = CachedModel(models.scaled(type(small)(config), 0), "long")
    [row] = decoding.decode(target, decoding.autoregressive(), [[1, 2]], 530).rows
    assert (len(row.output_ids), row.steps, row.finish_reason) == (530, 529, "length")


def test_no_prompt_is_both_warmed_up_on_and_measured(place):
    """Its warm-up ran the first question three times and then measured it."""
    seen = []

    class Listening(PromptLookup):
        def begin(self, view, prefill):
            seen.append(prefill.tokens.tolist())

    run(place, plan(place), results=place / "warm", method_class=with_method("prompt_lookup", Listening))
    before, measured = seen[:2], seen[2:]  # one warms up, and on one the work of a step is counted
    assert len(measured) == 3 * 2 + 3
    warm_up, texts = ({tuple(ids) for batch in batches for ids in batch} for batches in (before, measured))
    assert not warm_up & texts


def test_the_baseline_runs_in_the_same_loop_on_the_same_kernels_in_every_block(finished):
    """Its baseline was another library's loop with other kernels, and the difference counted as speed-up."""
    blocks = finished.groupby(["cell", "repeat", "block", "pass"])["arm"].agg(set)
    assert all({"autoregressive", "autoregressive-twin"} <= arms for arms in blocks)
    assert finished["attention"].nunique() == finished["dtype"].nunique() == finished["threads"].nunique() == 1


def test_no_dependency_is_pinned_to_one_old_version():
    """It needs transformers 4.37.1, and another branch for two of its methods."""
    project = tomllib.loads((Path(specbench.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert not [package for package in project["dependencies"] if "==" in package]


def test_what_a_run_was_is_recorded_by_the_run_and_not_by_hand(summary):
    """Its leaderboard's columns of GPU and versions are filled in by hand."""
    row = Store(summary.folder).read("runs").iloc[0]
    assert json.loads(row["versions"])["transformers"]
    assert json.loads(row["machine"])
    assert row["status"] == "done"
