"""The work of choosing tokens, as a step does it: a draft token from logits, and the accept phase."""

from collections.abc import Callable

import torch
from torch import Tensor

from specbench.bench.latency_points import Choice
from specbench.decode.acceptance import rule_for
from specbench.decode.compiled import Compiled
from specbench.decode.loop import sampler_for
from specbench.decode.method import Caps, Method, Options, RowView, TokenTree
from specbench.decode.sampling import Sampler
from specbench.decode.step import Decoding, State, Step, Verified
from specbench.decode.target import CachedModel, Output

Choose = Callable[[Output], object]
"""What is done with the logits of a forward."""

_NEVER = 1 << 30  # tokens: no row of a study ends


class _Chain(Method):
    """Any method that drafts chains of so many tokens: of a method the accept phase knows no more."""

    name = "chain"

    def __init__(self, tokens: int) -> None:
        super().__init__(Options())
        self._tokens = tokens

    def caps(self) -> Caps:
        """A chain."""
        return Caps(max_nodes=self._tokens, max_depth=self._tokens)

    def draft(self, view: RowView) -> TokenTree:
        """Never asked."""
        raise NotImplementedError


def chooser(model: CachedModel, choice: Choice, seed: int) -> Choose:
    """What is timed of a choice, on the logits of the forward before it.

    Which tokens are drawn and how many are accepted costs no time: all tensors are of static shape. EOS is not looked
    for; what that takes is the same in every step, drafted or not.

    Args:
        model: It has a slab.
        choice: What is timed.
        seed: Decides the draft.
    """
    how, rows = choice.how, choice.batch_size
    decoding = Decoding(
        max_new_tokens=_NEVER,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        rule=rule_for(how.rule, how.temperature),
        seed=seed,
    )
    sampler = sampler_for(model, [*range(rows)], [choice.context_tokens] * rows, decoding)
    if choice.kind == "draw":
        return _drawing(sampler, choice)
    return _accepting(model, sampler, decoding, choice)


def _drawing(sampler: Sampler, choice: Choice) -> Choose:
    is_sampled = choice.how.proposal == "sample"

    def draw(output: Output) -> tuple[Tensor, Tensor | None]:
        logits, positions = output.logits[:, -1:], (sampler.prompt_lengths + 1)[:, None]
        token = sampler.propose(logits, positions, sampled=is_sampled)
        return token, sampler.probs(logits, positions) if is_sampled and sampler.needs_draft_probs else None

    return Compiled(draw, has_one_form=True) if choice.is_compiled else draw


def _accepting(model: CachedModel, sampler: Sampler, decoding: Decoding, choice: Choice) -> Choose:
    step = Step(model, _Chain(choice.query_tokens - 1), decoding)
    tokens, tree = _draft(sampler, choice, decoding.seed)
    layout, state = tree.layout(step.caps.max_depth + 1), _state(model, sampler)
    # As in a run: on a GPU the accept phase is compiled, whatever the others are.
    is_compiled = choice.is_compiled or model.can_be_captured
    accept = Compiled(step.accept, has_one_form=True) if is_compiled else step.accept
    return lambda output: accept(tree, Verified(layout, tokens, output), state, sampler)


def _draft(sampler: Sampler, choice: Choice, seed: int) -> tuple[Tensor, TokenTree]:
    """Any tokens, the root in front (B, N + 1), and the chain of those behind it."""
    chance = torch.Generator().manual_seed(seed)
    shape = (choice.batch_size, choice.query_tokens)
    tokens = torch.randint(0, sampler.vocab_size, shape, generator=chance).to(sampler.keys.device)
    probs = None
    if choice.how.proposal == "sample" and sampler.needs_draft_probs and choice.query_tokens > 1:
        every = (choice.batch_size, choice.query_tokens - 1, sampler.vocab_size)
        probs = torch.randn(every, generator=chance).softmax(-1).to(tokens.device)
    return tokens, TokenTree.chain(tokens[:, 1:].contiguous(), draft_probs=probs)


def _state(model: CachedModel, sampler: Sampler) -> State:
    """Rows in the middle of their texts."""
    lengths = sampler.prompt_lengths
    zeros = torch.zeros_like(lengths)
    text = lengths.new_zeros((len(lengths), model.cache.slots))
    return State(zeros, lengths, zeros + _NEVER, torch.ones_like(lengths, dtype=torch.bool), zeros, text)
