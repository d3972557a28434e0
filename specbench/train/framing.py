"""How a conversation stands as text before one model: what is around its answers, and where each of them is.

With the tokenizer's chat template that is the template's own text. Without one it is a frame: plain, Vicuna's, or a
text with ``{prompt}`` in it as an experiment's ``prompts.template`` has.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from specbench.errors import ConfigError, UnknownNameError, did_you_mean
from specbench.models.chat import Span, marks_what_is_generated, rendered, rendered_with_spans
from specbench.train.conversations import Conversation, Exchange, Unusable

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
"""What Vicuna v1.1 is told beforehand."""

_MARK = "\ue000"  # in no text, and nothing that a template would trim
_PLACE = "{prompt}"


class Framed(NamedTuple):
    """A conversation as text; ``spans`` are the characters of its answers, each with the token that ends its turn."""

    text: str
    spans: list[Span]


class Framing(ABC):
    """Around conversations, for one tokenizer.

    Attributes:
        tokenizer: The target's.
        what: What stands around an answer, in words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, what: str, *, adds_special_tokens: bool) -> None:
        self.tokenizer, self.what = tokenizer, what
        self._adds_special_tokens = adds_special_tokens

    @abstractmethod
    def framed(self, conversation: Conversation) -> Framed:
        """A conversation whose every question is answered.

        Raises:
            Unusable: Its text cannot be made, or does not show an answer.
        """

    @abstractmethod
    def asked(self, conversation: Conversation) -> str:
        """A conversation up to its last question, and what opens the answer.

        Raises:
            Unusable: Its text cannot be made.
        """

    def encode(self, texts: list[str], **options: Any) -> Any:
        """Texts of this framing to ids; none is given a second begin-of-text token."""
        return self.tokenizer(texts, add_special_tokens=self._adds_special_tokens, verbose=False, **options)


