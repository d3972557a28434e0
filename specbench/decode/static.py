"""A step whose phases see few forms of input: what compiling and capturing need, so that neither happens twice.

Batches differ in how long their texts are, drafts in how many nodes they have. Here row lengths are told to phases
rounded up to a multiple, drafts that the host makes are filled up to a few widths, and the state of a batch, its
sampler and what its method carries from step to step lie in buffers that all batches share. When the first batches have
shown their forms, ``settle`` walks through all others, with no batch in flight and every row at rest.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from specbench.decode.method import HostReads, Prefill, RowView, StepResult, TokenTree
from specbench.decode.sampling import Sampler
from specbench.decode.step import Accepted, State, Step, Verified
from specbench.decode.target import Output
from specbench.decode.trace import Phase
from specbench.decode.tree import Topology

T = TypeVar("T")

OF_THE_METHOD: tuple[Phase, ...] = ("draft", "update")
"""Phases that are the method's own code."""

for _kind in (RowView, TokenTree, StepResult, Sampler, Output):
    pytree.register_dataclass(_kind)


def hosted(step: Step) -> dict[Phase, str]:
    """Phases that may only run as they are, and why."""
    if step.method.carries() is not None:
        return {}
    return dict.fromkeys(OF_THE_METHOD, f"{step.method.name} looks at the host")


class _Walk(NamedTuple):
    """What a step began with, and what was drafted."""

    view: RowView
    tree: TokenTree
    state: State


