"""How likely a model finds given tokens: plain forwards over batches of texts, padded on the right."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from specbench.errors import UnsupportedError

# Float32 copies of logits are made for so many of them at once: 64 MiB.
_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Span:
    """Tokens of which all but the first ones are asked for, each after everything before it.

    Attributes:
        ids: The tokens.
        first: Index of the first one that is asked for, at least 1.
    """

    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class TokenScores:
    """What a model thinks of the tokens of one span.

    Attributes:
        log_probs: In nats, (tokens,).
        ranks: Tokens that it finds likelier, (tokens,); of equals the one with the lower id goes first.
    """

    log_probs: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int64]


def token_scores(
    module: nn.Module,
    spans: Sequence[Span],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[TokenScores]:
    """The scores of every span, in their order.

    Spans that differ in their last token alone share a forward. The longest texts go first, so that a batch is padded
    little, and one that does not fit into memory fails at once.

    Args:
        module: A causal LM of ``transformers``.
        spans: What is asked.
        batch_size: Texts of one forward.
        advance: Told how many texts have been read.

    Raises:
        UnsupportedError: A batch does not fit into memory, or the model's logits are no numbers.
    """
    asked: dict[tuple[int, ...], list[int]] = {}
    for index, span in enumerate(spans):
        asked.setdefault(span.ids[:-1], []).append(index)
    found: dict[int, TokenScores] = {}
    longest_first = sorted(asked, key=len, reverse=True)
    for start in range(0, len(asked), batch_size):
        texts = longest_first[start : start + batch_size]
        wanted = [(row, index) for row, text in enumerate(texts) for index in asked[text]]
        try:
            scores = _batch(module, texts, [(row, spans[index]) for row, index in wanted])
        except torch.OutOfMemoryError as error:
            raise UnsupportedError(
                f"{len(texts)} texts of {len(texts[0])} tokens do not fit into memory; lower --batch-size"
            ) from error
        found |= zip((index for _, index in wanted), scores, strict=True)
        advance(len(texts))
    return [found[index] for index in range(len(spans))]


@torch.inference_mode()
def _batch(
    module: nn.Module, texts: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, Span]]
) -> Iterator[TokenScores]:
    """The scores of the spans, each with the row of the text that it goes on from."""
    device = next(module.parameters()).device
    longest = len(texts[0])
    # What pads a row stands behind it, where no token of a causal model looks.
    inputs = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    before = min(span.first for _, span in wanted) - 1
    logits = last_logits(module, inputs, longest - before)
    rows = [row for row, span in wanted for _ in span.ids[span.first :]]
    places = [place - before for _, span in wanted for place in range(span.first - 1, len(span.ids) - 1)]
    tokens = [token for _, span in wanted for token in span.ids[span.first :]]
    log_probs, ranks = _scores(logits, *(torch.tensor(part, device=device) for part in (rows, places, tokens)))
    if not np.isfinite(log_probs).all():
        raise UnsupportedError(f"its logits are no numbers in {str(logits.dtype).removeprefix('torch.')}")
    ends = np.cumsum([len(span.ids) - span.first for _, span in wanted])[:-1]
    return map(TokenScores, np.split(log_probs, ends), np.split(ranks, ends))


def last_logits(module: nn.Module, inputs: Tensor, last: int) -> Tensor:
    """The logits at the last places of the rows, (batch, last, vocab), and no others where the model can do that."""
    keeps = "logits_to_keep" in inspect.signature(module.forward).parameters
    options = {"logits_to_keep": last} if keeps else {}
    logits: Tensor = module(inputs, use_cache=False, **options).logits
    return logits[:, -last:]


def _scores(
    logits: Tensor, rows: Tensor, places: Tensor, tokens: Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Log-probability and rank of each token at its place, a chunk of places in float32 at a time."""
    log_probs, ranks = [], []
    ids = torch.arange(logits.shape[-1], device=logits.device)
    chunk = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
    for row, place, token in zip(*(part.split(chunk) for part in (rows, places, tokens)), strict=True):
        values = logits[row, place].float()
        own = values.gather(1, token[:, None])
        log_probs.append(own[:, 0] - values.logsumexp(-1))
        ranks.append(((values > own) | ((values == own) & (ids < token[:, None]))).sum(-1))
    return torch.cat(log_probs).cpu().double().numpy(), torch.cat(ranks).cpu().numpy()
