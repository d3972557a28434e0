"""specbench.train.drafters: drafters reach what a toy language allows; no process, kill or empty batch changes it."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from methods.medusa.heads import HeadSettings, MedusaHeads
from methods.redrafter.drafter import RecurrentDrafter, RecurrentSettings
from specbench.decode.drafter import IGNORED
from specbench.decode.method import POST_NORM
from specbench.decode.target import CachedModel
from specbench.testing import models
from specbench.train.continuations import Continuations, greedy_continuations
from specbench.train.drafters import DrafterSchedule, DrafterTask, Student, adamw
from specbench.train.examples import Example, Examples
from specbench.train.loop import METRICS, train
from specbench.train.processes import Processes
from specbench.train.states import KeptStates
from support.processes import run_together

TESTS = Path(__file__).parents[2]
VOCAB, LENGTH, DEPTH = 5, 24, 3
# Every token is followed by the next one, mostly.
CHAIN = np.full((VOCAB, VOCAB), 0.05) + 0.75 * np.roll(np.eye(VOCAB), 1, axis=1)
FAST = DrafterSchedule(epochs=20, batch_size=32, micro_batch=32, lr=2e-2)


def toy_text(generator: np.random.Generator) -> Example:
    tokens = [int(generator.integers(VOCAB))]
    while len(tokens) < LENGTH:
        tokens.append(int(generator.choice(VOCAB, p=CHAIN[tokens[-1]])))
    return Example(np.array(tokens, dtype=np.int32), np.ones(LENGTH, dtype=bool))


def toy_language(training: int = 320, held_out: int = 40) -> Examples:
    generator = np.random.default_rng(0)
    texts = [toy_text(generator) for _ in range(training + held_out)]
    return Examples("a toy", texts[:training], texts[training:], "toy")


def tiny_target() -> CachedModel:
    return CachedModel(copy.deepcopy(models.small_vocabulary(VOCAB)), "tiny")  # a joint training changes it


def medusa(target: CachedModel) -> MedusaHeads:
    torch.manual_seed(0)
    return MedusaHeads.new(HeadSettings(heads=DEPTH, layers=2), target).bind(target)


def redrafter(target: CachedModel) -> RecurrentDrafter:
    torch.manual_seed(0)
    return RecurrentDrafter.new(RecurrentSettings(depth=DEPTH), target).bind(target)


def task_of(make, examples: Examples, schedule: DrafterSchedule = FAST, **how) -> DrafterTask:
    target = tiny_target()
    student = Student(make(target), target, joint=schedule.joint)
    return DrafterTask("toy", student, examples, schedule, dtype=torch.float32, **how)


def trained(task: DrafterTask, schedule: DrafterSchedule, folder: Path, **how):
    return train(task, adamw(task.module, schedule, task.steps), task.steps, folder, eval_every=10, **how)


def weights(task: DrafterTask) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in task.module.state_dict().items()}


def entropy(chain: np.ndarray) -> float:
    """Of the next token, in nats; every token is equally frequent in the long run."""
    return float(-(chain * np.log(chain)).sum(1).mean())


@pytest.mark.parametrize(
    ("make", "optimum"),
    [
        # A head sees the last token and names the one i + 2 places on; a recurrent drafter sees all between.
        (medusa, [entropy(np.linalg.matrix_power(CHAIN, ahead + 2)) for ahead in range(DEPTH)]),
        (redrafter, [entropy(CHAIN)] * DEPTH),
    ],
    ids=["medusa", "redrafter"],
)
def test_drafters_reach_the_entropy_of_a_toy_language(make, optimum, tmp_path):
    task = task_of(make, toy_language(held_out=400))
    points = train(task, adamw(task.module, FAST, task.steps), task.steps, tmp_path)
    reached = [points[-1].details[f"held_out_loss_{depth}"] for depth in range(1, DEPTH + 1)]
    assert points[0].loss > max(optimum) + 0.2
    # 8,800 held-out labels: the mean of their losses is known to about .01 nats.
    for got, want in zip(reached, optimum, strict=True):
        assert want - 0.03 < got < want + 0.05


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    schedule = replace(FAST, epochs=4)
    whole, cut = task_of(redrafter, toy_language(), schedule), task_of(redrafter, toy_language(), schedule)
    points = trained(whole, schedule, tmp_path / "whole")

    def kill(point):
        if point.step == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(cut, schedule, tmp_path / "cut", report=kill)
    again = task_of(redrafter, toy_language(), schedule)
    resumed = trained(again, schedule, tmp_path / "cut")
    assert [point.loss for point in resumed] == [point.loss for point in points]
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[name]), name
    assert pq.read_table(tmp_path / "cut" / METRICS).num_rows == whole.steps == 40


_TWO = """
import sys
from pathlib import Path
import torch
sys.path[:0] = [{root!r}, {tests!r}]
from tests.unit.train.test_drafters import PAIRS, medusa, of_two, redrafter, task_of, toy_language, trained
from specbench.train.processes import Processes
processes = Processes.started("cpu")
for make, joint in PAIRS:
    schedule, folder = of_two(joint), Path({folder!r}) / f"{{make}}-{{joint}}"
    torch.manual_seed(0)
    task = task_of(globals()[make], toy_language(), schedule, processes=processes)
    points = trained(task, schedule, folder, processes=processes)
    if processes.is_first:
        torch.save((task.module.state_dict(), [point.loss for point in points]), folder / "end.pt")
