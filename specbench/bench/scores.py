"""How skilled models are: perplexity and next-token accuracy on texts, accuracy on questions with choices.

A model is scored on a data set once: what is stored for the same weights, tokenizer, data and precision is read back.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from specbench.analysis.intervals import Floats
from specbench.analysis.skill import Estimate, perplexity, proportion, ratio_of_totals
from specbench.bench import machine
from specbench.bench.likelihoods import Span, TokenScores, token_scores
from specbench.bench.prompt_formats import Choice
from specbench.bench.score_data import ChoiceSet, TextSet
from specbench.config import MachineSettings
from specbench.errors import ConfigError, UnsupportedError
from specbench.models.loader import implementation_of, load_module, placement
from specbench.models.source import Source, locate
from specbench.models.zoo import ZOO
from specbench.records.store import Store

WINDOW_TOKENS = 512
"""Tokens of a window of text, unless told otherwise."""

Row = dict[str, Any]
Announce = Callable[[str], None]


@dataclass(frozen=True)
class ScoreSettings:
    """How models are scored.

    Attributes:
        machine: Where, and in which precision.
        window_tokens: Texts are read in windows of so many tokens. Each token is asked for once, and the first one of
            a window sees only the one before it.
        batch_size: Texts of one forward.
    """

    machine: MachineSettings
    window_tokens: int = WINDOW_TOKENS
    batch_size: int = 16


@dataclass(frozen=True)
class _Measured:
    """What came of one model on one data set."""

    metrics: dict[str, Estimate]
    tokens: int
    chance: float | None = None
    truncated: int = 0


def score(
    models: Sequence[str],
    data: Sequence[TextSet | ChoiceSet],
    settings: ScoreSettings,
    folder: Path,
    *,
    zoo: Path = ZOO,
    announce: Announce = lambda _: None,
) -> Iterator[list[Row]]:
    """Score every model on every data set; yields the rows of one pair as soon as they are stored.

    Args:
        models: Embedded ones, folders or hub ids.
        data: What ``read_score_data`` gave.
        settings: How.
        folder: Where the table ``scores`` is, or will be.
        zoo: Where the embedded family lies.
        announce: Told what is going on.

    Raises:
        ConfigError: A model is unknown or has no weights or tokenizer of its own, or a window exceeds its context.
        UnsupportedError: A model cannot be loaded, does not fit into memory, or gives no numbers.
        ResultsError: The folder cannot be written to, or holds something else.
    """
    sources = [locate(model, zoo) for model in models]
    reads_texts = any(isinstance(entry, TextSet) for entry in data)
    for source in sources:
        _check(source, settings.window_tokens if reads_texts else 0)
    store = Store(folder)
    torch.set_num_threads(settings.machine.threads)
    for source in sources:
        scorer = _Scorer(source, settings, announce)
        for entry in data:
            key = scorer.key(entry)
            rows = store.read_part("scores", key)
            if rows is None:
                rows = scorer.rows(entry)
                store.write_part("scores", key, rows)
            yield rows


def _check(source: Source, window_tokens: int) -> None:
    if source.own_tokenizer is None:
        raise ConfigError(f"{source.name}: random weights have no skill, and no tokenizer of their own")
    if source.max_positions is not None and window_tokens > source.max_positions:
        raise ConfigError(f"--length: {source.name} has {source.max_positions} positions, got {window_tokens}")


class _Scorer:
    """One model, loaded when it is first asked."""

    def __init__(self, source: Source, settings: ScoreSettings, announce: Announce) -> None:
        self._source, self._settings, self._announce = source, settings, announce
        self._where = placement(settings.machine)
        self._attention = implementation_of(source, self._where.attention)
        self._loaded: nn.Module | None = None

    def key(self, data: TextSet | ChoiceSet) -> str:
        """What decides the scores, up to rounding."""
        model = f"{self._source.weights_sha}-{self._source.tokenizer_sha}"
        form = self._settings.window_tokens if isinstance(data, TextSet) else "choices"
        where = f"{self._where.dtype_name}-{machine.device_name(self._where.device)}-{self._attention}"
        return f"{self._source.name}-{data.name}-{model}-{data.sha}-{form}-{where}"

    def rows(self, data: TextSet | ChoiceSet) -> list[Row]:
        """One a metric."""
        measured = self._texts(data) if isinstance(data, TextSet) else self._choices(data)
        shared = {
            "model": self._source.name,
            "weights_sha": self._source.weights_sha,
            "tokenizer_sha": self._source.tokenizer_sha,
            "parameters": self._source.parameters,
            "data": data.name,
            "data_sha": data.sha,
            **_shape_of(data, self._settings.window_tokens),
            "chance": measured.chance,
            "tokens": measured.tokens,
            "truncated": measured.truncated,
            "dtype": self._where.dtype_name,
            "device": machine.device_name(self._where.device),
            "attention": self._attention,
            "threads": self._settings.machine.threads,
            "batch_size": self._settings.batch_size,
            "versions": machine.as_json(machine.versions()),
            "scored_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return [{**shared, "metric": metric, **asdict(estimate)} for metric, estimate in measured.metrics.items()]

    def _texts(self, data: TextSet) -> _Measured:
        windows = [text_windows(self._tokenizer, text, self._settings.window_tokens) for text in data.documents]
        scores = iter(self._ask(data.name, [span for spans in windows for span in spans]))
        texts = [_joined([next(scores) for _ in spans]) for spans in windows]
        return _Measured(text_metrics(data.documents, texts), sum(len(text.ranks) for text in texts))

    def _choices(self, data: ChoiceSet) -> _Measured:
        most = self._source.max_positions
        asked = [choice_spans(self._tokenizer, question, most) for question in data.questions]
        scores = iter(self._ask(data.name, [span for spans, _ in asked for span in spans]))
        sums = [np.array([float(next(scores).log_probs.sum()) for _ in spans]) for spans, _ in asked]
        return _Measured(
            choice_metrics(data.questions, sums),
            tokens=sum(len(span.ids) - span.first for spans, _ in asked for span in spans),
            chance=float(np.mean([1 / len(question.endings) for question in data.questions])),
            truncated=sum(cut for _, cut in asked),
        )

    def _ask(self, data: str, spans: Sequence[Span]) -> list[TokenScores]:
        done = 0

        def advance(texts: int) -> None:
            nonlocal done
            done += texts
            self._announce(f"{self._source.name} on {data}: {done:,} texts read")

        try:
            return token_scores(self._module, spans, batch_size=self._settings.batch_size, advance=advance)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self._source.name} on {data}: {error}") from error

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._source.tokenizer

    @property
    def _module(self) -> nn.Module:
        if self._loaded is None:
            self._announce(f"loading {self._source.name}")
            self._loaded = load_module(self._source, self._where, self._attention).eval()
        return self._loaded


# --- from texts to tokens


def text_windows(tokenizer: PreTrainedTokenizerBase, text: str, window_tokens: int) -> list[Span]:
    """A text in windows whose tokens are each asked for once; the first follows the token that begins a text.

    Raises:
        ConfigError: The tokenizer has no token that begins or ends a text.
    """
    ids = [_start(tokenizer), *_ids(tokenizer, text)]
    places = range(0, len(ids) - 1, window_tokens)
    return [Span(tuple(ids[place : place + window_tokens + 1]), 1) for place in places]


def choice_spans(
    tokenizer: PreTrainedTokenizerBase, question: Choice, max_positions: int | None
) -> tuple[list[Span], bool]:
    """The endings of a question, each after its context, and whether the context had to be cut at its beginning.

    Context and ending are tokenised as one text, and what follows the tokens of the context alone counts as the
    ending, as in EleutherAI's lm-evaluation-harness.

    Raises:
        ConfigError: An ending has no tokens of its own, or more than the model can read.
    """
    context = (question.context or "").rstrip()
    begin = _begin(tokenizer) if context else [_start(tokenizer)]
    before = len(_ids(tokenizer, context))
    spans, cut = [], False
    for ending in question.endings:
        ids = [*begin, *_ids(tokenizer, f"{context} {ending}")]
        first = len(begin) + before
        if first >= len(ids):
            raise ConfigError(f"an ending has no tokens of its own: {ending!r} after {context[-40:]!r}")
        # The last token is only asked for, never read.
        extra = 0 if max_positions is None else max(0, len(ids) - 1 - max_positions)
        if extra >= first:
            raise ConfigError(f"an ending is longer than the model's {max_positions} positions: {ending[:40]!r}")
        cut = cut or extra > 0
        spans.append(Span(tuple(ids[extra:]), first - extra))
    return spans, cut


def _start(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a text's first token follows."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ConfigError("no token of the tokenizer begins or ends a text, so that nothing can stand before the first")
    return int(start)


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text."""
    bos = tokenizer.bos_token_id
    return [int(bos)] if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else []


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


