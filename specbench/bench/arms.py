"""One arm on the machine: what runs it, its draft latency, and each batch either measured or with a reason why not."""

import re
import statistics
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from specbench import registry
from specbench.bench.cells import Block, ReadyCell
from specbench.bench.memory import Holdings
from specbench.bench.pacer import Pacer, pacer
from specbench.bench.prompts import warm_up_ids
from specbench.bench.step_work import StepWork, count_step
from specbench.bench.steps import ReadyStep
from specbench.bench.timing import (
    BatchTimeoutError,
    HeadlineWatch,
    PhaseWatch,
    Timing,
    no_garbage_collection,
    timeline,
)
from specbench.decode.acceptance import Rule, rule_for
from specbench.decode.drafter import Drafter
from specbench.decode.loop import Requests, generate, slots_for
from specbench.decode.method import LoadContext, Method
from specbench.decode.outside import Baseline
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, Watch
from specbench.errors import DeviceFaultError, UnsupportedError, first_line
from specbench.grid import AUTOREGRESSIVE, Arm
from specbench.models.loader import LoadedModel, ModelPool, Supplier
from specbench.models.ranks import agreed, told, world

Status = Literal["oom", "timeout", "error", "unsupported", "skipped"]
Pass = Literal["headline", "phase"]
MethodClass = Callable[[str], type[Method]]

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "STATUS_ALLOC_FAILED")
_UNUSED = re.compile(r"capacity of ([\d.]+ \w+).* ([\d.]+ \w+) is reserved by PyTorch but unallocated")
_WORTH_A_HINT = 0.05
"""Share of a GPU's memory that is reserved and not in use."""


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