processes.leave()
"""
PAIRS = [("redrafter", False), ("medusa", False), ("medusa", True)]


def of_two(joint: bool) -> DrafterSchedule:
    """33 texts a step, so that one of two processes has a text less than the other."""
    return replace(FAST, epochs=2, batch_size=33, micro_batch=4, joint=joint)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """What two real processes have learned, over gloo, a folder a pair."""
    folder = tmp_path_factory.mktemp("two")
    code = _TWO.format(root=str(TESTS.parent), tests=str(TESTS), folder=str(folder))
    run_together(code, folder, timeout_s=240)
    return folder


@pytest.mark.parametrize(("make", "joint"), PAIRS)
def test_two_processes_learn_what_one_does(by_two, make, joint, tmp_path):
    theirs, losses = torch.load(by_two / f"{make}-{joint}" / "end.pt", weights_only=True)
    schedule = of_two(joint)
    alone = task_of({"medusa": medusa, "redrafter": redrafter}[make], toy_language(), schedule)
    points = trained(alone, schedule, tmp_path / "one")
    assert np.allclose([point.loss for point in points], losses, atol=1e-4)
    for name, weight in weights(alone).items():
        assert torch.allclose(weight, theirs[name], atol=2e-3), name


@pytest.mark.parametrize("make", [medusa, redrafter], ids=["medusa", "redrafter"])
def test_a_batch_without_labels_teaches_nothing_and_makes_no_nan(make):
    silent = [replace(text, learn=np.zeros(LENGTH, dtype=bool)) for text in toy_language(8, 2).training]
    task = task_of(make, Examples("silent", silent, silent[:2], "silent"))
    assert task.backward(0) == 0
    gradients = [weight.grad for weight in task.module.parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
    assert task.evaluate().loss == 0


def test_only_what_may_be_learned_is_a_label():
    """Places and labels of one text, written out by hand."""
    text = Example(np.array([1, 2, 3, 4, 0], dtype=np.int32), np.array([False, False, False, True, True]))
    task = task_of(redrafter, Examples("one", [text], [text], "one"))
    lessons = task._chosen(0)
    batch = task._texts(lessons, task._counts(lessons)).places(POST_NORM, torch.zeros(1, 5, 16))
    assert batch.tokens.tolist() == [[2, 3, 4, 0], [3, 4, 0, 0], [4, 0, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, 4, 0], [4, 0, IGNORED], [0, IGNORED, IGNORED]]
    assert batch.counts.tolist() == [2, 2, 1]


def test_texts_in_small_groups_give_the_gradients_of_all_at_once():
    whole, parts = (task_of(medusa, toy_language(), replace(FAST, micro_batch=size)) for size in (32, 5))
    assert whole.backward(3) == pytest.approx(parts.backward(3), abs=1e-5)
    for one, other in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


def test_the_logits_of_all_places_are_never_held_at_once(monkeypatch):
    import specbench.decode.drafter as module

    seen = []
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 50)
    real = module._slice_loss
    monkeypatch.setattr(module, "_slice_loss", lambda rows, *rest: seen.append(len(rows)) or real(rows, *rest))
    small, large = task_of(medusa, toy_language()), task_of(medusa, toy_language())
    value = small.backward(0)
    assert max(seen) == 50
    monkeypatch.undo()
    assert value == pytest.approx(large.backward(0), abs=1e-5)


@pytest.mark.parametrize("distilled", [False, True], ids=["text", "continuations"])
def test_a_step_that_learns_from_a_share_of_the_places_takes_the_mean_over_those(distilled, tmp_path):
    """Each depth's loss, summed place by place over those drawn and divided by their number, is what is minimised."""
    kept = Continuations(tiny_target(), tmp_path, DEPTH + 1) if distilled else None
    task = task_of(medusa, toy_language(64, 4), replace(FAST, places_share=0.3, micro_batch=5), continuations=kept)
    lessons = task._chosen(1)
    texts = task._texts(lessons, task._counts(lessons))
    batch = texts.places(POST_NORM, task.module._states(texts))
    assert 0.2 < len(batch.tokens) / (32 * LENGTH) < 0.4
    assert batch.counts.tolist() == (batch.labels != IGNORED).sum(0).tolist()
    heads = task.module.drafter
    means = [
        torch.nn.functional.cross_entropy(
            heads.output(state, depth), batch.labels[:, depth], ignore_index=IGNORED
        ).item()
        for depth, state in enumerate(heads.features(batch.hidden[POST_NORM], DEPTH))
    ]
    assert task.backward(1) == pytest.approx(np.mean(means), rel=1e-5)