# --- from probabilities to metrics


def text_metrics(texts: Sequence[str], scores: Sequence[TokenScores]) -> dict[str, Estimate]:
    """``perplexity``, ``bits_per_byte``, ``top1`` and ``top5``, each with an interval over texts.

    Args:
        texts: They; bits are counted per byte of their UTF-8.
        scores: Of each text, all its tokens.
    """
    tokens = np.array([len(score.ranks) for score in scores], dtype=np.float64)
    nats = np.array([-score.log_probs.sum() for score in scores], dtype=np.float64)
    size = np.array([len(text.encode()) for text in texts], dtype=np.float64)

    def guessed(most: int) -> Estimate:
        hits = np.array([(score.ranks < most).sum() for score in scores], dtype=np.float64)
        return ratio_of_totals(hits, tokens)

    return {
        "perplexity": perplexity(nats, tokens),
        "bits_per_byte": ratio_of_totals(nats / math.log(2), size),
        "top1": guessed(1),
        "top5": guessed(5),
    }


def choice_metrics(questions: Sequence[Choice], log_likelihoods: Sequence[Floats]) -> dict[str, Estimate]:
    """``acc``, ``acc_norm`` and ``acc_bytes``: which ending is likeliest as it is, per character and per byte.

    Args:
        questions: They.
        log_likelihoods: Of each question, one an ending: the sum over its tokens, in nats.

    Source: ``acc`` and ``acc_norm`` as EleutherAI's lm-evaluation-harness defines them; the space before an ending
    does not count as a character. Of equals the first one is taken.
    """
    lengths: dict[str, Callable[[str], int]] = {
        "acc": lambda _: 1,
        "acc_norm": len,
        "acc_bytes": lambda ending: len(ending.encode()),
    }
    return {
        metric: proportion(
            sum(
                int(np.argmax(sums / [max(1, length(ending)) for ending in question.endings])) == question.right
                for question, sums in zip(questions, log_likelihoods, strict=True)
            ),
            len(questions),
        )
        for metric, length in lengths.items()
    }


def _joined(parts: Sequence[TokenScores]) -> TokenScores:
    return TokenScores(
        np.concatenate([part.log_probs for part in parts]), np.concatenate([part.ranks for part in parts])
    )


def _shape_of(data: TextSet | ChoiceSet, window_tokens: int) -> Row:
    if isinstance(data, TextSet):
        return {"form": "texts", "items": len(data.documents), "window_tokens": window_tokens, "shots": None}
    shots = min(question.shots for question in data.questions)
    return {"form": "choices", "items": len(data.questions), "window_tokens": None, "shots": shots}
