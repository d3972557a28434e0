"""specbench.bench.stdlib_prompts"""

import ast
import re
import textwrap
from itertools import islice

from specbench.bench import stdlib_prompts
from specbench.bench.stdlib_prompts import stdlib_texts
from specbench.models.corpus import HELD_OUT, HeldOut, Module

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


def test_the_first_prompts_come_from_different_modules():
    found = stdlib_texts(64)
    modules = [prompt.module for prompt in found.prompts[: len(HELD_OUT) - len(found.skipped)]]
    assert len(set(modules)) == len(modules)


def test_the_list_is_the_same_every_time():
    assert stdlib_texts(64) == stdlib_texts(64)


def test_prompts_stop_where_a_body_would_begin():
    """With a body added, the last function of every prompt parses; a cut inside a signature would not."""
    for prompt in islice(stdlib_texts(1000).prompts, 60):
        name = prompt.name.rpartition(":")[2]
        start = [found.start() for found in re.finditer(rf"^ *(async )?def {name}\b", prompt.text, re.MULTILINE)][-1]
        head = prompt.text[start:].rstrip()
        ast.parse(textwrap.dedent(head + ("\n" + " " * 40 + "pass" if head.endswith(":") else "")))


def test_a_module_that_differs_is_named_with_the_reason(tmp_path):
    found = stdlib_texts(64, root=tmp_path)
    assert found.prompts == []
    assert set(found.skipped.values()) == {"missing in this Python"}
