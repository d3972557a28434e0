"""What any bench for speculative decoding should show of itself; each line stands for a fault seen in some peer."""

import json

import numpy as np
import pytest

from methods.draft_model import DraftModel
from specbench.analysis.acceptance import acceptance_rate, block_efficiency_uncut, survival
from specbench.analysis.intervals import Totals, jackknife_interval
from specbench.analysis.verdicts import stored_checks
from specbench.bench.cells import ready
from specbench.bench.prompt_encoding import Encoder
from specbench.bench.prompt_formats import Content, content_of
from specbench.config import PromptSettings
from specbench.decode.acceptance import Synthetic
from specbench.errors import ConfigError
from specbench.records.store import Store
from specbench.testing import decoding, models
from tests.faults.conftest import plan, requests, with_method
from tests.unit.bench.bench_plans import plan_of, run, texts
from tests.unit.bench.test_prompt_encoding import CHAT, Target


def test_an_arm_that_drafts_nothing_has_no_acceptance(headline):
    """A profile of rates for a run without drafts, as NVIDIA's bench must take care not to write, would be invented."""
    baseline = headline[headline["method"] == "autoregressive"]
    assert baseline["drafted_tokens"].eq(0).all()
    assert acceptance_rate(baseline) is None
    assert len(survival(baseline)) == 0


@pytest.mark.parametrize("label", ["small draft", "prompt_lookup"])
def test_one_and_the_sum_of_marginal_acceptance_are_the_tokens_of_a_step(headline, label):
    """The peers have six meanings of "acceptance length", and two simulators differ by one."""
    rows = headline[headline["label"] == label]
    assert 1 + survival(rows).sum() == pytest.approx(block_efficiency_uncut(rows))


def test_the_interval_of_the_same_work_done_twice_holds_one():
    """No peer runs its baseline twice, so none knows how small a difference it can see.

    Three hundred pairs of equal arms with 3 % noise a batch: the 95 % interval must hold 1 in at least 90 % of them,
    which a right one fails with a chance below 1e-3.
    """
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        interval = jackknife_interval(
            *(Totals(np.exp(noise), np.full(6, 100.0)) for noise in generator.normal(0, 0.03, (2, 6)))
        )
        held += interval.low <= 1 <= interval.high
    assert held >= 270


@pytest.mark.parametrize(
    "batches", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 2, 4, 5, 7, 8))]
)
def test_a_run_cut_anywhere_and_begun_again_has_the_rows_of_one_that_was_not(place, finished, batches):
    """NVIDIA's bench and SpecForge lose what they had; Spec-Bench appends to it."""

    class Cut(DraftModel):
        left = batches

        def begin(self, view, prefill):
            if type(self).left == 0:
                raise KeyboardInterrupt
            type(self).left -= 1
            super().begin(view, prefill)

    results = place / f"cut after {batches}"
    with pytest.raises(KeyboardInterrupt):
        run(place, plan(place), results=results, method_class=with_method("draft_model", Cut))
    resumed = requests(run(place, plan(place), results=results))
    assert texts(resumed) == texts(finished)


def test_the_order_of_arms_is_shuffled_recorded_and_the_same_again(place, finished):
    """Methods that run one after the other are compared across drift: a nominal 95 % interval then covers 16 %."""
    [cell] = ready(plan_of(place, plan(place)), place / "zoo")
    seen = finished[finished["pass"] == "headline"].drop_duplicates("batch_id")
    orders = set()
    for (repeat, block), rows in seen.groupby(["repeat", "block"]):
        order = list(rows.sort_values("order_in_block")["arm"])
        assert order == [arm.name for arm in cell.order(cell.blocks()[block], repeat, 0)]
        orders.add(tuple(order))
    assert len(orders) > 1


def test_equal_prompts_keep_their_rows_and_a_last_partial_batch_is_kept(headline):
    """A dictionary by prompt loses the first, a drop of the remainder the second."""
    assert set(headline.groupby(["arm", "repeat"]).size()) == {5}
    assert headline[headline["block"] == 2].groupby(["arm", "repeat"]).size().eq(1).all()


