"""Composed throughput beside measured throughput, cell by cell, and what a cell that is missed was missed by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import pandas as pd

from specbench.analysis import acceptance, throughput
from specbench.analysis.choosing import Choosing
from specbench.analysis.composition import Composed, Estimate, Setting, compose
from specbench.analysis.intervals import Interval
from specbench.analysis.latencies import LatencyTable
from specbench.analysis.replay import Replay, replay
from specbench.analysis.speedup import batch_rate, full_batch_rate
from specbench.analysis.stop_rules import Fixed, stop_rule
from specbench.analysis.traces import Trace, differences, select, wanted_by
from specbench.config import PIECES
from specbench.errors import ConfigError, ResultsError
from specbench.records.schema import PHASES
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.phases import phase_times
from specbench.report.words import counted, share

WITHIN = 0.1
"""Error up to which a cell counts as met."""

PARTS = ("tokens", "draft", "verify", "host")
"""What a composed throughput is made of."""


@dataclass(frozen=True)
class Beside:
    """One arm, composed and measured.

    Attributes:
        title: The cell.
        arm: The arm.
        draft: Its draft.
        batch_size: Rows.
        latency_mode: Of the measured arm; the composed number beside it is ``composed``.
        draft_latency_ms: Milliseconds of a draft forward that were asked for; None as the draft has them.
        tokens_per_step: Of the whole batch; composed, as the three below.
        draft_ms: The draft phase of a step.
        verify_ms: The target's forward.
        host_ms: All else.
        composed_tokens_per_s: Of the whole batch, until its last row ends.
        composed_low: Lower end of its 95 % interval, from those of acceptance and latencies.
        composed_high: Upper end.
        lacks: What the table does not say, so that steps were composed too short; None where all is in it.
        measured_tokens_per_s: Of the headline pass.
        measured_low: Lower end of its 95 % interval.
        measured_high: Upper end.
        error: Composed over measured, less 1.
        is_met: Whether that is at most `WITHIN`.
        tokens_error: Part of the logarithm of composed over measured that tokens per step explain; these four add up
            to it, but for what is of second order.
        draft_error: Likewise the draft phase; a phase that was composed too short makes the throughput too high.
        verify_error: Likewise the verification.
        host_error: Likewise all else.
        explained_by: Which of the four explains most; None where the arm's phases were not timed.
    """

    title: str
    arm: str
    draft: str
    batch_size: int
    latency_mode: str
    draft_latency_ms: float | None
    tokens_per_step: float
    draft_ms: float
    verify_ms: float
    host_ms: float
    composed_tokens_per_s: float
    composed_low: float | None
    composed_high: float | None
    lacks: str | None
    measured_tokens_per_s: float
    measured_low: float | None
    measured_high: float | None
    error: float
    is_met: bool
    tokens_error: float
    draft_error: float | None
    verify_error: float | None
    host_error: float | None
    explained_by: str | None


@dataclass(frozen=True)
class Comparison:
    """All arms of a run that could be composed.

    Attributes:
        cells: One an arm and cell.
        left_out: Cell and arm -> why it could not be.
    """

    cells: tuple[Beside, ...]
    left_out: Mapping[tuple[str, str], str]

    @property
    def share_met(self) -> float:
        """Share of the cells whose error is at most `WITHIN`."""
        return sum(cell.is_met for cell in self.cells) / len(self.cells)

    @property
    def frame(self) -> pd.DataFrame:
        """One row an arm and cell; see `Beside` for the columns."""
        return pd.DataFrame([asdict(cell) for cell in self.cells], columns=[field.name for field in fields(Beside)])

    @property
    def sentences(self) -> list[str]:
        """How many cells are met, and of each that is not, by how much and why."""
        met = sum(cell.is_met for cell in self.cells)
        said = [f"Composed throughput is within {share(WITHIN)} of the measured one in {met} of "
                f"{counted(len(self.cells), 'cell')}."]  # fmt: skip
        said += [_miss(cell) for cell in self.cells if not cell.is_met]
        if odd := sum(cell.host_ms < 0 for cell in self.cells):
            said.append(
                f"In {odd} of them the table's forward takes longer than the whole autoregressive step: the table and "
                "the run were not measured under the same conditions."
            )
        lacking = [cell.lacks for cell in self.cells if cell.lacks is not None]
        if lacking:
            said.append(
                f"In {len(lacking)} of them steps are composed too short, without what drawing and accepting drafts "
                f"take: {lacking[0]}."
            )
        return said


def compare(
    results: Results, traces: Sequence[Trace], table: LatencyTable, *, at_pace_of_run: bool = False
) -> Comparison:
    """Compose every arm that drafts chains with a draft model, and set it beside what was measured.

    Args:
        results: The run.
        traces: Of its targets, drafts and prompts.
        table: Forward times of the same machine, and what choosing tokens takes.
        at_pace_of_run: As in `setting_of`.

    Raises:
        ResultsError: Nothing could be composed; the line is the first reason. Or the table is of another setting.
    """
    phases = phase_times(results).set_index(["title", "arm"])
    cells: list[Beside] = []
    left_out: dict[tuple[str, str], str] = {}
    for title, arms in results.timed.items():
        for arm, rows in _drafting(arms):
            try:
                trace = select(traces, wanted_by(rows), of="the run")
                share_of_forward = _verify_share(phases, title) if at_pace_of_run else None
                found = _composed(rows, trace, setting_of(arms, trace, table, share_of_forward))
            except (ResultsError, ConfigError) as error:
                left_out[title, arm] = str(error)
                continue
            own = phases.loc[(title, arm)] if (title, arm) in phases.index else None
            cells.append(_beside(title, rows, found, own))
    if not cells:
        raise ResultsError(next(iter(left_out.values()), f"{results.folder}: no arm with a draft model in it"))
    return Comparison(tuple(cells), left_out)


@dataclass(frozen=True)
class Grid:
    """Cells that were never run.

    Attributes:
        frame: One row a cell, draft, gamma and latency; see `GRID_COLUMNS`.
        left_out: Cell and draft -> why some of its rows are missing.
    """

    frame: pd.DataFrame
    left_out: Mapping[tuple[str, str], str]


GRID_COLUMNS = (
    "title", "draft", "gamma", "batch_size", "latency_mode", "draft_latency_ms", "block_efficiency", "efficiency_low",
    "efficiency_high", "tokens_per_step", "draft_ms", "verify_ms", "host_ms", "composed_tokens_per_s", "composed_low",
    "composed_high", "composed_speedup", "lacks",
)  # fmt: skip
"""``block_efficiency`` is of a row, ``tokens_per_step`` of the whole batch; both have the 95 % interval of the first.
The three times are of a step; ``composed_speedup`` is over autoregressive decoding; ``lacks`` says what the table does
not, so that steps were composed too short."""


def composed_grid(
    results: Results,
    traces: Sequence[Trace],
    table: LatencyTable,
    gammas: Sequence[int] | None = None,
    latencies_ms: Sequence[float | None] = (None,),
    batches_of: Callable[[Sequence[int]], Collection[int]] = set,
) -> Grid:
    """Cells that need no run: every trace of a cell's target and prompts, at every gamma and draft latency.

    Args:
        results: A run with the autoregressive arm of each cell; no other arm of it is looked at.
        traces: Of its targets and prompts.
        table: Forward times of the same machine, and what choosing tokens takes.
        gammas: Draft tokens of a step; every number that a trace holds where None.
        latencies_ms: Milliseconds of a draft forward, also below what it takes; None as the table has it.
        batches_of: Which batches of prompts count, of those that there are.

    Raises:
        ResultsError: Nothing could be composed; the line is the first reason.
    """
    rows: list[dict[str, object]] = []
    left_out: dict[tuple[str, str], str] = {}
    for title, arms in results.timed.items():
        for trace in _traces_of(arms, traces):
            draft = trace.provenance.draft
            try:
                setting = setting_of(arms, trace, table)
                part = _part_of(trace, setting.batch_size, batches_of)
                for gamma in gammas or range(1, trace.provenance.gamma_max + 1):
                    replayed = replay(part, Fixed(gamma))
                    found = [compose(replayed, setting, latency_ms) for latency_ms in latencies_ms]
                    rows += [grid_row((title, draft), replayed, entry, setting) for entry in found]
            except ResultsError as error:
                left_out[title, draft] = str(error)
    if not rows:
        reason = f"{results.folder}: no trace is of its target, prompts and settings"
        raise ResultsError(next(iter(left_out.values()), reason))
    return Grid(pd.DataFrame(rows, columns=list(GRID_COLUMNS)), left_out)


def _part_of(trace: Trace, batch_size: int, batches_of: Callable[[Sequence[int]], Collection[int]]) -> Trace:
    """The texts of some batches of prompts."""
    kept = batches_of(sorted({text.prompt // batch_size for text in trace.texts}))
    texts = tuple(text for text in trace.texts if text.prompt // batch_size in kept)
    return replace(trace, texts=texts, prompts=len(texts))


_OF_CELLS = ("target_sha", "prompts_sha", "dtype", "temperature", "max_new_tokens", "seed")


def _traces_of(arms: Mapping[str, pd.DataFrame], traces: Sequence[Trace]) -> list[Trace]:
    """Those that stand for drafts of this cell."""
    first = arms[BASELINE].iloc[0]
    wanted = {name: _plain(first[name]) for name in _OF_CELLS}
    return [trace for trace in traces if trace.is_complete and not differences(trace, wanted)]


def grid_row(place: tuple[str, str], replayed: Replay, found: Composed, setting: Setting) -> dict[str, object]:
    """A row of `GRID_COLUMNS`; ``place`` is the title of a cell and a draft."""
    (title, draft), (low, high), over = place, found.interval or (None, None), replayed.interval
    return {
        "title": title,
        "draft": draft,
        "gamma": found.gamma,
        "batch_size": found.batch_size,
        "latency_mode": found.latency_mode,
        "draft_latency_ms": found.draft_latency_ms,
        "block_efficiency": replayed.block_efficiency,
        "efficiency_low": _end(over, "low"),
        "efficiency_high": _end(over, "high"),
        **_parts(found),
        "composed_tokens_per_s": found.tokens_per_s,
        "composed_low": low,
        "composed_high": high,
        "composed_speedup": found.tokens_per_s * setting.autoregressive_s.value / found.batch_size,
        "lacks": found.lacks,
    }


def _parts(found: Composed) -> dict[str, float]:
    parts = {"draft": found.draft_s, "verify": found.verify_s, "host": found.host_s}
    return {"tokens_per_step": found.tokens_per_step.value} | {
        f"{name}_ms": 1000 * part.value for name, part in parts.items()
    }


def _drafting(arms: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The arms with a draft model that finished."""
    for arm, rows in arms.items():
        finished = acceptance.measured(rows)
        if len(finished) and finished["draft"].notna().all() and finished["method"].iloc[0] == "draft_model":
            yield arm, finished