class StaticStep(Step):
    """Another step's phases, on inputs of few forms.

    Args:
        inner: Runs the phases.
        bound_stride: Row lengths are told to phases rounded up to a multiple of it.

    Attributes:
        is_settled: Whether all forms have been seen.
    """

    def __init__(self, inner: Step, bound_stride: int = 128) -> None:
        super().__init__(inner.target, inner.method, inner.decoding)
        self.host = HostReads(is_free=False)
        self.is_settled = False
        self._inner, self._stride = inner, bound_stride
        self._buffers: dict[Hashable, list[Tensor]] = {}
        self._carried = inner.method.carries()
        self._view: RowView | None = None
        self._last: _Walk | None = None

    @property
    def compiled_phases(self) -> tuple[Phase, ...]:
        """Those of the inner step."""
        return self._inner.compiled_phases

    def bound(self, longest: int) -> int:
        """The next multiple of the stride; the whole cache where attention reads each row's length by itself."""
        slots = self.target.cache.slots
        return min(-(-longest // self._stride) * self._stride, slots) if self.target.attention.needs_view else slots

    def adopt(self, values: T) -> T:
        """Values of a new batch, in the buffers that earlier batches of that shape have used."""
        leaves, spec = pytree.tree_flatten(values)
        tensors = [*filter(is_tensor, leaves)]
        kept = self._buffers.setdefault((spec, *map(form, leaves)), [])
        if not kept:
            kept += [tensor.clone() for tensor in tensors]
        for buffer, tensor in zip(kept, tensors, strict=True):
            buffer.copy_(tensor)
        buffers = iter(kept)
        return pytree.tree_unflatten([next(buffers) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """As it is, since prompts have any length; then what the method carries gets its place."""
        # Caches of the method's own are as large as the target's, so that they stay where they are as long as it does.
        self._inner.begin(replace(view, capacity=self.target.cache.slots), prefill)
        for name, tensor in self.adopt({name: getattr(self.method, name) for name in self._carried or ()}).items():
            setattr(self.method, name, tensor)

    def draft(self, view: RowView) -> TokenTree:
        """The method's draft; one of any width is brought to one of a few."""
        tree = self._run("draft", self._draft_in_place, self._steady(view))
        return self._to_width(tree) if self._carried is None else tree

    def verify(self, tree: TokenTree, root: Tensor, lengths: Tensor, longest: int) -> Verified:
        """As the inner step does."""
        return self._run("verify", self._inner.verify, tree, root, lengths, longest)

    def accept(self, tree: TokenTree, verified: Verified, state: State, sampler: Sampler) -> Accepted:
        """As the inner step does; the new state takes the place of the old."""
        assert self._view is not None, "draft() comes first"
        self._last = _Walk(self._view, tree, state)
        return self._run("accept", self._accept_in_place, tree, verified, state, sampler)

    def update(self, view: RowView, result: StepResult) -> None:
        """As the inner step does."""
        self._run("update", self._update_in_place, self._steady(view), result)

    def _accept_in_place(self, tree: TokenTree, verified: Verified, state: State, sampler: Sampler) -> Accepted:
        accepted = self._inner.accept(tree, verified, state, sampler)
        result = replace(accepted.result, lengths_before=state.lengths.clone())
        for old, new in zip(state, accepted.state, strict=True):
            if new is not old:
                old.copy_(new)
        return Accepted(state, result, accepted.report)

    def _draft_in_place(self, view: RowView) -> TokenTree:
        return self._leaving_carried(self._inner.draft, view)

    def _update_in_place(self, view: RowView, result: StepResult) -> None:
        self._leaving_carried(self._inner.update, view, result)

    def _leaving_carried(self, work: Callable[..., T], *inputs: Any) -> T:
        """Do the work, and leave what the method carries in the buffers where it was found."""
        buffers = {name: getattr(self.method, name) for name in self._carried or ()}
        result = work(*inputs)
        for name, buffer in buffers.items():
            new = getattr(self.method, name)
            if new is not buffer:
                setattr(self.method, name, buffer.copy_(new))
        return result

    def _steady(self, view: RowView) -> RowView:
        """A view without the numbers that differ from batch to batch; only ``begin`` has a use for them.

        It stays the same object while nothing of it changes: the tensors of a state stay where they are.
        """
        known = self._view
        if (
            known is None
            or known.root is not view.root
            or known.sampler is not view.sampler
            or known.longest != view.longest
        ):
            slots = self.target.cache.slots
            self._view = known = replace(view, capacity=slots, text_limit=slots)
        return known

    # --- forms

    @torch.inference_mode()
    def settle(self) -> None:
        """See every form that batches like those so far may have."""
        if not self.is_settled and self._last is not None:
            view, tree, state = self._last
            state.lengths.fill_(1)  # within every bound
            state.active.zero_()
            for bound in sorted(set(map(self.bound, range(1, self.target.cache.slots + 1)))):
                self._walk_widths(_Walk(replace(view, longest=bound), tree, state))
            self._inner.settle()
        self.is_settled = True

    def _walk_widths(self, last: _Walk) -> None:
        if self._carried is not None:
            self._walk(last._replace(tree=self.draft(last.view)))
        elif isinstance(last.tree.parents, Topology):
            self._walk(last)
        else:
            for nodes in _widths(self.caps.max_nodes):
                self._walk(last._replace(tree=_resized(last.tree, nodes)))

    def _walk(self, step: _Walk) -> None:
        """A step in which no row decodes."""
        view, tree, state = step
        verified = self.verify(tree, state.root, state.lengths, view.longest)
        accepted = self.accept(tree, verified, state, view.sampler)
        if self._carried is not None:  # else it is a method that knows of no walk
            self.update(view, accepted.result)

    def _to_width(self, tree: TokenTree) -> TokenTree:
        if isinstance(tree.parents, Topology):
            return tree
        nodes = tree.tokens.shape[1]
        return _resized(tree, next(width for width in _widths(self.caps.max_nodes) if width >= nodes))

    def _run(self, phase: Phase, work: Callable[..., T], *inputs: Any) -> T:
        """A phase on inputs of a known form."""
        return work(*inputs)


def is_tensor(leaf: object) -> TypeGuard[Tensor]:
    """Whether a leaf is one."""
    return isinstance(leaf, Tensor)


def form(leaf: object) -> Hashable:
    """What of a leaf does not change from step to step."""
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _widths(most: int) -> list[int]:
    """What drafts are filled up to, in nodes: with the root powers of two, as matrix products like it."""
    widths = [0]
    while widths[-1] < most:
        widths.append(min(2 * widths[-1] + 1, most))
    return widths


def _resized(tree: TokenTree, nodes: int) -> TokenTree:
    """A draft cut off, or filled up with padding, at so many nodes; it keeps its first ones."""
    parents, drafted, probs = tree.parents, tree.drafted, tree.draft_probs
    if parents is None:
        is_drafted = torch.ones_like(tree.tokens, dtype=torch.bool) if drafted is None else drafted
        drafted = _fitted(is_drafted, nodes)
    if isinstance(parents, Tensor):
        parents = _fitted(parents.expand(len(tree.tokens), -1), nodes, filler=-2)
    if probs is not None and tree.draft_rows is None:
        probs = _fitted(probs, max(1, nodes))
    return replace(
        tree,
        tokens=_fitted(tree.tokens, nodes),
        parents=parents,
        drafted=drafted,
        draft_probs=probs,
        draft_rows=None if tree.draft_rows is None else _fitted(tree.draft_rows, nodes + 1),
        probe=None if tree.probe is None else _fitted(tree.probe, nodes),
    )


def _fitted(values: Tensor, columns: int, filler: int = 0) -> Tensor:
    """(B, n, ...) -> (B, columns, ...), always of the same strides: those of another tensor would be another form."""
    room = values.new_full((len(values), columns, *values.shape[2:]), filler)
    kept = min(columns, values.shape[1])
    room[:, :kept] = values[:, :kept]
    return room