class LiveArm(ABC):
    """An arm that is loaded. Nothing here raises for a fault of what it runs: it comes back as a ``Failure``.

    Attributes:
        passes: The passes that it takes part in.
        arm: What it is.
        failure: Set where no batch of this cell can run.
        out_of_memory: Whether it has run out of memory, while it was loaded or since.
    """

    passes: ClassVar[tuple[Pass, ...]]

    def __init__(
        self, arm: Arm, cell: ReadyCell, target: LoadedModel | Failure, pool: ModelPool, *, limit_s: float | None = None
    ) -> None:
        self.arm, self._cell = arm, cell
        self._limit_s = limit_s if world() == 1 else None  # one process must not stop while others go on
        self.failure: Failure | None = target if isinstance(target, Failure) else None
        self.out_of_memory = False
        self._handles: list[CachedModel] = []
        self._drafters: list[Drafter] = []
        self._has_target = isinstance(target, LoadedModel)
        if isinstance(target, Failure):
            return
        self._target = target.model
        supplier = Supplier(pool, target)
        self._handles, self._drafters = supplier.drafts, supplier.drafters
        try:
            reason = self._load(supplier.context)
            failure = None if reason is None else Failure("unsupported", reason)
        except Exception as error:  # noqa: BLE001  (a method may be anyone's, and its fault becomes rows)
            failure = self._failed(error)
        self.failure = first_failure(failure)
        if self.failure is not None:
            self._settle(self.failure)

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """What decides on its drafts."""

    @property
    @abstractmethod
    def is_autoregressive(self) -> bool:
        """Whether it drafts nothing, so that it may be the path that speed-ups are taken against."""

    @abstractmethod
    def _load(self, context: LoadContext) -> str | None:
        """Make ready what runs the arm; the reason why it cannot run this cell, if there is one."""

    @abstractmethod
    def _generate(self, requests: Requests, watch: Watch) -> BatchTrace:
        """Decode one batch."""

    def warm_up(self, blocks: Sequence[Block], passes: int) -> list[float]:
        """Run on prompts as long as those of the first block and none of them.

        Args:
            blocks: The longest of every batch size, full ones first.
            passes: How often.

        Returns:
            Seconds a step of every pass.
        """
        if self.failure is not None:
            return []
        requests, step_s = _warm_up_requests(blocks[0]), []
        for _ in range(passes):
            outcome = self._decode(requests, "headline")
            if isinstance(outcome, Measured) and outcome.trace.steps:
                step_s.append(outcome.timing.decode_s / outcome.trace.steps)
        return step_s

    def achieved_s(self) -> list[float]:
        """What every draft call took whose latency is kept, in seconds."""
        return []

    def reserve(self, block: Block) -> None:
        """Make room in the target's cache for a batch like the block, as far as the arm uses that cache."""

    def preparation(self) -> dict[str, Any]:
        """What of its step was compiled and captured, for ``runs.notes``; empty where all is as it is."""
        return {}

    def run(self, block: Block, which: Pass) -> Outcome:
        """Measure one batch."""
        return self.failure or self._decode(block.requests, which)

    @property
    def holdings(self) -> Holdings | None:
        """What it keeps between batches; None where there is nothing."""
        if not self._has_target:
            return None
        drafts = [handle.module for handle in self._handles]
        return Holdings([self._target.module, *drafts, *self._drafters], self._slabs)

    @property
    @abstractmethod
    def _slabs(self) -> list[CachedModel]:
        """The models whose slabs it fills."""

    def _decode(self, requests: Requests, which: Pass) -> Outcome:
        kind = HeadlineWatch if which == "headline" else PhaseWatch
        watch = kind(timeline(self._target.device), self._limit_s)
        try:
            with no_garbage_collection():
                trace = self._generate(requests, watch)
            outcome: Outcome = Measured(trace, watch.timing)
        except Exception as error:  # noqa: BLE001  (one arm's fault must not end the run)
            outcome = self._failed(error)
        outcome = together(outcome)
        if isinstance(outcome, Failure):
            self._settle(outcome)
            self._check_device(outcome)
        return outcome

    def _check_device(self, failure: Failure) -> None:
        """A GPU that has faulted answers its process no more: each arm would fail, and none of them be at fault.

        Raises:
            DeviceFaultError: It has.
        """
        if failure.status != "error":
            return
        try:
            timeline(self._target.device).wall()
        except RuntimeError as error:
            raise DeviceFaultError(
                f"{self.arm.name}: the GPU has faulted and answers no more ({first_line(error)}); finished blocks are "
                f"kept: leave the arm out, or try it alone with CUDA_LAUNCH_BLOCKING=1. It had said: {failure.reason}"
            ) from None

    def _failed(self, error: Exception) -> Failure:
        return failure_of(error)

    def _settle(self, failure: Failure) -> None:
        """Note what a failure means for later; one of memory frees the slabs that this arm alone has."""
        if failure.status == "oom":
            self.out_of_memory = True
            for handle in self._handles:
                handle.release()


