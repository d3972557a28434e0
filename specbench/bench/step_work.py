"""What a step moves, computes and launches: counted, never timed, while a method decodes a few tokens.

Every operation of a step passes a dispatch mode. What it reads of the weights of target, drafts and drafters is noted
by phase, and so are its multiplications, the operations launched, and the matrices themselves in the order of their
use. The count is of what ran: a method needs to say nothing about itself.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from specbench.decode.loop import Requests, generate
from specbench.decode.method import Method
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel, local_part
from specbench.decode.trace import PHASES, NullWatch, Phase

_TOKENS = 16
"""Tokens of every row that are decoded to count by: a few steps of any method."""

_ATEN = torch.ops.aten
_LOOK_UPS = {_ATEN.embedding, _ATEN.index, _ATEN.index_select, _ATEN.gather}
_PLAIN = (Tensor, nn.Parameter)
_PRODUCTS = {_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm}


@dataclass(frozen=True)
class PhaseWork:
    """One phase of a step, on average.

    Attributes:
        weight_bytes: Of weights that operations read; of a table that is looked up, the rows that were.
        weight_operations: Multiplications and additions with weights.
        launches: Operations that were launched, views not counted.
    """

    weight_bytes: float = 0.0
    weight_operations: float = 0.0
    launches: float = 0.0


@dataclass(frozen=True)
class StepWork:
    """A step of a method, on average over those that were counted.

    Attributes:
        steps: How many those were.
        phases: Each of the four.
        verified_tokens: Tokens that the target read, over all rows, padding included.
        draft_forwards: Forwards of draft models.
        draft_kv_bytes_per_token: Bytes of their keys and values for every token of a row's context, over those
            forwards.
        verify_matrices: What the target's hidden states were multiplied with, each once, in the order of use.
        draft_matrices: The same of everything outside of the verification.
    """

    steps: int
    phases: Mapping[Phase, PhaseWork]
    verified_tokens: float
    draft_forwards: float
    draft_kv_bytes_per_token: float
    verify_matrices: Sequence[Tensor]
    draft_matrices: Sequence[Tensor]

    @property
    def drafting(self) -> PhaseWork:
        """Everything outside of the verification, which is what a draft adds to a step."""
        others = [work for phase, work in self.phases.items() if phase != "verify"]
        return PhaseWork(
            sum(work.weight_bytes for work in others),
            sum(work.weight_operations for work in others),
            sum(work.launches for work in others),
        )


def count_step(
    target: CachedModel,
    method: Method,
    requests: Requests,
    decoding: Decoding,
    *,
    drafts: Sequence[CachedModel] = (),
    drafters: Iterable[nn.Module] = (),
) -> StepWork | None:
    """Decode a few tokens and count; None where no step was needed.

    Error: of experts that are stored as one tensor and multiplied in groups, all count as read; an operation that
    hides its products from the dispatcher, as compiled code does, counts as launched and as nothing else.

    Args:
        target: The target.
        method: Loaded, and free of any other batch.
        requests: The prompts.
        decoding: How; EOS is ignored, or a count might end before it began.
        drafts: The draft models that the method runs.
        drafters: Weights of the method's own.
    """
    models = {target.module, *(draft.module for draft in drafts)}
    counter = _Counter([*models, *drafters])
    short = replace(decoding, max_new_tokens=min(_TOKENS, decoding.max_new_tokens), min_new_tokens=0, eos_ids=())
    calls = _Calls(counter, target.module)
    with calls.noted(models), counter:
        generate(target, method, requests, short, _CountingWatch(counter))
    if not counter.steps:
        return None
    tallies, steps = counter.tallies, counter.steps
    outside = [tallies[phase].matrices for phase in PHASES if phase != "verify"]
    kv_bytes = sum(calls.drafted[draft.module] * kv_bytes_per_token(draft) for draft in drafts)
    return StepWork(
        steps=steps,
        phases={phase: tally.mean(steps) for phase, tally in tallies.items()},
        verified_tokens=calls.verified_tokens / steps,
        draft_forwards=calls.drafted.total() / steps,
        draft_kv_bytes_per_token=kv_bytes / steps,
        verify_matrices=[*tallies["verify"].matrices.values()],
        draft_matrices=[*{key: matrix for own in outside for key, matrix in own.items()}.values()],
    )


def kv_bytes_per_token(model: CachedModel) -> float:
    """Keys and values of one token of context that every forward must read; 0 where layers look back a window only."""
    return 0.0 if windowed_layers(model)[0] else whole_kv_bytes_per_token(model)


def whole_kv_bytes_per_token(model: CachedModel) -> float:
    """Keys and values of one token of context in all layers, as far as this process holds them."""
    shape = model.kv_shape
    return 2.0 * shape.layers * shape.heads * shape.dim * model.dtype.itemsize


def windowed_layers(model: CachedModel) -> tuple[float, int | None]:
    """Share of the layers that look back a window only, and how far that reaches; (0, None) where none does."""
    window = getattr(model.config, "sliding_window", None)
    if window is None or getattr(model.config, "use_sliding_window", True) is False:
        return 0.0, None
    kinds = getattr(model.config, "layer_types", None)
    share = kinds.count("sliding_attention") / len(kinds) if kinds else 1.0
    return (share, int(window)) if share else (0.0, None)


@dataclass
class _Tally:
    """What has been seen of one phase."""

    weight_bytes: float = 0.0
    weight_operations: float = 0.0
    launches: int = 0
    matrices: dict[tuple[int, torch.Size], Tensor] = field(default_factory=dict)

    def mean(self, steps: int) -> PhaseWork:
        return PhaseWork(self.weight_bytes / steps, self.weight_operations / steps, self.launches / steps)


class _Counter(TorchDispatchMode):
    """Sees every operation; notes those of a phase."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._weights = {_storage(local_part(weight)) for module in modules for weight in module.parameters()}
        self.phase: Phase | None = None
        self.tallies: dict[Phase, _Tally] = {phase: _Tally() for phase in PHASES}
        self.steps = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # a tensor that is spread over processes does its work with plain ones
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        found = func(*args, **kwargs)
        if self.phase is not None and not func.is_view:
            self._note(self.tallies[self.phase], func, args, kwargs, found)
        return found

    def _note(self, tally: _Tally, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        tally.launches += 1
        read = [tensor for tensor in _tensors((*args, *kwargs.values())) if _storage(tensor) in self._weights]
        if not read:
            return
        kind = func.overloadpacket
        if kind in _LOOK_UPS:
            tally.weight_bytes += found.numel() * found.element_size()
            return
        tally.weight_bytes += sum(_bytes_of(tensor) for tensor in read)
        if kind in flop_registry:
            tally.weight_operations += flop_registry[kind](*args, **kwargs, out_val=found)
        if kind in _PRODUCTS:
            for tensor in read:
                if tensor.dim() >= 2:
                    matrix = tensor if tensor is args[-1] else tensor.mT
                    tally.matrices.setdefault((tensor.data_ptr(), tensor.shape), matrix)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes_of(tensor: Tensor) -> int:
    """What is read of it once: an expanded view reads no more than there is."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _CountingWatch(NullWatch):
    """Tells the counter where the loop is."""

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what comes for this phase."""
        self._counter.phase = name
        try:
            yield
        finally:
            self._counter.phase = None

    def step(self) -> None:
        """One more."""
        self._counter.steps += 1


class _Calls:
    """Counts forwards of whole models, by hooks.

    Attributes:
        verified_tokens: Tokens that the target read in verifications.
        drafted: By model, forwards outside of a verification.
    """

    def __init__(self, counter: _Counter, target: nn.Module) -> None:
        self._counter, self._target = counter, target
        self.verified_tokens = 0
        self.drafted: Counter[nn.Module] = Counter()

    @contextmanager
    def noted(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Count the calls of these models."""
        handles = [module.register_forward_pre_hook(self._note, with_kwargs=True) for module in models]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._counter.phase == "verify" and module is self._target:
            self.verified_tokens += kwargs["input_ids"].numel()
        elif self._counter.phase is not None:
            self.drafted[module] += 1
