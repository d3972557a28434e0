"""specbench.train: the loop, its data and its recipes."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbench.errors import ConfigError, TrainingError
from specbench.models.corpus import HELD_OUT, held_out_modules, training_modules
from specbench.models.source import locate
from specbench.train import causal_lm
from specbench.train.causal_lm import Workshop, build, train_draft, train_target
from specbench.train.data import Corpus, Windows, consecutive, encode, texts_of, train_tokenizer
from specbench.train.language import token_loss, train_language_model
from specbench.train.loop import CHECKPOINT
from specbench.train.recipes import RECIPES, Cycle, Recipe, Schedule, Shape, recipe_named
from specbench.train.teacher import Teacher, divergence

TINY = Shape(layers=1, hidden=32, heads=2, feed_forward=48)


def a_schedule(steps, weight=0.0, **options):
    cycle = Cycle(steps, teacher_weight=weight)
    return Schedule((cycle,), **{"batch_size": 2, "length": 16, "warmup_steps": 2} | options)


SCHEDULE = a_schedule(6)
TEXTS = ["def add(a, b):\n    return a + b\n", "class Point:\n    x: int = 0\n    y: int = 0\n"] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300, context=64)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return encode(tokenizer, TEXTS)


def a_run(tokenizer, ids, folder, schedule=SCHEDULE, teacher=None):
    recipe = Recipe("tiny", "target", TINY, schedule, eval_windows=2)
    model = build(TINY, tokenizer, len(tokenizer), seed=0)
    points = train_language_model(model, recipe, ids, ids, folder, teacher=teacher, dtype=torch.float32, eval_every=2)
    return model, points


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "naïve = '日本語'\t# \x00 \U0001f600\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_document_ends_with_the_end_of_text_token(tokenizer):
    assert encode(tokenizer, ["a", "b"]).tolist().count(tokenizer.eos_token_id) == 2


def test_a_batch_depends_on_its_step_and_the_seed_alone(ids):
    windows = Windows(ids, length=8, batch_size=3, seed=1)
    assert torch.equal(windows.batch(5), Windows(ids, 8, 3, 1).batch(5))
    assert not torch.equal(windows.batch(5), windows.batch(6))
    assert not torch.equal(windows.batch(5), Windows(ids, 8, 3, 2).batch(5))


def test_held_out_windows_stand_one_after_the_other():
    windows = consecutive(np.arange(20), length=4, most=3)
    assert windows.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]]


def test_no_held_out_module_is_trained_on():
    trained = {module.path for module in training_modules()}
    assert trained
    assert not trained & set(HELD_OUT)


def test_a_held_out_module_that_differs_is_skipped_and_named(tmp_path):
    for name in HELD_OUT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("changed")
    (tmp_path / "weakref.py").unlink()
    found = held_out_modules(tmp_path)
    assert found.modules == []
    assert found.skipped["weakref.py"] == "missing in this Python"
    assert found.skipped["heapq.py"] == "its source differs in this Python"


def test_the_rate_warms_up_stays_and_falls_in_a_straight_line():
    schedule = Schedule((Cycle(100, decay_share=0.5),), warmup_steps=10)
    rates = [round(schedule.factor(step), 2) for step in (0, 4, 9, 50, 75, 99)]
    assert rates == [0.1, 0.5, 1.0, 1.0, 0.5, 0.02]


def test_the_loss_falls_and_is_measured_on_held_out_text(tokenizer, ids, tmp_path):
    _, points = a_run(tokenizer, ids, tmp_path, a_schedule(30))
    held = [point.held_out_loss for point in points if point.held_out_loss is not None]
    assert held[-1] < held[0] - 0.5
    assert points[-1].tokens_seen == 30 * 2 * 16


def test_a_killed_run_goes_on_with_the_loss_curve_it_would_have_had(tokenizer, ids, tmp_path, monkeypatch):
    whole_model, whole = a_run(tokenizer, ids, tmp_path / "whole")
    batch = Windows.batch

    def dies_at_five(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(Windows, "batch", dies_at_five)
    with pytest.raises(KeyboardInterrupt):
        a_run(tokenizer, ids, tmp_path / "cut")
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    monkeypatch.setattr(Windows, "batch", batch)
    model, resumed = a_run(tokenizer, ids, tmp_path / "cut")
    assert [point.step for point in resumed] == [0, 1, 2, 3, 4, 5]
    assert [point.loss for point in resumed] == [point.loss for point in whole]
    for mine, theirs in zip(model.parameters(), whole_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_later_cycle_warms_a_finished_model_up_again():
    schedule = Schedule((Cycle(10, decay_share=1.0), Cycle(20, peak=0.5, decay_share=0.5)), warmup_steps=5)
    rates = [round(schedule.factor(step), 2) for step in (0, 5, 9, 10, 14, 19, 25, 29)]
    assert rates == [0.2, 0.5, 0.1, 0.1, 0.5, 0.5, 0.25, 0.05]
    with pytest.raises(IndexError):
        schedule.factor(30)


def test_a_schedule_can_be_stretched_and_every_cycle_with_it():
    schedule = Schedule((Cycle(300), Cycle(400, teacher_weight=0.9)))
    assert [cycle.steps for cycle in schedule.over(70).cycles] == [30, 40]
    assert schedule.over(101).steps == 101
    assert schedule.over(1).steps == 1
    assert [cycle.teacher_weight for cycle in schedule.over(70).cycles] == [0.0, 0.9]
    assert not any(cycle.teacher_weight for cycle in schedule.without_teacher().cycles)


class Echo(torch.nn.Module):
    """A model that answers any ids with the logits it was made with, and counts how often it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.asked = logits, 0

    def forward(self, ids, use_cache):
        self.asked += 1
        return self


