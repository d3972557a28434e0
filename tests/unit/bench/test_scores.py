"""specbench.bench.scores, and the likelihoods that it rests on"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from specbench.bench.likelihoods import Span, TokenScores, token_scores
from specbench.bench.prompt_formats import Choice
from specbench.bench.score_data import ChoiceSet, TextSet
from specbench.bench.scores import ScoreSettings, choice_metrics, choice_spans, score, text_metrics, text_windows
from specbench.config import MachineSettings
from specbench.errors import ConfigError, UnsupportedError
from specbench.records.store import Store
from tests.unit.models import tiny

DOCUMENTS = tuple(f"def f{n}(x):\n    return x + {n}\n" * (n + 1) for n in range(5))
QUESTIONS = tuple(
    Choice((f"return {n}", "pass", "raise ValueError"), n % 3, f"def f{n}(x):", shots=0) for n in range(7)
)
SETTINGS = ScoreSettings(MachineSettings(device="cpu", dtype="float32"), window_tokens=24, batch_size=3)


@pytest.fixture(scope="module")
def model():
    return tiny.model(seed=1)


@pytest.fixture(scope="module")
def ids():
    return lambda text: tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def scores_of(family, data, out, settings=SETTINGS, models=("pico",)):
    pairs = list(score(models, [data], settings, out, zoo=family))
    return [{row["metric"]: row for row in rows} for rows in pairs]


def plain_loss(model, text_ids):
    """The mean loss of transformers itself, in nats, and over how many tokens."""
    inputs = torch.tensor([text_ids])
    with torch.no_grad():
        return model(input_ids=inputs, labels=inputs).loss.item(), len(text_ids) - 1


def test_perplexity_is_the_exponential_of_transformers_own_loss(family, model, ids, tmp_path):
    settings = ScoreSettings(SETTINGS.machine, window_tokens=200, batch_size=2)
    losses = [plain_loss(model, [tiny.tokenizer().eos_token_id, *ids(text)]) for text in DOCUMENTS]
    tokens = sum(count for _, count in losses)
    nats = sum(loss * count for loss, count in losses)
    [found] = scores_of(family, TextSet("code", DOCUMENTS), tmp_path, settings)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["perplexity"]["tokens"] == tokens
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_every_token_of_a_long_text_is_asked_for_once_and_the_first_of_a_window_sees_the_one_before_it(model, ids):
    text = DOCUMENTS[4]
    windows = text_windows(tiny.tokenizer(), text, 24)
    asked = [token for span in windows for token in span.ids[span.first :]]
    assert asked == ids(text)
    assert [span.ids[0] for span in windows[1:]] == [span.ids[-1] for span in windows[:-1]]
    nats = [loss * count for loss, count in (plain_loss(model, list(span.ids)) for span in windows)]
    found = token_scores(model, windows, batch_size=2)
    assert [-score.log_probs.sum() for score in found] == pytest.approx(nats, rel=1e-5)


def test_a_token_s_rank_is_its_place_among_the_model_s_guesses(model):
    with torch.no_grad():
        text = model.generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=6)[0]
        logits = model(text[None]).logits[0]
    assert token_scores(model, [Span(tuple(text.tolist()), 2)], batch_size=1)[0].ranks.tolist() == [0] * 6
    third = logits.topk(3).indices[3, 2].item()
    changed = (*text[:4].tolist(), third)
    assert token_scores(model, [Span(changed, 4)], batch_size=1)[0].ranks.tolist() == [2]


def test_tokens_among_the_first_guesses_are_shares_of_all_tokens():
    scores = [TokenScores(np.log([0.5, 0.25]), np.array([0, 4])), TokenScores(np.log([0.125]), np.array([5]))]
    found = text_metrics(["ab", "c"], scores)
    assert (found["top1"].value, found["top5"].value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["perplexity"].value == pytest.approx(4)  # (2 * 4 * 8) ** (1 / 3)
    assert found["bits_per_byte"].value == pytest.approx((1 + 2 + 3) / 3)
    assert found["perplexity"].low is None  # two texts say nothing of their spread


def test_of_equal_logits_the_lower_id_is_the_guess():
    class Even(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs, use_cache):
            return type("Output", (), {"logits": torch.zeros(*inputs.shape, 4)})

    [found] = token_scores(Even(), [Span((0, 0, 2, 3), 1)], batch_size=1)
    assert found.ranks.tolist() == [0, 2, 3]
    assert found.log_probs == pytest.approx(np.full(3, -math.log(4)))


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_batches_and_padding_change_nothing(model, ids, batch_size):
    spans = [span for text in DOCUMENTS for span in text_windows(tiny.tokenizer(), text, 24)]
    alone = [token_scores(model, [span], batch_size=1)[0].log_probs for span in spans]
    together = [found.log_probs for found in token_scores(model, spans, batch_size=batch_size)]
    for mine, other in zip(together, alone, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


def test_endings_of_one_token_share_a_forward(model, ids):
    spans = [Span((*range(10, 20), last), 10) for last in (5, 6, 7, 8)]
    calls = []
    handle = model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    found = token_scores(model, spans, batch_size=4)
    handle.remove()
    assert calls == [(1, 10)]
    with torch.no_grad():
        expected = model(torch.arange(10, 20)[None]).logits[0, -1].log_softmax(-1)[5:9]
    assert [float(one.log_probs[0]) for one in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_multiple_choice_goes_by_the_log_likelihood_of_each_ending(family, model, ids, tmp_path):
    right = per_character = 0
    for question in QUESTIONS:
        sums = []
        for ending in question.endings:
            before, whole = ids(question.context), ids(f"{question.context} {ending}")
            with torch.no_grad():
                chances = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(chances[place - 1, whole[place]].item() for place in range(len(before), len(whole))))
        right += int(np.argmax(sums) == question.right)
        lengths = [len(ending) for ending in question.endings]
        per_character += int(np.argmax(np.divide(sums, lengths)) == question.right)
    [found] = scores_of(family, ChoiceSet("questions", QUESTIONS), tmp_path)
    assert found["acc"]["value"] == pytest.approx(right / len(QUESTIONS))
    assert found["acc_norm"]["value"] == pytest.approx(per_character / len(QUESTIONS))
    assert found["acc"]["chance"] == pytest.approx(1 / 3)
    assert (found["acc"]["items"], found["acc"]["shots"]) == (7, 0)


def test_acc_takes_the_sum_acc_norm_the_sum_per_character_and_acc_bytes_the_sum_per_byte():
    endings, sums = ("ab", "\u00e9\u00e9\u00e9", "abcdefg"), [np.array([-2.0, -2.4, -4.9])]
    # per character 1, .8, .7; per byte 1, .4, .7
    for metric, winner in (("acc", 0), ("acc_norm", 2), ("acc_bytes", 1)):
        found = [choice_metrics([Choice(endings, right)], sums)[metric].value for right in range(3)]
        assert found == [float(right == winner) for right in range(3)]


def test_the_interval_of_an_accuracy_is_the_binomial_one_of_wilson(family, tmp_path):
    [found] = scores_of(family, ChoiceSet("questions", QUESTIONS), tmp_path)
    acc = found["acc"]
    expected = binomtest(round(acc["value"] * 7), 7).proportion_ci(0.95, method="wilson")
    assert (acc["low"], acc["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert 0 < acc["high"] - acc["low"] < 1


def test_the_space_between_context_and_ending_belongs_to_the_ending(ids):
    spans, cut = choice_spans(tiny.tokenizer(), Choice(("x",), 0, "def f(a): "), None)
    decode = tiny.tokenizer().decode
    assert decode(spans[0].ids[: spans[0].first]) == "def f(a):"
    assert decode(spans[0].ids[spans[0].first :]) == " x"
    assert not cut


def test_a_context_that_does_not_fit_loses_its_beginning_and_is_counted(family, tmp_path):
    long = Choice(("pass", "return"), 0, "def f(x):\n    x = 1\n" * 60)
    [span, _], cut = choice_spans(tiny.tokenizer(), long, tiny.CONTEXT)
    assert cut
    assert len(span.ids) == tiny.CONTEXT + 1
    [found] = scores_of(family, ChoiceSet("long", (long, *QUESTIONS)), tmp_path)
    assert found["acc"]["truncated"] == 1


def test_an_ending_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="an ending is longer than the model's 8 positions"):
        choice_spans(tiny.tokenizer(), Choice(("return x + 1\n" * 20, "pass"), 0, "def f(x):"), 8)


def test_what_is_stored_is_not_computed_again(family, tmp_path, monkeypatch):
    data = [TextSet("code", DOCUMENTS), ChoiceSet("questions", QUESTIONS)]
    first = list(score(["pico"], data, SETTINGS, tmp_path, zoo=family))
    parts = sorted((tmp_path / "scores.parquet").glob("*.parquet"))
    assert len(parts) == 2
    parts[0].unlink()  # as if the run had been killed before it was written
    loaded = []
    monkeypatch.setattr("specbench.bench.scores.load_module", lambda source, *_: loaded.append(source.name) or PICO)
    again = list(score(["pico"], data, SETTINGS, tmp_path, zoo=family))
    assert loaded == ["pico"]
    assert [[row["value"] for row in rows] for rows in again] == [[row["value"] for row in rows] for rows in first]
    list(score(["pico"], data, SETTINGS, tmp_path, zoo=family))
    assert loaded == ["pico"]
    table = Store(tmp_path).read("scores")
    assert set(table["metric"]) == {"perplexity", "bits_per_byte", "top1", "top5", "acc", "acc_norm", "acc_bytes"}


def test_other_texts_and_other_windows_are_scored_anew(family, tmp_path):
    wider = ScoreSettings(SETTINGS.machine, window_tokens=48)
    for data, settings in (
        (TextSet("code", DOCUMENTS), SETTINGS),
        (TextSet("code", DOCUMENTS[:4]), SETTINGS),
        (TextSet("code", DOCUMENTS), wider),
    ):
        scores_of(family, data, tmp_path, settings)
    assert len(list((tmp_path / "scores.parquet").glob("*.parquet"))) == 3


@pytest.mark.parametrize(
    ("model", "window", "words"),
    [
        ("pico", 257, "--length: pico-wide has 256 positions, got 257"),
        ("random:llama-68m", 24, "random:llama-68m: random weights have no skill"),
        ("pcio", 24, "unknown model 'pcio'. Did you mean 'pico'"),
    ],
)
def test_a_model_that_cannot_be_scored_is_named_before_anything_runs(family, tmp_path, model, window, words):
    settings = ScoreSettings(SETTINGS.machine, window_tokens=window)
    with pytest.raises(ConfigError) as caught:
        scores_of(family, TextSet("code", DOCUMENTS), tmp_path, settings, models=("pico-wide", model))
    assert words in str(caught.value)
    assert not (tmp_path / "scores.parquet").exists()


def test_questions_know_no_windows(family, tmp_path):
    wide = ScoreSettings(SETTINGS.machine, window_tokens=tiny.CONTEXT + 1)
    [found] = scores_of(family, ChoiceSet("questions", QUESTIONS), tmp_path, wide)
    assert found["acc"]["window_tokens"] is None


def test_logits_that_are_no_numbers_are_no_score(model):
    broken = tiny.model(seed=1)
    with torch.no_grad():
        broken.lm_head.weight[0] = float("nan")
    with pytest.raises(UnsupportedError, match="its logits are no numbers in float32"):
        token_scores(broken, [Span((1, 2, 3), 1)], batch_size=1)


def test_a_batch_that_does_not_fit_into_memory_says_what_to_lower(model, monkeypatch):
    monkeypatch.setattr(type(model), "forward", _out_of_memory)
    with pytest.raises(UnsupportedError, match="1 texts of 2 tokens do not fit into memory; lower --batch-size"):
        token_scores(model, [Span((1, 2, 3), 1)], batch_size=4)


def _out_of_memory(*_, **__):
    raise torch.OutOfMemoryError


PICO = tiny.model(seed=1)