class CoreArm(LiveArm):
    """A method on the decode core.

    Attributes:
        pacers: Keep the draft latency; empty where it is as measured.
    """

    passes = ("headline", "phase")

    def __init__(
        self,
        arm: Arm,
        cell: ReadyCell,
        target: LoadedModel | Failure,
        pool: ModelPool,
        method_class: MethodClass = registry.load,
        *,
        limit_s: float | None = None,
    ) -> None:
        self._method_class = method_class
        self.pacers: list[Pacer] = []
        self._draft_pacer: AbstractContextManager[None] | None = None
        super().__init__(arm, cell, target, pool, limit_s=limit_s)

    @property
    def rule(self) -> Rule:
        """The cell's."""
        return self._cell.decoding.rule

    @property
    def is_autoregressive(self) -> bool:
        """Known by its method."""
        return self.arm.method == AUTOREGRESSIVE

    @property
    def _slabs(self) -> list[CachedModel]:
        return [self._target, *self._handles]

    def _load(self, context: LoadContext) -> str | None:
        kind = self._method_class(self.arm.method)
        self._method = kind(self.arm.build(kind.Options))
        self._method.load(context)
        self._ready: dict[int, ReadyStep] = {}
        return self._method.unsupported(self._cell.cell.decode.batch_size, self.rule.name)

    def _ready_for(self, rows: int) -> ReadyStep:
        """How batches of so many rows are run: what is compiled or captured is of one size."""
        if rows not in self._ready:
            self._ready[rows] = ReadyStep(
                self._target,
                self._method,
                self._cell.decoding,
                self._cell.cell.machine,
                draft_is_paced=self.arm.draft_latency_ms is not None,
                drafts=self._handles,
            )
        return self._ready[rows]

    def _generate(self, requests: Requests, watch: Watch) -> BatchTrace:
        step = self._ready_for(len(requests.prompts)).step
        return generate(self._target, self._method, requests, step.decoding, watch, self._draft_pacer, step=step)

    def warm_up(self, blocks: Sequence[Block], passes: int) -> list[float]:
        """As for every arm; phases are compiled and captured before, and the draft latency is set."""
        for block in blocks:
            if self.failure is None:
                self._prepare(_warm_up_requests(block))
        if self.failure is None and self.arm.draft_latency_ms is not None:
            self._set_latency(_warm_up_requests(blocks[0]), self.arm.draft_latency_ms * 1e-3)
        step_s = super().warm_up(blocks, passes)
        self._forget_latencies()
        return step_s

    def _prepare(self, requests: Requests) -> None:
        failure = None
        try:
            self._ready_for(len(requests.prompts)).prepare(lambda: self._decode(requests, "headline"))
        except DeviceFaultError:
            raise
        except Exception as error:  # noqa: BLE001  (as in a batch)
            failure = self._failed(error)
        self.failure = first_failure(failure)
        if self.failure is not None:
            self._settle(self.failure)

    def reserve(self, block: Block) -> None:
        """Done for all arms before one is warmed up: phases are compiled and captured for the cache that they found."""
        if self.failure is None:
            slots = slots_for(self._method.caps(), block.longest + self._cell.decoding.max_new_tokens)
            try:
                self._target.allocate(len(block.prompts), slots)
            except Exception as error:  # noqa: BLE001  (as in a batch)
                self.failure = self._failed(error)

    def preparation(self) -> dict[str, Any]:
        """What became of its phases, by rows of a batch."""
        if self.failure is not None:
            return {}
        return {str(rows): notes for rows, ready in self._ready.items() if (notes := ready.notes())}

    def _set_latency(self, requests: Requests, floor_s: float) -> None:
        """Measure the latency that the draft has by nature, and refuse a bound below it."""
        self._pace(0.0)
        for _ in range(2):  # the first time, memory is still being touched
            self._forget_latencies()
            outcome = self._decode(requests, "headline")
            if isinstance(outcome, Failure):
                self.failure = outcome  # rows that say "injected" must not run at the draft's own pace
                return
        natural = agreed(self.achieved_s())
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
        """What every paced call took since the end of the warm-up, in seconds."""
        return [seconds for keeper in self.pacers for seconds in keeper.achieved_s()]

    @property
    def target(self) -> CachedModel:
        """The target that it runs on; there is one unless it has failed."""
        return self._target

    def step_work(self, block: Block) -> StepWork | None:
        """What its step moves, computes and launches, counted on prompts as long as the block's; None without a step.

        Not for times: it runs eagerly, and under a watchful eye.
        """
        requests = _warm_up_requests(block)
        work = count_step(
            self._target, self._method, requests, self._cell.decoding, drafts=self._handles, drafters=self._drafters
        )
        self._forget_latencies()
        return work

    def _forget_latencies(self) -> None:
        for keeper in self.pacers:
            keeper.clear()