def test_another_step_learns_from_other_places_and_the_same_step_from_the_same():
    schedule = replace(FAST, places_share=0.5, batch_size=320)
    task, again = task_of(medusa, toy_language(), schedule), task_of(medusa, toy_language(), schedule)

    def places(of, step):
        return {lesson.name: lesson.places.tolist() for lesson in of._chosen(step)}

    assert places(task, 2) == places(again, 2)
    assert sum(places(task, 2)[name] == places(task, 3)[name] for name in places(task, 2)) < 5


def test_kept_states_teach_what_a_forward_does_and_are_made_once(tmp_path, monkeypatch):
    import specbench.train.states as module

    asked = []
    real = module.hidden_states
    monkeypatch.setattr(module, "hidden_states", lambda *given: asked.append(1) or real(*given))
    schedule = replace(FAST, epochs=2, batch_size=3)
    ragged = toy_language(8, 2)
    ragged.training[3] = Example(ragged.training[3].tokens[:9], ragged.training[3].learn[:9])
    kept, fresh = (
        task_of(medusa, ragged, schedule, states=states)
        for states in (KeptStates(tiny_target(), POST_NORM, tmp_path), None)
    )
    for step in range(fresh.steps):
        assert kept.backward(step) == pytest.approx(fresh.backward(step), rel=1e-5)
    assert len(asked) == 8


def test_a_joint_training_changes_the_target_after_its_warm_up_only():
    schedule = replace(FAST, epochs=2, joint=True, joint_warmup_share=0.5)
    target = tiny_target()
    task = DrafterTask(
        "toy", Student(medusa(target), target, joint=True), toy_language(64, 4), schedule, dtype=torch.float32
    )
    before = {name: weight.clone() for name, weight in target.module.state_dict().items()}
    optimizers = adamw(task.module, schedule, task.steps)
    for step in range(task.steps):
        task.backward(step)
        optimizers.step(step)
        changed = any(not torch.equal(weight, before[name]) for name, weight in target.module.state_dict().items())
        assert changed == (step >= task.steps / 2)


