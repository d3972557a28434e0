"""The contract of an outside baseline: another library's loop, measured beside the methods that run on the core.

It decodes a whole batch by itself, so the core can neither pace it nor look into its steps. What it owes is the same
prompts, the core's stop rule and the core's way of counting: ``row_trace`` is how it pays.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import BaseModel

from specbench.decode.acceptance import Rule
from specbench.decode.loop import Requests
from specbench.decode.method import LoadContext, Options
from specbench.decode.step import Decoding
from specbench.decode.trace import BatchTrace, RowTrace, Watch


class Baseline(ABC):
    """Base of every outside baseline. ``load`` is called once, then ``generate`` for every batch.

    Attributes:
        name: Its name in the registry.
        Options: Its options, as strict as a method's.
        is_autoregressive: Whether it drafts nothing, so that speed-ups may be taken against it.
    """

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]] = Options
    is_autoregressive: ClassVar[bool] = False

    def __init__(self, options: BaseModel) -> None:
        self.options = options

    def unsupported(self, batch_size: int, rule: Rule, device: torch.device) -> str | None:
        """Why it cannot run such a batch, in words for a user; None when it can."""
        return None

    def compiled_for(self, requests: Requests) -> Hashable:
        """What the code that runs this batch is compiled for; None where nothing is compiled."""
        return None

    @abstractmethod
    def load(self, context: LoadContext) -> None:
        """Take hold of the target's weights and of a draft model; not timed."""

    @abstractmethod
    def generate(self, requests: Requests, decoding: Decoding, watch: Watch) -> BatchTrace:
        """Decode one batch to its end, and tell the watch where it is."""


def row_trace(text: list[int], lengths: Sequence[int], drafted: Sequence[int], decoding: Decoding) -> RowTrace:
    """One row as the core would have counted it: cut by the same rule, with the steps that it needed.

    Args:
        text: All that was generated, from the first token on; what stands behind EOS is not looked at.
        lengths: Tokens that the row had after the prefill and after every step.
        drafted: Draft tokens that were verified in the prefill and in every step.
        decoding: Says where a text ends.
    """
    kept = _cut(text, decoding)
    steps = next(index for index, length in enumerate(lengths) if length >= len(kept))
    emitted = [after - before for before, after in pairwise(lengths[: steps + 1])]
    overshoot = lengths[steps] - len(kept) if steps else 0
    return RowTrace(
        output_ids=kept,
        finish_reason="eos" if kept[-1] in decoding.eos_ids else "length",
        prefill_tokens=min(lengths[0], len(kept)),
        accepted_per_step=[count - 1 for count in emitted],
        drafted_depth_per_step=list(drafted[1 : steps + 1]),
        drafted_nodes_per_step=list(drafted[1 : steps + 1]),
        emitted_per_step=[*emitted[:-1], emitted[-1] - overshoot] if emitted else [],
        overshoot_tokens=overshoot,
    )


def _cut(text: list[int], decoding: Decoding) -> list[int]:
    """The text up to its first EOS, which stays, or to its length."""
    text = text[: decoding.max_new_tokens]
    end = next((index for index, token in enumerate(text) if token in decoding.eos_ids), len(text))
    return text[: end + 1]
