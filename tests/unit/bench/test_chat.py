"""specbench.bench.chat"""

import io
import re
import sys
from contextlib import nullcontext

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from specbench.bench import chat as module
from specbench.bench import speaker
from specbench.bench.chat import COLOURS, TYPED, Listener, Terminal, begin
from specbench.errors import ConfigError
from tests.unit.bench import talk
from tests.unit.models import tiny

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
CODES = {"36": "cyan", "35": "magenta", "32": "green", "33": "yellow"}


def console(**options):
    return Console(file=io.StringIO(), width=80, **options)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """No garbage is collected, which takes longer than a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speaker, "no_garbage_collection", nullcontext)
        patch.setattr(module, "frozen_objects", nullcontext)
        yield


@pytest.fixture(scope="module")
def loaded(family):
    return begin(talk.plan(TYPED), family)


@pytest.fixture
def conversation(loaded):
    loaded.reset()
    loaded._count = 0
    return loaded


@pytest.fixture
def asked(conversation, monkeypatch):
    """The prompts that the speaker was given."""
    prompts = []
    real = conversation._speaker.answer

    def answer(given, *rest):
        prompts.extend(given)
        return real(given, *rest)

    monkeypatch.setattr(conversation._speaker, "answer", answer)
    return prompts


def say(conversation, text):
    hear = Listener(console(), conversation.source)
    conversation.say(text, hear)
    return [token for token in hear.tokens if token != tiny.tokenizer().eos_token_id]


def test_an_answer_is_what_transformers_writes(conversation):
    assert say(conversation, "import os") == talk.greedy(talk.ids_of("import os"))


def test_without_a_template_the_text_is_continued_behind_all_that_was_said(conversation, asked):
    first = say(conversation, "def f(x):")
    second = say(conversation, "class A:")
    third = say(conversation, "x = 1")
    ids = [*talk.ids_of("def f(x):"), *first, *talk.ids_of("\nclass A:")]
    assert asked[1].ids == ids
    assert second == talk.greedy(ids)
    assert asked[2].ids == [*ids, *second, *talk.ids_of("\nx = 1")]
    assert third == talk.greedy(asked[2].ids)
    assert second != talk.greedy(talk.ids_of("class A:"))  # else history would not show


def test_after_a_reset_nothing_is_remembered(conversation, asked):
    say(conversation, "def f(x):")
    conversation.reset()
    say(conversation, "class A:")
    assert asked[1].ids == talk.ids_of("class A:")


def test_with_a_chat_template_the_whole_conversation_is_rendered(tmp_path):
    zoo = tiny.zoo(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(zoo / "pico")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(zoo / "pico")
    conversation = begin(talk.plan(TYPED, "methods=[autoregressive]"), zoo)
    one = say(conversation, "hello")
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": talk.text_of(one)},
        {"role": "user", "content": "go on"},
    ]
    assert one == talk.greedy(talk.ids_of("<user>hello\n<bot>"))
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert say(conversation, "go on") == talk.greedy(talk.ids_of(rendered))
    assert "around each prompt: the target's chat template" in conversation.title


def test_a_template_of_the_plan_stands_around_each_prompt(family):
    conversation = begin(talk.plan(TYPED, 'prompts.template="# {prompt}:\\n"'), family)
    one = say(conversation, "sort")
    assert one == talk.greedy(talk.ids_of("# sort:\n"))
    assert say(conversation, "again") == talk.greedy([*talk.ids_of("# sort:\n"), *one, *talk.ids_of("# again:\n")])


def test_sampled_answers_differ_and_come_again_in_the_same_session(family):
    def session():
        conversation = begin(talk.plan(TYPED, temperature=1.0), family)
        answers = []
        for _ in range(2):
            answers.append(say(conversation, "import os"))
            conversation.reset()
        return answers

    first = session()
    assert first[0] != first[1]
    assert session() == first


def test_an_answer_ends_where_the_target_has_no_more_positions(conversation):
    text = "x = 1\n" * 200
    while len(talk.ids_of(text)) > tiny.CONTEXT - 4:
        text = text.removesuffix("x = 1\n")
    room = tiny.CONTEXT - len(talk.ids_of(text))
    hear = Listener(console(), conversation.source)
    conversation.say(text, hear)
    assert 4 <= len(hear.tokens) == room < 12
    with pytest.raises(ConfigError, match="fill the 256 positions of pico; /reset forgets what was said"):
        say(conversation, "y = 2")
    conversation.reset()
    assert say(conversation, "import os")


def test_a_stopped_answer_stays_in_the_conversation_and_the_next_one_follows_it(conversation, asked):
    class Impatient(Listener):
        def __call__(self, tokens, step):
            super().__call__(tokens, step)
            if step == 2:
                raise KeyboardInterrupt

    hear = Impatient(console(), conversation.source)
    assert conversation.say("def f(x):", hear) is None
    whole = talk.greedy(talk.ids_of("def f(x):"))
    assert 3 <= len(hear.tokens) < len(whole)
    assert hear.tokens == whole[: len(hear.tokens)]
    say(conversation, "class A:")
    assert asked[1].ids == [*talk.ids_of("def f(x):"), *hear.tokens, *talk.ids_of("\nclass A:")]


# --- what is seen


RUN = re.compile(r"\x1b\[(?P<code>\d+)m(?P<text>[^\x1b]*)\x1b\[0m|(?P<plain>[^\x1b]+)")


def coloured(text):
    """The text in runs of one colour each; None is no colour."""
    return [
        (CODES[found["code"]] if found["code"] else None, found["text"] or found["plain"])
        for found in RUN.finditer(text)
    ]


def test_the_tokens_of_a_step_have_one_colour_and_the_next_step_has_another(conversation):
    out = console(force_terminal=True, color_system="standard")
    hear = Listener(out, conversation.source)
    ids, start, expected = talk.ids_of("def f(x):\n\treturn [x, x + 1]  # né\n\nclass A:\n    pass\n"), 0, []
    for step, size in enumerate([1, 4, 1, 6, 2, 5, 3, 99]):
        hear(ids[start : start + size], step)
        expected.append((COLOURS[(step - 1) % len(COLOURS)] if step else None, talk.text_of(ids[start : start + size])))
        start += size
    assert coloured(out.file.getvalue()) == expected
    assert len(set(COLOURS)) == len(COLOURS) > 1
    assert hear.tokens == ids


def test_a_character_that_two_steps_share_has_the_colour_of_the_second(conversation):
    out = console(force_terminal=True, color_system="standard")
    hear = Listener(out, conversation.source)
    [*first, last] = talk.ids_of("ab🙂")
    hear(first, 1)
    hear([last], 2)
    assert coloured(out.file.getvalue()) == [(COLOURS[0], "ab"), (COLOURS[1], "🙂")]


class Keys(io.StringIO):
    """What somebody types at a terminal; None is Ctrl-C."""

    def __init__(self, *lines):
        super().__init__()
        self._lines = iter(lines)

    def isatty(self):
        return True

    def readline(self, *_):
        line = next(self._lines, "")
        if line is None:
            raise KeyboardInterrupt
        return line


def at_terminal(conversation, monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", Keys(*lines))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    out = console(soft_wrap=True)
    Terminal(out, conversation).run()
    return out.file.getvalue()


def test_below_an_answer_stands_what_it_cost(conversation, monkeypatch):
    seen = at_terminal(conversation, monkeypatch, "import os\n")
    counts = r"(\d+) tokens in (\d+) steps, ([\d.]+) tokens per step"
    found = re.search(rf"{counts}, [\d,.]+ tokens/s \(decode\), first token after [\d.]+ s", seen)
    tokens, steps, per_step = int(found[1]), int(found[2]), float(found[3])
    hear = Listener(console(), conversation.source)
    conversation.reset()
    row = conversation.say("import os", hear).trace.rows[0]
    assert (tokens, steps) == (len(row.output_ids), row.steps)
    assert per_step == pytest.approx((tokens - 1) / steps, abs=0.005)


def test_ctrl_c_at_the_prompt_ends_nothing_and_ctrl_d_ends_the_session(conversation, monkeypatch):
    seen = at_terminal(conversation, monkeypatch, None, "import os\n")
    assert seen.count(" tokens in ") == 1


def test_ctrl_c_in_an_answer_ends_the_answer_only(conversation, monkeypatch):
    real, calls = Listener.__call__, []

    def interrupted(self, tokens, step):
        real(self, tokens, step)
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Listener, "__call__", interrupted)
    seen = at_terminal(conversation, monkeypatch, "def f(x):\n", "import os\n")
    assert re.search(r"stopped: \d+ tokens in 2 steps", seen)
    assert seen.count("first token after") == 1


def test_commands_are_obeyed_and_not_answered(conversation, monkeypatch, asked):
    seen = at_terminal(conversation, monkeypatch, "one\n", "/reset\n", "/rest\n", " \n", "two\n", "/exit\n", "three\n")
    assert [prompt.ids for prompt in asked] == [talk.ids_of("one"), talk.ids_of("two")]
    assert "forgotten" in seen
    assert "unknown command /rest; there are /reset and /exit" in seen


def test_at_a_terminal_a_prompt_without_room_is_a_line_and_the_session_goes_on(conversation, monkeypatch):
    seen = at_terminal(conversation, monkeypatch, "x = 1 " * 400 + "\n", "import os\n")
    assert "error: " in seen
    assert "fill the 256 positions of pico" in seen
    assert seen.count("first token after") == 1


def test_the_title_says_who_speaks_and_how(conversation, monkeypatch):
    seen = at_terminal(conversation, monkeypatch)
    assert (
        "pico in float32 on cpu, draft_model (draft pico-wide, gamma 3), temperature 0, rule greedy; "
        "around each prompt: nothing" in seen
    )