NO_CAST = torch.autocast("cpu", enabled=False)


def test_a_model_has_nothing_to_learn_from_itself(tmp_path):
    logits = torch.randn(2, 5, 11)
    labels = torch.randint(0, 11, (2, 5))
    beliefs = Teacher(Echo(logits), tmp_path, k=11).beliefs("a", labels, NO_CAST)
    assert token_loss(logits, labels, beliefs, teacher_weight=1.0).abs() < 1e-3  # beliefs are kept in float16
    hard = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.isclose(token_loss(logits, labels, None, 0.0), hard)


def test_the_divergence_is_kl_where_every_token_is_kept_and_less_where_some_are_pooled(tmp_path):
    own, teacher = torch.randn(2, 3, 7), 2 * torch.randn(2, 3, 7)
    ids = torch.zeros(2, 3, dtype=torch.long)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher), torch.distributions.Categorical(logits=own)
    ).mean()
    found = [
        float(divergence(own.log_softmax(-1), Teacher(Echo(teacher), tmp_path, k=k).beliefs("a", ids, NO_CAST)))
        for k in (7, 3)
    ]
    assert found[0] == pytest.approx(float(exact), abs=0.01)
    assert 0 < found[1] < found[0]


def test_pooling_gives_no_infinite_gradient_where_the_kept_tokens_hold_everything(tmp_path):
    certain = torch.tensor([[[50.0, 0.0, 0.0, 0.0]]])
    beliefs = Teacher(Echo(certain), tmp_path, k=1).beliefs("a", torch.zeros(1, 1, dtype=torch.long), NO_CAST)
    own = certain.clone().requires_grad_()
    divergence(own.log_softmax(-1), beliefs).backward()
    assert torch.isfinite(own.grad).all()


def test_a_teacher_is_asked_once_for_each_batch_and_its_pupils_share_the_answer(tmp_path):
    teacher = Echo(torch.randn(2, 3, 7))
    ids = torch.zeros(2, 3, dtype=torch.long)
    first = Teacher(teacher, tmp_path, k=2).beliefs("000001", ids, NO_CAST)
    again = Teacher(teacher, tmp_path, k=2).beliefs("000001", ids, NO_CAST)
    assert teacher.asked == 1
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.probs, again.probs)
    Teacher(teacher, tmp_path, k=2).beliefs("000002", ids, NO_CAST)
    assert teacher.asked == 2


def test_a_teacher_pulls_the_draft_towards_itself(tokenizer, ids, tmp_path):
    teacher, _ = a_run(tokenizer, ids, tmp_path / "teacher", a_schedule(20))
    batch = Windows(ids, 16, 4, seed=9).batch(0)[:, :-1]

    def agreement(model):
        with torch.no_grad():
            log_probs = [torch.log_softmax(m(batch).logits, -1) for m in (model, teacher)]
        return torch.nn.functional.kl_div(*log_probs, reduction="batchmean", log_target=True).item()

    taught, _ = a_run(
        tokenizer, ids, tmp_path / "a", a_schedule(20, weight=1.0, seed=1), Teacher(teacher, tmp_path / "beliefs")
    )
    assert agreement(taught) < agreement(build(TINY, tokenizer, len(tokenizer), seed=0)) / 2


def parameters(shape):
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.feed_forward + 2 * shape.hidden
    return 4096 * shape.hidden + shape.layers * layer + shape.hidden


