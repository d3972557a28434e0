"""specbench.bench.prompts"""

import json

import pytest

from specbench.bench.prompts import key_of, load_prompts, prompts_sha, warm_up_ids
from specbench.config import PromptSettings
from specbench.errors import ConfigError
from specbench.models.source import locate


@pytest.fixture(scope="module")
def target(family):
    return locate("pico", family)


def load(target, source, *, turns=1, **options):
    return load_prompts(PromptSettings(source=str(source), **options), target, max_new_tokens=8, turns=turns)


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


def test_prompts_that_are_named_are_taken_in_that_order(target):
    some = [prompt.id for prompt in load(target, "stdlib", count=9, max_prompt_tokens=20).prompts[5:2:-1]]
    found = load(target, "stdlib", ids=tuple(some), max_prompt_tokens=20)
    assert [prompt.id for prompt in found.prompts] == some
    assert found.skipped == {}


def test_only_the_categories_that_are_named_are_taken(target, tmp_path):
    rows = [{"prompt": f"x{i}", "category": "ab"[i % 2]} for i in range(4)]
    found = load(target, jsonl(tmp_path / "p.jsonl", *rows), count=2, categories=("b",)).prompts
    assert {p.text for p in found} == {"x1", "x3"}


def test_equal_prompts_keep_rows_and_keys_of_their_own(target, tmp_path):
    rows = [{"prompt": "same"}, {"prompt": "same"}, {"id": 1, "prompt": "same"}, {"id": 1, "prompt": "same"}]
    found = load(target, jsonl(tmp_path / "p.jsonl", *rows), count=4).prompts
    assert len({p.id for p in found}) == len({p.key for p in found}) == 4


def test_a_key_is_stable_and_fits_31_bits():
    assert key_of("stdlib/heapq.py:1:f") == key_of("stdlib/heapq.py:1:f")
    assert all(0 <= key_of(str(index)) < 2**31 for index in range(200))


def test_too_few_prompts_are_an_error_and_none_is_used_twice(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert len(load(target, file, count=2).prompts) == 2
    with pytest.raises(ConfigError, match=r"count is 3, but .* has 2 prompts; none is used twice"):
        load(target, file, count=3)


def test_a_prompt_longer_than_the_context_is_named(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"id": "long", "prompt": "word " * 2000})
    with pytest.raises(ConfigError, match=r"prompt p/long: \d+ tokens and 8 new ones exceed the 256 positions of pico"):
        load(target, file, count=1)


def test_the_limit_that_the_message_names_is_one_that_fits(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"id": "long", "prompt": "word " * 2000})
    with pytest.raises(ConfigError, match=r"set prompts.max_prompt_tokens to at most 248, or"):
        load(target, file, count=1)
    assert len(load(target, file, count=1, max_prompt_tokens=248).prompts[0].ids) == 248
    with pytest.raises(ConfigError, match="exceed the 256"):
        load(target, file, count=1, max_prompt_tokens=249)


def test_a_long_prompt_may_be_left_out_for_another_one_and_is_counted(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "word " * 2000}, {"prompt": "a b c d e f"}, {"prompt": "short"})
    found = load(target, file, count=1, truncate="skip", max_prompt_tokens=4)
    assert [prompt.text for prompt in found.prompts] == ["short"]
    with pytest.raises(ConfigError, match=r"has 2 prompts; .* 1 prompts of p are left out: longer than"):
        load(target, file, count=3, truncate="skip")


def test_fragments_of_conversations_are_left_out_and_counted(target, tmp_path):
    answered = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]
    rows = [{"conversations": answered[:1]}, {"conversations": answered}, {"conversations": answered[1:]}]
    file = jsonl(tmp_path / "p.jsonl", *rows)
    assert [prompt.text for prompt in load(target, file, count=1).prompts] == ["Who?"]
    with pytest.raises(ConfigError, match=r"has 1 prompts; .* 2 prompts of p are left out: no question of a person"):
        load(target, file, count=2)


def test_later_turns_come_after_all_first_ones_and_wait_for_answers(target, tmp_path):
    rows = [{"id": 1, "turns": ["a", "b", "c"]}, {"id": 2, "turns": ["d"]}, {"id": 3, "turns": ["e", "f"]}]
    found = load(target, jsonl(tmp_path / "p.jsonl", *rows), count=3, ids=("p/1", "p/2", "p/3"), turns=2)
    assert [(p.id, p.turn, p.text, bool(p.ids)) for p in found.prompts] == [
        ("p/1", 1, "a", True), ("p/2", 1, "d", True), ("p/3", 1, "e", True),
        ("p/1/turn2", 2, "b", False), ("p/3/turn2", 2, "f", False),
    ]  # fmt: skip
    assert len({p.key for p in found.prompts}) == 5


def test_the_hash_of_a_conversation_knows_its_later_turns_before_they_have_tokens(target, tmp_path):
    def sha(*turns, count=2):
        return load(target, jsonl(tmp_path / "p.jsonl", {"turns": turns}), count=1, turns=count).sha

    assert len({sha("a", "b"), sha("a", "c"), sha("a", "b", count=1)}) == 3
    assert sha("a", "b", count=1) == sha("a", "c", count=1)


def test_a_conversation_must_have_room_for_every_answer(target, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"turns": ["word " * 60, "word " * 10]})
    settings = PromptSettings(source=str(file), count=1)
    one, two = (
        len(load_prompts(settings, target, max_new_tokens=8, turns=1).prompts[0].ids),
        len(target.tokenizer("\n\n" + "word " * 10 + "\n\n")["input_ids"]),
    )
    answer = (256 - one - two) // 2
    load_prompts(settings, target, max_new_tokens=answer, turns=2)
    with pytest.raises(ConfigError, match="of answers and later turns exceed the 256 positions"):
        load_prompts(settings, target, max_new_tokens=answer + 1, turns=2)


def test_the_hash_is_that_of_the_ids(target):
    found = load(target, "stdlib", count=2, max_prompt_tokens=20)
    assert found.sha == prompts_sha(found.prompts) != prompts_sha(found.prompts[::-1])


def test_modules_that_differ_here_are_named_only_where_they_were_needed(target, monkeypatch):
    from specbench.bench import prompt_sources

    whole = prompt_sources._stdlib_texts(20)
    lacking = type(whole)(whole.prompts, whole.unchanged, {"heapq.py": "its source differs in this Python"})
    monkeypatch.setattr(prompt_sources, "_stdlib_texts", lambda most: lacking)
    assert load(target, "stdlib", count=24, max_prompt_tokens=20).skipped == {}
    more = load(target, "stdlib", count=whole.unchanged + 1, max_prompt_tokens=20)
    assert more.skipped == {"heapq.py": "its source differs in this Python"}


def test_a_warm_up_prompt_is_as_long_as_a_measured_one_and_another():
    assert warm_up_ids([1, 2, 3, 4]) == [1, 4, 3, 2]