def _verify_share(phases: pd.DataFrame, title: str) -> float:
    """Share of an autoregressive step that its forward takes, by the phase pass, over both twins."""
    timed = [phases.loc[(title, arm)] for arm in (BASELINE, TWIN) if (title, arm) in phases.index]
    if not timed:
        raise ResultsError(f"{title}: the phases of the autoregressive arm were not timed, so its pace is not known")
    return sum(own["verify_ms"] for own in timed) / sum(own[f"{phase}_ms"] for own in timed for phase in PHASES)


def _composed(rows: pd.DataFrame, trace: Trace, setting: Setting) -> Composed:
    first = rows.iloc[0]
    latency = None if pd.isna(first["draft_latency_ms"]) else float(first["draft_latency_ms"])
    return compose(replay(trace, stop_rule(json.loads(first["options"]))), setting, latency)


def setting_of(
    arms: Mapping[str, pd.DataFrame], trace: Trace, table: LatencyTable, share_of_forward: float | None = None
) -> Setting:
    """Where the times of a draft come from: the table, and the autoregressive arms of its cell.

    The table's times are those of phases that ran as the cell's did: eager, compiled or captured.

    Args:
        arms: The cell's arms by name.
        trace: Of the draft, and of the way in which the cell chooses tokens.
        table: Forward times, and what choosing tokens takes.
        share_of_forward: Share of an autoregressive step that its forward takes. Given, all of the table's times are
            brought to the pace at which the autoregressive arm ran, for a machine whose mood has changed in between;
            the arm in question has no say in that either.

    Raises:
        ResultsError: The table is of another device, data type, ..., the cell has no autoregressive arm, or ran with
            compiled pieces.
    """
    plain = [acceptance.measured(arms[arm]) for arm in (BASELINE, TWIN) if arm in arms]
    plain = [found for found in plain if len(found)]
    if not plain:
        raise ResultsError("no autoregressive arm finished, so the host's time is not known")
    first = plain[0].iloc[0]
    if PIECES in (mode := str(first["execution"])):
        raise ResultsError(f"its forwards ran with {PIECES}, and no forward times are taken so")
    names = ("device", "dtype", "threads", "attention")
    drawn = trace.provenance
    found = Setting(
        table=table.of(**{name: _plain(first[name]) for name in names}),
        target=str(first["target"]),
        draft=drawn.draft,
        batch_size=int(first["batch_size"]),
        context_tokens=mean_context(plain[0]),
        autoregressive_s=_step_s(plain),
        how=Choosing.of(drawn.temperature, drawn.rule, drawn.proposal, drawn.top_k, drawn.top_p),
        mode=mode,
    )
    if share_of_forward is None:
        return found
    return replace(found, pace=share_of_forward * found.autoregressive_s.value / found.forward(found.target, 1).value)


