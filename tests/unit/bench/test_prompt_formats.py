"""specbench.bench.prompt_formats"""

import pytest

from specbench.bench.prompt_formats import FORMATS, content_of, format_of
from specbench.config import PROMPT_FORMATS
from specbench.errors import ConfigError

# A row of every published set, with the fields that it has there and words of our own.
ROWS = {
    "speed_bench": {
        "question_id": "a1", "category": "qa", "sub_category": "x", "turns": ["Why?"], "source": "s", "src_id": "7",
        "difficulty": "low", "multiturn": False,
    },
    "spec_bench": {
        "question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."], "reference": [["a"], "b"],
    },
    "sharegpt": {
        "id": "c_0",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."},
            {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."},
        ],
    },
    "messages": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]},
    "alpaca": {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "the whole"},
    "alpaca_eval": {"instruction": "Add.", "output": "3", "generator": "g", "dataset": "koala"},
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "t",
        "entry_point": "f",
    },
    "mt_bench": {"prompt_id": 81, "category": "writing", "prompt": ["Write.", "Rewrite."], "reference": ["a", "b"]},
    "mmlu": {"question": "2 + 2?", "choices": ["1", "2", "3", "4"], "subject": "abstract_algebra", "answer": 3},
    "hellaswag": {"ind": 3, "ctx": "He runs", "endings": ["a", "b", "c", "d"], "label": "1", "activity_label": "Run"},
    "gsm8k": {"question": "2 + 2?", "answer": "#### 4"},
    "math": {"problem": "2 + 2?", "solution": "4", "subject": "Algebra", "level": 1},
    "prompt": {"prompt": "Who?", "output_tokens": 7},
    "text": {"text": "Once"},
}  # fmt: skip
DEV = [
    {"question": f"q{i}", "choices": ["w", "x", "y", "z"], "subject": subject, "answer": i % 4}
    for i in range(6)
    for subject in ("abstract_algebra", "anatomy")
]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_known_by_its_fields(name):
    assert format_of(ROWS[name]) is FORMATS[name]


def test_the_formats_that_an_experiment_may_name_are_those_that_can_be_read():
    assert list(PROMPT_FORMATS) == list(FORMATS)


@pytest.mark.parametrize(
    ("name", "turns", "reference"),
    [
        ("speed_bench", ("Why?",), ()),
        ("spec_bench", ("Write.", "Rewrite."), ("a", "b")),
        ("sharegpt", ("Who?", "Why?"), ("Me.", "Because.")),
        ("messages", ("Who?",), ()),
        ("alpaca_eval", ("Add.",), ("3",)),
        ("humaneval", ("def f():\n",), ("    return 1\n",)),
        ("mt_bench", ("Write.", "Rewrite."), ("a", "b")),
        ("hellaswag", ("He runs",), ("b",)),
        ("gsm8k", ("2 + 2?",), ("#### 4",)),
        ("math", ("2 + 2?",), ("4",)),
        ("prompt", ("Who?",), ()),
        ("text", ("Once",), ()),
    ],
)
def test_every_format_gives_its_turns_and_its_answers(name, turns, reference):
    found = content_of(ROWS[name])
    assert (found.turns, found.reference) == (turns, reference)


@pytest.mark.parametrize("name", ["sharegpt", "messages"])
def test_a_system_message_is_kept_apart_from_the_turns(name):
    assert content_of(ROWS[name]).system == "Be brief."


def test_an_alpaca_row_with_an_input_shows_it_and_one_without_has_the_other_frame():
    paired = content_of(ROWS["alpaca"]).turns[0]
    alone = content_of({**ROWS["alpaca"], "input": ""}).turns[0]
    assert paired.endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:")
    assert "paired with an input" in paired
    assert alone.endswith("### Instruction:\nAdd.\n\n### Response:")
    assert "nput" not in alone


def test_an_instruction_for_a_chat_keeps_its_input_and_has_no_frame():
    assert content_of(ROWS["alpaca"], FORMATS["instruction"]).turns == ("Add.\n\n1, 2",)


def test_an_mmlu_question_comes_after_five_worked_examples_of_its_own_subject():
    row = ROWS["mmlu"]
    text = FORMATS["mmlu"].examples(row, DEV) + content_of(row).turns[0]
    header, *blocks = text.split("\n\n")
    assert header == "The following are multiple choice questions (with answers) about abstract algebra."
    assert [block.split("\n")[0] for block in blocks] == ["q0", "q1", "q2", "q3", "q4", "2 + 2?"]
    assert [block.rsplit(":")[-1].strip() for block in blocks] == ["A", "B", "C", "D", "A", ""]
    assert blocks[-1] == "2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"


def test_too_few_worked_examples_are_counted():
    with pytest.raises(ConfigError, match="there are 4 worked examples of subject 'anatomy', and 5 are needed"):
        FORMATS["mmlu"].examples({**ROWS["mmlu"], "subject": "anatomy"}, DEV[:8])


@pytest.mark.parametrize(
    "said",
    [
        [{"from": "gpt", "value": "Me."}, {"from": "human", "value": "Who?"}],
        [{"from": "human", "value": "Who?"}],
        [],
    ],
    ids=["begun by the model", "never answered", "empty"],
)
def test_a_fragment_of_a_conversation_asks_nothing(said):
    assert content_of({"id": "c", "conversations": said}) is None


@pytest.mark.parametrize("name", ["speed_bench", "messages", "prompt"])
def test_a_placeholder_is_refused_wherever_it_stands(name):
    words = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
    row = {
        "speed_bench": {**ROWS["speed_bench"], "turns": ["Why?", words]},
        "messages": {"messages": [{"role": "user", "content": words}]},
        "prompt": {"prompt": words},
    }[name]
    with pytest.raises(ConfigError, match="a placeholder stands where its prompt belongs"):
        content_of(row)


def test_a_hole_is_refused_in_speed_bench_and_allowed_in_code_of_other_sets():
    with pytest.raises(ConfigError, match=r"a hole like \{article\}"):
        content_of({**ROWS["speed_bench"], "turns": ["Sum up {article}."]})
    assert content_of({"prompt": "Explain f'{article}'."}).turns == ("Explain f'{article}'.",)


@pytest.mark.parametrize(
    ("row", "options", "fault"),
    [
        ({"qestion": "x", "n": 1}, {}, "no known format has these fields: qestion, n; prompts.field names the one"),
        ({"qestion": "x"}, {"field": "question"}, "no field 'question'; its fields are qestion"),
        ({"prompt": "x"}, {"form": FORMATS["gsm8k"]}, "no field 'question'; its fields are prompt"),
        ({"prompt": "  "}, {}, "its prompt is empty"),
        ({"turns": []}, {}, "field 'turns' holds neither text nor turns nor messages"),
        ({"n": 7}, {"field": "n"}, "field 'n' holds neither text nor turns nor messages"),
        ({"messages": [{"who": "user"}]}, {}, "a message has role and content, or from and value; here are who"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, {}, "its messages do not begin with a user's"),
        ({"question": "x", "choices": ["1", "2", "3", "4"]}, {}, "no field 'answer'; its fields are question, choices"),
    ],
)
def test_what_a_row_lacks_is_named_with_what_it_has(row, options, fault):
    with pytest.raises(ConfigError, match=fault):
        content_of(row, **options)


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ("Who?", ("Who?",)),
        (["Who?", "Why?"], ("Who?", "Why?")),
        ([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}], ("Who?",)),
    ],
)
def test_a_field_that_the_user_names_may_hold_text_or_turns_or_messages(value, turns):
    assert content_of({"mine": value, "prompt": "not this"}, field="mine").turns == turns
