"""What a plan would run, without loading a weight or a prompt: trials, memory, a rough time, and its precision."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from specbench.analysis.intervals import MIN_UNITS, estimand
from specbench.bench.footprint import Footprints, source_of
from specbench.bench.forecast import PRECISIONS, Forecast, forecast
from specbench.bench.latency_points import choosings, modes_of
from specbench.bench.machine import free_bytes, machine_slug
from specbench.bench.progress import duration
from specbench.bench.prompt_encoding import limit_of
from specbench.config import LatencySection, MachineSettings, ModelSpec, ScoreSection
from specbench.errors import SpecbenchError
from specbench.grid import Cell, Plan
from specbench.models.loader import Placement, placement
from specbench.models.shapes import numbers_of
from specbench.models.source import Source
from specbench.models.zoo import ZOO

# What a machine reads per second when a step is bound by reading weights; a guess within a factor of three.
_CPU_BYTES_PER_S = 5e9
_GPU_BYTES_PER_S = 1.5e12
# What it computes per second when many tokens share the reading of weights; as rough.
_CPU_OPERATIONS_PER_S = 3e10
_GPU_OPERATIONS_PER_S = 1e14
_COMPILE_S = 10
# Where the experiment does not cut prompts, a conversation's first turn is about this long.
_TYPICAL_PROMPT_TOKENS = 128
_TYPICAL_TEXT_TOKENS = 5000


@dataclass(frozen=True)
class Size:
    """What a model weighs, in bytes: all of it, and what one token of one row adds to its cache."""

    weights: int
    kv_per_token: int


def size_of(source: Source, dtype: torch.dtype) -> Size:
    """From its configuration alone."""
    values = numbers_of(source.config).kv_values_per_token
    return Size(source.parameters * dtype.itemsize, values * dtype.itemsize)


def dry_run(
    plan: Plan,
    *,
    results: Path | None = None,
    limit: int | None = None,
    rehearse: bool = False,
    console: Console | None = None,
    zoo: Path = ZOO,
) -> None:
    """Print what ``run`` would do.

    Args:
        plan: What would run.
        results: Folder of all results: the noise of earlier ones tells what precision to expect; None for no look.
        limit: As in ``run``.
        rehearse: Whether the plan is a rehearsal.
        console: Where to print.
        zoo: Where the embedded family lies.
    """
    console = console or Console()
    title = f"{plan.experiment_name}{' (rehearsal)' if rehearse else ''}"
    footprints = Footprints(zoo)
    estimates = [_estimate(cell, plan, limit, footprints, zoo) for cell in plan.cells]
    studies, missing = _studies(plan, limit, zoo)
    problems = dict.fromkeys([*(problem for estimate in estimates for problem in estimate.problems), *missing])
    console.print(title, style="bold", highlight=False, markup=False)
    for line in [
        *(_trials(plan, estimates, results) if plan.cells else []),
        *studies,
        *(f"missing here: {problem}" for problem in problems),
    ]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _trials(plan: Plan, estimates: "list[_Estimate]", results: Path | None) -> Iterator[str]:
    pairs = list(zip(plan.cells, estimates, strict=True))
    yield from _aligned(_COLUMNS, [_words(cell, plan, estimate) for cell, estimate in pairs])
    yield from (_crowded(cell, estimate) for cell, estimate in pairs if (estimate.total_bytes or 0) > estimate.room)
    yield from _arms(plan)
    yield from _totals(plan, estimates)
    yield from _precision(plan, [_forecast(cell, plan, estimate, results) for cell, estimate in pairs])


# The columns, and whether each holds numbers.
_COLUMNS = {
    "target": False, "prompts": False, "run as": False, "T": True, "batch": True, "arms": True, "blocks": True,
    "batches": True, "memory": True, "time": True,
}  # fmt: skip


@dataclass(frozen=True)
class _Estimate:
    """Of one cell; bytes and seconds are None where a model is out of reach. ``room`` is the memory that is free."""

    prompts: int
    blocks: int
    batches: int
    total_bytes: int | None
    seconds: float | None
    room: float
    problems: tuple[str, ...] = ()


def _estimate(cell: Cell, plan: Plan, limit: int | None, footprints: Footprints, zoo: Path) -> _Estimate:
    size = cell.decode.batch_size
    most = cell.prompts.number * cell.decode.turns
    prompts = min(most, -(-limit // size) * size) if limit else most
    blocks = -(-prompts // size)
    runs = blocks * plan.measure.repeats + min(blocks, plan.measure.phase_blocks) + plan.measure.warmup
    batches = runs * len(cell.arms)
    problems: list[str] = []
    where = _placed(cell.machine, problems)
    target = _size(cell.target.model, where, zoo, problems)
    prompt_tokens = limit_of(cell.prompts) or _TYPICAL_PROMPT_TOKENS
    footprint = footprints.of(cell, where, prompt_tokens)
    problems += footprints.problems
    total_bytes = None if footprint is None else footprint.total
    if target is None:
        return _Estimate(prompts, blocks, batches, total_bytes, None, math.inf, tuple(problems))
    tokens = size * (prompt_tokens + cell.decode.max_new_tokens)
    rate = _GPU_BYTES_PER_S if where.device.type == "cuda" else _CPU_BYTES_PER_S
    step_s = (target.weights + tokens * target.kv_per_token) / rate
    seconds = batches * cell.decode.max_new_tokens * step_s
    return _Estimate(prompts, blocks, batches, total_bytes, seconds, _room(where), tuple(problems))


def _room(where: Placement) -> float:
    """Memory that is free for a cell on this machine, in bytes; infinite where its device is not here."""
    if where.device.type != "cuda":
        return free_bytes(where.device)
    gpus = range(torch.cuda.device_count()) if where.parallel != "none" else [where.device.index or 0]
    return sum(free_bytes(torch.device("cuda", gpu)) for gpu in gpus) if torch.cuda.is_available() else math.inf


def _placed(machine: MachineSettings, problems: list[str]) -> Placement:
    """Where models would go; where that is missing, the estimate is of such a machine all the same."""
    try:
        return placement(machine)
    except SpecbenchError as error:
        problems.append(str(error))
        known = placement(machine.model_copy(update={"device": "cpu", "parallel": "none"}))
        dtype = torch.bfloat16 if machine.dtype == "auto" else known.dtype
        return Placement(torch.device("cuda"), dtype, known.attention)


def _size(model: ModelSpec, where: Placement, zoo: Path, problems: list[str]) -> Size | None:
    try:
        return size_of(source_of(model, zoo), where.dtype)
    except SpecbenchError as error:
        problems.append(str(error))
        return None


def _aligned(columns: Mapping[str, bool], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows below their headings; whole, however narrow the console is, since a log has no width."""
    table = [list(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = zip(row, widths, columns.values(), strict=True)
        yield "  ".join(
            word.rjust(width) if is_number else word.ljust(width) for word, width, is_number in cells
        ).rstrip()


def _words(cell: Cell, plan: Plan, estimate: _Estimate) -> list[str]:
    unknown = "unknown"
    return [
        cell.target.name,
        f"{estimate.prompts} x {cell.prompts.source}",
        cell.machine.execution(_placed(cell.machine, []).device.type),
        f"{cell.decode.temperature:g}",
        str(cell.decode.batch_size),
        str(len(cell.arms)),
        f"{estimate.blocks} x {plan.measure.repeats}",
        f"{estimate.batches:,}",
        unknown if estimate.total_bytes is None else in_bytes(estimate.total_bytes),
        unknown if estimate.seconds is None else duration(estimate.seconds),
    ]


def _crowded(cell: Cell, estimate: _Estimate) -> str:
    return (
        f"{cell.target.name}, batch {cell.decode.batch_size}: more than the {in_bytes(estimate.room)} that are free "
        "here: its drafts would take turns, or it runs out of memory. machine.parallel spreads a target"
    )


def in_bytes(count: float) -> str:
    """``585 kB``, ``13.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _arms(plan: Plan) -> Iterator[str]:
    """The arms, one a line; once for cells that have the same."""
    cells: dict[tuple[str, ...], list[str]] = {}
    for cell in plan.cells:
        composed = (f"{arm.name} (does not run)" for arm in cell.composed)
        targets = cells.setdefault((*(arm.name for arm in cell.arms), *composed), [])
        if cell.target.name not in targets:
            targets.append(cell.target.name)
    for names, targets in cells.items():
        yield f"arms of {', '.join(targets)}:"
        yield from (f"  {name}" for name in names)


def _totals(plan: Plan, estimates: list[_Estimate]) -> list[str]:
    trials = sum(len(cell.arms) for cell in plan.cells)
    batches = sum(estimate.batches for estimate in estimates)
    known = [estimate.seconds for estimate in estimates if estimate.seconds is not None]
    time = f", roughly {duration(sum(known))} (within a factor of three)" if len(known) == len(estimates) else ""
    lines = [f"{len(plan.cells)} cells, {trials} trials, {batches:,} batches to decode{time}"]
    pairs = zip(plan.cells, estimates, strict=True)
    fewest = min(_full_blocks(cell, estimate) for cell, estimate in pairs)
    interval = (
        f"intervals rest on {fewest} full batches or more"
        if fewest >= MIN_UNITS
        else f"cells with fewer than {MIN_UNITS} full batches get no interval (the fewest is {fewest})"
    )
    return [*lines, interval]


def _full_blocks(cell: Cell, estimate: _Estimate) -> int:
    return estimate.prompts // cell.decode.batch_size


# --- beside the trials


def _studies(plan: Plan, limit: int | None, zoo: Path) -> tuple[list[str], list[str]]:
    """A line for each kind of study, and what is missing for it."""
    problems: list[str] = []
    weigh = _Scales(zoo, problems)
    lines = []
    if plan.traces:
        seconds = [_trace_s(plan, cell, limit, weigh) for cell in plan.texts]
        lines.append(f"{_counted(plan.traces, 'trace')}{_roughly(seconds)}")
    if (latencies := plan.latencies) is not None:
        models, ways = latencies.models, len(choosings(plan))
        sections = [_in_modes(latencies, machine, problems) for machine in plan.studies.machines]
        points = len(models) * sum(section.points for section in sections)
        choices = len(models) * ways * sum(section.choices for section in sections)
        beside = f" and {_counted(choices, 'choice time')}" if choices else ""
        seconds = [
            _latency_s(section, ways, weigh(model, machine))
            for section, machine in zip(sections, plan.studies.machines, strict=True)
            for model in models
        ]
        lines.append(f"{_counted(points, 'forward time')}{beside} of {_counted(len(models), 'model')}"
                     f"{_roughly(seconds)}")  # fmt: skip
    if (scores := plan.scores) is not None:
        count = len(scores.models) * len(scores.data) * len(plan.studies.machines)
        seconds = [_score_s(scores, weigh(model, machine)) for model, machine in _each(plan, scores.models)]
        lines.append(f"{_counted(count, 'score')} on {', '.join(scores.data)}{_roughly(seconds)}")
    return lines, problems


def _each(plan: Plan, models: Sequence[ModelSpec]) -> Iterator[tuple[ModelSpec, MachineSettings]]:
    return ((model, machine) for machine in plan.studies.machines for model in models)


class _Weighed(NamedTuple):
    """What decides how long a model's forwards take.

    Attributes:
        weights_s: To read all of its weights once.
        kv_s: To read what one token has left in its cache.
        token_s: To compute one token of a long text.
    """

    weights_s: float
    kv_s: float
    token_s: float


@dataclass(frozen=True)
class _Scales:
    """Weighs models, and notes those that are out of reach."""

    zoo: Path
    problems: list[str]

    def __call__(self, model: ModelSpec, machine: MachineSettings) -> _Weighed | None:
        where = _placed(machine, self.problems)
        size = _size(model, where, self.zoo, self.problems)
        if size is None:
            return None
        on_gpu = where.device.type == "cuda"
        rate = _GPU_BYTES_PER_S if on_gpu else _CPU_BYTES_PER_S
        operations = 2 * size.weights / where.dtype.itemsize
        per_s = _GPU_OPERATIONS_PER_S if on_gpu else _CPU_OPERATIONS_PER_S
        return _Weighed(size.weights / rate, size.kv_per_token / rate, operations / per_s)


def _trace_s(plan: Plan, cell: Cell, limit: int | None, weigh: _Scales) -> float | None:
    """The target's own texts, a group at a time, and behind each of their tokens a draft of every draft model."""
    section = plan.studies.traces
    target = weigh(cell.target.model, cell.machine)
    drafts = {key: weigh(key[0], cell.machine) for key in cell.chains}
    if section is None or target is None or None in drafts.values():
        return None
    prompts = cell.prompts.number * cell.decode.turns
    prompts = min(prompts, limit or prompts)
    steps = -(-prompts // section.group) * cell.decode.max_new_tokens
    gammas = {key: max(longest, section.gamma) for key, longest in cell.chains.items()}
    tokens = prompts * cell.decode.max_new_tokens
    drafted = sum(gammas[key] * tokens * draft.token_s for key, draft in drafts.items() if draft is not None)
    return steps * target.weights_s + drafted


def _in_modes(section: LatencySection, machine: MachineSettings, problems: list[str]) -> LatencySection:
    """The section with its modes named."""
    return section.model_copy(update={"modes": modes_of(section, machine, _placed(machine, problems).device)})


def _latency_s(section: LatencySection, ways: int, model: _Weighed | None) -> float | None:
    """Choices come behind a forward each, so they take as long as forwards do."""
    if model is None:
        return None
    points, modes = section.points + ways * section.choices, section.modes or ("eager",)
    cached = max(section.context_tokens or (_TYPICAL_PROMPT_TOKENS,)) * max(section.batch_sizes or (1,))
    compiled = _COMPILE_S * points * sum("compiled" in mode for mode in modes) / len(modes)
    return points * section.rounds * section.burst * (model.weights_s + cached * model.kv_s) + compiled


def _score_s(section: ScoreSection, model: _Weighed | None) -> float | None:
    if model is None or section.count is None:
        return None
    return len(section.data) * section.count * _TYPICAL_TEXT_TOKENS * model.token_s


def _roughly(seconds: Sequence[float | None]) -> str:
    known = [value for value in seconds if value is not None]
    return f", roughly {duration(sum(known))}" if len(known) == len(seconds) else ""


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


# --- the precision to expect

_PRECISION_COLUMNS = {
    "target": False, "T": True, "batch": True, "noise from": False, "prompts differ by": True,
    "repeats differ by": True, "expected": True,
    **{f"prompts for ±{precision:.0%}": True for precision in PRECISIONS},
    f"repeats for ±{PRECISIONS[0]:.0%}": True,
}  # fmt: skip


def _forecast(cell: Cell, plan: Plan, estimate: _Estimate, results: Path | None) -> Forecast:
    missing: list[str] = []
    where = _placed(cell.machine, missing)
    folder = results / plan.experiment_name / machine_slug(where.device) if results and not missing else None
    return forecast(cell, _full_blocks(cell, estimate), plan.measure.repeats, folder)


def _precision(plan: Plan, forecasts: list[Forecast]) -> Iterator[str]:
    yield "precision to expect of a speed-up (95 % interval, noisiest arm):"
    yield from _aligned(
        _PRECISION_COLUMNS,
        [_precision_words(cell, own) for cell, own in zip(plan.cells, forecasts, strict=True)],
    )
    yield f"the intervals speak of {estimand(plan.measure.processes)}"


def _precision_words(cell: Cell, own: Forecast) -> list[str]:
    expected, repeats = own.half_width, own.repeats_needed(PRECISIONS[0])
    return [
        cell.target.name,
        f"{cell.decode.temperature:g}",
        str(cell.decode.batch_size),
        own.source,
        f"{own.noise.between:.1%}",
        f"{own.noise.within:.1%}",
        "no interval" if expected is None else f"±{math.expm1(expected):.1%}",
        *(f"{own.prompts_needed(precision):,}" for precision in PRECISIONS),
        "more prompts needed" if repeats is None else f"{repeats:,}",
    ]
