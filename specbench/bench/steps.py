"""The step of an arm: its phases as they are, compiled whole or in pieces, or captured as CUDA graphs, as is asked."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from specbench.bench.timing import monotonic_s, no_garbage_collection
from specbench.config import MachineSettings
from specbench.decode.compiled import CompiledStep
from specbench.decode.graphs import CudaRecorder, RecordedStep, Recorder
from specbench.decode.method import Method
from specbench.decode.pieces import PiecedStep
from specbench.decode.static import StaticStep
from specbench.decode.step import Decoding, Step
from specbench.decode.target import CachedModel
from specbench.decode.trace import PHASES, Phase

T = TypeVar("T")


@dataclass
class Captures:
    """What capturing took.

    Attributes:
        seconds: Time, the rounds before each capture included.
        reserved_bytes: Memory that the allocator took from the device meanwhile.
        graphs: How many graphs there are of each phase.
    """

    seconds: float = 0.0
    reserved_bytes: int = 0
    graphs: Counter[Phase] = field(default_factory=Counter)


class CountingRecorder:
    """Another recorder, with a note of what recording took."""

    def __init__(self, inner: Recorder, device: torch.device) -> None:
        self._inner, self._device = inner, device
        self.captures = Captures()

    def record(self, phase: Phase, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record, with a look at the clock and at the allocator."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # as a capture does first of all: what it gives back is not the graph's
        began_s, before = monotonic_s(), self._reserved_bytes()
        recorded = self._inner.record(phase, work)
        self.captures.seconds += monotonic_s() - began_s
        self.captures.reserved_bytes += self._reserved_bytes() - before
        self.captures.graphs[phase] += 1
        return recorded

    def _reserved_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._device) if self._device.type == "cuda" else 0


class ReadyStep:
    """How batches of one size are run in an arm, and what it took to make that ready.

    The accept phase is always compiled on a GPU: in tensor operations it is some 180 launches, compiled some 20.

    Args:
        target: The target.
        method: The method, loaded.
        decoding: How it decodes.
        machine: Whether phases are compiled, and whether they are captured.
        draft_is_paced: A draft whose latency is kept runs as it is: the pacer reads the clock around it.
        drafts: The draft models that the method has been given.

    Attributes:
        step: For ``decode.loop.generate``.
    """

    def __init__(
        self,
        target: CachedModel,
        method: Method,
        decoding: Decoding,
        machine: MachineSettings,
        *,
        draft_is_paced: bool,
        drafts: Sequence[CachedModel] = (),
    ) -> None:
        is_gpu = target.can_be_captured
        kept: set[Phase] = {"draft"} if draft_is_paced else set()
        wanted = PHASES if machine.compile is True else ("accept",) if is_gpu else ()
        self.step = Step(target, method, decoding)
        self._pieced: PiecedStep | None = None
        self._compiled: CompiledStep | None = None
        self._recorded: RecordedStep | None = None
        if machine.compile == "pieces":
            models: dict[Phase, Sequence[CachedModel]] = {"draft": (target, *drafts), "verify": (target,)}
            models = {phase: those for phase, those in models.items() if phase not in kept}
            self.step = self._pieced = PiecedStep(target, method, decoding, models)
        if compiled := [phase for phase in wanted if phase not in kept]:
            self.step = self._compiled = CompiledStep(self.step, compiled)
        if is_gpu and machine.graphs:
            self._recorder = CountingRecorder(CudaRecorder(target.device), target.device)
            reasons = dict.fromkeys(kept, "its latency is kept")
            self.step = self._recorded = RecordedStep(self.step, self._recorder, refused=reasons, drafts=drafts)
        elif self._pieced is not None or self._compiled is not None:
            self.step = StaticStep(self.step)

    def prepare(self, run: Callable[[], object]) -> None:
        """Compile and capture.

        Args:
            run: Decodes a batch of as many rows as all others to its end, so that phases show their shapes; its text is
                nobody's.
        """
        if not isinstance(self.step, StaticStep):
            return
        run()
        with no_garbage_collection():  # a graph that dies while another is captured would spoil it
            self.step.settle()

    def notes(self) -> dict[str, Any]:
        """What was compiled and captured, at which cost, and what was not; empty where all is as it is."""
        found: dict[str, Any] = {}
        if self._pieced is not None:
            found |= {"compiled_pieces": self._pieced.compiled, "pieces_as_they_are": self._pieced.refused}
        if self._compiled is not None:
            found |= {"compiled": list(self._compiled.compiled_phases), "not_compiled": self._compiled.refused}
        if self._recorded is not None:
            captures, notes = self._recorder.captures, self._recorded.notes
            found |= {
                "graphs": dict(captures.graphs),
                "capture_s": captures.seconds,
                "capture_bytes": captures.reserved_bytes,
                "not_captured": notes.refused,
                "ran_uncaptured": notes.missed,
            }
        return found