def test_four_drafts_of_the_family_are_equal_in_size_within_five_percent_and_trade_depth_for_width():
    shapes = [RECIPES[name].shape for name in ("pico-flat", "pico-wide", "pico-tall", "pico-deep")]
    sizes = [parameters(shape) for shape in shapes]
    assert max(sizes) / min(sizes) < 1.05
    assert [shape.layers for shape in shapes] == sorted({shape.layers for shape in shapes})
    assert [shape.hidden for shape in shapes] == sorted({shape.hidden for shape in shapes}, reverse=True)
    assert parameters(RECIPES["pico-small"].shape) < min(sizes) / 2
    assert parameters(RECIPES["pico-large"].shape) > max(sizes) * 1.5


def a_shop(folder):
    return Workshop(folder / "models", folder / "work", torch.device("cpu"), torch.float32)


CORPUS = Corpus("two toy texts", TEXTS, TEXTS[:2])


@pytest.fixture(scope="module")
def toy_target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    recipe = Recipe("toy", "target", TINY, SCHEDULE, eval_windows=2)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_lm, "VOCAB_SIZE", 270)
        path = train_target(recipe, CORPUS, a_shop(folder), lambda point: seen.append(point.step))
    assert seen == [0, 1, 2, 3, 4, 5]
    return path


def test_a_trained_target_loads_with_transformers_and_says_how_to_build_it_again(toy_target):
    assert len(AutoTokenizer.from_pretrained(toy_target)) == 270
    assert AutoModelForCausalLM.from_pretrained(toy_target).config.num_hidden_layers == 1
    card = json.loads((toy_target / "card.json").read_text())
    assert card["rebuild"] == "specbench train target toy --shape 1x32x2x48"
    assert card["weights_sha256"] == causal_lm.sha256_of(toy_target / "model.safetensors")


def test_a_draft_takes_over_its_targets_token_map_and_names_its_teacher(toy_target, tmp_path):
    schedule = Schedule((Cycle(2), Cycle(2, teacher_weight=0.9)), batch_size=2, length=16, warmup_steps=1)
    recipe = Recipe("toy-draft", "draft", TINY, schedule, eval_windows=2)
    folder = train_draft(recipe, locate(str(toy_target)), CORPUS, a_shop(tmp_path), lambda point: None)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(toy_target).get_vocab()
    assert json.loads((folder / "card.json").read_text())["teacher"]["name"] == str(toy_target)
    beliefs = [path.name for path in (tmp_path / "work" / "beliefs").rglob("*.safetensors")]
    assert sorted(beliefs) == ["000002-top32.safetensors", "000003-top32.safetensors"]


SMALLER = Shape(layers=1, hidden=16, heads=1, feed_forward=24)


def a_draft(target, folder, *, steps=2, teacher_weight=0.9, pruned_from=None, shape=SMALLER):
    recipe = Recipe(
        "toy-draft", "draft", shape, a_schedule(steps, teacher_weight), eval_windows=2,
        pruned_from=None if pruned_from is None else str(pruned_from),
    )  # fmt: skip
    points = []
    source = None if pruned_from is None else locate(str(pruned_from))
    path = train_draft(recipe, locate(str(target)), CORPUS, a_shop(folder), points.append, pruned_from=source)
    return json.loads((path / "card.json").read_text()), points


def test_a_draft_may_begin_with_the_weights_of_a_larger_model_and_its_card_says_so(toy_target, tmp_path):
    card, _ = a_draft(toy_target, tmp_path, pruned_from=toy_target)
    assert card["begins_with"] == f"{toy_target}, pruned"
    assert card["learns_from"] == "text, and the target by distillation"
    assert card["pruned_from"]["layers"] == [0]
    assert card["pruned_from"]["calibration_tokens"] == causal_lm.CALIBRATION_BATCHES * 2 * 16
    assert card["rebuild"] == (
        f"specbench train draft toy-draft --shape 1x16x1x24 --target {toy_target} --prune {toy_target} "
        "--layers-by influence"
    )
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "toy-draft").config
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (16, 1, 16)


def test_a_draft_from_scratch_says_that_it_began_with_nothing(toy_target, tmp_path):
    card, _ = a_draft(toy_target, tmp_path, teacher_weight=0.0)
    assert (card["begins_with"], card["learns_from"], card["pruned_from"]) == ("random weights", "text", None)
    assert card["rebuild"].endswith("--text-only")


