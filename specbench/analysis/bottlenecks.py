"""Why a step stays far below what the machine allows: the likeliest cause, told from data that every run has.

The part of the step that lies furthest above its own limit is looked at. Each cause has a test on measured numbers;
the first that holds is named, with its numbers, and as likely: nothing was changed to prove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

FAR_BELOW = 0.4
"""Share of the limit below which a step is not what the machine can do, and a cause is named."""

_WAITED = 0.1
"""Share of its time that a process waited for a core, from which on that is what slows it."""

_MOSTLY = 0.5
"""Share of a gap that a cause must account for."""

_NEARLY_ALL = 0.75
"""Share of a step for which the host enqueues work, from which on the device waits for it."""

_TORCH_AND_PYTHON = 2.5
"""What an operation of a model costs the host over one on a single number: modules, arguments, its output's memory."""

_SLOW_KERNELS = 0.4
"""Share of a copy's pace below which matrix kernels of a data type are slow ones."""

_MUCH_MORE = 2.0
"""How much further above its limit a verification of nodes lies than that of a single token, if nodes are the cause."""


@dataclass(frozen=True)
class Step:
    """A step as it was measured, all times in milliseconds.

    Attributes:
        phase_ms: By phase, ``host`` included.
        limit_ms: Least time of ``draft`` and ``verify``.
        launches: Operations by phase, without ``host``.
        launch_ms: Of one operation from Python.
        captured_launch_ms: Of one operation in a captured graph; None on a CPU.
        enqueued_ms: The host's own time in the four phases; None where it is not known.
        captured: Phases that ran as captured graphs.
        compiled: Phases that were compiled, whole or in pieces, so that operations are fewer than ``launches`` says.
        is_cpu: Whether it ran on a CPU.
        dtype: Of the weights.
        attention: Backend.
        threads: That torch was given.
        cores: Of the machine; None where they are not known.
        wait_share: Share of its time in which the process waited for a core; None where it is not known.
        products_ms: Of the verification's matrix products alone, with as many rows as it has; None where not measured.
        read_over_copy: Pace at which the target's matrices are read, over that of a copy.
        kv_share: Keys' and values' share of the bytes of a verification.
        nodes: Draft nodes of a row.
        single_gap_ms: How far the verification of a single token lies above its limit, in the same cell; None where
            that is not known, or is this very arm.
    """

    phase_ms: Mapping[str, float]
    limit_ms: Mapping[str, float]
    launches: Mapping[str, float]
    launch_ms: float
    captured_launch_ms: float | None
    enqueued_ms: float | None
    captured: frozenset[str]
    compiled: frozenset[str]
    is_cpu: bool
    dtype: str
    attention: str
    threads: int
    cores: int | None
    wait_share: float | None
    products_ms: float | None
    read_over_copy: float
    kv_share: float
    nodes: float
    single_gap_ms: float | None

    @property
    def step_ms(self) -> float:
        """All phases."""
        return math.fsum(self.phase_ms.values())

    def gap_ms(self, phase: str) -> float:
        """How far a phase lies above its limit."""
        return self.phase_ms[phase] - self.limit_ms.get(phase, 0.0)

    @property
    def widest(self) -> str:
        """The phase that lies furthest above its limit."""
        return max(self.phase_ms, key=self.gap_ms)


@dataclass(frozen=True)
class Cause:
    """A cause: a word or two to group by, and a clause with its numbers."""

    name: str
    words: str


def likely_cause(step: Step) -> Cause:
    """The first cause whose test holds.

    Error: a guess by thresholds. It names what the numbers point to, and no experiment stands behind it.
    """
    causes = (cause for test in _TESTS if (cause := test(step)) is not None)
    return next(causes, _between_matrices(step))


def _threads(step: Step) -> Cause | None:
    if step.wait_share is not None and step.wait_share >= _WAITED:
        remedy = "stop what runs beside it" if step.threads == 1 else f"try fewer threads than {step.threads}"
        return Cause(
            "threads", f"for {100 * step.wait_share:.0f} % of the time the process waited for a core; {remedy}"
        )
    if step.is_cpu and step.cores is not None and step.threads > step.cores:
        return Cause("threads", f"{step.threads} threads share {step.cores} cores")
    return None


