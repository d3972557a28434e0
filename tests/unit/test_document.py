"""specbench.document"""

import pytest

from specbench.document import override, parse
from specbench.errors import ConfigError


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "bad.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_a_scalar_is_read_by_the_rules_of_yaml_1_2(scalar, value):
    read = parse(f"x: {scalar}", "a.yaml").values["x"]
    assert (read, type(read)) == (value, type(value))


def test_every_value_knows_its_line():
    lines = parse("a: 1\nb:\n  - x\n  - c: 2\n", "a.yaml").lines
    assert (lines[("a",)], lines[("b", 0)], lines[("b", 1, "c")]) == (1, 3, 4)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "bad.yaml: the file is empty. An experiment needs name, targets and prompts."),
        ("# only words\n", "bad.yaml: the file is empty. An experiment needs name, targets and prompts."),
        ("- a\n- b\n", 'bad.yaml:1: an experiment is a mapping of keys, got ["a", "b"].'),
        ("just words", "bad.yaml:1: an experiment is a mapping of keys, got 'just words'."),
        ("a: 1\nb: 2\na: 3\n", "bad.yaml:3: a: the key is given twice, first on line 1."),
        ("a: {b: 1, b: 2}\n", "bad.yaml:1: a.b: the key is given twice, first on line 1."),
        (
            "a: 1\nb: !!python/object/apply:os.abort []\n",
            "bad.yaml:2: b: the tag !!python/object/apply:os.abort would build an object; "
            "only plain values are allowed.",
        ),
        ("a: !mine 3\n", "bad.yaml:1: a: the tag !mine would build an object; only plain values are allowed."),
        ("a: !!int x\n", "bad.yaml:1: a: the value does not fit its tag, got 'x'."),
        ("a: &a [*a]\n", "bad.yaml:1: a.0: an alias that contains itself."),
        ("? [a, b]\n: 1\n", "bad.yaml:1: ?: a key must be one word."),
    ],
)
def test_a_file_that_is_no_experiment_gives_one_clear_line(text, line):
    assert faults(text) == [line]


@pytest.mark.parametrize("text", ["a: [1, 2", "a:\n\t- 1\n", "a: 'x", "a: 1\n---\nb: 2\n", "a: \x01", "[" * 5000])
def test_broken_yaml_gives_one_line_that_names_the_file(text):
    [line] = faults(text)
    assert line.startswith("bad.yaml")
    assert "not valid YAML" in line


def test_an_alias_bomb_is_refused():
    bomb = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    [line] = faults(bomb)
    assert line.endswith("the file has more than 100000 values.")


def test_all_faults_are_reported_in_the_order_of_the_file():
    assert faults("a: !x 1\nb: 2\nb: 3\nc: !y 4\n") == [
        "bad.yaml:1: a: the tag !x would build an object; only plain values are allowed.",
        "bad.yaml:3: b: the key is given twice, first on line 2.",
        "bad.yaml:4: c: the tag !y would build an object; only plain values are allowed.",
    ]


@pytest.mark.parametrize(
    ("assignment", "values"),
    [
        ("a.b=3", {"a": {"b": 3}, "c": [1, {"d": 2}], "e": None}),
        ("a.n=[1, 1e-1]", {"a": {"b": 1, "n": [1, 0.1]}, "c": [1, {"d": 2}], "e": None}),
        ("c.1.d=x=y", {"a": {"b": 1}, "c": [1, {"d": "x=y"}], "e": None}),
        ("e.f=", {"a": {"b": 1}, "c": [1, {"d": 2}], "e": {"f": None}}),
    ],
)
def test_an_override_replaces_one_value(assignment, values):
    document = parse("a: {b: 1}\nc: [1, {d: 2}]\ne:\n", "a.yaml")
    override(document, assignment)
    assert document.values == values


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("a.b", "--set a.b: write it as section.key=value, like decode.batch_size=8."),
        ("a..b=1", "--set a..b=1: write it as section.key=value, like decode.batch_size=8."),
        ("a.b.c=1", "--set a.b.c: 'c' leads into a value that has no keys, got 1."),
        ("c.2=1", "--set c.2: the list has the entries 0 to 1, got '2'."),
        ("c.x=1", "--set c.x: the list has the entries 0 to 1, got 'x'."),
        ("a.b={x: 1, x: 2}", "--set a.b: x: the key is given twice, first on line 1."),
    ],
)
def test_an_override_that_leads_nowhere_says_where_it_stopped(assignment, line):
    document = parse("a: {b: 1}\nc: [1, 2]\n", "a.yaml")
    with pytest.raises(ConfigError) as caught:
        override(document, assignment)
    assert str(caught.value) == line


def test_an_override_that_is_no_yaml_gives_one_line():
    with pytest.raises(ConfigError, match=r"^--set a: not valid YAML: [^\n]*\.$"):
        override(parse("a: 1", "a.yaml"), "a=[1")
