"""specbench.train.responses"""

import copy
import json
from dataclasses import replace

import pytest
import torch

from specbench.errors import TrainingError
from specbench.models.loader import Placement, load
from specbench.models.source import locate
from specbench.train import responses
from specbench.train.conversations import Conversation, Documents, Exchange, Text
from specbench.train.examples import encode_documents
from specbench.train.framing import framing_for
from specbench.train.responses import own_responses
from tests.unit.models import tiny

NEW = 8
CHAT = (
    "{% for m in messages %}{{ m.role[0] + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
)


def talk(*questions, system=None):
    return Conversation(tuple(Exchange(question, "not the target's") for question in questions), system)


TALKS = [
    talk("def f(x):", "And now?", "Why?"),
    talk("class A:", system="You write code."),
    talk("import os"),
    talk("for x in", "return"),
    talk("é"),
]
DOCUMENTS = Documents("here", TALKS[1:], TALKS[:1], {"an empty text": 1})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny.save(tmp_path_factory.mktemp("models") / "tiny", seed=3)
    return load(locate(str(folder)), Placement(torch.device("cpu"), torch.float32, None))


@pytest.fixture(scope="module")
def framing(loaded):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = CHAT
    return framing_for(tokenizer)


@pytest.fixture(scope="module")
def target(loaded, framing):
    """A target of which some answers end and others are cut."""
    texts = [theirs(loaded, framing, talk(one.exchanges[0].question), ())[0] for one in TALKS]
    return replace(loaded, eos_ids=(*loaded.eos_ids, *{text[NEW // 2] for text in texts[:2]}))


def theirs(target, framing, asked, eos_ids, **sampling):
    """What ``generate`` of transformers writes: the ids, and whether it came to an end."""
    [prompt] = framing.encode([framing.asked(asked)])["input_ids"]
    found = target.model.module.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return found, bool(found) and found[-1] in eos_ids


def ours(target, framing, folder, documents=DOCUMENTS, **options):
    settings = {"max_tokens": 200, "max_new_tokens": NEW, "batch_size": 2} | options
    return own_responses(documents, target, framing, folder, **settings)


class KilledError(Exception):
    pass


def killed_after(batches):
    def report(done, most):
        killed_after.calls += 1
        if killed_after.calls > batches:
            raise KilledError

    killed_after.calls = 0
    return report


def test_every_answer_is_what_transformers_generates_behind_the_answers_before_it(target, framing, tmp_path):
    found = ours(target, framing, tmp_path)
    ends = set()
    for given, written in zip(DOCUMENTS.training + DOCUMENTS.held_out, found.training + found.held_out, strict=True):
        assert (written.system, [one.question for one in written.exchanges]) == (
            given.system,
            [one.question for one in given.exchanges],
        )
        for turn, exchange in enumerate(written.exchanges):
            asked = replace(written, exchanges=(*written.exchanges[:turn], Exchange(exchange.question)))
            ids, ended = theirs(target, framing, asked, target.eos_ids)
            text = target.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True).strip()
            assert (exchange.answer, exchange.ended) == (text, ended)
            ends.add(ended)
    assert ends == {True, False}
    assert (found.what, found.left_out) == (f"here, answered by {target.source.name}", {"an empty text": 1})


def test_the_answers_can_be_encoded_as_any_others(target, framing, tmp_path):
    examples = encode_documents(ours(target, framing, tmp_path), framing, max_tokens=200)
    assert (len(examples.training), len(examples.held_out)) == (4, 1)
    assert all(example.learn.any() for example in examples.training)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_no_answer_depends_on_its_batch(target, framing, tmp_path, temperature):
    found = [ours(target, framing, tmp_path / str(size), batch_size=size, temperature=temperature) for size in (1, 3)]
    assert found[0] == found[1]


def test_sampled_answers_differ_from_greedy_ones_and_by_their_seed(target, framing, tmp_path):
    found = [
        ours(target, framing, tmp_path, temperature=temperature, seed=seed).training
        for temperature, seed in ((0.0, 0), (0.9, 0), (0.9, 1))
    ]
    assert found[0] != found[1] != found[2] != found[0]


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_a_run_that_was_killed_goes_on_where_it_was(target, framing, tmp_path, batches):
    whole = ours(target, framing, tmp_path / "whole", temperature=0.9)
    with pytest.raises(KilledError):
        ours(target, framing, tmp_path / "killed", temperature=0.9, report=killed_after(batches))
    [file] = (tmp_path / "killed").glob("*.jsonl")
    before = file.read_text()
    with file.open("a") as torn:
        torn.write('{"key": "0123", "ids": [1, 2')
    assert ours(target, framing, tmp_path / "killed", temperature=0.9) == whole
    assert before
    assert file.read_text().startswith(before)
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 8


def test_what_is_on_disk_is_not_written_again(target, framing, tmp_path, monkeypatch):
    some = replace(DOCUMENTS, training=TALKS[1:3])
    ours(target, framing, tmp_path, some)
    asked = []
    generate = responses.generate
    monkeypatch.setattr(responses, "generate", lambda *args: asked.extend(args[2].prompts) or generate(*args))
    more = ours(target, framing, tmp_path)
    assert len(asked) == 3  # of the two conversations that are new
    asked.clear()
    assert ours(target, framing, tmp_path) == more
    assert not asked


@pytest.mark.parametrize("changed", [{"max_new_tokens": 5}, {"temperature": 0.5}, {"temperature": 0.5, "seed": 1}])
def test_other_settings_have_answers_of_their_own(target, framing, tmp_path, changed):
    ours(target, framing, tmp_path)
    known = set(tmp_path.iterdir())
    found = ours(target, framing, tmp_path, **changed)
    assert len(set(tmp_path.iterdir()) - known) == 1
    assert found == ours(target, framing, tmp_path / "alone", **changed)


def test_other_weights_have_answers_of_their_own(target, framing, tmp_path):
    folder = tiny.save(tmp_path / "other", seed=4)
    other = load(locate(str(folder)), Placement(torch.device("cpu"), torch.float32, None))
    ours(target, framing, tmp_path / "answers")
    ours(other, framing, tmp_path / "answers")
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_the_file_of_another_program_is_refused_in_one_line(target, framing, tmp_path):
    ours(target, framing, tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text('{"no": "answer"}\n')
    with pytest.raises(TrainingError, match=r"\.jsonl: no answers in it; delete it and run again$"):
        ours(target, framing, tmp_path)


def test_questions_that_nobody_has_answered_are_answered(target, framing, tmp_path):
    asked = Documents("here", [Conversation((Exchange("import os"),))], [TALKS[0]])
    known = Documents("here", [TALKS[2]], [TALKS[0]])
    assert ours(target, framing, tmp_path, asked).training == ours(target, framing, tmp_path, known).training


def test_a_conversation_ends_where_an_answer_has_no_room(target, framing, tmp_path):
    long = Documents("here", [talk("a", "b = 1; " * 40, "c"), talk("d = 1; " * 40)], [TALKS[2]])
    found = ours(target, framing, tmp_path, long, max_tokens=100)
    assert [one.question for talk in found.training for one in talk.exchanges] == ["a"]
    assert found.left_out == {"no room for an answer": 1}
    # the target's own context leaves room for what it can write, and no more
    [prompt] = framing.encode([framing.asked(Conversation((Exchange("a"),)))])["input_ids"]
    room = target.model.max_positions - len(prompt)
    short = Documents("here", [talk("a")], [talk("a")])
    assert ours(target, framing, tmp_path, short, max_tokens=10**6, max_new_tokens=room).training
    assert not ours(target, framing, tmp_path, short, max_tokens=10**6, max_new_tokens=room + 1).training


def test_a_text_is_gone_on_with_after_a_quarter_of_every_window(target, framing, tmp_path):
    text = "def f(x):\n    return x + 1\n\n" * 3 + "naïve = '日本語'\n" * 4
    tokenizer = framing.tokenizer
    ids = tokenizer(text)["input_ids"]
    found = ours(target, framing, tmp_path, Documents("here", [Text(text)], [Text("x = 1")]), max_tokens=40).training
    assert len(found) == -(-len(ids) // 40) > 2
    for number, passage in enumerate(found):
        window = ids[40 * number : 40 * number + 40]
        given = window[: max(1, len(window) // 4)]
        prompt = torch.tensor([given])
        whole = target.model.module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=list(target.eos_ids),
            pad_token_id=0,
        )[0].tolist()
        ended = whole[-1] in target.eos_ids
        assert passage.text == tokenizer.decode(whole[:-1] if ended else whole, skip_special_tokens=True)
        assert passage.ended == ended
        assert tokenizer.decode(given).startswith(passage.text[: passage.given])
        assert passage.given >= len(tokenizer.decode(given).rstrip("�"))


def test_progress_counts_every_answer_once(target, framing, tmp_path):
    seen = []
    ours(target, framing, tmp_path, report=lambda done, most: seen.append((done, most)))
    assert seen[-1] == (8, 8)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