def test_two_begin_tokens_are_refused():
    """A chat template's text, tokenised again with special tokens, begins twice, and is another prompt."""
    target = Target(CHAT)
    doubled = target.tokenizer.bos_token + target.tokenizer.bos_token
    with pytest.raises(ConfigError, match="begin"):
        Encoder(PromptSettings(source="p.txt"), target, {}).ids(Content((doubled + "Why?",)))


def test_a_set_that_was_never_prepared_is_refused():
    """SPEED-Bench is published with a sentence in place of each prompt, and can be timed without anyone noticing."""
    row = {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"], "src_id": "x"}
    with pytest.raises(ConfigError, match="placeholder"):
        content_of({**row, "question_id": "q"})


def test_the_input_of_an_alpaca_row_is_part_of_its_prompt():
    """Two in five rows have one, and an instruction without its input asks for something else."""
    [turn] = content_of({"instruction": "Add these.", "input": "2 and 3", "output": "5"}).turns
    assert "2 and 3" in turn
    assert "2 and 3" not in content_of({"instruction": "Add these.", "input": "", "output": "5"}).turns[0]


@pytest.mark.parametrize("length", [1.5, 2.0, 3.25])
def test_a_simulated_length_counts_the_targets_token_and_is_what_is_measured(length):
    """vLLM's and TensorRT's lengths count it and llama.cpp's rate does not: one word, two numbers that differ by one.

    800 steps, and a tolerance of four standard errors of a length that takes two neighbouring values.
    """
    target = decoding.family("llama")
    method = DraftModel(DraftModel.Options(draft="far", gamma=5))
    decoding.loaded(method, target, decoding.drafts_of("llama"))
    prompts = [models.PROMPTS[i % 8] for i in range(40)]
    trace = decoding.decode(target, method, prompts, 66, rule=Synthetic(mean_length=length))
    accepted = np.concatenate([row.accepted_per_step for row in trace.rows])
    assert len(accepted) >= 800
    assert accepted.mean() + 1 == pytest.approx(length, abs=4 * 0.5 / len(accepted) ** 0.5)


def test_a_misspelt_method_is_answered_with_the_nearest_name(place):
    """A name that a tool does not know is too often a default in silence."""
    with pytest.raises(ConfigError, match=r"Did you mean 'prompt_lookup'\?"):
        plan_of(place, plan(place).replace("- prompt_lookup", "- promt_lookup"))


def test_near_ties_equal_and_wrong_are_counted_apart(finished):
    """One yes or no for a whole file hides how many texts differ, and how."""
    table = finished.copy()
    texts = table.index[(table["label"] == "small draft") & (table["pass"] == "headline")]
    table.loc[texts[:3], "verdict"] = ["near-tie", "WRONG", "WRONG"]
    for text in texts[:3]:
        table.at[text, "output_ids"] = [*table.at[text, "output_ids"][:4], 0]
    [check] = [check for check in stored_checks(table) if check.arm in set(table.loc[texts, "arm"])]
    assert (check.near_tie, check.wrong, check.compared) == (1, 2, check.requests)
    assert check.equal == check.requests - 3


def test_a_missing_answer_is_a_fault_and_not_a_match(finished):
    """Spec-Bench's comparison said "equal" for a file without its last answers."""
    texts = finished.index[(finished["label"] == "small draft") & (finished["pass"] == "headline")]
    checks = {check.arm: check for check in stored_checks(finished.drop(texts[-2:]))}
    [check] = [checks[arm] for arm in set(finished.loc[texts, "arm"])]
    assert any("2 of 15 rows are missing" in fault for fault in check.faults)


def test_a_run_names_its_seeds_versions_and_models(place, summary):
    """The commonest complaint of all is that a speed-up cannot be reproduced."""
    row = Store(summary.folder).read("runs").iloc[0]
    assert row["seed"] == 0
    assert {"torch", "transformers"} <= set(json.loads(row["versions"]))
    models = json.loads(row["notes"])["models"]
    assert len(models) > 1  # the target, and the drafts of its arms
    assert all(model["weights_sha"] and model["tokenizer_sha"] for model in models.values())
