"""specbench.bench.prompt_encoding"""

import copy

import pytest

from specbench.bench.prompt_encoding import Answer, Encoder
from specbench.bench.prompt_formats import Content
from specbench.config import PromptSettings
from specbench.errors import ConfigError
from tests.unit.models import tiny

# As Llama 2's: it writes the begin-of-text token itself, one a turn, and refuses what it does not know.
CHAT = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "{% if m.role == 'user' %}<|bos|>[Q]{{ m.content }}[/Q]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if shout %}!{% endif %}"
)


class Target:
    """What an encoder asks of a target: its name, its context and its tokenizer."""

    name, max_positions = "tiny", 256

    def __init__(self, chat=None):
        self.tokenizer = copy.deepcopy(tiny.tokenizer())
        self.tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
        self.tokenizer.chat_template = chat

    def text(self, ids):
        return self.tokenizer.decode(ids)


class WithBos(Target):
    """Its tokenizer writes a begin-of-text token before every text, as Llama's does."""

    def __init__(self, chat=None):
        super().__init__(chat)
        plain, bos = self.tokenizer, self.tokenizer.bos_token_id

        class Tokenizer:
            bos_token_id, eos_token_id, chat_template = bos, plain.eos_token_id, chat

            def __call__(self, text, add_special_tokens=True, verbose=True):
                ids = plain(text, add_special_tokens=False)["input_ids"]
                return {"input_ids": [bos] * add_special_tokens + ids}

            apply_chat_template, decode = plain.apply_chat_template, plain.decode

        self.tokenizer = Tokenizer()


def ids(target, content, answers=(), kwargs=None, **options):
    if isinstance(content, str):
        content = Content((content,))
    settings = PromptSettings(**{"source": "p.txt"} | options)
    return Encoder(settings, target, kwargs or {}).ids(content, answers)


def answer(target, text):
    return Answer(target.tokenizer(text, add_special_tokens=False)["input_ids"], text)


def test_a_plain_prompt_is_what_the_tokenizer_makes_of_it():
    target = Target()
    assert ids(target, "def f(x):") == target.tokenizer("def f(x):")["input_ids"]


def test_a_template_stands_around_the_prompt():
    target = Target()
    assert target.text(ids(target, "why?", template="USER: {prompt} BOT:")) == "USER: why? BOT:"


def test_a_chat_template_writes_its_own_begin_token_and_gets_no_second_one():
    target = WithBos(CHAT)
    found = ids(target, "why?", chat_template=True)
    assert target.text(found) == "<|bos|>[Q]why?[/Q]"
    assert found.count(target.tokenizer.bos_token_id) == 1


def test_two_begin_tokens_are_refused():
    with pytest.raises(ConfigError, match="it begins with two begin-of-text tokens"):
        ids(WithBos(), "<|bos|>why?")


def test_a_begin_token_inside_a_prompt_is_refused():
    with pytest.raises(ConfigError, match="it has 2 begin-of-text tokens for 1 turns"):
        ids(WithBos(), "why <|bos|> not?")


def test_the_chat_template_gets_the_options_of_the_experiment():
    target = Target(CHAT)
    assert target.text(ids(target, "why?", kwargs={"shout": True}, chat_template=True)).endswith("!")


def test_a_target_that_has_a_chat_template_is_asked_in_it_unless_told_otherwise():
    asked = ids(Target(CHAT), "why?", chat_template=True)
    assert ids(Target(CHAT), "why?") == asked
    assert ids(Target(CHAT), "why?", chat_template=False) != asked
    assert ids(Target(CHAT), "why?", template="{prompt}") != asked
    assert ids(Target(CHAT), "why?", source="stdlib") != asked


def test_a_chat_template_that_fails_is_one_line():
    with pytest.raises(ConfigError, match=r"^the chat template of tiny fails: no system message here$"):
        ids(Target(CHAT), Content(("why?",), "be brief"), chat_template=True)


