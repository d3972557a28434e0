"""Questions to token ids, all in the same way: template, length, and at most one begin-of-text token a turn.

With the tokenizer's chat template a conversation is rendered whole. Without one its parts are joined as token ids: the
first turn in ``prompts.template``, then each answer just as the model gave it, and each later turn in
``prompts.next_template`` (``template`` where that is missing, and blank lines around the turn where both are).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specbench.bench.prompt_formats import Content
from specbench.config import PromptSettings
from specbench.errors import ConfigError

if TYPE_CHECKING:  # prompts can be chosen, and their texts compared, where torch is not installed
    from specbench.models.source import Source

STDLIB_MAX_TOKENS = 256
"""What a stdlib prompt is cut to where the experiment names no limit: a module has no natural beginning."""

_PLAIN = "{prompt}"
_PLAIN_LATER = "\n\n{prompt}\n\n"


def limit_of(settings: PromptSettings) -> int | None:
    """Tokens that a prompt may have; None where nothing limits it."""
    return settings.max_prompt_tokens or (STDLIB_MAX_TOKENS if settings.source == "stdlib" else None)


@dataclass(frozen=True)
class Answer:
    """What a model said in one turn, its end-of-text token left out."""

    ids: list[int]
    text: str


class Encoder:
    """Texts to ids for one target.

    Raises:
        ConfigError: A chat template is asked for, and the target has none.
    """

    def __init__(self, settings: PromptSettings, source: "Source", template_kwargs: Mapping[str, Any]) -> None:
        self._name, self._tokenizer = source.name, source.tokenizer
        self._settings, self._template_kwargs = settings, template_kwargs
        self._most = None if settings.truncate == "skip" else limit_of(settings)
        has_one = self._tokenizer.chat_template is not None
        wanted = (
            has_one and settings.template is None and settings.next_template is None and settings.source != "stdlib"
        )
        self._chats = wanted if settings.chat_template is None else settings.chat_template
        if self._chats and not has_one:
            raise ConfigError(
                f"prompts.chat_template is true, but the tokenizer of {source.name} has no chat template; "
                "prompts.template can give one"
            )

    @property
    def frame(self) -> str:
        """What stands around a prompt, in words."""
        if self._chats:
            return "the target's chat template"
        return "prompts.template" if self._settings.template is not None else "nothing"

    def ids(self, content: Content, answers: Sequence[Answer] = ()) -> list[int]:
        """The prompt of the turn that follows the answers. Only the first turn is ever cut.

        Raises:
            ConfigError: It has no tokens, or several begin-of-text tokens, or the template fails.
        """
        opening, ids = self._opening(content)
        if answers and self._chats:
            ids = self._chat([opening, *content.turns[1:]], content.system, answers)
        elif answers:
            for turn, answer in zip(content.turns[1:], answers, strict=False):
                ids = [*ids, *answer.ids, *self._later(turn)]
        self._check(ids, 1 + len(answers))
        return ids

    def _opening(self, content: Content) -> tuple[str, list[int]]:
        """The first turn, cut where it is too long, as text and as a prompt."""
        text = content.turns[0]
        ids = self._first(text, content.system)
        if self._most is None or len(ids) <= self._most:
            return text, ids
        if not self._chats and self._settings.template is None:
            return text, self._cut(ids)
        # What stands around the text must stay whole, so that only the text itself is cut.
        own = self._tokens(text)
        while len(ids) > self._most:
            own = self._kept(own, len(own) - (len(ids) - self._most))
            if not own:
                raise ConfigError(f"its template alone is longer than the {self._most} of prompts.max_prompt_tokens")
            text = self._tokenizer.decode(own)
            ids = self._first(text, content.system)
        return text, ids

    def _cut(self, ids: list[int]) -> list[int]:
        assert self._most is not None
        begins = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
        return begins + self._kept(ids[len(begins) :], self._most - len(begins))

    def _kept(self, ids: list[int], count: int) -> list[int]:
        if count <= 0:
            return []
        return ids[:count] if self._settings.truncate == "right" else ids[-count:]

    def _first(self, text: str, system: str | None) -> list[int]:
        if self._chats:
            return self._chat([text], system)
        asked = text if system is None else f"{system}\n\n{text}"
        return list(self._tokenizer(_filled(self._settings.template or _PLAIN, asked), verbose=False)["input_ids"])

    def _later(self, text: str) -> list[int]:
        template = self._settings.next_template or self._settings.template or _PLAIN_LATER
        return self._tokens(_filled(template, text))

    def _chat(self, turns: Sequence[str], system: str | None, answers: Sequence[Answer] = ()) -> list[int]:
        from specbench.models.chat import rendered  # with transformers, and so with torch

        messages = [] if system is None else [{"role": "system", "content": system}]
        for turn, answer in zip(turns, answers, strict=False):
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer.text}]
        messages.append({"role": "user", "content": turns[len(answers)]})
        text = rendered(self._tokenizer, messages, self._name, add_generation_prompt=True, **self._template_kwargs)
        # The template writes its own begin-of-text token, so that the text is tokenised without another one.
        return self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _check(self, ids: list[int], turns: int) -> None:
        if not ids:
            raise ConfigError("it has no tokens")
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is None:
            return
        if ids[:2] == [bos, bos]:
            raise ConfigError("it begins with two begin-of-text tokens; take one out")
        # A token that also ends a text may well stand inside a conversation.
        if bos != eos and ids.count(bos) > turns:
            raise ConfigError(
                f"it has {ids.count(bos)} begin-of-text tokens for {turns} turns; its text must hold none"
            )


def _filled(template: str, text: str) -> str:
    return template.replace("{prompt}", text)
