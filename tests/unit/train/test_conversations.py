"""specbench.train.conversations"""

import json
import random

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbench.errors import ConfigError, TrainingError, UnknownNameError, UnsupportedError
from specbench.models import corpus
from specbench.models.corpus import held_out_modules
from specbench.train import conversations
from specbench.train.conversations import (
    Conversation,
    Exchange,
    Text,
    Unusable,
    conversation_of,
    document_of,
    opening,
    read_documents,
)


def talk(*pairs, system=None):
    return Conversation(tuple(Exchange(question, answer) for question, answer in pairs), system)


def said(*messages):
    return conversation_of(messages)


def chat(*messages):
    return {"messages": [{"role": who, "content": content} for who, content in messages]}


def a_row(number):
    return {"prompt": f"What is {number}?", "response": f"A number, {number}."}


def write(path, rows):
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]", "utf-8")
    return str(path)


def openings(documents):
    return [opening(document) for document in documents]


# --- rows


@pytest.mark.parametrize(
    "row",
    [
        {"id": "x_0", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
        {**chat(("user", "Who?"), ("assistant", "Me.")), "prompt": "Who?"},
        {"conversation": [{"content": "Who?", "role": "User"}, {"content": "Me.", "role": "Assistant"}]},
        {"turns": [{"role": "user", "content": "Who?"}, {"role": "model", "content": "Me."}]},
        chat(("user", [{"type": "text", "text": "Who?"}]), ("bard", "Me.")),
        {"instruction": "Who?", "input": "", "output": "Me.", "text": "Below is an instruction. Who? Me."},
        {"instruction": "Who?", "output": "Me.", "generator": "someone"},
        {"prompt": "Who?", "response": "Me."},
        {"prompt": "Who?", "completion": " Me."},
        {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Me."}]},
        {"question": "Who?", "answer": "Me."},
    ],
)
def test_every_dialect_says_the_same(row):
    assert document_of(row) == talk(("Who?", "Me."))


def test_an_instruction_stands_before_what_it_is_about():
    row = {"instruction": "Translate.", "input": "Bonjour", "output": "Hello"}
    assert document_of(row) == talk(("Translate.\n\nBonjour", "Hello"))


def test_a_row_with_nothing_but_text_is_a_text():
    assert document_of({"text": " as it is\n", "url": "x"}) == Text(" as it is\n")


def test_questions_that_nobody_has_answered_are_kept_for_the_target():
    assert document_of({"question_id": 81, "turns": ["One?", "Two?"]}) == talk(("One?", None), ("Two?", None))
    assert document_of({"prompt": ["One?", "Two?"], "prompt_id": 1}) == talk(("One?", None), ("Two?", None))
    assert document_of({"instruction": "One?", "input": ""}) == talk(("One?", None))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(("assistant", "Hello.")), "nobody asks anything"),
        (chat(("system", "Be.")), "nobody asks anything"),
        ({"turns": [" ", ""]}, "nobody asks anything"),
        (chat(("user", "x"), ("tool", "7")), "a message of 'tool', who is neither"),
        (chat(("user", "x"), ("system", "y")), "a system message in its midst"),
        (chat(("user", [{"type": "image", "url": "x"}])), "a message that is more than text"),
        ({"messages": [{"text": "x"}]}, "a message has role and content, or from and value; here are text"),
        ({"messages": ["x", {"role": "user", "content": "x"}]}, "a message that is no object"),
        ({"conversations": "text"}, "its messages are no list"),
        ({"question": "x", "answer": 2, "choices": ["a", "b", "c"]}, "an answer that is no text"),
        ({"text": " \n"}, "an empty text"),
        ({"a": 1, "b": 2}, "no conversation and no text among its fields, a, b"),
        ({}, "no conversation and no text among its fields, none"),
        ("text", "no object"),
    ],
)
def test_what_cannot_be_mended_is_named(row, reason):
    with pytest.raises(Unusable, match=f"^{reason}"):
        document_of(row)


# --- mending


def test_an_answer_to_nothing_is_dropped_from_the_beginning():
    assert said(("gpt", "Hi!"), ("human", "a"), ("gpt", "b")) == talk(("a", "b"))


def test_what_one_side_says_twice_in_a_row_is_one_message():
    messages = [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]
    assert said(*messages) == talk(("a\n\nb", "c\n\nd"), ("e", "f"))


def test_blank_messages_are_left_out_and_blanks_around_the_others():
    messages = [("human", " a\n"), ("gpt", "\n \n"), ("human", "b"), ("gpt", "  c "), ("human", "")]
    assert said(*messages) == talk(("a\n\nb", "c"))


def test_a_last_question_waits_for_its_answer():
    assert said(("user", "a"), ("model", "b"), ("user", "c")) == talk(("a", "b"), ("c", None))


def test_the_system_speaks_before_everyone_else():
    messages = [("gpt", "Hi!"), ("system", "Be brief."), ("developer", "Be kind."), ("user", "a"), ("gpt", "b")]
    assert said(*messages) == talk(("a", "b"), system="Be brief.\n\nBe kind.")