class OutsideArm(LiveArm):
    """An outside baseline. It has no phases to time, and its drafts cannot be paced.

    Where its code is compiled for a shape of batch, that happens before the first such batch is timed.
    """

    passes = ("headline",)
    # The first compiles, the second may capture, the third runs as all later ones do.
    _PASSES_TO_COMPILE = 3

    @property
    def rule(self) -> Rule:
        """Its own: greedy, or one that keeps the target's distribution by chance of its own."""
        return rule_for("auto", self._cell.decoding.temperature)

    @property
    def is_autoregressive(self) -> bool:
        """Known by its class."""
        return self._kind.is_autoregressive

    @property
    def _kind(self) -> type[Baseline]:
        return registry.load_baseline(self.arm.method)

    @property
    def _slabs(self) -> list[CachedModel]:
        return []

    def _load(self, context: LoadContext) -> str | None:
        self._compiled: set[Hashable] = {None}
        self._baseline = self._kind(self.arm.build(self._kind.Options))
        self._baseline.load(context)
        if self.arm.draft_latency_ms is not None:
            return f"a draft latency cannot be kept inside the loop of {self.arm.method}"
        return self._baseline.unsupported(
            self._cell.cell.decode.batch_size, self._cell.decoding.rule, self._target.device
        )

    def _generate(self, requests: Requests, watch: Watch) -> BatchTrace:
        return self._baseline.generate(requests, self._cell.decoding, watch)

    def warm_up(self, blocks: Sequence[Block], passes: int) -> list[float]:
        """As for every arm; what it takes to compile is not among the passes."""
        for block in blocks:
            self._compile(block)
        return super().warm_up(blocks, passes)

    def run(self, block: Block, which: Pass) -> Outcome:
        """Measure one batch."""
        self._compile(block)
        return super().run(block, which)

    def _compile(self, block: Block) -> None:
        if self.failure is not None:
            return
        shape = self._baseline.compiled_for(block.requests)
        if shape in self._compiled:
            return
        self._compiled.add(shape)
        for _ in range(self._PASSES_TO_COMPILE):
            self._decode(_warm_up_requests(block), "headline")


def live_arm(
    arm: Arm,
    cell: ReadyCell,
    target: LoadedModel | Failure,
    pool: ModelPool,
    method_class: MethodClass = registry.load,
    *,
    limit_s: float | None = None,
) -> LiveArm:
    """An arm, loaded: a method on the core, or an outside baseline."""
    if arm.method in registry.baselines():
        return OutsideArm(arm, cell, target, pool, limit_s=limit_s)
    return CoreArm(arm, cell, target, pool, method_class, limit_s=limit_s)


def _warm_up_requests(block: Block) -> Requests:
    return Requests([warm_up_ids(prompt.ids) for prompt in block.prompts], block.requests.keys)


def together(outcome: Outcome) -> Outcome:
    """The outcome for every process that holds the model: where one has failed, all have."""
    if (failure := first_failure(outcome if isinstance(outcome, Failure) else None)) is not None:
        return failure
    assert isinstance(outcome, Measured), "a failure of this process is one of them"
    texts = [row.output_ids for row in outcome.trace.rows]
    if any(other != texts for other in told(texts)):
        return Failure("error", "the processes that hold the model have decoded different texts")
    return outcome


def first_failure(failure: Failure | None) -> Failure | None:
    """That of the first process that has one."""
    return next((other for other in told(failure) if other is not None), None)


def failure_of(error: Exception) -> Failure:
    """An exception as a status and a reason; the tensors that its frames hold are let go of."""
    _let_go(error)
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, BatchTimeoutError):
        return Failure("timeout", text)
    if isinstance(error, UnsupportedError):
        return Failure("unsupported", text)
    out_of_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if out_of_memory or (isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)):
        return Failure("oom", _words_of_memory(text))
    return Failure("error", f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _let_go(error: BaseException | None) -> None:
    """Clear the frames of an error, and of those that it arose from."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _words_of_memory(text: str) -> str:
    """What torch says of a full memory without its figures, and what may help."""
    said = text.partition(" GPU ")[0] or "out of memory"
    found = _UNUSED.search(text)
    if found is None or _in_mib(found[2]) < _WORTH_A_HINT * _in_mib(found[1]):
        return said
    return (
        f"{said} {found[2]} are reserved and not in use: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True keeps them "
        "from being cut into pieces"
    )


def _in_mib(words: str) -> float:
    number, unit = words.split()
    return float(number) * {"GiB": 1024.0, "MiB": 1.0}.get(unit, 0.0)