def test_a_chat_template_must_exist_to_be_used():
    with pytest.raises(ConfigError, match="the tokenizer of tiny has no chat template"):
        ids(Target(), "why?", chat_template=True)


def test_without_a_chat_template_a_system_message_stands_above_the_first_turn():
    target = Target()
    assert target.text(ids(target, Content(("why?",), "be brief"))) == "be brief\n\nwhy?"


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-7, None)), ("right", slice(None, 7))])
def test_a_plain_prompt_is_cut_on_the_side_that_is_asked_for(side, kept):
    target = Target()
    whole = ids(target, "def f(x): return x + x + x + x")
    assert ids(target, "def f(x): return x + x + x + x", max_prompt_tokens=7, truncate=side) == whole[kept]


@pytest.mark.parametrize("side", ["left", "right"])
def test_cutting_keeps_the_begin_token(side):
    target = WithBos()
    found = ids(target, "def f(x): return x + x", max_prompt_tokens=4, truncate=side)
    assert (len(found), found.count(target.tokenizer.bos_token_id), found[0]) == (4, 1, target.tokenizer.bos_token_id)


@pytest.mark.parametrize("options", [{"chat_template": True}, {"template": "<|bos|>[Q]{prompt}[/Q]"}])
@pytest.mark.parametrize(("side", "part"), [("left", "end."), ("right", "begin")])
def test_what_stands_around_a_prompt_stays_whole_when_it_is_cut(options, side, part):
    target = Target(CHAT)
    found = ids(target, "begin " + "and on " * 40 + "end.", max_prompt_tokens=40, truncate=side, **options)
    text = target.text(found)
    assert text.startswith("<|bos|>[Q]")
    assert text.endswith("[/Q]")
    assert part in text
    assert 30 <= len(found) <= 40


def test_a_template_longer_than_the_limit_is_refused():
    with pytest.raises(ConfigError, match="its template alone is longer than the 3 of"):
        ids(Target(CHAT), "why? " * 20, max_prompt_tokens=3, chat_template=True)


def test_a_later_turn_is_rendered_behind_the_answers_by_the_chat_template():
    target = WithBos(CHAT)
    content = Content(("why?", "and then?", "no"))
    found = ids(target, content, [answer(target, "so.")], chat_template=True)
    eos = target.tokenizer.decode([target.tokenizer.eos_token_id])
    assert target.text(found) == f"<|bos|>[Q]why?[/Q]so.{eos}<|bos|>[Q]and then?[/Q]"


def test_without_a_chat_template_the_answer_is_kept_token_for_token():
    target = Target()
    given = answer(target, " so.")
    given = Answer([given.ids[0], *given.ids], "not what its tokens say")
    first = ids(target, "why?")
    found = ids(target, Content(("why?", "and then?")), [given])
    assert found[: len(first) + len(given.ids)] == first + given.ids
    assert target.text(found[len(first) + len(given.ids) :]) == "\n\nand then?\n\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"template": "U: {prompt} B:"}, "U: why? B: so.U: and? B: yes.U: no B:"),
        (
            {"template": "Hi. U: {prompt} B:", "next_template": "|U: {prompt} B:"},
            "Hi. U: why? B: so.|U: and? B: yes.|U: no B:",
        ),
    ],
)
def test_templates_join_the_turns_of_a_conversation(options, text):
    target = Target()
    answers = [answer(target, " so."), answer(target, " yes.")]
    assert target.text(ids(target, Content(("why?", "and?", "no")), answers, **options)) == text


def test_only_the_first_turn_is_cut():
    target = Target()
    content = Content(("why? " * 50, "and then? " * 5))
    first = ids(target, content, max_prompt_tokens=9)
    both = ids(target, content, [answer(target, "so.")], max_prompt_tokens=9)
    assert (len(first), both[:9]) == (9, first)
    assert target.text(both[9:]) == "so.\n\n" + "and then? " * 5 + "\n\n"
