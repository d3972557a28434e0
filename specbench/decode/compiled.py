"""Phases through ``torch.compile``."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from specbench.decode.method import Prefill, RowView, StepResult, TokenTree
from specbench.decode.sampling import Sampler
from specbench.decode.step import Accepted, State, Step, Verified
from specbench.decode.trace import Phase
from specbench.errors import SpecbenchError, first_line


class CompiledStep(Step):
    """Another step with some of its phases compiled; one that cannot be compiled runs as it is, and says why.

    Attributes:
        refused: Why a phase runs as it is.
    """

    def __init__(self, inner: Step, phases: Collection[Phase]) -> None:
        super().__init__(inner.target, inner.method, inner.decoding)
        self._inner = inner
        self._works: dict[Phase, Callable[..., Any]] = {phase: torch.compile(getattr(inner, phase)) for phase in phases}
        self.refused: dict[Phase, str] = {}

    @property
    def compiled_phases(self) -> tuple[Phase, ...]:
        """Phases that are compiled."""
        return tuple(phase for phase in self._works if phase not in self.refused)

    def settle(self) -> None:
        """What was not compiled by now stays as it is."""
        self._inner.settle()

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """As it is."""
        self._inner.begin(view, prefill)

    def draft(self, view: RowView) -> TokenTree:
        """Compiled or not."""
        return self._run("draft", view)

    def verify(self, tree: TokenTree, root: Tensor, lengths: Tensor, longest: int) -> Verified:
        """Compiled or not."""
        return self._run("verify", tree, root, lengths, longest)

    def accept(self, tree: TokenTree, verified: Verified, state: State, sampler: Sampler) -> Accepted:
        """Compiled or not."""
        return self._run("accept", tree, verified, state, sampler)

    def update(self, view: RowView, result: StepResult) -> None:
        """Compiled or not."""
        self._run("update", view, result)

    def _run(self, phase: Phase, *inputs: Any) -> Any:
        work = self._works.get(phase)
        if work is not None and phase not in self.refused:
            try:
                return work(*inputs)
            except SpecbenchError:
                raise
            except torch._dynamo.exc.TorchDynamoException as error:
                self.refused[phase] = first_line(error)
        return getattr(self._inner, phase)(*inputs)