def framing_for(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Framing:
    """The framing of one tokenizer.

    Args:
        tokenizer: The target's.
        template: ``chat`` for the tokenizer's own, ``vicuna``, ``plain``, or a text with ``{prompt}`` where a question
            goes. None is ``chat`` where there is a chat template, else ``plain``.
        template_kwargs: Handed to the chat template.

    Raises:
        UnknownNameError: There is no such framing.
        ConfigError: The chat template is asked for, and there is none.
    """
    has_one = tokenizer.chat_template is not None
    name = template or ("chat" if has_one else "plain")
    if name == "chat":
        if not has_one:
            raise ConfigError(f"template chat: the tokenizer {tokenizer.name_or_path} has no chat template")
        return _Chat(tokenizer, dict(template_kwargs or {}))
    end = tokenizer.eos_token or ""
    frames = {
        "plain": _Frame(f"{_PLACE}\n\n", f"\n\n{_PLACE}\n\n", end=end),
        "vicuna": _Frame(f"USER: {_PLACE} ASSISTANT:", turn_end=end, gap=" ", system=VICUNA),
    }
    if name in frames:
        return _Framed(tokenizer, f"the frame {name}", frames[name])
    if name.count(_PLACE) != 1:
        known = did_you_mean(name, ["chat", *frames])
        raise UnknownNameError(f"unknown template {name!r}. {known} A text of your own holds {_PLACE} once.")
    gap = "" if name[-1].isspace() else " "
    return _Framed(tokenizer, f"the frame {name!r}", _Frame(name, turn_end=end, gap=gap))


@dataclass(frozen=True)
class _Frame:
    """A frame of plain text.

    Attributes:
        first: Around the first question.
        later: Around each later one; None is as ``first``.
        gap: Between what opens an answer and the answer, which the model writes itself.
        turn_end: What ends every answer.
        end: What ends the last one.
        system: What stands first where the conversation has nothing of its own; None is nothing at all.
    """

    first: str
    later: str | None = None
    gap: str = ""
    turn_end: str = ""
    end: str = ""
    system: str | None = None


class _Framed(Framing):
    """In a frame of plain text; the tokenizer adds its special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, what: str, frame: _Frame) -> None:
        super().__init__(tokenizer, what, adds_special_tokens=True)
        self._frame = frame

    def framed(self, conversation: Conversation) -> Framed:
        frame, text, spans = self._frame, "", list[Span]()
        last = len(conversation.exchanges) - 1
        for turn, exchange in enumerate(conversation.exchanges):
            text += self._question(conversation, turn)
            ending = frame.turn_end + (frame.end if turn == last else "")
            answer = frame.gap + str(exchange.answer)
            spans.append((len(text), len(text) + len(answer) + len(ending) * exchange.ended))
            text += answer + ending
        return Framed(text, spans)

    def asked(self, conversation: Conversation) -> str:
        *before, _ = conversation.exchanges
        text = ""
        if before:
            text = self.framed(replace(conversation, exchanges=tuple(before))).text.removesuffix(self._frame.end)
        return text + self._question(conversation, len(before))

    def _question(self, conversation: Conversation, turn: int) -> str:
        frame, question = self._frame, conversation.exchanges[turn].question
        if turn:
            return (frame.later or frame.first).replace(_PLACE, question)
        system = conversation.system or frame.system
        if system is None:
            return frame.first.replace(_PLACE, question)
        if frame.system is None:
            return frame.first.replace(_PLACE, f"{system}\n\n{question}")
        return f"{system} {frame.first.replace(_PLACE, question)}"


class _Chat(Framing):
    """In the tokenizer's chat template, which writes its own special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]) -> None:
        super().__init__(tokenizer, "the target's chat template", adds_special_tokens=False)
        self._kwargs = template_kwargs
        self._marks = marks_what_is_generated(tokenizer)
        control = _control_tokens(tokenizer)
        self._ending = re.compile(rf"\s*(?:{control})")
        self._closing = re.compile(rf"\s*(?:{control})?\s*\Z")
        self._takes_system = self._has_a_place_for_system()

    def framed(self, conversation: Conversation) -> Framed:
        messages = self._messages(conversation)
        text, generated = self._rendered(messages)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(generated) != len(answers):
            generated = [self._place_of(index, messages, text) for index in answers]
        spans = [
            self._closed(text, span, exchange) for span, exchange in zip(generated, conversation.exchanges, strict=True)
        ]
        return Framed(text, spans)

    def asked(self, conversation: Conversation) -> str:
        return self._render(self._messages(conversation), add_generation_prompt=True)

    def _messages(self, conversation: Conversation) -> list[dict[str, str]]:
        messages = []
        for exchange in conversation.exchanges:
            messages.append({"role": "user", "content": exchange.question})
            if exchange.answer is not None:
                messages.append({"role": "assistant", "content": exchange.answer})
        system = conversation.system
        if system is not None and self._takes_system:
            return [{"role": "system", "content": system}, *messages]
        if system is not None:
            messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
        return messages

    def _has_a_place_for_system(self) -> bool:
        told = [{"role": "system", "content": _MARK}, {"role": "user", "content": "Hello."}]
        try:
            return _MARK in self._render(told, add_generation_prompt=True)
        except Unusable:
            return False

    def _rendered(self, messages: list[dict[str, str]]) -> Framed:
        """The text, and what its template marks as generated; nothing where it marks nothing."""
        if not self._marks:
            return Framed(self._render(messages, add_generation_prompt=False), [])
        try:
            return Framed(*rendered_with_spans(self.tokenizer, messages, self._name, **self._kwargs))
        except ConfigError as error:
            raise Unusable(str(error)) from error

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            return rendered(
                self.tokenizer, messages, self._name, add_generation_prompt=add_generation_prompt, **self._kwargs
            )
        except ConfigError as error:
            raise Unusable(str(error)) from error

    @property
    def _name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def _place_of(self, index: int, messages: list[dict[str, str]], text: str) -> Span:
        """From where the model begins to write, to where the text no longer changes with the answer."""
        marked = [*messages[:index], {**messages[index], "content": _MARK}, *messages[index + 1 :]]
        before, found, after = self._render(marked, add_generation_prompt=False).partition(_MARK)
        if not found:
            raise Unusable("an answer that the chat template does not show")
        start = common_length(text, before)
        asked = self._render(messages[:index], add_generation_prompt=True)
        if text.startswith(asked):  # not where a template writes an earlier turn otherwise than the last
            start = min(start, len(asked))
        return start, max(start, len(text) - common_length(text[::-1], after[::-1]))

    def _closed(self, text: str, span: Span, exchange: Exchange) -> Span:
        """The span of an answer, with the token that ends its turn and nothing behind that."""
        start, end = span
        if self._marks and text[start:end] != exchange.answer:  # a mark may reach to the end of the turn, or beyond
            closing = self._closing.search(text, start, end)
            end = end if closing is None else closing.start()
        ending = self._ending.match(text, end) if exchange.ended else None
        return start, end if ending is None else ending.end()


def common_length(text: str, other: str) -> int:
    """Characters with which both begin."""
    if text.startswith(other):
        return len(other)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    """A pattern of the tokens that no plain text is cut into."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    names = sorted((name for name in added | set(tokenizer.all_special_tokens) if name.strip()), key=len, reverse=True)
    return "|".join(map(re.escape, names)) or "(?!)"
