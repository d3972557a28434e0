"""specbench.bench.prompt_sources"""

import json

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbench.bench.prompt_sources import read_table
from specbench.config import PromptSettings
from specbench.errors import ConfigError, UnknownNameError, UnsupportedError


def table(source, **options):
    settings = PromptSettings.model_construct(**{**PromptSettings(source="stdlib").model_dump(), "source": str(source)})
    return read_table(settings.model_copy(update=options))


def questions(found):
    return [found.question(row) for row in range(len(found.ids))]


def turns(found):
    return [None if question is None else question.content.turns for question in questions(found)]


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


def test_rows_of_different_formats_may_stand_in_one_file(tmp_path):
    rows = ({"id": "a", "prompt": "one two"}, {"question_id": 7, "category": "math", "turns": ["three", "four"]})
    found = table(jsonl(tmp_path / "p.jsonl", *rows))
    assert [(q.id, q.content.turns, q.category) for q in questions(found)] == [
        ("p/a", ("one two",), None),
        ("p/7", ("three", "four"), "math"),
    ]


def test_a_line_may_hold_separators_that_end_no_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}', "utf-8")
    assert turns(table(tmp_path / "p.jsonl")) == [("a\u2028b\x85c",), ("d",)]


def test_an_array_of_rows_is_a_source_too(tmp_path):
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "Add.", "input": "1", "output": "1"}] * 2))
    found = table(tmp_path / "alpaca.json", format="instruction")
    assert (found.ids, turns(found)) == (["alpaca:0", "alpaca:1"], [("Add.\n\n1",)] * 2)


def test_a_parquet_file_is_a_source_too(tmp_path):
    pq.write_table(pa.table({"question_id": ["x", "y"], "turns": [["a", "b"], ["c"]]}), tmp_path / "p.parquet")
    found = table(tmp_path / "p.parquet")
    assert (found.ids, turns(found)) == (["p/x", "p/y"], [("a", "b"), ("c",)])


def test_a_text_file_has_a_prompt_in_each_line_that_is_not_blank(tmp_path):
    (tmp_path / "p.txt").write_text("first\n\n   \nsecond\\n\\tthird \\\\n \\d\r\n")
    found = table(tmp_path / "p.txt")
    assert (found.ids, turns(found)) == (["p:1", "p:4"], [("first",), ("second\n\tthird \\n \\d",)])


def test_equal_names_are_made_different(tmp_path):
    found = table(jsonl(tmp_path / "p.jsonl", *[{"id": 1, "prompt": "same"}] * 3))
    assert found.ids == ["p/1", "p/1#2", "p/1#3"]


def test_an_empty_category_is_none(tmp_path):
    assert table(jsonl(tmp_path / "p.jsonl", {"category": "", "turns": ["a"]})).categories == [None]


def test_the_fields_that_there_are_are_named_where_the_right_one_is_missing(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "x"}, {"question": "x", "n": 2})
    with pytest.raises(ConfigError, match=r"p\.jsonl:2: no field 'prompt'; its fields are question, n$"):
        questions(table(file, field="prompt"))


