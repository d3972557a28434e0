"""specbench.train.framing"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from specbench.errors import ConfigError, UnknownNameError
from specbench.train.conversations import Conversation, Exchange, Unusable
from specbench.train.framing import VICUNA, framing_for
from tests.unit.train.talks import TALKS, TEMPLATES, tokenizer

FRAMES = ("plain", "vicuna", "Q: {prompt}\nA: ")
WRITTEN_AS_ASKED = [name for name in TEMPLATES if name not in {"last_user", "thinking"}]
"""Templates that write an earlier turn just as they write the last."""


def answers(conversation):
    return [exchange.answer for exchange in conversation.exchanges]


def messages(conversation):
    pairs = [(one.question, one.answer) for one in conversation.exchanges]
    told = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
    turns = [(("user", question), ("assistant", answer)) for question, answer in pairs]
    return told + [{"role": who, "content": text} for turn in turns for who, text in turn]


def in_characters(framed):
    return [framed.text[start:end] for start, end in framed.spans]


@pytest.mark.parametrize("conversation", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_spans_hold_the_answers_and_what_ends_their_turns(template, conversation):
    found = in_characters(framing_for(tokenizer(template=template)).framed(conversation))
    wanted = [answer + TEMPLATES[template][1] for answer in answers(conversation)]
    if template == "thinking":  # at the end of a text the model thinks first
        wanted[-1] = f"<think>\n\n</think>\n\n{wanted[-1]}"
    # a template may leave the blank after its own last word to the model
    assert [text.removeprefix(" ") for text in found] == wanted


@pytest.mark.parametrize("conversation", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("template", WRITTEN_AS_ASKED)
@pytest.mark.parametrize("kind", ["bytes", "without_blanks"])
def test_before_a_span_stands_what_transformers_asks_the_model_with(kind, template, conversation):
    chat = tokenizer(kind, template)
    framed = framing_for(chat).framed(conversation)
    said = messages(conversation)
    if template == "no_system" and conversation.system is not None:
        said = [{"role": "user", "content": f"{conversation.system}\n\n{said[1]['content']}"}, *said[2:]]
    turns = [index for index, message in enumerate(said) if message["role"] == "assistant"]
    for turn, (start, _) in zip(turns, framed.spans, strict=True):
        asked = chat.apply_chat_template(said[:turn], add_generation_prompt=True)["input_ids"]
        assert chat(framed.text[:start], add_special_tokens=False)["input_ids"] == asked


@pytest.mark.parametrize("conversation", TALKS.values(), ids=TALKS)
def test_marks_of_the_template_mean_what_transformers_takes_them_for(conversation):
    chat = tokenizer(template="marked")
    framing = framing_for(chat)
    framed = framing.framed(conversation)
    theirs = chat.apply_chat_template(messages(conversation), return_assistant_tokens_mask=True, return_dict=True)
    ours = framing.encode([framed.text])
    assert ours["input_ids"][0] == theirs["input_ids"]
    mask = np.zeros(len(theirs["input_ids"]), dtype=int)
    for start, end in framed.spans:
        mask[ours.char_to_token(0, start) : ours.char_to_token(0, end - 1) + 1] = 1
    assert mask.tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize("template", ["chatml", "marked", "marked_short", "marked_long", "closing", "no_system"])
def test_an_answer_may_quote_the_template(template):
    end = TEMPLATES[template][1]
    quotes = [f"{end} ends it, and {end}\n<|im_start|>user\nanother one {end} begins", f"It ends with {end}", end]
    conversation = Conversation(tuple(Exchange(f"{end} what?", quote) for quote in quotes))
    found = in_characters(framing_for(tokenizer(template=template)).framed(conversation))
    assert found == [quote + end for quote in quotes]


def test_thoughts_belong_to_the_answer():
    thoughtful = "<think>\nHm.\n</think>\n\nBecause."
    conversation = Conversation((Exchange("Why?", thoughtful), Exchange("Sure?", thoughtful)))
    found = in_characters(framing_for(tokenizer(template="thinking")).framed(conversation))
    assert found == ["Because.<|im_end|>", f"{thoughtful}<|im_end|>"]


@pytest.mark.parametrize("template", [*TEMPLATES, *FRAMES])
def test_of_an_answer_that_was_cut_no_end_is_learned(template):
    name, of = (template, None) if template in FRAMES else ("chat", template)
    framing = framing_for(tokenizer(template=of), name)
    first, second, last = (replace(one, ended=False) for one in TALKS["several"].exchanges)
    found = in_characters(framing.framed(Conversation((first, replace(second, ended=True), last))))
    assert found[0].removeprefix(" ") == first.answer
    assert found[2].endswith(last.answer)
    assert found[1].endswith("That is all.") == (template == "plain")


def test_an_empty_answer_is_its_end_alone():
    conversation = Conversation((Exchange("Say nothing.", ""), Exchange("Thanks.", "b")))
    assert in_characters(framing_for(tokenizer(template="chatml")).framed(conversation)) == [
        "<|im_end|>",
        "b<|im_end|>",
    ]


def test_a_system_message_that_has_no_place_stands_before_the_first_question():
    framed = framing_for(tokenizer(template="no_system")).framed(TALKS["system"])
    assert framed.text.startswith("<bos><turn>user\nAnswer in digits.\n\nOne?</turn>\n<turn>model\n1</turn>\n")


def test_a_template_that_fails_or_hides_an_answer_costs_the_conversation_alone():
    chat = copy.deepcopy(tokenizer())
    chat.chat_template = (
        "{% for m in messages %}{% if m.content == 'a' %}{{ raise_exception('no a') }}{% endif %}"
        "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}"
    )
    framing = framing_for(chat)
    assert in_characters(framing.framed(TALKS["short"])) == ["Because."]
    with pytest.raises(Unusable, match=r"^the chat template of .* fails: no a$"):
        framing.framed(TALKS["blanks"])
    with pytest.raises(Unusable, match=r"^an answer that the chat template does not show$"):
        framing.framed(TALKS["system"])


def test_a_template_may_write_the_beginning_by_what_comes_later():
    chat = copy.deepcopy(tokenizer())
    chat.chat_template = "{{ '-' * (messages | length) }}" + TEMPLATES["chatml"][0]
    framed = framing_for(chat).framed(TALKS["repeats"])
    assert framed.text.startswith("------<|im_start|>")
    assert in_characters(framed) == ["yes<|im_end|>"] * 3


def test_options_of_a_chat_template_reach_it():
    chat = copy.deepcopy(tokenizer())
    chat.chat_template = "{{ mood }}" + TEMPLATES["chatml"][0]
    assert (
        framing_for(chat, template_kwargs={"mood": "kind"}).framed(TALKS["short"]).text.startswith("kind<|im_start|>")
    )


# --- without a chat template


def test_vicuna_is_asked_as_the_experiment_asks_it():
    experiment = yaml.safe_load((Path(__file__).parents[3] / "experiments" / "vicuna_grid.yaml").read_text("utf-8"))
    framing = framing_for(tokenizer(), "vicuna")
    asked = framing.asked(Conversation((Exchange("Who are you?"),)))
    assert asked == experiment["prompts"]["template"].strip().replace("{prompt}", "Who are you?")


def test_vicuna_closes_every_answer():
    framed = framing_for(tokenizer(), "vicuna").framed(TALKS["repeats"])
    end = "<|endoftext|>"
    turns = f" USER: yes ASSISTANT: yes{end}USER: yes ASSISTANT: yes{end}USER: no ASSISTANT: yes{end}"
    assert framed.text == VICUNA + turns
    assert in_characters(framed) == [f" yes{end}"] * 3


def test_a_conversation_tells_vicuna_something_else_beforehand():
    framed = framing_for(tokenizer(), "vicuna").framed(TALKS["system"])
    assert framed.text.startswith("Answer in digits. USER: One? ASSISTANT: 1")


def test_plain_turns_stand_between_blank_lines():
    framed = framing_for(tokenizer()).framed(TALKS["system"])
    assert framed.text == "Answer in digits.\n\nOne?\n\n1\n\nTwo?\n\n2<|endoftext|>"
    assert in_characters(framed) == ["1", "2<|endoftext|>"]


def test_a_frame_of_ones_own_is_around_every_question():
    framed = framing_for(tokenizer(), "Q: {prompt}\nA:").framed(TALKS["one_letter"])
    assert framed.text == "Q: a\nA: b<|endoftext|>Q: c\nA: d<|endoftext|>"
    assert in_characters(framed) == [" b<|endoftext|>", " d<|endoftext|>"]


@pytest.mark.parametrize("template", [*FRAMES, "chat"])
@pytest.mark.parametrize("conversation", TALKS.values(), ids=TALKS)
def test_what_is_asked_is_what_stands_before_the_answer(template, conversation):
    framing = framing_for(tokenizer(template="closing"), template)
    framed = framing.framed(conversation)
    for turn, (start, _) in enumerate(framed.spans):
        asked = (*conversation.exchanges[:turn], replace(conversation.exchanges[turn], answer=None))
        assert framing.asked(replace(conversation, exchanges=asked)) == framed.text[:start]


@pytest.mark.parametrize(("template", "times"), [("plain", 1), ("vicuna", 1), ("chat", 0)])
def test_only_a_frame_of_plain_text_gets_the_tokenizers_own_tokens(template, times):
    chat = tokenizer("words", "chatml")
    framing = framing_for(chat, template)
    [ids] = framing.encode([framing.framed(TALKS["short"]).text])["input_ids"]
    assert ids.count(chat.bos_token_id) == times


def test_a_template_that_is_none_is_one_line():
    with pytest.raises(
        UnknownNameError, match=r"^unknown template 'vicunia'\. Did you mean 'vicuna'\? .* \{prompt\} once"
    ):
        framing_for(tokenizer(), "vicunia")
    with pytest.raises(ConfigError, match=r"^template chat: the tokenizer .* has no chat template$"):
        framing_for(tokenizer(), "chat")
