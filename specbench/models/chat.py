"""Conversations through a tokenizer's chat template, as text."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from specbench.errors import ConfigError, first_line

Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]

_T = TypeVar("_T")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, name: str, *, add_generation_prompt: bool, **kwargs: Any
) -> str:
    """Messages as text, begin-of-text token and all.

    Args:
        tokenizer: It has a chat template.
        messages: Each with ``role`` and ``content``.
        name: Whose template it is, for an error.
        add_generation_prompt: Open the answer that is to follow.
        kwargs: Handed to the template.

    Raises:
        ConfigError: The template fails.
    """

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
            )
        )

    return _telling(render, name)


def rendered_with_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, name: str, **kwargs: Any
) -> tuple[str, list[Span]]:
    """Messages as text, and where in it stands what the template marks as generated, in characters.

    ``return_assistant_tokens_mask`` says the same in tokens, and loses itself where no token begins with the first
    character or ends with the last.

    Args:
        tokenizer: Its chat template has ``{% generation %}``.
        messages: Each with ``role`` and ``content``.
        name: Whose template it is, for an error.
        kwargs: Handed to the template.

    Raises:
        ConfigError: The template fails.
    """

    def render() -> tuple[str, list[Span]]:
        [text], [spans] = render_jinja_template(
            [messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **kwargs},
        )
        return text, spans

    return _telling(render, name)


def marks_what_is_generated(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template has ``{% generation %}``."""
    return _GENERATION.search(tokenizer.get_chat_template()) is not None


def _telling(render: Callable[[], _T], name: str) -> _T:
    from jinja2 import TemplateError

    try:
        return render()
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"the chat template of {name} fails: {first_line(error)}") from error
