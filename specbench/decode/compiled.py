"""Phases through ``torch.compile``."""

import inspect
import warnings
from collections.abc import Callable, Collection
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from specbench.decode.cache import SlabCache
from specbench.decode.method import Method, Prefill, RowView, StepResult, TokenTree
from specbench.decode.sampling import Sampler
from specbench.decode.static import hosted
from specbench.decode.step import Accepted, State, Step, Verified
from specbench.decode.trace import Phase
from specbench.errors import SpecbenchError, first_line

P = ParamSpec("P")
T = TypeVar("T")

# Layouts of chains are made once and kept; compiled, they are made again in each step, fused with what reads them.
warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")


_IS_APART = "isolate_recompiles" in inspect.signature(torch.compile).parameters


class Compiled(Generic[P, T]):
    """Some work by ``torch.compile``, in one piece, for every form of its inputs anew.

    A graph that broke, or a form beyond the compiler's usual limit, would run eagerly without a word: here the one is
    an error, and there is no limit.

    Each call asks whether anything that was traced has changed, down to every weight: in a loop of small forwards a
    twentieth of the time. Behind the last new form it need only ask what tells the forms apart, where torch keeps those
    of other work elsewhere (2.13 does).

    Args:
        work: What is compiled.
        has_one_form: Whether all calls will have inputs of the first one's form.

    Attributes:
        has_all_forms: Whether there will be no other forms, and nothing that was traced will change; taken back when a
            new form comes.
    """

    def __init__(self, work: Callable[P, T], *, has_one_form: bool = False) -> None:
        from torch._dynamo import config

        config.recompile_limit = config.accumulated_recompile_limit = 1 << 16
        apart: dict[str, Any] = {"isolate_recompiles": True} if _IS_APART else {}
        self._work: Callable[P, T] = torch.compile(work, fullgraph=True, dynamic=False, **apart)
        self.has_all_forms, self._has_one_form = False, has_one_form

    def __call__(self, *inputs: P.args, **named: P.kwargs) -> T:
        """Do it, compiled now or before."""
        if self.has_all_forms and _IS_APART:
            try:
                with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
                    return self._work(*inputs, **named)
            except RuntimeError as error:
                # Raised before anything is done: a form that is new all the same, or work that looks at no tensor.
                if "skip_guard_eval_unsafe" not in str(error):
                    raise
                self.has_all_forms = False
        result = self._work(*inputs, **named)
        self.has_all_forms |= self._has_one_form
        return result


class CompiledIfPossible(Compiled[P, T]):
    """Work that is done as it is once it has turned out that it cannot be compiled.

    Attributes:
        refused: Why it is done as it is; None while it is compiled.
    """

    def __init__(self, work: Callable[P, T]) -> None:
        super().__init__(work)
        self._as_it_is = work
        self.refused: str | None = None

    def __call__(self, *inputs: P.args, **named: P.kwargs) -> T:
        """Do it, compiled or not."""
        if self.refused is not None:
            return self._as_it_is(*inputs, **named)
        try:
            return super().__call__(*inputs, **named)
        except (SpecbenchError, MemoryError, torch.cuda.OutOfMemoryError):
            raise  # not the compiler's fault
        except Exception as error:  # noqa: BLE001  (torch's reasons are many)
            reason = first_line(error)
        result = self._as_it_is(*inputs, **named)  # what is at fault fails again, and nothing is said of the compiler
        self.refused = reason
        return result


class CompiledStep(Step):
    """Another step with some of its phases compiled; one that cannot be compiled runs as it is.

    Args:
        inner: Runs the phases.
        phases: Those to compile.
    """

    def __init__(self, inner: Step, phases: Collection[Phase]) -> None:
        super().__init__(inner.target, inner.method, inner.decoding)
        self._inner = inner
        self._settled_on: SlabCache | None = None
        self._hosted = {phase: why for phase, why in hosted(inner).items() if phase in phases}
        self._works: dict[Phase, CompiledIfPossible[..., Any]] = {
            phase: CompiledIfPossible(getattr(inner, phase))
            for phase in phases
            if phase not in self._hosted and _does_something(inner, phase)
        }

    @property
    def compiled_phases(self) -> tuple[Phase, ...]:
        """Phases that are compiled."""
        return tuple(phase for phase, work in self._works.items() if work.refused is None)

    @property
    def refused(self) -> dict[Phase, str]:
        """Why a phase runs as it is."""
        return self._hosted | {phase: work.refused for phase, work in self._works.items() if work.refused is not None}

    def settle(self) -> None:
        """All forms have been seen of batches on this slab."""
        self._settled_on = self.target.slab_cache

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """As it is."""
        has_all_forms = self._settled_on is not None and self.target.slab_cache is self._settled_on
        for work in self._works.values():
            work.has_all_forms = has_all_forms
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
        work = self._works.get(phase) or getattr(self._inner, phase)
        return work(*inputs)


def _does_something(step: Step, phase: Phase) -> bool:
    """Whether there is anything to compile: a call of compiled code costs more than one that does nothing."""
    if phase == "draft":
        return step.caps.max_nodes > 0
    return phase != "update" or type(step.method).update is not Method.update