def test_questions_of_a_local_mmlu_want_a_file_of_worked_examples(tmp_path):
    row = {"question": "q", "choices": list("wxyz"), "subject": "anatomy", "answer": 2}
    file, dev = jsonl(tmp_path / "test.jsonl", row), jsonl(tmp_path / "dev.jsonl", *[row] * 5)
    with pytest.raises(ConfigError, match=r"test\.jsonl:1: .* prompts\.examples names the file"):
        questions(table(file))
    [[text]] = turns(table(file, examples=str(dev)))
    assert text.count("Answer: C") == 5
    assert text.endswith("Answer:")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{oops\n', r"p\.jsonl:2: no JSON"),
        ("p.jsonl", '"just text"\n', r"p\.jsonl:1: should be a JSON object"),
        ("p.json", '{"prompt": "a"}', r"p\.json: should be a list of objects"),
        ("p.json", "[", r"p\.json: no JSON"),
        ("p.parquet", "text", r"p\.parquet: no Parquet file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path, name, text, fault):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=fault) as error:
        questions(table(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.txt", "p.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"{name}: No such file or directory"):
        table(tmp_path / name)


def test_an_unknown_source_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown prompt source 'stdlibs'\. Did you mean 'stdlib'\?"):
        table("stdlibs")


def test_spec_bench_is_asked_for_as_a_file():
    with pytest.raises(UnsupportedError, match=r"give the path of a local copy instead: question\.jsonl"):
        table("spec_bench")


# --- the hub, played by data sets that are made here

HUB = {
    ("HuggingFaceH4/mt_bench_prompts", None, "train"): [
        {"prompt_id": 81, "category": "writing", "prompt": ["Write.", "Rewrite."], "reference": []}
    ],
    ("tatsu-lab/alpaca", None, "train"): [{"instruction": "Add.", "input": "1", "output": "1", "text": "t"}],
    ("Aeala/ShareGPT_Vicuna_unfiltered", None, "train"): [
        {"id": "c", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}
    ],
    ("openai/openai_humaneval", None, "test"): [{"task_id": "HumanEval/0", "prompt": "def f():", "entry_point": "f"}],
    ("openai/gsm8k", "main", "test"): [{"question": "2 + 2?", "answer": "4"}],
    ("Rowan/hellaswag", None, "validation"): [
        {"ctx": "He runs", "endings": ["a"], "label": "0", "activity_label": "Run"}
    ],
    ("cais/mmlu", "all", "test"): [{"question": "q", "choices": list("wxyz"), "subject": "anatomy", "answer": 2}],
    ("cais/mmlu", "all", "dev"): [{"question": "e", "choices": list("wxyz"), "subject": "anatomy", "answer": 0}] * 5,
    ("someone/prompts", None, "train"): [{"mine": "Hello.", "category": 3}],
    ("someone/prompts", "hard", "test"): [{"mine": "Hard."}],
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Where a data set has a file, it is that of alpaca_eval."""
    asked = []

    def load_dataset(path, subset=None, *, split, revision=None):
        asked.append(revision)
        if (path, subset, split) not in HUB:
            raise ValueError(f"Unknown split {split!r}.\nShould be one of others.")
        return datasets.Dataset.from_list(HUB[path, subset, split])

    def snapshot_download(path, *, allow_patterns, **options):
        [file] = allow_patterns
        (tmp_path / file).write_text(json.dumps([{"instruction": "Add.", "output": "3", "dataset": "koala"}]))
        return str(tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize(
    ("name", "prompt_id", "category", "end"),
    [
        ("mt_bench", "mt_bench/81", "writing", "Rewrite."),
        ("alpaca", "alpaca:0", None, "### Input:\n1\n\n### Response:"),
        ("alpaca_eval", "alpaca_eval:0", "koala", "Add."),
        ("sharegpt", "sharegpt/c", None, "Who?"),
        ("humaneval", "humaneval/HumanEval/0", None, "def f():"),
        ("gsm8k", "gsm8k:0", None, "2 + 2?"),
        ("hellaswag", "hellaswag:0", "Run", "He runs"),
        ("mmlu", "mmlu:0", "anatomy", "Answer:"),
    ],
)
def test_every_named_data_set_is_read_as_the_hub_has_it(hub, name, prompt_id, category, end):
    found = table(name)
    [question] = questions(found)
    assert (found.name, question.id, question.category) == (name, prompt_id, category)
    assert question.content.turns[-1].endswith(end)


def test_mmlu_takes_its_worked_examples_from_its_own_split(hub):
    assert turns(table("mmlu"))[0][0].count("Answer: A") == 5


def test_any_data_set_serves_with_the_field_that_holds_its_prompts(hub):
    found = table("someone/prompts", field="mine", revision="abc")
    assert (questions(found)[0].content.turns, found.categories, hub) == (("Hello.",), ["3"], ["abc"])
    assert turns(table("someone/prompts", field="mine", subset="hard", split="test")) == [("Hard.",)]


def test_a_split_that_is_missing_is_one_line(hub):
    with pytest.raises(ConfigError, match=r"prompts gsm8k: openai/gsm8k cannot be read: Unknown split 'dev'\.$"):
        table("gsm8k", split="dev")


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UnsupportedError, match="prompts mt_bench: the hub data set HuggingFaceH4/mt_bench_prompts"
    ) as e:
        table("mt_bench")
    assert "\n" not in str(e.value)