def _host(step: Step) -> Cause | None:
    if step.widest != "host":
        return None
    part = step.phase_ms["host"] / step.step_ms
    return Cause("host", f"the host between the phases takes {100 * part:.0f} % of the step")


def _launches(step: Step) -> Cause | None:
    """Many small operations: Python and torch around them, or in a captured graph the device's own start of each."""
    phase, gap_ms = step.widest, step.gap_ms(step.widest)
    number, is_captured = step.launches[phase], step.widest in step.captured
    each_ms = (step.captured_launch_ms or 0.0) if is_captured else _TORCH_AND_PYTHON * step.launch_ms
    if phase in step.compiled or (number * each_ms < _MOSTLY * gap_ms and not _waits_for_host(step)):
        return None
    what, remedy = "Python and torch cost", "CUDA graphs, `compile` or a larger batch help"
    if is_captured:
        what, remedy = "a launch in a graph costs", "`compile` makes them fewer"
    elif step.is_cpu:
        remedy = "`compile`, a larger batch or a larger model help"
    return Cause(
        "launch-bound",
        f"its {phase} phase asks for {number:,.0f} operations, and the {gap_ms:.2g} ms above its limit are "
        f"{1000 * gap_ms / number:.1f} us for each, about what {what}; {remedy}",
    )


def _waits_for_host(step: Step) -> bool:
    """Whether a GPU runs as fast as operations are enqueued; where they are captured, hardly any are."""
    enqueued = step.enqueued_ms
    return not step.is_cpu and enqueued is not None and enqueued >= _NEARLY_ALL * step.step_ms


def _dtype(step: Step) -> Cause | None:
    if step.widest not in {"draft", "verify"} or step.read_over_copy >= _SLOW_KERNELS:
        return None
    pace = f"its matrix kernels read weights at {100 * step.read_over_copy:.0f} % of a copy's pace"
    return Cause("dtype", f"{step.dtype} is slow on this device: {pace}; try another data type")


def _products(step: Step) -> Cause | None:
    """Matrix kernels that are slower with this number of rows than reading their weights has to be."""
    if step.widest != "verify" or step.products_ms is None:
        return None
    if step.products_ms - step.limit_ms["verify"] < _MOSTLY * step.gap_ms("verify"):
        return None
    return Cause(
        "matrix kernels",
        f"the products of its verification, alone and with as many rows, take {step.products_ms:.3g} ms, where reading "
        f"and multiplying their weights could be done in {step.limit_ms['verify']:.3g} ms; another data type or number "
        "of nodes may find better kernels",
    )


def _mask(step: Step) -> Cause | None:
    """Attention: its bytes are in the limit, its mask, its repeated heads and its padded view are not."""
    if step.widest != "verify":
        return None
    gap_ms = step.gap_ms("verify")
    if step.nodes and step.single_gap_ms is not None and gap_ms > _MUCH_MORE * max(step.single_gap_ms, 0.0):
        return Cause(
            "mask",
            f"{step.nodes:.1f} draft nodes add {gap_ms - max(step.single_gap_ms, 0.0):.2g} ms above the limit to what "
            f"a single token has: their mask and attention ({step.attention})",
        )
    if step.kv_share >= _MOSTLY / 2:
        return Cause(
            "mask",
            f"keys and values are {100 * step.kv_share:.0f} % of the bytes, and attention ({step.attention}) with its "
            "mask reads more than those",
        )
    return None


def _bookkeeping(step: Step) -> Cause | None:
    if step.widest not in {"accept", "update"}:
        return None
    part = step.phase_ms[step.widest] / step.step_ms
    return Cause("bookkeeping", f"the {step.widest} phase, which moves next to nothing, takes {100 * part:.0f} %")


def _between_matrices(step: Step) -> Cause:
    phase = step.widest
    return Cause(
        "between the matrices",
        f"most of it lies in its {phase} phase ({step.phase_ms[phase]:.2g} ms, of which the limit explains "
        f"{step.limit_ms.get(phase, 0.0):.2g}): norms, activations, attention ({step.attention}) and what is copied",
    )


_TESTS: tuple[Callable[[Step], Cause | None], ...] = (
    _threads, _host, _launches, _dtype, _products, _mask, _bookkeeping,
)  # fmt: skip
