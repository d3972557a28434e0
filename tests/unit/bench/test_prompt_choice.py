"""specbench.bench.prompt_choice"""

from collections import Counter

import pytest

from specbench.bench.prompt_choice import in_order
from specbench.bench.prompt_sources import PromptTable
from specbench.config import PromptSettings
from specbench.errors import ConfigError


def table(*categories, preferred=0, skipped=None):
    ids = [f"q{row}" for row in range(len(categories))]
    return PromptTable("t", ids, categories, lambda row: None, preferred, skipped or {})


def order(found, **options):
    return in_order(found, PromptSettings(source="stdlib", **options))


# As Spec-Bench is: eight categories of ten, then five of eighty.
UNEVEN = [f"small{i // 10}" for i in range(80)] + [f"large{i // 80}" for i in range(400)]


def test_every_category_gives_as_many_as_every_other():
    taken = order(table(*UNEVEN))[:26]
    assert set(Counter(UNEVEN[row] for row in taken).values()) == {2}
    assert len(Counter(UNEVEN[row] for row in taken)) == 13


def test_a_category_that_has_no_more_leaves_its_turn_to_the_others():
    found = Counter(UNEVEN[row] for row in order(table(*UNEVEN))[:200])
    assert {found[f"small{i}"] for i in range(8)} == {10}
    assert {found[f"large{i}"] for i in range(5)} == {24}


def test_every_prompt_comes_once():
    assert sorted(order(table(*UNEVEN))) == list(range(480))


def test_another_seed_draws_other_prompts_and_the_same_seed_the_same():
    found = table(*UNEVEN)
    assert order(found, seed=1)[:13] != order(found, seed=2)[:13]
    assert order(found, seed=1) == order(found, seed=1)


def test_prompts_without_categories_are_drawn_from_everywhere():
    taken = order(table(*[None] * 1000))[:20]
    assert max(taken) > 500
    assert min(taken) < 500


def test_preferred_prompts_come_before_all_others():
    assert sorted(order(table(*"abcabc", preferred=3))[:3]) == [0, 1, 2]


def test_only_the_categories_that_are_named_are_taken():
    assert sorted(order(table(*"abcabc"), categories=("a", "c"))) == [0, 2, 3, 5]


def test_prompts_that_are_named_come_in_that_order_and_alone():
    assert order(table(*"abcabc"), ids=("q4", "q0")) == [4, 0]


def test_a_prompt_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"prompts\.ids: t has no prompt 'q77'; the nearest is 'q7'"):
        order(table(*[None] * 9), ids=("q1", "q77"))


def test_a_prompt_of_a_module_that_differs_says_so():
    found = table("a", skipped={"heapq.py": "its source differs in this Python"})
    with pytest.raises(ConfigError, match=r"'stdlib/heapq.py:1:f'; heapq.py: its source differs in this Python"):
        order(found, ids=("stdlib/heapq.py:1:f",))


def test_a_category_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"t has no category 'maths'\. Did you mean 'math'\?"):
        order(table("math", "qa"), categories=("maths",))
    with pytest.raises(ConfigError, match=r"Its prompts have no categories\."):
        order(table(None), categories=("maths",))