def test_continuations_are_what_transformers_writes_after_every_beginning():
    """A ragged pair of texts, in groups of places smaller than they are."""
    module = models.target("llama")
    target = CachedModel(module, "llama")
    texts = [models.PROMPTS[4], models.PROMPTS[2]]
    lengths = torch.tensor([len(text) for text in texts])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    found = greedy_continuations(target, tokens, lengths, 4)
    for row, text in enumerate(texts):
        for place in range(len(text)):
            assert found[row, place].tolist() == models.hf_greedy(module, text[: place + 1], 4)


def test_continuations_are_made_once(tmp_path, monkeypatch):
    import specbench.train.continuations as module

    made = []
    real = module.greedy_continuations
    monkeypatch.setattr(module, "greedy_continuations", lambda *given: made.append(1) or real(*given))
    schedule = replace(FAST, epochs=2, batch_size=4)
    target = tiny_target()
    kept = Continuations(target, tmp_path, DEPTH + 1)
    task = task_of(redrafter, toy_language(8, 2), schedule, continuations=kept)
    for step in range(task.steps):
        assert task.backward(step) > 0
    assert len(made) == 8


def test_a_drafter_that_learns_continuations_names_what_the_target_would_write(tmp_path):
    """And one that has learned the text does not, since this target knows nothing of the toy language."""
    kept = Continuations(tiny_target(), tmp_path, DEPTH + 1)
    schedule = replace(FAST, batch_size=16, micro_batch=16)
    of_target = task_of(redrafter, toy_language(64, 16), schedule, continuations=kept)
    of_text = task_of(redrafter, toy_language(64, 16), schedule)
    for task in (of_target, of_text):
        trained(task, schedule, tmp_path / str(id(task)))
    right = of_target.evaluate().accuracy
    of_target.module.load_state_dict(weights(of_text))
    assert right > 0.7 > 0.5 > of_target.evaluate().accuracy


def test_one_process_alone_needs_no_environment():
    assert Processes.started("cpu") == Processes.alone()


def test_beliefs_are_the_targets_distributions_before_each_label():
    """The loss of an untrained drafter, written out place by place from plain forwards of the target."""
    examples = toy_language(3, 1)
    task = task_of(redrafter, examples, replace(FAST, batch_size=3), with_beliefs=True)
    student, target = task.module, task.module.target
    lessons = task._chosen(0)
    texts = task._texts(lessons, task._counts(lessons))
    got = student(texts, target_learns=False)
    expected, labels = np.zeros(DEPTH), np.zeros(DEPTH)
    for text in examples.training:
        ids = torch.from_numpy(text.tokens).long()[None]
        with torch.no_grad():
            hidden = target.module.model(ids).last_hidden_state[0]
            beliefs = target.module.lm_head(hidden).softmax(-1)
            for place in range(LENGTH - 2):
                state = torch.zeros_like(hidden[0])
                for depth in range(min(DEPTH, LENGTH - 2 - place)):
                    state = student.drafter.advance(state, ids[0, place + 1 + depth])
                    said = student.drafter.logits(hidden[place], state).log_softmax(-1)
                    expected[depth] -= float((beliefs[place + 1 + depth] * said).sum())
                    labels[depth] += 1
    assert got.loss.item() == pytest.approx(float((expected / labels).sum()), rel=1e-5)


def test_a_drafter_that_learns_beliefs_comes_near_the_targets_distribution(tmp_path):
    """Nearer than one that learned as many tokens of text that the target had drawn: a distribution says more."""
    schedule = replace(FAST, batch_size=16, micro_batch=16)
    taught = task_of(redrafter, toy_language(64, 16), schedule, with_beliefs=True)
    plain = task_of(redrafter, toy_language(64, 16), schedule)
    divergences = []
    for task in (taught, plain):
        trained(task, schedule, tmp_path / str(len(divergences)))
        task._with_beliefs = True
        texts = task._texts(task._held_out, task._counts(task._held_out))
        divergences.append(task.module(texts, target_learns=False).loss.item())
    assert divergences[0] < divergences[1] - 0.3
