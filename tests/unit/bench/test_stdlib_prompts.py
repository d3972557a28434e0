"""specbench.bench.stdlib_prompts"""

import ast
import hashlib
import re
import textwrap

import pytest

from specbench.bench import stdlib_prompts
from specbench.bench.prompt_choice import in_order
from specbench.bench.prompt_sources import read_table
from specbench.bench.stdlib_prompts import stdlib_texts
from specbench.config import PromptSettings
from specbench.models.corpus import HELD_OUT, UNCHANGED, HeldOut, Module

# The texts of the first prompts, cut to 128 tokens: the same under every Python from 3.11 to 3.14.
PINNED = {8: "144ed23d4c83", 16: "f9c29493476e", 24: "989ef7bac99d", 32: "3c183aba8589", 180: "c5a3e4bb0377"}

SOURCE = '''\
import os


def first(a, b={1: 2},
          c=None):
    # a comment of the body
    x = a
    y = b
    return x, y, c


class Box:
    def second(self) -> dict[str, int]:
        """Say what it does.

        At length.
        """
        one = 1
        two = 2
        return {"a": one + two}

    def short(self):
        return 1
'''


def prompts_of(monkeypatch, text):
    monkeypatch.setattr(stdlib_prompts, "held_out_modules", lambda root: HeldOut([Module("m.py", text)], {}))
    return {prompt.name: prompt.text for prompt in stdlib_texts(1000).prompts}


def test_a_prompt_ends_with_the_signature_or_with_the_docstring(monkeypatch):
    prompts = prompts_of(monkeypatch, SOURCE)
    assert prompts["m.py:4:first"].endswith("          c=None):\n")
    assert prompts["m.py:13:second"].endswith('        At length.\n        """\n')


def test_a_function_without_much_of_a_body_makes_no_prompt(monkeypatch):
    assert "m.py:21:short" not in prompts_of(monkeypatch, SOURCE)


def test_a_bracket_of_its_own_line_still_ends_the_signature(monkeypatch):
    text = "def f(\n    a,\n    b,\n):\n    x = a\n    y = b\n    return x\n"
    assert prompts_of(monkeypatch, text)["m.py:1:f"] == "def f(\n    a,\n    b,\n):\n"


def first(count, **options):
    """The prompts that an experiment gets."""
    settings = PromptSettings(source="stdlib", max_prompt_tokens=128, count=count, **options)
    table = read_table(settings)
    return [table.question(row) for row in in_order(table, settings)[:count]]


def digest(questions):
    texts = "\n".join(f"{question.id}\n{question.content.turns[0]}" for question in questions)
    return hashlib.sha256(texts.encode()).hexdigest()[:12]


@pytest.mark.parametrize("count", PINNED)
def test_two_users_with_different_pythons_get_the_same_prompts(count):
    assert digest(first(count)) == PINNED[count]


def test_the_first_prompts_come_from_modules_that_no_release_has_changed():
    assert {question.category for question in first(8)} == set(UNCHANGED)
    assert {question.category for question in first(180)} == set(UNCHANGED)
    assert set(UNCHANGED) < set(HELD_OUT)


def test_every_function_is_a_prompt_of_its_own_name():
    names = [prompt.name for prompt in stdlib_texts(64).prompts]
    assert len(set(names)) == len(names)


def test_the_list_is_the_same_every_time():
    assert stdlib_texts(64) == stdlib_texts(64)


def test_prompts_stop_where_a_body_would_begin():
    """With a body added, the last function of every prompt parses; a cut inside a signature would not."""
    for prompt in stdlib_texts(1000).prompts[::7]:
        name = prompt.name.rpartition(":")[2]
        start = [found.start() for found in re.finditer(rf"^ *(async )?def {name}\b", prompt.text, re.MULTILINE)][-1]
        head = prompt.text[start:].rstrip()
        ast.parse(textwrap.dedent(head + ("\n" + " " * 40 + "pass" if head.endswith(":") else "")))


def test_a_module_that_differs_is_named_with_the_reason(tmp_path):
    found = stdlib_texts(64, root=tmp_path)
    assert found.prompts == []
    assert set(found.skipped.values()) == {"missing in this Python"}