def test_a_model_pruned_to_its_own_shape_begins_with_its_own_loss(toy_target, tmp_path):
    _, points = a_draft(toy_target, tmp_path, pruned_from=toy_target, shape=TINY, teacher_weight=0.0)
    tokenizer = AutoTokenizer.from_pretrained(toy_target)
    batch = Windows(encode(tokenizer, CORPUS.training), 16, 2, 0).batch(0)
    logits = AutoModelForCausalLM.from_pretrained(toy_target, dtype=torch.float32)(batch[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert points[0].loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_training_from_scratch_is_never_gone_on_with_as_one_of_a_pruned_model(toy_target, tmp_path):
    a_draft(toy_target, tmp_path)
    _, points = a_draft(toy_target, tmp_path, pruned_from=toy_target)
    assert [point.step for point in points] == [0, 1]


def test_a_model_with_another_token_map_is_not_pruned_into_a_draft(toy_target, tmp_path):
    other = tmp_path / "other"
    build(TINY, AutoTokenizer.from_pretrained(toy_target), 270, seed=0).save_pretrained(other)
    train_tokenizer(["zzz yyy xxx"] * 9, vocab_size=270, context=64).save_pretrained(other)
    with pytest.raises(ConfigError, match="has another token map than target"):
        a_draft(toy_target, tmp_path, pruned_from=other)


def test_a_shape_that_is_not_inside_the_pruned_model_is_refused_before_anything_is_read(toy_target, tmp_path):
    with pytest.raises(TrainingError, match="layers 2 is larger than the 1"):
        a_draft(toy_target, tmp_path, pruned_from=toy_target, shape=Shape(2, 16, 1, 24))
    assert not (tmp_path / "work").exists()


def test_a_teacher_goes_on_with_each_window_after_its_first_quarter_and_writes_the_same_again(toy_target, tmp_path):
    target = AutoModelForCausalLM.from_pretrained(toy_target)
    windows = Windows(np.arange(200) % 250, length=31, batch_size=3, seed=0)
    text = Teacher(target, tmp_path / "a").own_text(windows, 5)
    assert text.shape == (3, 32)
    assert torch.equal(text[:, :8], windows.batch(5)[:, :8])
    assert not torch.equal(text[:, 8:], windows.batch(5)[:, 8:])
    again = Teacher(target, tmp_path / "b")
    assert torch.equal(again.own_text(windows, 5), text)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [f"own-{n:06d}.safetensors" for n in range(4, 8)]


def test_a_cycle_on_the_teachers_own_text_goes_through_it_again_and_again(toy_target, tmp_path):
    cycle = Cycle(5, teacher_weight=1.0, own_batches=2)
    recipe = Recipe(
        "toy-draft", "draft", TINY, Schedule((cycle,), batch_size=2, length=16, warmup_steps=1), eval_windows=2
    )
    train_draft(recipe, locate(str(toy_target)), CORPUS, a_shop(tmp_path), lambda point: None)
    kept = sorted(path.name for path in (tmp_path / "work" / "beliefs").rglob("*top32*"))
    assert kept == ["own-000000-top32.safetensors", "own-000001-top32.safetensors"]


def test_text_files_hold_out_the_same_documents_whatever_their_names(tmp_path):
    texts = [f"document {number}\n" * 20 for number in range(300)]
    for folder, names in (("a", range(300)), ("b", reversed(range(300)))):
        (tmp_path / folder).mkdir()
        for text, name in zip(texts, names, strict=True):
            (tmp_path / folder / f"{name:03}.txt").write_text(text)
    first, second = texts_of([str(tmp_path / "a")]), texts_of([str(tmp_path / "b")])
    assert (first.training, first.held_out) == (second.training, second.held_out)
    assert not set(first.training) & set(first.held_out)
    assert 0.02 <= len(first.held_out) / len(texts) < 0.09


def test_a_language_model_of_ones_own_is_not_trained_on_conversations(tmp_path):
    rows = ['{"text": "x"}', *(f'{{"prompt": "{number}", "response": "z"}}' for number in range(9))]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(TrainingError, match=r"there are conversations among them"):
        texts_of([str(tmp_path / "a.jsonl")])


def test_an_unknown_recipe_names_the_known_ones_and_asks_for_a_shape():
    with pytest.raises(
        TrainingError, match=r"unknown recipe 'pico-wied'. Did you mean 'pico-wide'\? .* needs its --shape"
    ):
        recipe_named("pico-wied", "draft", None)
    assert recipe_named("mine", "draft", "2x64x2x128").shape == Shape(2, 64, 2, 128)


def test_a_draft_is_not_trained_as_a_target():
    with pytest.raises(TrainingError, match="pico-wide is a draft: specbench train draft pico-wide"):
        recipe_named("pico-wide", "target", None)


@pytest.mark.parametrize("text", ["2x64", "axbxcxd", "2x64x2x128x1", "0x64x2x128", "2x66x5x128"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(TrainingError, match="--shape"):
        Shape.parse(text)
