"""specbench.bench.score_data"""

import json

import pytest

from specbench.bench.score_data import ChoiceSet, TextSet, read_score_data
from specbench.errors import ConfigError, UnknownNameError
from specbench.models.corpus import held_out_modules

HELLASWAG = {
    "ctx": "He runs. She", "ctx_a": "[header] He  runs [title] fast.", "ctx_b": "she", "activity_label": "Run",
    "endings": ["stops [substeps] now.", "runs.", "sits.", " eats."], "label": "1",
}  # fmt: skip
MMLU = {"question": " 2 + 2? ", "choices": ["1", "2", "3", "4"], "subject": "algebra", "answer": 3}


def rows_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_library_s_held_out_modules_are_texts_of_their_own():
    found = read_score_data("stdlib", count=3)
    assert found.documents == tuple(module.text for module in held_out_modules().modules[:3])


def test_a_hellaswag_row_is_read_as_the_harness_reads_it(tmp_path):
    found = read_score_data(rows_file(tmp_path / "h.jsonl", HELLASWAG))
    assert isinstance(found, ChoiceSet)
    [question] = found.questions
    # By hand, from lm_eval/tasks/hellaswag: activity: first part, second one capitalised; a full stop for " [title]",
    # no brackets, single spaces.
    assert question.context == "Run: He runs. fast. She"
    assert question.endings == ("stops now.", "runs.", "sits.", "eats.")
    assert (question.right, question.shots) == (1, 0)


def test_a_scene_that_is_not_taken_apart_is_taken_as_it_is(tmp_path):
    row = {"ctx": "He runs. She", "endings": ["stops.", "sits."], "label": 0}
    [question] = read_score_data(rows_file(tmp_path / "h.jsonl", row)).questions
    assert (question.context, question.endings, question.right) == ("He runs. She", ("stops.", "sits."), 0)


def test_an_mmlu_question_is_answered_by_a_letter_after_worked_examples(tmp_path):
    dev = rows_file(tmp_path / "dev.jsonl", *({**MMLU, "question": f"q{n}", "answer": n % 4} for n in range(6)))
    file = rows_file(tmp_path / "m.jsonl", MMLU)
    [question] = read_score_data(file, examples=dev).questions
    assert question.endings == ("A", "B", "C", "D")
    assert (question.right, question.shots) == (3, 5)
    header, *blocks = question.context.split("\n\n")
    assert header == "The following are multiple choice questions (with answers) about algebra."
    assert [block[-9:] for block in blocks[:5]] == [f"Answer: {letter}" for letter in "ABCDA"]
    assert blocks[5] == "2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"


def test_without_worked_examples_a_question_stands_alone(tmp_path):
    row = {"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": "B"}
    [question] = read_score_data(rows_file(tmp_path / "m.jsonl", row)).questions
    assert (question.context, question.endings) == ("2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:", ("A", "B", "C"))
    assert (question.right, question.shots) == (1, 0)


def test_a_text_file_is_one_text_and_a_folder_holds_one_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "two.py").write_text("b = 2\n")
    (tmp_path / "a" / "one.txt").write_text("a\n\nand more\n")
    (tmp_path / "a" / "empty.txt").write_text(" \n")
    assert read_score_data(str(tmp_path / "a" / "one.txt")).documents == ("a\n\nand more\n",)
    assert read_score_data(str(tmp_path / "a")).documents == ("a\n\nand more\n", "b = 2\n")


def test_rows_with_a_text_are_texts_and_a_field_can_be_named(tmp_path):
    plain = rows_file(tmp_path / "t.jsonl", {"text": "one"}, {"text": "two"})
    assert sorted(read_score_data(plain).documents) == ["one", "two"]
    code = rows_file(tmp_path / "c.jsonl", {"code": "x = 1"})
    found = read_score_data(code, column="code")
    assert isinstance(found, TextSet)
    assert found.documents == ("x = 1",)


def test_a_smaller_count_is_the_beginning_of_a_larger_one(tmp_path):
    file = rows_file(tmp_path / "h.jsonl", *({**HELLASWAG, "activity_label": f"a{n % 3}"} for n in range(12)))
    few, all_of_them = read_score_data(file, count=4), read_score_data(file)
    assert few.questions == all_of_them.questions[:4]
    assert len(all_of_them.questions) == 12
    assert few.sha != all_of_them.sha


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**HELLASWAG, "label": ""}, "nothing says which of its choices is right; take a split that has answers"),
        ({**HELLASWAG, "label": "4"}, "h.jsonl:1: '4' is none of its 4 choices"),
        ({**HELLASWAG, "endings": "runs."}, "h.jsonl:1: field 'endings' should be a list of texts"),
        ({**MMLU, "choices": ["4"], "answer": 0}, "--data h:1: it offers one choice alone"),
        ({**MMLU, "choices": [], "answer": 0}, "h.jsonl:1: field 'choices' should hold 1 to 26 texts, got 0"),
        ({**MMLU, "answer": "E"}, "h.jsonl:1: 'E' is none of its 4 choices"),
        ({**MMLU, "answer": 1.5}, "h.jsonl:1: 1.5 is none of its 4 choices"),
        ({"question": "2 + 2?", "answer": "#### 4"}, "neither a text nor a question with choices, but one with an"),
        ({"code": "x = 1"}, "no known format has these fields: code; --field names the one that holds a prompt"),
    ],
)
def test_a_row_of_the_wrong_form_is_one_clear_line(tmp_path, row, words):
    with pytest.raises(ConfigError) as caught:
        read_score_data(rows_file(tmp_path / "h.jsonl", row))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stdlb", "--data: neither a file, a folder nor a data set: 'stdlb'. Did you mean 'stdlib'?"),
        ("nowhere.txt", "--data nowhere.txt: No such file"),
        ("nowhere.jsonl", "nowhere.jsonl: No such file"),
        ("no/where.jsonl", "no/where.jsonl: No such file"),
    ],
)
def test_data_that_is_not_there_is_one_clear_line(name, words):
    with pytest.raises(ConfigError) as caught:
        read_score_data(name)
    assert words in str(caught.value)


def test_an_unknown_name_is_an_unknown_name():
    with pytest.raises(UnknownNameError):
        read_score_data("hellaswg")


def test_an_empty_folder_holds_no_text(tmp_path):
    with pytest.raises(ConfigError, match="there is no text in it"):
        read_score_data(str(tmp_path))
