"""specbench.bench.prompts"""

import json

import pytest

from specbench.bench.prompts import key_of, load_prompts, text_of, warm_up_ids
from specbench.config import PromptSettings
from specbench.errors import ConfigError, UnknownNameError, UnsupportedError
from specbench.models.source import locate


@pytest.fixture(scope="module")
def target(family):
    return locate("pico", family)


def load(target, source, **options):
    settings = PromptSettings.model_construct(**{**PromptSettings(source="stdlib").model_dump(), "source": str(source)})
    return load_prompts(settings.model_copy(update=options), target, max_new_tokens=8)


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_stdlib_prompts_are_cut_on_the_left(target):
    short = load(target, "stdlib", count=3, max_prompt_tokens=20).prompts
    long = load(target, "stdlib", count=3, max_prompt_tokens=60).prompts
    assert [len(prompt.ids) for prompt in short] == [20, 20, 20]
    assert [prompt.ids for prompt in short] == [prompt.ids[-20:] for prompt in long]


def test_a_shorter_list_is_the_beginning_of_a_longer_one(target):
    few = load(target, "stdlib", count=3, max_prompt_tokens=20)
    many = load(target, "stdlib", count=9, max_prompt_tokens=20)
    assert few.prompts == many.prompts[:3]
    assert few.sha != many.sha


def test_a_jsonl_file_has_a_prompt_or_turns_in_each_line(target, tmp_path):
    rows = ({"id": "a", "prompt": "one two"}, {"question_id": 7, "category": "math", "turns": ["three", "four"]})
    found = load(target, jsonl(tmp_path / "p.jsonl", *rows), count=2).prompts
    assert [(p.id, p.text, p.category) for p in found] == [("p/a", "one two", None), ("p/7", "three", "math")]


def test_a_text_file_has_a_prompt_in_each_line_that_is_not_blank(target, tmp_path):
    (tmp_path / "p.txt").write_text("first\n\nsecond\n")
    assert [p.text for p in load(target, tmp_path / "p.txt", count=2).prompts] == ["first", "second"]


def test_only_one_category_is_taken_where_one_is_named(target, tmp_path):
    rows = [{"prompt": f"x{i}", "category": "ab"[i % 2]} for i in range(4)]
    found = load(target, jsonl(tmp_path / "p.jsonl", *rows), count=2, category="b").prompts
    assert [p.text for p in found] == ["x1", "x3"]


def test_equal_prompts_keep_rows_and_keys_of_their_own(target, tmp_path):
    found = load(target, jsonl(tmp_path / "p.jsonl", {"prompt": "same"}, {"prompt": "same"}), count=2).prompts
    assert len({p.id for p in found}) == len({p.key for p in found}) == 2


def test_a_key_is_stable_and_fits_31_bits():
    assert key_of("stdlib/heapq.py:1:f") == key_of("stdlib/heapq.py:1:f")
    assert all(0 <= key_of(str(index)) < 2**31 for index in range(200))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": ["first", "second"]}, "first"),
        ({"instruction": "Do it.", "input": "this", "output": "no"}, "Do it.\n\nthis"),
        ({"instruction": "Do it.", "input": ""}, "Do it."),
        ({"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}, "Who?"),
        ({"messages": [{"role": "user", "content": "Who?"}]}, "Who?"),
        ({"question": "2 + 2?", "answer": "4"}, "2 + 2?"),
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}, "2 + 2?\nA. 3\nB. 4\nAnswer:"),
    ],
)
def test_the_first_question_is_found_in_every_published_shape(row, text):
    assert text_of(row, None, "row") == text


def test_a_placeholder_is_refused():
    row = {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]}
    with pytest.raises(ConfigError, match="row 3: the data set holds a placeholder"):
        text_of(row, None, "row 3")


def test_a_field_that_is_missing_is_named_with_the_nearest(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"question": "x"})
    with pytest.raises(ConfigError, match=r"p\.jsonl:1: no field 'qestion'\. Did you mean 'question'\?"):
        load(target, file, count=1, field="qestion")


def test_too_few_prompts_are_an_error_and_none_is_used_twice(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    with pytest.raises(ConfigError, match=r"count is 3, but .* has 2 prompts; none is used twice"):
        load(target, file, count=3)


def test_a_prompt_longer_than_the_context_is_named(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"id": "long", "prompt": "word " * 2000})
    with pytest.raises(ConfigError, match=r"prompt p/long: \d+ tokens and 8 new ones exceed the 256 positions of pico"):
        load(target, file, count=1)


def test_a_missing_file_is_named(target, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.jsonl: No such file or directory"):
        load(target, tmp_path / "nothing.jsonl", count=1)


def test_a_line_that_is_no_json_is_named(target, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    with pytest.raises(ConfigError, match=r"p\.jsonl:2: no JSON"):
        load(target, tmp_path / "p.jsonl", count=2)


def test_an_unknown_source_is_answered_with_the_nearest(target):
    with pytest.raises(UnknownNameError, match=r"unknown prompt source 'stdlibs'\. Did you mean 'stdlib'\?"):
        load(target, "stdlibs", count=1)


def test_a_data_set_out_of_reach_is_named_in_one_line(target, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(
        UnsupportedError, match="prompts mt_bench: the hub data set HuggingFaceH4/mt_bench_prompts"
    ) as e:
        load(target, "mt_bench", count=1)
    assert "\n" not in str(e.value)


def test_a_chat_template_must_exist_to_be_used(target):
    with pytest.raises(ConfigError, match="the tokenizer of pico has no chat template"):
        load(target, "stdlib", count=1, chat_template=True)


class _Tokenizer:
    """Writes a begin-of-text token, as Llama's does."""

    bos_token_id, chat_template = 1, "x"

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return {"input_ids": [1] * add_special_tokens + [1 if word == "<s>" else 5 for word in text.split()]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, **options):
        return f"<s> USER: {messages[0]['content']} ASSISTANT:"


class _Target:
    name, max_positions, tokenizer = "fake", None, _Tokenizer()


def test_a_template_that_writes_its_own_begin_token_gets_no_second_one(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "hello"})
    ids = load(_Target, file, count=1, chat_template=True).prompts[0].ids
    assert ids.count(1) == 1


def test_a_template_of_the_experiment_stands_around_the_prompt(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "hello there"})
    ids = load(_Target, file, count=1, template="USER: {prompt} ASSISTANT:").prompts[0].ids
    assert ids == [1, 5, 5, 5, 5]


def test_two_templates_are_one_too_many(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "hello there"})
    with pytest.raises(ConfigError, match="two ways to say one thing"):
        load(_Target, file, count=1, chat_template=True, template="{prompt}")


def test_two_begin_tokens_are_refused(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "<s> hello"})
    with pytest.raises(ConfigError, match="begins with two begin-of-text tokens"):
        load(_Target, file, count=1)


def test_cutting_on_the_left_keeps_the_begin_token(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "a b c d e f"})
    ids = load(_Target, file, count=1, max_prompt_tokens=3).prompts[0].ids
    assert ids == [1, 5, 5]


def test_a_warm_up_prompt_is_as_long_as_a_measured_one_and_another():
    assert warm_up_ids([1, 2, 3, 4]) == [1, 4, 3, 2]
