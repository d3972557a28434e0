"""One arm on the machine: its method, its draft latency, and each batch either measured or with a reason why not."""

import statistics
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from specbench.bench.cells import Block, ReadyCell
from specbench.bench.pacer import Pacer, pacer
from specbench.bench.prompts import warm_up_ids
from specbench.bench.timing import (
    BatchTimeoutError,
    HeadlineWatch,
    PhaseWatch,
    Timing,
    no_garbage_collection,
    timeline,
)
from specbench.decode.loop import Requests, generate
from specbench.decode.method import LoadContext, Method
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace
from specbench.errors import UnsupportedError
from specbench.grid import Arm
from specbench.models.loader import LoadedModel, ModelPool

Status = Literal["oom", "timeout", "error", "unsupported", "skipped"]
Pass = Literal["headline", "phase"]
MethodClass = Callable[[str], type[Method]]

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Failure:
    """Why there are no numbers: a status of the ``requests`` table, and the reason in words."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Measured:
    """One batch: what happened and when."""

    trace: BatchTrace
    timing: Timing


Outcome = Measured | Failure


class LiveArm:
    """An arm with its method loaded. Nothing here raises for a fault of the method: it comes back as a ``Failure``.

    Attributes:
        arm: What it is.
        failure: Set where no batch of this cell can run.
        pacers: Keep the draft latency; empty where it is as measured.
    """

    def __init__(
        self,
        arm: Arm,
        cell: ReadyCell,
        target: LoadedModel | Failure,
        pool: ModelPool,
        method_class: MethodClass,
        *,
        limit_s: float | None = None,
    ) -> None:
        self.arm, self._cell, self._limit_s = arm, cell, limit_s
        self.failure: Failure | None = target if isinstance(target, Failure) else None
        self.pacers: list[Pacer] = []
        self._draft_pacer: AbstractContextManager[None] | None = None
        self._handles: list[CachedModel] = []
        if isinstance(target, Failure):
            return
        self._target = target.model
        try:
            self._method = self._loaded(method_class(arm.method), target, pool)
        except Exception as error:  # noqa: BLE001  (a method may be anyone's, and its fault becomes rows)
            self.failure = failure_of(error)
            return
        reason = self._method.unsupported(cell.cell.decode.batch_size, cell.decoding.rule.name)
        if reason is not None:
            self.failure = Failure("unsupported", reason)

    def _loaded(self, kind: type[Method], target: LoadedModel, pool: ModelPool) -> Method:
        method = kind(self.arm.build(kind.Options))

        def draft_model(name: str) -> CachedModel:
            self._handles.append(pool.draft(name, target))
            return self._handles[-1]

        method.load(LoadContext(target.model, draft_model))
        return method

    def warm_up(self, block: Block, passes: int) -> list[float]:
        """Run on prompts as long as the block's and none of them; set the draft latency on the way.

        Returns:
            Seconds a step of every pass.
        """
        if self.failure is not None:
            return []
        requests = Requests([warm_up_ids(prompt.ids) for prompt in block.prompts], block.requests.keys)
        step_s = []
        if self.arm.draft_latency_ms is not None:
            self._set_latency(requests, self.arm.draft_latency_ms * 1e-3)
        for _ in range(passes):
            outcome = self._decode(requests, "headline")
            if isinstance(outcome, Measured) and outcome.trace.steps:
                step_s.append(outcome.timing.decode_s / outcome.trace.steps)
        self.forget_latencies()
        return step_s

    def _set_latency(self, requests: Requests, floor_s: float) -> None:
        """Measure the latency that the draft has by nature, and refuse a bound below it."""
        if self.failure is not None:
            return
        self._pace(0.0)
        for _ in range(2):  # the first time, memory is still being touched
            self.forget_latencies()
            outcome = self._decode(requests, "headline")
            if isinstance(outcome, Failure):
                self.failure = outcome  # rows that say "injected" must not run at the draft's own pace
                return
        natural = self.achieved_s()
        if natural and statistics.median(natural) > floor_s:
            self.failure = Failure(
                "unsupported",
                f"a draft latency of {floor_s * 1e3:g} ms is asked for, and a draft forward takes "
                f"{statistics.median(natural) * 1e3:.3g} ms here; the closed forms answer what lies below",
            )
        self._pace(floor_s)

    def _pace(self, floor_s: float) -> None:
        """Hang pacers around the draft forwards, or around the draft phase of a method without a draft model."""
        device = self._target.device
        self.pacers = [pacer(floor_s, device) for _ in self._handles] or [pacer(floor_s, device)]
        for handle, keeper in zip(self._handles, self.pacers, strict=False):
            handle.pacer = keeper
        self._draft_pacer = None if self._handles else self.pacers[0]

    def achieved_s(self) -> list[float]:
        """What every paced call took since the last ``forget_latencies``, in seconds."""
        return [seconds for keeper in self.pacers for seconds in keeper.achieved_s()]

    def forget_latencies(self) -> None:
        """Begin to count anew."""
        for keeper in self.pacers:
            keeper.clear()

    def run(self, block: Block, which: Pass) -> Outcome:
        """Measure one batch."""
        return self.failure or self._decode(block.requests, which)

    def _decode(self, requests: Requests, which: Pass) -> Outcome:
        kind = HeadlineWatch if which == "headline" else PhaseWatch
        watch = kind(timeline(self._target.device), self._limit_s)
        try:
            with no_garbage_collection():
                trace = generate(self._target, self._method, requests, self._cell.decoding, watch, self._draft_pacer)
        except Exception as error:  # noqa: BLE001  (one arm's fault must not end the run)
            return failure_of(error)
        return Measured(trace, watch.timing)


def failure_of(error: Exception) -> Failure:
    """An exception as a status and a reason; the tensors that its frames hold are let go of."""
    traceback.clear_frames(error.__traceback__)
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, BatchTimeoutError):
        return Failure("timeout", text)
    if isinstance(error, UnsupportedError):
        return Failure("unsupported", text)
    out_of_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if out_of_memory or (isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)):
        return Failure("oom", text or "out of memory")
    return Failure("error", f"{type(error).__name__}: {text}" if text else type(error).__name__)
