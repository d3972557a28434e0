"""Documents as token sequences, and of each token whether it may be a label.

Of a conversation the answers are learned, each with the token that ends its turn; of a text everything. Where an answer
is, is known in characters; a token that holds one of them is the answer's, so nothing depends on how a tokenizer cuts,
pads or counts.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from specbench.errors import ConfigError, TrainingError
from specbench.models.chat import Span
from specbench.train.conversations import (
    HELD_OUT_SHARE,
    Conversation,
    Document,
    Documents,
    Text,
    Unusable,
    because,
    read_documents,
)
from specbench.train.framing import Framed, Framing, framing_for

_AT_ONCE = 64  # documents in one call of a tokenizer


@dataclass(frozen=True)
class Example:
    """One sequence.

    Attributes:
        tokens: (T,) int32.
        learn: (T,) bool: the token is an answer's, its end of turn included, so it may be a label.
    """

    tokens: np.ndarray
    learn: np.ndarray


@dataclass(frozen=True)
class Examples:
    """What a drafter learns from.

    Attributes:
        what: Where it comes from, for the card.
        training: To learn from.
        held_out: Never trained on; at least one.
        sha: Sixteen hex digits of all tokens and masks: the key of what is made from them.
        left_out: What could not be used, counted by the reason.
    """

    what: str
    training: list[Example]
    held_out: list[Example]
    sha: str
    left_out: Mapping[str, int] = field(default_factory=dict)


def load_examples(
    data: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    held_out_share: float = HELD_OUT_SHARE,
    most: int | None = None,
    template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Examples:
    """Read sources, and encode them.

    Args:
        data: As of ``read_documents``.
        tokenizer: The target's; a fast one.
        max_tokens: Longest sequence. A conversation is cut there, a text goes on in the next sequence.
        held_out_share: Share of the documents that is held out.
        most: Examples to learn from; of those held out the share is kept. None keeps all.
        template: As of ``framing_for``.
        template_kwargs: Handed to the chat template.

    Raises:
        SpecbenchError: As ``framing_for``, ``read_documents`` and ``encode_documents``.
    """
    framing = framing_for(tokenizer, template, template_kwargs)
    documents = read_documents(data, held_out_share=held_out_share, most=most)
    return encode_documents(documents, framing, max_tokens=max_tokens, held_out_share=held_out_share, most=most)


def encode_documents(
    documents: Documents,
    framing: Framing,
    *,
    max_tokens: int,
    held_out_share: float = HELD_OUT_SHARE,
    most: int | None = None,
) -> Examples:
    """Documents as token sequences. A conversation goes as far as it is answered, and as ``max_tokens``.

    Args:
        documents: What ``read_documents`` read, maybe with answers of the target's own.
        framing: What stands around an answer.
        max_tokens: Longest sequence.
        held_out_share: With ``most``, what it was split by.
        most: Examples to learn from.

    Raises:
        ConfigError: The tokenizer cannot say where in a text its tokens are, or there is no room for a label.
        TrainingError: There is nothing to learn from, or nothing else to hold out.
    """
    _check(framing.tokenizer, max_tokens)
    left_out = Counter(documents.left_out)
    least = None if most is None else max(1, round(most * held_out_share))
    training = list(islice(_encoded(documents.training, framing, max_tokens, left_out), most))
    held_out = list(islice(_encoded(documents.held_out, framing, max_tokens, left_out), least))
    if not held_out and len(training) > 1:
        held_out.append(training.pop())
    if not training or not held_out:
        found = f"{len(training) + len(held_out)} sequences; one to learn from and one to hold out are the least"
        raise TrainingError(f"{documents.what}: {found}{because(left_out)}")
    talks = any(isinstance(document, Conversation) for document in documents.training)
    what = f"{documents.what}, in {framing.what}" if talks else documents.what
    return Examples(what, training, held_out, _sha(training, held_out), dict(left_out))


def _check(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    if not tokenizer.is_fast:
        raise ConfigError(f"{tokenizer.name_or_path}: training needs a fast tokenizer (tokenizer.json); this is none")
    least = len(begins_of(tokenizer)) + 2  # a label, and what it follows
    if max_tokens < least:
        raise ConfigError(f"max_tokens is {max_tokens}, and a sequence takes {least} at least")


def _sha(*sides: Iterable[Example]) -> str:
    sha = hashlib.sha256()
    for side in sides:
        for example in side:
            sha.update(len(example.tokens).to_bytes(4, "big"))
            sha.update(example.tokens.tobytes() + example.learn.tobytes())
        sha.update(b"end of a side")
    return sha.hexdigest()[:16]


def _encoded(
    documents: Iterable[Document], framing: Framing, max_tokens: int, left_out: Counter[str]
) -> Iterator[Example]:
    """The sequences of documents, in their order; what cannot be used is counted."""
    remaining = iter(documents)
    begins = begins_of(framing.tokenizer)
    while several := list(islice(remaining, _AT_ONCE)):
        talks = _framed((document for document in several if isinstance(document, Conversation)), framing, left_out)
        texts = [document for document in several if isinstance(document, Text)]
        yield from _of_conversations(list(talks), framing, max_tokens, left_out)
        yield from _of_texts(texts, framing.tokenizer, begins, max_tokens)


# --- conversations


def _framed(conversations: Iterable[Conversation], framing: Framing, left_out: Counter[str]) -> Iterator[Framed]:
    for conversation in conversations:
        answered = tuple(takewhile(lambda exchange: exchange.answer is not None, conversation.exchanges))
        try:
            if not answered:
                raise Unusable("nobody answers")
            yield framing.framed(replace(conversation, exchanges=answered))
        except Unusable as reason:
            left_out[str(reason)] += 1


def _of_conversations(
    talks: Sequence[Framed], framing: Framing, max_tokens: int, left_out: Counter[str]
) -> Iterator[Example]:
    if not talks:
        return
    encoded = framing.encode([talk.text for talk in talks], return_offsets_mapping=True)
    for talk, ids, offsets in zip(talks, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        learn = _in_spans(np.asarray(offsets[:max_tokens]).reshape(-1, 2), talk.spans)
        if learn.any():
            yield Example(np.asarray(ids[:max_tokens], dtype=np.int32), learn)
        else:
            left_out[f"no answer within {max_tokens} tokens"] += 1


def _in_spans(offsets: np.ndarray, spans: Iterable[Span]) -> np.ndarray:
    """Which tokens hold a character of a span.

    Args:
        offsets: First character and the one behind the last of every token, (T, 2). Tokens without characters, which
            the tokenizer has added, are nobody's.
        spans: The same of every answer.
    """
    starts, ends = offsets.T
    # Some tokenizers leave blanks out of a token's characters: it begins where the one before it ends.
    starts = np.minimum(starts, np.maximum.accumulate(np.concatenate([[0], ends]))[:-1])
    learn = np.zeros(len(ends), dtype=bool)
    for start, end in spans:
        learn |= (ends > start) & (starts < end)
    return learn


# --- texts


def _of_texts(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, begins: list[int], max_tokens: int
) -> Iterator[Example]:
    """Windows that follow one another, each with what begins a text for this tokenizer; the last ends the text."""
    if not texts:
        return
    encoded = tokenizer(
        [text.text for text in texts], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    head, length = np.asarray(begins, dtype=np.int32), max_tokens - len(begins)
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        end = [tokenizer.eos_token_id] if text.ended and tokenizer.eos_token_id is not None else []
        tokens = np.asarray(ids + end, dtype=np.int32)
        learn = _in_spans(np.asarray(offsets).reshape(-1, 2), [(text.given, len(text.text))])
        learn = np.concatenate([learn, np.ones(len(end), dtype=bool)])
        for first in range(0, len(tokens), length):
            window = slice(first, first + length)
            example = Example(
                np.concatenate([head, tokens[window]]), np.concatenate([np.zeros(len(head), dtype=bool), learn[window]])
            )
            if len(example.tokens) > 1 and example.learn.any():
                yield example


def begins_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin-of-text token, where the tokenizer writes one."""
    first = tokenizer("", verbose=False)["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []
