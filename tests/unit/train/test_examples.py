"""specbench.train.examples"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from specbench.errors import ConfigError, TrainingError
from specbench.train.conversations import Conversation, Documents, Exchange, Text
from specbench.train.examples import encode_documents, load_examples
from specbench.train.framing import framing_for
from tests.unit.train.talks import TALKS, TEMPLATES, TOKENIZERS, tokenizer

SPARE = Text("Something to hold out.")


def encode(document, chat, *, max_tokens=512, template=None):
    """The sequences of one document."""
    documents = Documents("here", [document], [SPARE])
    return encode_documents(documents, framing_for(chat, template), max_tokens=max_tokens).training


def learned(example, chat):
    """The text of every run of labels."""
    edges = np.diff(np.concatenate([[0], example.learn.astype(int), [0]]))
    runs = zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True)
    return [chat.decode(example.tokens[start:end]) for start, end in runs]


def write(path, rows):
    path.write_text(json.dumps(rows), "utf-8")
    return str(path)


# --- labels


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_answers_and_their_ends_and_nothing_else(kind, template, name):
    chat, conversation = tokenizer(kind, template), TALKS[name]
    [example] = encode(conversation, chat)
    assert (example.tokens.dtype, example.learn.dtype, example.tokens.shape) == (np.int32, bool, example.learn.shape)
    found = [
        text.strip() for text in learned(example, chat)
    ]  # a token may hold an answer's letter and a blank before it
    if template == "thinking":
        found[-1] = found[-1].removeprefix("<think>\n\n</think>\n\n")
    assert found == [one.answer.strip() + TEMPLATES[template][1] for one in conversation.exchanges]


@pytest.mark.parametrize("template", ["plain", "vicuna", "Q: {prompt}\nA: "])
@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_need_no_chat_template(kind, name, template):
    chat, conversation = tokenizer(kind), TALKS[name]
    [example] = encode(conversation, chat, template=template)
    end = chat.eos_token
    wanted = [one.answer + end * (template != "plain") for one in conversation.exchanges]
    wanted[-1] = wanted[-1].removesuffix(end) + end
    assert [text.strip() for text in learned(example, chat)] == wanted


def test_a_token_that_holds_letters_of_an_answer_and_others_is_a_label():
    chat = tokenizer("words", "chatml")  # its tokens reach over the line break before the answer
    conversation = TALKS["blanks"]
    [example] = encode(conversation, chat)
    assert learned(example, chat)[1] == "\n- one\n- two<|im_end|>"


def test_a_blank_that_no_token_owns_up_to_belongs_to_the_token_behind_it():
    plain = tokenizer("without_blanks")
    for text in ("a b", "a   b", "a b ", "a b   "):
        [example] = encode(Text(text, given=1, ended=False), plain)
        assert learned(example, plain) == [text[1:]]


def test_no_token_but_those_of_the_text_is_there():
    chat = tokenizer(template="chatml")
    [example] = encode(TALKS["unicode"], chat)
    assert chat.decode(example.tokens) == framing_for(chat).framed(TALKS["unicode"]).text


def test_a_long_conversation_is_cut_within_an_answer():
    chat, conversation = tokenizer(template="chatml"), TALKS["several"]
    [whole] = encode(conversation, chat)
    first, last = np.flatnonzero(whole.learn)[[0, -1]]
    for most in range(first + 1, last + 2):
        [cut] = encode(conversation, chat, max_tokens=most)
        assert cut.tokens.tolist() == whole.tokens[:most].tolist()
        assert cut.learn.tolist() == whole.learn[:most].tolist()


def test_a_conversation_whose_answer_is_cut_off_is_dropped_and_counted(tmp_path):
    chat = tokenizer(template="chatml")
    rows = [{"prompt": "a " * 60, "response": "b"}, {"prompt": "c", "response": "d"}, {"prompt": "e", "response": "f"}]
    found = load_examples([write(tmp_path / "p.json", rows)], chat, max_tokens=40)
    assert len(found.training + found.held_out) == 2
    assert found.left_out == {"no answer within 40 tokens": 1}


def test_a_conversation_goes_as_far_as_it_is_answered():
    chat = tokenizer(template="chatml")
    first, *_ = TALKS["several"].exchanges
    waiting = Conversation((first, Exchange("And?"), Exchange("So?", "Yes.")))
    [example], [known] = encode(waiting, chat), encode(Conversation((first,)), chat)
    assert example.tokens.tolist() == known.tokens.tolist()


def test_what_nobody_answers_is_counted():
    unanswered = Conversation((Exchange("Who?"),))
    documents = Documents("here", [TALKS["short"], unanswered], [TALKS["system"]], {"an empty text": 2})
    found = encode_documents(documents, framing_for(tokenizer(template="chatml")), max_tokens=64)
    assert found.left_out == {"an empty text": 2, "nobody answers": 1}
    assert (len(found.training), len(found.held_out)) == (1, 1)


# --- texts


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
def test_a_text_is_cut_into_windows_that_follow_one_another(kind, length):
    plain = tokenizer(kind)
    head = [plain.bos_token_id] if kind == "words" else []
    text = "def f(x):\n    return x\n" * 20
    ids = [*plain(text, add_special_tokens=False)["input_ids"][: 4 * length + 3]]
    cut = Text(plain.decode(ids))
    whole = [*plain(cut.text, add_special_tokens=False)["input_ids"], plain.eos_token_id]
    windows = encode(cut, plain, max_tokens=length + len(head) + 1)
    assert [token for window in windows for token in window.tokens[len(head) :]] == whole
    assert all(window.tokens[: len(head)].tolist() == head for window in windows)
    assert all(len(window.tokens) == length + len(head) + 1 for window in windows[:-1])
    for window in windows:
        assert window.learn.tolist() == [False] * len(head) + [True] * (len(window.tokens) - len(head))


def test_one_token_alone_teaches_nothing():
    plain = tokenizer()
    ids = plain("a b c d")["input_ids"]
    assert len(encode(Text("a b c d"), plain, max_tokens=len(ids))) == 1  # the end of the text would stand alone


def test_what_was_given_of_a_text_is_not_learned_nor_an_end_that_it_does_not_have():
    plain = tokenizer()
    text = "Grüße an alle — und Dank"
    [cut] = encode(Text(text, given=text.index("und"), ended=False), plain)
    assert learned(cut, plain)[0].strip() == "und Dank"
    assert plain.decode(cut.tokens) == text
    [ended] = encode(Text(text, given=text.index("und")), plain)
    assert learned(ended, plain)[0].strip() == "und Dank<|endoftext|>"


# --- both together


def test_sources_become_examples_and_say_what_they_are(tmp_path):
    talks = [{"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "!"}]} for n in range(40)]
    chat = tokenizer(template="chatml")
    source = write(tmp_path / "talks.json", [*talks, {"text": "Read this."}, {"no": "thing"}])
    found = load_examples([source], chat, max_tokens=64, held_out_share=0.25)
    assert found.what == "talks.json, in the target's chat template"
    assert len(found.training) + len(found.held_out) == 41
    assert 4 <= len(found.held_out) <= 20
    assert list(found.left_out.values()) == [1]
    texts = [chat.decode(example.tokens) for example in found.training + found.held_out]
    assert sorted(texts) == sorted(
        ["Read this.<|endoftext|>"]
        + [f"<|im_start|>user\n{n}?<|im_end|>\n<|im_start|>assistant\n!<|im_end|>\n" for n in range(40)]
    )


def test_at_most_so_many_examples_are_made(tmp_path):
    source = write(tmp_path / "p.json", [{"text": f"{n} " * 50} for n in range(200)])
    found = load_examples([source], tokenizer(), max_tokens=16, most=30, held_out_share=0.1)
    assert (len(found.training), len(found.held_out)) == (30, 3)


def test_one_is_held_out_even_where_the_only_one_was_of_no_use():
    documents = Documents("here", [TALKS["short"], TALKS["several"]], [Conversation((Exchange("Who?"),))])
    found = encode_documents(documents, framing_for(tokenizer(template="chatml")), max_tokens=64)
    assert (len(found.training), len(found.held_out)) == (1, 1)


def test_the_sha_tells_tokens_labels_and_sides_apart():
    framing = framing_for(tokenizer(template="chatml"))
    a, b = TALKS["short"], TALKS["several"]
    cut = replace(a, exchanges=(replace(a.exchanges[0], ended=False),))

    def sha(training, held_out):
        return encode_documents(Documents("here", training, held_out), framing, max_tokens=64).sha

    known = [sha([a], [b]), sha([b], [a]), sha([a, b], [b]), sha([a], [b, b]), sha([cut], [b]), sha([a, a], [b])]
    assert len(set(known)) == len(known)
    assert sha([a], [b]) == known[0]
    assert len(known[0]) == 16


def test_nothing_to_learn_from_is_one_line_with_the_reasons():
    documents = Documents("here", [TALKS["short"]] * 3, [TALKS["short"]])
    words = r"^here: 0 sequences; one to learn from and one to hold out .*; 4 left out: no answer within 3 tokens$"
    with pytest.raises(TrainingError, match=words):
        encode_documents(documents, framing_for(tokenizer(template="chatml")), max_tokens=3)


def test_a_tokenizer_that_cannot_say_where_its_tokens_are_is_refused():
    slow = SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False, name_or_path="old"))
    with pytest.raises(ConfigError, match=r"^old: training needs a fast tokenizer \(tokenizer\.json\); this is none$"):
        encode_documents(Documents("here", [SPARE], [SPARE]), slow, max_tokens=8)


def test_a_sequence_has_room_for_a_token_and_its_label():
    documents = Documents("here", [SPARE], [SPARE])
    with pytest.raises(ConfigError, match=r"^max_tokens is 2, and a sequence takes 3 at least$"):
        encode_documents(documents, framing_for(tokenizer("words")), max_tokens=2)
    assert encode_documents(documents, framing_for(tokenizer("words")), max_tokens=3).training