def test_a_half_of_a_surrogate_pair_is_replaced_and_two_are_joined():
    conversation = said(("user", "a\ud83d b"), ("gpt", "\ud83d\ude00"))
    assert conversation == talk(("a\ufffd b", "\U0001f600"))
    conversation.exchanges[0].question.encode()


# --- sources


def test_rows_are_read_from_every_kind_of_file(tmp_path):
    rows = [a_row(number) for number in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    found = [
        read_documents([source])
        for source in (write(tmp_path / "a.json", rows), write(tmp_path / "b.jsonl", rows), str(tmp_path / "p.parquet"))
    ]
    assert found[0].training == found[1].training == found[2].training
    assert len(found[0].training + found[0].held_out) == 4
    assert [one.what for one in found] == ["a.json", "b.jsonl", "p.parquet"]


def test_a_folder_holds_texts_and_rows_and_json_that_is_neither(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("a = 1\n")
    (tmp_path / "src" / "empty.py").write_text("\n")
    (tmp_path / "src" / "package.json").write_text('{"name": "x"}')
    (tmp_path / "src" / "numbers.json").write_text("[1, 2]")
    (tmp_path / ".hidden").write_text("no")
    write(tmp_path / "talk.json", [a_row(1)])
    write(tmp_path / "texts.jsonl", [{"text": "one"}, {"text": "two"}])
    found = read_documents([str(tmp_path)])
    texts = {document.text for document in found.training + found.held_out if isinstance(document, Text)}
    assert texts == {"a = 1\n", '{"name": "x"}', "[1, 2]", "one", "two"}
    assert [document for document in found.training + found.held_out if isinstance(document, Conversation)] == [
        talk(("What is 1?", "A number, 1."))
    ]


def test_what_is_left_out_is_counted_by_its_reason(tmp_path):
    bad = [{"text": ""}, {"conversations": [{"from": "gpt", "value": "x"}]}, {"conversations": []}, {"text": " "}]
    found = read_documents([write(tmp_path / "p.jsonl", [*bad, a_row(1), a_row(2)])])
    assert found.left_out == {
        "an empty text": 2,
        "nobody asks anything": 1,
        "no conversation and no text among its fields, conversations": 1,
    }


def test_sources_are_joined(tmp_path):
    one, two = write(tmp_path / "a.json", [a_row(1), a_row(2)]), write(tmp_path / "b.json", [a_row(3), {"no": 1}])
    found = read_documents([one, two])
    assert len(found.training + found.held_out) == 3
    assert (found.what, sum(found.left_out.values())) == ("a.json, b.json", 1)


def test_the_standard_library_keeps_its_own_list_of_held_out_modules(tmp_path):
    found = read_documents(["stdlib", write(tmp_path / "a.json", [a_row(number) for number in range(200)])])
    modules = {module.text for module in held_out_modules().modules}
    assert {document.text for document in found.held_out if isinstance(document, Text)} == modules
    assert not any(document.text in modules for document in found.training if isinstance(document, Text))
    assert any(isinstance(document, Conversation) for document in found.held_out)


def test_the_librarys_tests_are_learned_from_and_its_held_out_modules_measured_on(tmp_path, monkeypatch):
    folder = tmp_path / "test" / "test_email"
    folder.mkdir(parents=True)
    (folder / "test_a.py").write_text("assert 1\n")
    (folder / "tables.py").write_text("0,\n" * 100_000)
    monkeypatch.setattr(corpus, "library_root", lambda: tmp_path)
    monkeypatch.setattr(conversations, "held_out_modules", lambda: corpus.HeldOut([corpus.Module("b.py", "b")], {}))
    found = read_documents(["stdlib-tests"])
    assert [document.text for document in found.training] == ["assert 1\n"]
    assert [document.text for document in found.held_out] == ["b"]


def test_a_python_without_tests_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "library_root", lambda: tmp_path)
    with pytest.raises(ConfigError, match="no folder test; some systems package it apart"):
        read_documents(["stdlib-tests"])


HUB = {
    ("Aeala/ShareGPT_Vicuna_unfiltered", None, "train"): [
        {"id": str(n), "conversations": [{"from": "human", "value": f"Who is {n}?"}, {"from": "gpt", "value": "Me."}]}
        for n in range(3)
    ],
    ("tatsu-lab/alpaca", None, "train"): [
        {"instruction": "Add.", "input": str(n), "output": "1", "text": "t"} for n in range(3)
    ],
    ("openai/gsm8k", "main", "train"): [{"question": f"{n} + 2?", "answer": "4"} for n in range(3)],
    ("someone/chats", None, "train_sft"): [a_row(n) for n in range(3)],
    ("someone/texts", "raw", "train"): [{"text": f"{n}"} for n in range(3)],
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    def load_dataset(path, subset=None, *, split, revision=None):
        if (path, subset, split) not in HUB:
            raise ValueError(f"Unknown split {split!r}.\nShould be one of others.")
        return datasets.Dataset.from_list(HUB[path, subset, split])

    def snapshot_download(path, *, allow_patterns, **options):
        [file] = allow_patterns
        (tmp_path / file).write_text(json.dumps([{"instruction": f"Add {n}.", "output": "3"} for n in range(3)]))
        return str(tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


@pytest.mark.parametrize(
    ("source", "what", "one"),
    [
        ("sharegpt", "Aeala/ShareGPT_Vicuna_unfiltered (train)", talk(("Who is 1?", "Me."))),
        ("alpaca", "tatsu-lab/alpaca (train)", talk(("Add.\n\n1", "1"))),
        ("alpaca_eval", "tatsu-lab/alpaca_eval (train)", talk(("Add 1.", "3"))),
        ("gsm8k:train", "openai/gsm8k (main:train)", talk(("1 + 2?", "4"))),
        ("someone/chats:train_sft", "someone/chats (train_sft)", talk(("What is 1?", "A number, 1."))),
        ("someone/texts:raw:train", "someone/texts (raw:train)", Text("1")),
    ],
)
def test_hub_data_sets_are_read_by_name_or_id(hub, source, what, one):
    found = read_documents([source])
    assert found.what == what
    assert one in found.training + found.held_out
    assert len(found.training + found.held_out) == 3


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UnsupportedError, match=r"^--data sharegpt: the hub data set Aeala/.* cannot be reached\. "
    ) as e:
        read_documents(["sharegpt"])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("sharegtp", UnknownNameError, r"^--data: unknown source 'sharegtp'\. Did you mean 'sharegpt'\?$"),
        ("talks.json", ConfigError, r"^--data talks\.json: no such file or folder$"),
        ("./talks", ConfigError, r"^--data \./talks: no such file or folder$"),
        (
            "someone/chats",
            ConfigError,
            r"^--data someone/chats: someone/chats cannot be read: Unknown split 'train'\.$",
        ),
        ("someone/chats:a:b:c", ConfigError, "a hub data set reads owner/name:subset:split$"),
    ],
)
def test_a_source_that_is_none_is_one_line(hub, source, error, words):
    with pytest.raises(error, match=words):
        read_documents([source])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{oops', r"p\.jsonl:2: no JSON"),
        ("p.json", '{"prompt": "a"}', r"p\.json: should be a list"),
        ("p.txt", b"\xff\xfe\xfa", r"--data .*p\.txt: not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=words):
        read_documents([str(tmp_path / name)])


def test_nothing_to_learn_from_is_said_with_the_reasons(tmp_path):
    with pytest.raises(
        TrainingError, match=r"p\.json: 0 different documents; .*; 2 left out: no conversation .* fields, no$"
    ):
        read_documents([write(tmp_path / "p.json", [{"no": 1}, {"no": 2}])])
    with pytest.raises(
        TrainingError, match="1 different documents; one to learn from and one to hold out are the least"
    ):
        read_documents([write(tmp_path / "p.json", [a_row(1), {**a_row(1), "response": "Another answer."}])])


# --- what is held out


def test_a_twentieth_is_held_out_whatever_the_order_and_the_name(tmp_path):
    rows = [a_row(number) for number in range(3000)]
    found = read_documents([write(tmp_path / "a.jsonl", rows)])
    assert abs(len(found.held_out) / 3000 - 0.05) < 4 * (0.05 * 0.95 / 3000) ** 0.5
    random.Random(0).shuffle(rows)
    again = read_documents([write(tmp_path / "b.jsonl", rows)])
    assert (again.training, again.held_out) == (found.training, found.held_out)


def test_what_is_held_out_stays_so_when_there_is_more_data(tmp_path):
    few = read_documents([write(tmp_path / "a.jsonl", [a_row(number) for number in range(400)])])
    many = read_documents([write(tmp_path / "b.jsonl", [a_row(number) for number in range(800)])])
    assert set(openings(few.held_out)) <= set(openings(many.held_out))
    assert set(openings(few.training)) <= set(openings(many.training))


def test_nothing_held_out_opens_like_anything_that_is_learned(tmp_path):
    rows = [{**a_row(number % 40), "response": f"answer {number}"} for number in range(400)]
    found = read_documents([write(tmp_path / "a.jsonl", rows)], held_out_share=0.3)
    assert not set(openings(found.training)) & set(openings(found.held_out))
    assert len(found.training + found.held_out) == 400
    assert len(found.held_out) % 10 == 0


def test_one_is_held_out_however_few_there_are(tmp_path):
    found = read_documents([write(tmp_path / "a.jsonl", [a_row(1), a_row(2)])], held_out_share=1e-9)
    assert (len(found.training), len(found.held_out)) == (1, 1)


def test_the_most_documents_are_taken_across_the_file(tmp_path):
    source = write(tmp_path / "a.jsonl", [a_row(number) for number in range(1000)])
    every, few = read_documents([source]), read_documents([source], most=100)
    assert (len(few.training), len(few.held_out)) == (100, 5)
    assert (few.training, few.held_out) == (every.training[:100], every.held_out[:5])
    numbers = [int(text.split()[-1][:-1]) for text in openings(few.training)]
    assert min(numbers) < 100
    assert max(numbers) > 900
