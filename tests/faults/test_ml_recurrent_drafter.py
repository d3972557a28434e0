"""Faults found in ml-recurrent-drafter's benchmarks, and that specbench does not have them."""

import pytest

from methods.draft_model import DraftModel
from specbench.analysis.acceptance import block_efficiency_uncut, mean_accepted
from specbench.analysis.throughput import batch_tokens_per_s, decode_tokens_per_s
from specbench.bench.prompts import load_prompts
from specbench.config import PromptSettings
from specbench.errors import ConfigError
from specbench.records.store import Store
from specbench.testing import decoding, models
from tests.faults.conftest import plan, with_method
from tests.unit.bench.bench_plans import run


def test_a_rate_holds_all_of_the_loop_and_not_the_phases_alone(summary, finished):
    """Its tokens a second left out the host's loop, the preparation and the prefill."""
    steps = Store(summary.folder).read("steps")
    phases = steps[["draft_s", "verify_s", "accept_s", "update_s"]].sum(axis=1)
    assert (steps["step_s"] >= phases * 0.999).all()
    assert steps["host_s"].sum() > 0
    decode_s = finished[finished["pass"] == "phase"].groupby("batch_id")["decode_s"].first()
    assert (decode_s >= phases.groupby(steps["batch_id"]).sum() * 0.999).all()


def test_the_rate_of_a_batch_and_that_of_a_request_have_names_of_their_own(rows):
    """Its one figure was per sequence, also at batch 64."""
    batch = rows(batch_id=["a", "a"], row=[0, 1], output_tokens=[11, 11], decode_s=[1.0, 1.0], row_done_s=[1.0, 1.0])
    assert batch_tokens_per_s(batch) == pytest.approx(20.0)
    assert decode_tokens_per_s(batch) == pytest.approx(10.0)


def test_a_finished_row_counts_nothing_more():
    """Rows that were done went on to add accepted tokens to the mean."""
    eos = models.eos_for("llama")
    target = decoding.family("llama")

    def decoded(prompts, keys):
        method = DraftModel(DraftModel.Options(draft="near", gamma=3))
        decoding.loaded(method, target, decoding.drafts_of("llama"))
        return decoding.decode(target, method, prompts, 16, keys=keys, eos_ids=eos).rows

    together = decoded(models.PROMPTS, range(8))
    assert len({row.steps for row in together}) > 2, "all rows end together: the test shows nothing"
    for index, row in enumerate(together):
        [alone] = decoded(models.PROMPTS[index : index + 1], [index])
        assert row.accepted_per_step == alone.accepted_per_step
        assert row.drafted_depth_per_step == alone.drafted_depth_per_step


def test_steps_that_no_row_took_do_not_change_the_mean(rows):
    """The same in a table: the mean is over the steps that each row took."""
    table = rows(
        batch_id=["a", "a"], accepted_per_step=[[2, 2], [0, 0, 0, 0]], drafted_depth_per_step=[[2] * 2, [2] * 4]
    )
    assert mean_accepted(table) == pytest.approx(4 / 6)
    assert block_efficiency_uncut(table) == pytest.approx(1 + 4 / 6)


def test_autoregressive_is_timed_like_any_other_arm(headline):
    """Its autoregressive mode printed no time."""
    baseline = headline[headline["method"] == "autoregressive"]
    assert baseline[["prefill_s", "ttft_s", "decode_s", "row_done_s"]].gt(0).all(axis=None)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_prompts_that_fill_no_batch_are_run_all_the_same(place, headline, batch_size):
    """32 prompts at batch size 64 gave no batch and a division by zero; a remainder was dropped."""
    if batch_size == 64:
        text = plan(place).replace("batch_size: 2", "batch_size: 64").replace("repeats: 2", "repeats: 1")
        table = Store(run(place, text, results=place / "wide").folder).read("requests")
        headline = table[(table["pass"] == "headline") & table["status"].eq("ok")]
    assert set(headline.groupby(["arm", "repeat"])["prompt_id"].nunique()) == {5}


def test_the_limit_of_a_prompt_counts_tokens_and_not_characters(target, tmp_path):
    """It compared characters with a number that it then added to tokens."""
    (tmp_path / "p.txt").write_text("import os\n")
    length = len(target.tokenizer("import os")["input_ids"])
    assert length < len("import os")

    def prompts(most):
        settings = PromptSettings(source=str(tmp_path / "p.txt"), count=1, max_prompt_tokens=most, truncate="skip")
        return load_prompts(settings, target, max_new_tokens=4).prompts

    assert len(prompts(length)[0].ids) == length
    with pytest.raises(ConfigError):
        prompts(length - 1)


def test_arms_of_a_cell_never_run_at_the_same_time(summary):
    """Cells ran side by side on one host, and shared its cores and its power."""
    other = []

    class Nosy(DraftModel):
        def begin(self, view, prefill):
            if not other:
                with pytest.raises(ConfigError, match="another run is writing to it") as caught:
                    run(summary.folder.parents[2], plan(summary.folder.parents[2]), results=results)
                other.append(str(caught.value))
            super().begin(view, prefill)

    results = summary.folder.parents[2] / "nosy"
    run(summary.folder.parents[2], plan(summary.folder.parents[2]), results=results, limit=2,
        method_class=with_method("draft_model", Nosy))  # fmt: skip
    assert other