def mean_context(rows: pd.DataFrame) -> int:
    """Keys and values of a batch's longest row, on average over autoregressive steps."""
    batches = rows.groupby("batch_id")[["prompt_tokens", "steps"]].max()
    return round(float((batches["prompt_tokens"] + (batches["steps"] - 1) / 2).mean()))


def _step_s(plain: Sequence[pd.DataFrame]) -> Estimate:
    """A step of autoregressive decoding, of both twins; each row gets one token of it."""
    rates = [(full_batch_rate(rows), int(rows["batch_size"].iloc[0])) for rows in plain]
    steps = [Estimate.of_interval(size / rate.ratio, rate.interval) for rate, size in rates if rate.ratio]
    if not steps:
        raise ResultsError("the autoregressive arm took no step, so the host's time is not known")
    widths = [step.half_width for step in steps if step.half_width is not None]
    mean = math.fsum(step.value for step in steps) / len(steps)
    # The twins share their prompts, so two of them know little more than one.
    return Estimate(mean, max(widths) if len(widths) == len(steps) else None)


def _beside(title: str, rows: pd.DataFrame, found: Composed, phases: pd.Series | None) -> Beside:
    rate = batch_rate(rows)
    if rate.ratio is None:
        raise ResultsError(f"{title}: no decode step was timed")
    ratio = found.tokens_per_s / rate.ratio
    errors = _errors(found, rows, phases, rate.ratio)
    low, high = found.interval or (None, None)
    first = rows.iloc[0]
    timed = [name for name in PARTS if errors[name] is not None]
    return Beside(
        title=title,
        arm=str(first["arm"]),
        draft=str(first["draft"]),
        batch_size=found.batch_size,
        latency_mode=str(first["latency_mode"]),
        draft_latency_ms=found.draft_latency_ms,
        **_parts(found),
        composed_tokens_per_s=found.tokens_per_s,
        composed_low=low,
        composed_high=high,
        lacks=found.lacks,
        measured_tokens_per_s=rate.ratio,
        measured_low=_end(rate.interval, "low"),
        measured_high=_end(rate.interval, "high"),
        error=ratio - 1,
        is_met=abs(ratio - 1) <= WITHIN,
        tokens_error=errors["tokens"] or 0.0,
        draft_error=errors["draft"],
        verify_error=errors["verify"],
        host_error=errors["host"],
        explained_by=max(timed, key=lambda name: math.copysign(1, ratio - 1) * (errors[name] or 0.0))
        if len(timed) == len(PARTS)
        else None,
    )


