"""A step beside the sum of its kernels' times: what it takes longer, the GPU waits, within a graph or between two.

    python -m specbench.bench.kernels --device cuda --compile --out kernels.json
    python -m specbench.bench.kernels --target random:vicuna-7b-v1.3 --set draft=random:llama-68m --no-graphs

Steps are timed as in a headline pass. Then the same batches are decoded again, and torch's profiler notes what runs on
the GPU behind the prefill: kernels, copies and fills, those of a graph one by one. It slows the steps that it sees, and
on the host those that come after it: so all batches are timed before it starts, and of several settings only the first
finds a process without it. A kernel that it sees may take a little longer than another; if so, the ratio is too good.
Of random weights hardly a draft is accepted; a step's tensors are no larger if it is.

Unverified until a GPU has run it.
"""

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from specbench.analysis.intervals import Interval, Totals, jackknife_interval, ratio
from specbench.bench.floor import ReadyMethod, Setting, command, equal_batches, opened, spread, write
from specbench.bench.timing import HeadlineWatch, Timeline, no_garbage_collection
from specbench.config import MachineSettings
from specbench.decode.loop import Requests
from specbench.decode.trace import NullWatch, Watch
from specbench.errors import SpecbenchError, UnsupportedError
from specbench.models.loader import ModelPool

_PROFILED = ProfilerActivity.CUDA
_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
"""What keeps a GPU busy, in the profiler's words. Its timeline holds waits as well, and ranges that the host named."""

_SHOWN = 8
"""Kernels that are named, by their time."""
_NAME_LETTERS = 72


class Work(NamedTuple):
    """A kernel, a copy or a fill, and when it ran."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Share:
    """What one kernel takes of a step: how often it runs, for how long in all, and which share of all kernels' time."""

    name: str
    times: float
    ms: float
    share: float


@dataclass(frozen=True)
class StepKernels:
    """A step and its kernels, copies and fills among them.

    Attributes:
        setting: What was decoded.
        execution: How phases were to be run.
        preparation: What of them was compiled and captured, and what was not.
        step_ms: Milliseconds of a step.
        kernels_ms: Sum of its kernels' times. Where some run side by side it counts that time for each.
        busy_ms: Time in which any of them ran.
        kernels: How many they are.
        ratio: The step over the sum.
        interval: Its 95 % interval over batches of prompts; None below four of them.
        most: The kernels that take longest, the longest first.
    """

    setting: Setting
    execution: str
    preparation: dict[str, Any]
    step_ms: float
    kernels_ms: float
    busy_ms: float
    kernels: float
    ratio: float
    interval: Interval | None
    most: list[Share]


class Timed(NamedTuple):
    """A batch as it was timed."""

    decode_s: float
    steps: int


class Seen(NamedTuple):
    """A batch as the profiler saw it: all work of so many steps, the one too many at its end included."""

    work: list[Work]
    steps: int


def measure(setting: Setting, pool: ModelPool, how: MachineSettings) -> StepKernels:
    """Time the steps of some batches, then see which kernels they are made of.

    Args:
        setting: What is decoded.
        pool: Where models come from.
        how: Whether phases are compiled, and whether they are captured.

    Raises:
        UnsupportedError: There are no kernels to see here.
    """
    if reason := unseen(pool.where.device):
        raise UnsupportedError(reason)
    # The profiler stays from one batch to the next: processes have crashed where it left and came back beside graphs.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    ready = ReadyMethod(setting, pool, how)
    batches = equal_batches(setting, pool.get(setting.target))
    ready.prepare(batches[0])
    twice = [batches[0], *batches]  # the first one warms up
    timed = [_timed(ready, requests) for requests in twice][1:]
    seen = [_seen(ready, requests) for requests in twice][1:]
    if not all(batch.work for batch in seen):
        raise UnsupportedError("the profiler has seen no kernels: CUPTI is missing, or may not look into this GPU")
    return _compared(setting, how.execution(pool.where.device.type), ready.notes(), timed, seen)


def unseen(device: torch.device) -> str | None:
    """Why kernels cannot be seen on a device; None where they can."""
    if device.type != "cuda":
        return f"kernels are counted on a GPU, and this is a {device.type}"
    if _PROFILED not in supported_activities():
        return f"torch {torch.__version__} was built without CUPTI, by which it would see kernels"
    if not hasattr(torch._C._autograd._KinetoEvent, "activity_type"):
        return f"torch {torch.__version__} does not say which of its profiler's events are kernels; 2.13 does"
    return None


def _timed(ready: ReadyMethod, requests: Requests) -> Timed:
    watch = HeadlineWatch(ready.clock)
    steps = _decoded(ready, requests, watch)
    return Timed(watch.timing.decode_s, steps)


def _seen(ready: ReadyMethod, requests: Requests) -> Seen:
    watch = KernelWatch(ready.clock)
    _decoded(ready, requests, watch)
    return Seen(watch.work, watch.launched)


def _decoded(ready: ReadyMethod, requests: Requests, watch: Watch) -> int:
    with no_garbage_collection():
        return ready.decode(requests, watch).steps


