"""Chat templates of several families in a few lines each, tokenizers of several kinds, and conversations in which both
are easily lost."""

import copy
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specbench.models.zoo import ZOO
from specbench.train.conversations import Conversation, Exchange

CONTROL = ("<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<bos>", "<turn>", "</turn>")

_CHATML_TURN = "'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n'"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

TEMPLATES: dict[str, tuple[str, str]] = {
    # each with what ends a turn
    "chatml": ("{% for m in messages %}{{ " + _CHATML_TURN + " }}{% endfor %}" + _PROMPT, "<|im_end|>"),
    "marked": (  # with its author's word for what is generated
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{ " + _CHATML_TURN + " }}{% endif %}"
        "{% endfor %}" + _PROMPT,
        "<|im_end|>",
    ),
    "marked_long": (  # the mark reaches beyond the end of the turn
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
        "{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}{% else %}{{ " + _CHATML_TURN + " }}{% endif %}"
        "{% endfor %}" + _PROMPT,
        "<|im_end|>",
    ),
    "marked_short": (  # ... and not as far
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
        "{{ m.content }}{% endgeneration %}{{ '<|im_end|>\\n' }}{% else %}{{ " + _CHATML_TURN + " }}{% endif %}"
        "{% endfor %}" + _PROMPT,
        "<|im_end|>",
    ),
    "no_system": (  # a begin-of-text token first, trimmed contents, no room for a system message
        "{{ '<bos>' }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
        "{% endif %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim "
        "+ '</turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}",
        "</turn>",
    ),
    "closing": (  # ends otherwise after the last turn than after the others
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
    ),
    "last_user": (  # the system message stands before the last question
        "{{ '<bos>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.index0 >= "
        "messages | length - 2 and messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
        "{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}"
        "{% endfor %}",
        "<|endoftext|>",
    ),
    "thinking": (  # the last answer has room for thoughts, and the earlier ones lose theirs
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set words = m.content.split('</think>')[-1] %}"
        "{% set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}"
        "{{ '<|im_start|>assistant\\n' }}{% if loop.last %}{{ '<think>\\n' + thought.strip() + '\\n</think>\\n\\n' }}"
        "{% endif %}{{ words.strip() + '<|im_end|>\\n' }}{% else %}{{ "
        + _CHATML_TURN
        + " }}{% endif %}{% endfor %}"
        + _PROMPT,
        "<|im_end|>",
    ),
}


def _talk(*pairs: tuple[str, str], system: str | None = None) -> Conversation:
    return Conversation(tuple(Exchange(question, answer) for question, answer in pairs), system)


TALKS: dict[str, Conversation] = {
    "short": _talk(("Why?", "Because.")),
    "several": _talk(("Hi", "Hello there!"), ("And now?", "def f(x):\n    return x\n\nThat is all."), ("Ok", "Bye")),
    "system": _talk(("One?", "1"), ("Two?", "2"), system="Answer in digits."),
    "unicode": _talk(("Grüße 👋", "👋🏽 Grüße, naïve Welt — 日本語です"), ("é?", "é́ ﬁ ① \u200d")),
    "repeats": _talk(("yes", "yes"), ("yes", "yes"), ("no", "yes")),
    "blanks": _talk(("a", "x  y\n\n\n z\t."), ("b", "- one\n- two")),
    "one_letter": _talk(("a", "b"), ("c", "d")),
}
"""Conversations by what is hard about them."""


@cache
def _embedded() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ZOO / "pico")


@cache
def _words() -> PreTrainedTokenizerFast:
    """As Llama's: words with a mark in front, bytes for what is unknown, a begin-of-text token before every text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = [
        f"{one.question} {one.answer}" for talk in TALKS.values() for one in talk.exchanges if one.answer.isascii()
    ]
    names = ["<unk>", "<bos>", "<|endoftext|>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokenizer.train_from_iterator(
        texts * 3, trainers.BpeTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _without_blanks() -> PreTrainedTokenizerFast:
    """Leaves the blank in front of a word out of the word's characters."""
    backend = Tokenizer.from_str(_embedded().backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


_KINDS = {"bytes": _embedded, "words": _words, "without_blanks": _without_blanks}
TOKENIZERS = tuple(_KINDS)


@cache
def tokenizer(kind: str = "bytes", template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with the control tokens, and with the chat template of that name; the same object for all tests."""
    made = copy.deepcopy(_KINDS[kind]())
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL], special_tokens=True)
    made.chat_template = None if template is None else TEMPLATES[template][0]
    return made