def _errors(found: Composed, rows: pd.DataFrame, phases: pd.Series | None, rate: float) -> dict[str, float | None]:
    """What each part adds to the logarithm of composed over measured throughput."""
    batches = throughput.batch_table(rows)
    steps = rows.groupby("batch_id")["steps"].max()
    tokens = float(batches["decode_tokens"].sum() / steps.sum())
    errors: dict[str, float | None] = {"tokens": math.log(found.tokens_per_step.value / tokens)}
    if phases is None:
        return errors | dict.fromkeys(PARTS[1:])
    # The parts of a step as the phase pass has them, at the pace of the headline pass.
    step_s = tokens / rate
    pace = step_s / math.fsum(phases[f"{phase}_ms"] for phase in PHASES)
    draft_s, verify_s = pace * phases["draft_ms"], pace * phases["verify_ms"]
    differences = {
        "draft": found.draft_s.value - draft_s,
        "verify": found.verify_s.value - verify_s,
        "host": found.host_s.value - (step_s - draft_s - verify_s),
    }
    # The logarithmic mean of both steps makes the parts add up exactly.
    composed_s = found.step_s.value
    mean_s = step_s if composed_s == step_s else (composed_s - step_s) / math.log(composed_s / step_s)
    return errors | {name: -float(value) / mean_s for name, value in differences.items()}


def _miss(cell: Beside) -> str:
    errors = {"tokens": cell.tokens_error, "draft": cell.draft_error, "verify": cell.verify_error,
              "host": cell.host_error}  # fmt: skip
    direction = "above" if cell.error > 0 else "below"
    said = f"{cell.title}, {cell.arm}: {share(abs(cell.error))} {direction} what was measured"
    if cell.explained_by is None:
        return f"{said}; its phases were not timed, so the part is not known."
    words = {"tokens": "tokens per step", "draft": "the draft phase", "verify": "the verification", "host": "the host"}
    parts = errors[cell.explained_by] or 0.0
    return f"{said}, most of it by {words[cell.explained_by]} ({100 * math.expm1(parts):+.0f} %)."


def _end(interval: Interval | None, name: str) -> float | None:
    return None if interval is None else float(getattr(interval, name))


def _plain(value: object) -> object:
    """A cell of a frame as Python has it."""
    return value.item() if hasattr(value, "item") else value
