"""Faults found in eBay's spec_dec, and that specbench does not have them."""

import pytest
import transformers

from specbench.bench.lossless import compare
from specbench.decode.loop import sampler_for
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.testing import decoding, models
from tests.faults.conftest import plan
from tests.unit.bench.bench_plans import run
from tests.unit.models import tiny


@pytest.fixture
def long_text():
    """Fifty tokens of a tiny model, and how a run judges another text."""
    target = decoding.family("llama")
    text = models.greedy_continuation("llama", models.PROMPTS[0], 50)
    prompt = list(models.PROMPTS[0])
    return text, lambda other: compare(
        target, prompt, text, other, sampler_for(target, [0], [len(prompt)], Decoding(50))
    )


def test_a_text_that_agrees_for_a_while_is_not_nearly_right(long_text):
    """It scored the share of a text that agrees: 0.96 here, for a text that is wrong."""
    text, judge = long_text
    verdict = judge([*text[:48], (text[48] + 1) % models.VOCAB, text[49]])
    assert (verdict.word, verdict.first_divergence) == ("WRONG", 48)


def test_texts_are_compared_before_they_are_words():
    """It tokenised the texts again: ids that were never generated were compared."""
    tokenizer = tiny.tokenizer()
    spelled = [tokenizer(letter)["input_ids"][0] for letter in "import"]
    again = tokenizer(tokenizer.decode(spelled))["input_ids"]
    assert again != spelled
    target = CachedModel(tiny.model(1), "tiny")
    sampler = sampler_for(target, [0], [1], Decoding(6))
    assert compare(target, [1], spelled, spelled, sampler).word == "equal"
    assert compare(target, [1], spelled, again, sampler).word == "WRONG"


def test_two_equal_prompts_keep_rows_and_references_of_their_own(headline):
    """Its references were a dictionary by prompt, in which equal prompts collide."""
    assert headline["prompt_id"].nunique() == 5
    assert set(headline.groupby(["arm", "repeat"]).size()) == {5}
    others = headline[headline["arm"] != "autoregressive"]
    assert set(others["verdict"]) == {"equal"}


def test_a_text_is_measured_by_its_length_where_padding_and_eos_are_one_token():
    """It counted the ids that are not padding, with EOS as padding: a text lost its end, or its own zeros."""
    prompt = models.PROMPTS[4]
    text = models.greedy_continuation("llama", prompt, 16)
    eos = (0, text[5])  # rows are padded with 0
    expected = models.greedy_continuation("llama", prompt, 16, eos)
    rows = decoding.decode(
        decoding.family("llama"), decoding.autoregressive(), [prompt, (0, 0, 5)], 16, eos_ids=eos
    ).rows
    assert rows[0].output_ids == expected
    assert (rows[0].output_ids[-1] in eos, rows[0].finish_reason) == (True, "eos")


def test_a_model_is_loaded_once_for_all_arms(place, monkeypatch):
    """It loaded its models again for every method, and each began cold."""
    loaded = []
    real = transformers.AutoModelForCausalLM.from_pretrained

    def load(folder, *args, **kwargs):
        loaded.append(str(folder))
        return real(folder, *args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    run(place, plan(place), results=place / "once", limit=2)
    assert len(loaded) == 2  # the target and the draft, four arms


def test_every_arm_is_warmed_up_before_its_first_block(summary):
    """It had no warm-up, so the method that came first paid for all."""
    import json

    from specbench.records.store import Store

    notes = json.loads(Store(summary.folder).read("runs")["notes"].iloc[0])
    [arms] = notes["warmup_step_s"].values()
    assert len(arms) == 4
    assert all(arms.values())
