"""specbench.train: the loop, its data and its recipes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbench.errors import TrainingError
from specbench.models.corpus import HELD_OUT, held_out_modules, training_modules
from specbench.train import family
from specbench.train.data import Windows, consecutive, encode, train_tokenizer
from specbench.train.loop import CHECKPOINT, token_loss, train
from specbench.train.recipes import RECIPES, Recipe, Schedule, Shape

TINY = Shape(layers=1, hidden=32, heads=2, feed_forward=48)
SCHEDULE = Schedule(steps=6, batch_size=2, length=16, warmup_steps=2)
TEXTS = ["def add(a, b):\n    return a + b\n", "class Point:\n    x: int = 0\n    y: int = 0\n"] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300, context=64)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return encode(tokenizer, TEXTS)


def a_run(tokenizer, ids, folder, schedule=SCHEDULE, teacher=None, weight=0.0):
    recipe = Recipe("tiny", "target", TINY, schedule, teacher_weight=weight, eval_windows=2)
    model = family.build(TINY, tokenizer, seed=0)
    points = train(model, recipe, ids, ids, folder, teacher=teacher, dtype=torch.float32, eval_every=2)
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
    schedule = Schedule(steps=100, warmup_steps=10, decay_share=0.5)
    rates = [round(schedule.factor(step), 2) for step in (0, 4, 9, 50, 75, 99)]
    assert rates == [0.1, 0.5, 1.0, 1.0, 0.5, 0.02]


def test_the_loss_falls_and_is_measured_on_held_out_text(tokenizer, ids, tmp_path):
    _, points = a_run(tokenizer, ids, tmp_path, replace(SCHEDULE, steps=30))
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


def test_a_model_has_nothing_to_learn_from_itself():
    logits = torch.randn(2, 5, 11)
    labels = torch.randint(0, 11, (2, 5))
    assert token_loss(logits, labels, logits, teacher_weight=1.0).abs() < 1e-6
    hard = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.isclose(token_loss(logits, labels, None, 0.0), hard)


def test_a_teacher_pulls_the_draft_towards_itself(tokenizer, ids, tmp_path):
    teacher, _ = a_run(tokenizer, ids, tmp_path / "teacher", replace(SCHEDULE, steps=20))
    teacher = teacher.eval().requires_grad_(False)
    batch = Windows(ids, 16, 4, seed=9).batch(0)[:, :-1]

    def agreement(model):
        with torch.no_grad():
            log_probs = [torch.log_softmax(m(batch).logits, -1) for m in (model, teacher)]
        return torch.nn.functional.kl_div(*log_probs, reduction="batchmean", log_target=True).item()

    taught, _ = a_run(tokenizer, ids, tmp_path / "a", replace(SCHEDULE, steps=20, seed=1), teacher, weight=1.0)
    assert agreement(taught) < agreement(family.build(TINY, tokenizer, seed=0)) / 2


def test_drafts_of_the_family_are_equal_in_size_within_five_percent(tokenizer):
    sizes = []
    for name in ("pico-wide", "pico-deep"):
        shape = RECIPES[name].shape
        embedding = 4096 * shape.hidden
        layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.feed_forward + 2 * shape.hidden
        sizes.append(embedding + shape.layers * layer + shape.hidden)
    assert max(sizes) / min(sizes) < 1.05
    assert RECIPES["pico-wide"].shape.layers < RECIPES["pico-deep"].shape.layers


def test_a_draft_without_its_teacher_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="distilled from pico, which is not in"):
        family._teacher(RECIPES["pico-wide"], tmp_path)


def test_a_trained_member_loads_with_transformers_and_says_how_to_build_it_again(tmp_path, monkeypatch):
    recipe = Recipe("pico-tiny", "draft", TINY, SCHEDULE, eval_windows=2)
    monkeypatch.setitem(RECIPES, "pico-tiny", recipe)
    monkeypatch.setattr(family, "VOCAB_SIZE", 300)
    monkeypatch.setattr(family, "training_modules", lambda: training_modules()[:3])
    seen = []
    folder = family.train_member(
        "pico-tiny", tmp_path, tmp_path / "work", dtype=torch.float32, report=lambda r, p: seen.append(p.step)
    )
    assert seen == [0, 1, 2, 3, 4, 5]
    assert len(AutoTokenizer.from_pretrained(folder)) == 300
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 1
    card = json.loads((folder / "card.json").read_text())
    assert card["rebuild"] == "specbench train pico-tiny"
    assert card["weights_sha256"] == family.sha256_of(folder / "model.safetensors")


def test_an_unknown_recipe_names_the_known_ones(tmp_path):
    with pytest.raises(TrainingError, match=r"unknown recipe 'nano'. Known: pico, pico-wide, pico-deep"):
        family.train_member("nano", tmp_path, tmp_path, dtype=torch.float32, report=lambda r, p: None)