class KernelWatch(NullWatch):
    """Profiles a batch from the end of its prefill to its end; no step is wrapped.

    Attributes:
        launched: Steps, with those that were launched before the end was known: their kernels are seen as well.
        work: What ran on the GPU.
    """

    def __init__(self, time_line: Timeline) -> None:
        self._time = time_line
        self._profiler = profile(activities=[_PROFILED])
        self.launched = 0
        self.work: list[Work] = []

    def prefilled(self) -> None:
        """Begin, with nothing of the prefill left to do."""
        self._time.wall()
        self._profiler.start()

    def step(self) -> None:
        """Count."""
        self.launched += 1

    def finish(self, steps: int) -> None:
        """End, with nothing of the steps left to do."""
        self._time.wall()
        self._profiler.stop()
        assert self._profiler.profiler is not None
        assert self._profiler.profiler.kineto_results is not None
        self.work = work_among(self._profiler.profiler.kineto_results.events())


def work_among(events: Iterable[Any]) -> list[Work]:
    """The kernels, copies and fills among a profiler's events, ``torch._C._autograd._KinetoEvent`` each."""
    return [
        Work(sys.intern(event.name()), event.start_ns(), event.end_ns())  # there are few names, and many of each
        for event in events
        if event.activity_type() in _WORK
    ]


def summed_s(work: Iterable[Work]) -> float:
    """Sum of all times, in seconds."""
    return sum(piece.end_ns - piece.start_ns for piece in work) * 1e-9


def busy_s(work: Iterable[Work]) -> float:
    """Time in which any of it ran, in seconds."""
    busy_ns, until_ns = 0, 0
    for piece in sorted(work, key=lambda piece: piece.start_ns):
        busy_ns += max(0, piece.end_ns - max(piece.start_ns, until_ns))
        until_ns = max(until_ns, piece.end_ns)
    return busy_ns * 1e-9


def _compared(
    setting: Setting, execution: str, preparation: dict[str, Any], timed: Sequence[Timed], seen: Sequence[Seen]
) -> StepKernels:
    """Steps and kernels of the same batches, in the same order."""
    seconds, steps = (np.asarray(column, dtype=np.float64) for column in zip(*timed, strict=True))
    # Each batch's kernels weigh as many steps as were timed of it.
    shares = steps / np.asarray([batch.steps for batch in seen], dtype=np.float64)
    step, kernels = Totals(seconds, steps), Totals(np.asarray([summed_s(batch.work) for batch in seen]) * shares, steps)
    work = [piece for batch in seen for piece in batch.work]
    launched = sum(batch.steps for batch in seen)
    return StepKernels(
        setting=setting,
        execution=execution,
        preparation=preparation,
        step_ms=float(seconds.sum() / steps.sum()) * 1e3,
        kernels_ms=float(kernels.seconds.sum() / steps.sum()) * 1e3,
        busy_ms=float((np.asarray([busy_s(batch.work) for batch in seen]) * shares).sum() / steps.sum()) * 1e3,
        kernels=len(work) / launched,
        ratio=ratio(step, kernels),
        interval=jackknife_interval(step, kernels),
        most=_most(work, launched),
    )


def _most(work: Iterable[Work], steps: int) -> list[Share]:
    """The kernels that take longest in so many steps."""
    by_name: defaultdict[str, list[Work]] = defaultdict(list)
    for piece in work:
        by_name[piece.name].append(piece)
    whole_s = summed_s(work)
    found = [
        Share(name, len(pieces) / steps, summed_s(pieces) / steps * 1e3, summed_s(pieces) / whole_s)
        for name, pieces in by_name.items()
    ]
    return sorted(found, key=lambda share: -share.ms)[:_SHOWN]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each setting and its longest kernels, and write JSON where asked."""
    parser = command("kernels", __doc__)
    parser.set_defaults(method=["draft_model"], batch_size=[1], device="auto")
    parser.add_argument("--compile", action="store_true", help="every phase through torch.compile")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True, help="phases as CUDA graphs")
    asked = parser.parse_args(arguments)
    found = []
    try:
        pool, settings = opened(asked)
        for setting in settings:
            found.append(measure(setting, pool, MachineSettings(compile=asked.compile, graphs=asked.graphs)))
            print(*in_words(found[-1]), sep="\n", flush=True)  # noqa: T201  (a command)
    except SpecbenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  (a command)
        sys.exit(error.exit_code)
    write(asked, pool, {"kernels": [asdict(step) for step in found]})


def in_words(step: StepKernels) -> list[str]:
    """A line for the setting, one for each phase that ran otherwise than asked, one for each of the longest kernels."""
    setting, preparation = step.setting, step.preparation
    lines = [
        f"{setting.method}, batch {setting.batch_size}, {step.execution}: a step takes {step.step_ms:.3f} ms, the GPU "
        f"works for {step.busy_ms:.3f} of it; its {step.kernels:.0f} kernels sum up to {step.kernels_ms:.3f} ms: "
        f"{step.ratio:.3f} {spread(step.interval)}"
    ]
    for what in ("not_compiled", "not_captured"):
        lines += [f"  {what.replace('_', ' ')}: {phase}: {why}" for phase, why in preparation.get(what, {}).items()]
    if missed := preparation.get("ran_uncaptured"):
        lines.append(f"  {missed} phases ran uncaptured, on inputs of a form that no graph was made for")
    lines += [
        f"  {100 * share.share:5.1f} %  {share.ms:8.4f} ms in {share.times:6.1f}  {shortened(share.name)}"
        for share in step.most
    ]
    return lines


def shortened(name: str) -> str:
    """A kernel's name without its result and its namespaces, cut off where it gets too long."""
    plain = re.sub(r"^void |(\w+|\(anonymous namespace\)|<unnamed>)::", "", name)
    return plain if len(plain) <= _NAME_LETTERS else plain[: _NAME_LETTERS - 1] + "…"


if __name__ == "__main__":
    main()
