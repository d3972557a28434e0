"""Runs a plan: blocks of prompts, every arm on each in a shuffled order, rows stored a block at a time.

A block's rows appear together when its last arm has ended. A run that was killed is started again with the same
command: blocks that are stored are kept, a block that was cut runs again whole. With ``measure.processes`` the whole
grid runs in one fresh process after the other: each has every arm in every block, so that pairs stay together.
After the trials come the studies of the plan, into the same folder.
"""

import gc
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from rich.console import Console

from specbench import registry
from specbench.analysis.speedup import fastest_path
from specbench.analysis.stability import Caution, cautions
from specbench.bench import machine, timing
from specbench.bench.arms import (
    CoreArm,
    Failure,
    LiveArm,
    MethodClass,
    Outcome,
    Pass,
    failure_of,
    first_failure,
    live_arm,
)
from specbench.bench.attention import settle, shapes_of
from specbench.bench.cells import Block, ReadyCell, loaded_names, ready
from specbench.bench.conditions import Conditions, Observer, watched_devices
from specbench.bench.conversations import NoAnswerError, answered, waits_for_answers
from specbench.bench.dry_run import dry_run
from specbench.bench.history import OutOfMemory, Past, close_stale_runs, fastest_so_far, only_writer
from specbench.bench.judge import Judge
from specbench.bench.memory import MemoryObserver, MemoryUse
from specbench.bench.processes import run_apart
from specbench.bench.progress import Reporter, narrated, reporter
from specbench.bench.provenance import new_run_id, recorded
from specbench.bench.roofline import Limits
from specbench.bench.rows import Place, request_rows, step_rows
from specbench.bench.studies import StudySummary, run_studies, score_data
from specbench.bench.together import check_processes, store_of
from specbench.bench.turns import LiveArms, Turns
from specbench.config import MeasureSettings
from specbench.decode.acceptance import Rule
from specbench.errors import ConfigError, ResultsError
from specbench.grid import AUTOREGRESSIVE, Arm, Plan
from specbench.models.loader import LoadedModel, ModelPool, Placement, placement
from specbench.models.ranks import agreed, leads
from specbench.models.zoo import ZOO
from specbench.records.schema import REQUESTS
from specbench.records.store import Store

__all__ = ["RunSummary", "dry_run", "run"]


@dataclass(frozen=True)
class RunSummary:
    """How a run ended, in trials (an arm of a cell), counting what was there before as well.

    Attributes:
        folder: Where the tables are.
        finished: Trials whose every batch has numbers.
        failed: Trials with a batch that ran out of memory or time, or raised.
        unsupported: Trials that cannot run here.
        skipped: Trials left out because a smaller batch ran out of memory.
        wrong: Requests whose text is not the target's own although it should be, of methods on the core.
        outside_wrong: Such requests of outside baselines; no method of ours is to blame.
        broke_contract: Whether a method broke the contract.
        blocks_run: Blocks measured now.
        blocks_kept: Blocks that were there before.
        cautions: What was unstable about the measurement.
        studies: How traces, forward times and scores ended.
    """

    folder: Path
    finished: int
    failed: int
    unsupported: int
    skipped: int
    wrong: int = 0
    outside_wrong: int = 0
    broke_contract: bool = False
    blocks_run: int = 0
    blocks_kept: int = 0
    cautions: tuple[Caution, ...] = ()
    studies: StudySummary = field(default_factory=StudySummary)


@dataclass(frozen=True)
class Request:
    """What the caller asks of a run, beside the plan.

    Attributes:
        results: Folder of all results.
        argv: The command line.
        experiment_yaml: The experiment as it was understood.
        limit: Only the first blocks of every cell that hold this many prompts; None for all.
        rehearse: Whether the plan is a rehearsal; noted, no more.
        retry_failed: Whether blocks in which an arm failed are run again.
        batch_limit_s: Longest time for one batch, in seconds; None for no limit.
        zoo: Where the embedded family lies.
        method_class: The class of a method, by its name.
    """

    results: Path
    argv: Sequence[str]
    experiment_yaml: str
    limit: int | None = None
    rehearse: bool = False
    retry_failed: bool = False
    batch_limit_s: float | None = None
    zoo: Path = ZOO
    method_class: MethodClass = registry.load


def run(
    plan: Plan,
    *,
    results: Path,
    argv: Sequence[str],
    experiment_yaml: str,
    limit: int | None = None,
    rehearse: bool = False,
    retry_failed: bool = False,
    console: Console | None = None,
    batch_limit_s: float | None = None,
    zoo: Path = ZOO,
    method_class: MethodClass = registry.load,
) -> RunSummary:
    """Run a plan to its end, or go on with one that was cut short.

    Args:
        plan: What to run; a rehearsal is a plan of its own.
        results: Folder of all results; the run's own is ``results / experiment / machine``.
        argv: The command line, for the record.
        experiment_yaml: The experiment as it was understood, for the record.
        limit: Only the first blocks of every cell that hold this many prompts; a later run goes on from there.
        rehearse: Whether the plan is a rehearsal; for the record.
        retry_failed: Run blocks again in which an arm failed, but for what is unsupported here; their rows are
            replaced.
        console: Where progress is shown.
        batch_limit_s: A batch that takes longer is stopped, and its rows say ``timeout``.
        zoo: Where the embedded family lies.
        method_class: The class of a method, by its name.

    Raises:
        ConfigError: A model, a draft or the prompts are missing or do not fit, or another run writes to the folder.
        ResultsError: The folder cannot be read or written.
        UnsupportedError: A data set of the scores is on the hub, which cannot be reached.
        SpecbenchError: One of several processes died.
    """
    check_processes(plan)
    cells, data = ready(plan, zoo), score_data(plan)
    request = Request(
        results, argv, experiment_yaml, limit, rehearse, retry_failed,
        batch_limit_s=batch_limit_s, zoo=zoo, method_class=method_class,
    )  # fmt: skip
    folder = _folder(plan, results)
    console = (console or Console()) if leads() else Console(quiet=True)
    summary = _run_trials(plan, cells, request, folder, console) if cells else RunSummary(folder, 0, 0, 0, 0)
    if plan.studies:
        with narrated(console) as say:
            studies = run_studies(
                plan, cells, data, folder, argv=argv, experiment_yaml=experiment_yaml, limit=limit, zoo=zoo, say=say
            )
        summary = replace(summary, studies=studies)
        console.print(f"beside the trials: {studies.words or 'nothing'}", highlight=False, markup=False, soft_wrap=True)
    for sentence in [*(f"unstable: {caution.sentence}" for caution in summary.cautions), *summary.studies.sentences]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    return summary


def _run_trials(plan: Plan, cells: list[ReadyCell], request: Request, folder: Path, console: Console) -> RunSummary:
    with only_writer(folder) if leads() else nullcontext():
        store = store_of(folder)
        if leads():
            close_stale_runs(store)
        past = Past(store)
        runs = [_Run(plan.measure, cells, request, past, process) for process in range(plan.measure.processes)]
        blocks, kept = (sum(getattr(own, name) for own in runs) for name in ("blocks", "kept"))
        with reporter(console, blocks, kept) as progress:
            if len(runs) == 1:
                runs[0].run(progress)
            else:
                _run_one_after_the_other(runs, partial(_run_process, plan, request), progress)
        return agreed(runs[0].summary(blocks, kept, runs) if leads() else RunSummary(folder, 0, 0, 0, 0))


def _folder(plan: Plan, results: Path) -> Path:
    first = plan.cells[0].machine if plan.cells else plan.studies.machines[0]
    return results / plan.experiment_name / machine.machine_slug(placement(first).device)


def _run_one_after_the_other(runs: "Sequence[_Run]", work: "partial[None]", progress: Reporter) -> None:
    """Each run in a process of its own; one that has nothing left to do is not started."""
    for own in runs:
        if own.blocks:
            progress.say(f"process {own.process + 1} of {len(runs)}")
            run_apart(partial(work, own.process), progress)


def _run_process(plan: Plan, request: Request, process: int, progress: Reporter) -> None:
    """What a process of several does: everything is made ready anew, since nothing but settings travels."""
    cells = ready(plan, request.zoo)
    _Run(plan.measure, cells, request, Past(Store(_folder(plan, request.results))), process).run(progress)


@dataclass
class _Notes:
    """What the run decided on its way; goes to ``runs.notes``."""

    planned_blocks: int
    rehearsal: bool
    cells: list[str]
    fastest_autoregressive: dict[str, str] = field(default_factory=dict)
    warmup_step_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    draft_latency_ms: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    steps: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    prompts_skipped: dict[str, str] = field(default_factory=dict)
    prompts_stand_in: dict[str, str] = field(default_factory=dict)
    prompts_sha_with_answers: dict[str, str] = field(default_factory=dict)
    composed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    telemetry: str = ""
    warnings: list[str] = field(default_factory=list)

    def weigh(self, name: str, model: LoadedModel) -> None:
        """Note a target or a draft model, by the name that rows have."""
        self.models[name] = {
            "parameters": model.parameters,
            "weight_bytes": model.weight_bytes,
            "weights_sha": model.weights_sha,
            "tokenizer_sha": model.tokenizer_sha,
            "template_sha": model.template_sha,
            "revision": model.revision,
            "self_test_difference": model.self_test.difference,
            "self_test_tolerance": model.self_test.tolerance,
        }


@dataclass(frozen=True)
class _Batch:
    """One pass of an arm over a block.

    Attributes:
        outcome: How it came out.
        conditions: What the machine did meanwhile.
        memory: What it took.
        rule: What decided on drafts.
    """

    outcome: Outcome
    conditions: Conditions
    memory: MemoryUse
    rule: Rule


class _Run:
    """One process of a run."""

    def __init__(
        self, measure: MeasureSettings, cells: list[ReadyCell], request: Request, past: Past, process: int
    ) -> None:
        self.measure, self.cells, self.request, self.process = measure, cells, request, process
        self.past, self.store = past, past.store
        self.run_id = new_run_id()
        self.limits = Limits(self.store, self.run_id)
        self.work = {cell.name: self._units(cell) for cell in cells}
        to_retry = past.failed_blocks() if request.retry_failed else set()
        self.todo = agreed(
            {
                cell.name: [
                    (block, repeat)
                    for block, repeat in self.work[cell.name]
                    if (cell.name, process, block.index, repeat) in to_retry
                    or not self.store.has_part("requests", cell.block_key(block, repeat, process))
                ]
                for cell in cells
            }
        )
        planned_blocks = measure.processes * sum(map(len, self.work.values()))
        self.notes = _Notes(planned_blocks, request.rehearse, list(self.work))
        for cell in cells:
            self.notes.prompts_skipped |= cell.prompts.skipped
            self.notes.prompts_stand_in[cell.name] = cell.prompts.frame
            if cell.cell.composed:
                self.notes.composed[cell.name] = [composed_note(arm) for arm in cell.cell.composed]
        self.out_of_memory = agreed(OutOfMemory(None if request.retry_failed else past))
        self.decided = fastest_so_far(self.store)
        self.pools: dict[Placement, ModelPool] = {}

    def _units(self, cell: ReadyCell) -> list[tuple[Block, int]]:
        """Every block of every repeat, repeats outermost, so that an early end leaves whole repeats."""
        blocks = cell.blocks(self.request.limit)
        return [(block, repeat) for repeat in range(self.measure.repeats) for block in blocks]

    @property
    def blocks(self) -> int:
        """Blocks that are left to run."""
        return sum(map(len, self.todo.values()))

    @property
    def kept(self) -> int:
        """Blocks that were there before."""
        return sum(map(len, self.work.values())) - self.blocks

    def run(self, progress: Reporter) -> None:
        """Run what is left to run."""
        with self._recorded():
            for which, reason in self.notes.prompts_skipped.items():
                progress.say(f"prompts: left out: {which}: {reason}")
            for cell in self.cells:
                if self.todo[cell.name]:
                    self._cell(cell, progress)

    # --- one cell

    def _cell(self, cell: ReadyCell, progress: Reporter) -> None:
        progress.cell(cell)
        torch.set_num_threads(cell.cell.machine.threads)
        pool = self._pool(cell)
        target = self._target(cell, pool)
        if waits_for_answers(cell) and not isinstance(target, Failure):
            cell, target = self._answered(cell, target, pool, progress)
        blocks = cell.blocks()
        if not isinstance(target, Failure):
            longest = max(block.longest for block in blocks) + cell.decoding.max_new_tokens
            settle(target.model, shapes_of(cell.cell.decode.batch_size, longest), timing.timeline(cell.where.device))
        stage = _Stage(self, cell, target, pool, progress)
        with Turns(cell.cell.arms, stage) as turns:
            self._note_turns(cell, turns, progress)
            self._note_fastest_autoregressive(cell, stage)
            for block, repeat in self.todo[cell.name]:
                self._block(cell, turns, blocks[block.index], repeat, progress, target)
                progress.block_done()

    def largest_blocks(self, cell: ReadyCell) -> list[Block]:
        """The longest of every batch size, full ones first: for warming up, so that nothing grows any more later."""
        indices = {block.index for block, _ in self.work[cell.name]}
        blocks = [block for block in cell.blocks() if block.index in indices]
        blocks.sort(key=lambda block: (len(block.prompts), block.longest), reverse=True)
        return [next(same) for _, same in groupby(blocks, key=lambda block: len(block.prompts))]

    def _pool(self, cell: ReadyCell) -> ModelPool:
        """The models at the cell's placement; those that it does not use are let go of."""
        used = {repr(cell.cell.target.model)}
        used |= {repr(name) for arm in cell.cell.arms for name in loaded_names(arm)}
        for pool in self.pools.values():
            pool.keep_only(used)
        if cell.where not in self.pools:
            self.pools = {cell.where: ModelPool(cell.where, self.request.zoo)}
        _release_memory()
        return self.pools[cell.where]

    def _target(self, cell: ReadyCell, pool: ModelPool) -> LoadedModel | Failure:
        try:
            target, failure = pool.get(cell.cell.target.model), None
        except Exception as error:  # noqa: BLE001  (a target that cannot be loaded is rows of every arm)
            target, failure = None, failure_of(error)
        failure = first_failure(failure)
        if target is None or failure is not None:
            return failure or Failure("error", "the target was not loaded")
        target.model.release()  # another cell's batches may have been larger
        self.notes.weigh(cell.cell.target.name, target)
        return target

    def _answered(
        self, cell: ReadyCell, target: LoadedModel, pool: ModelPool, progress: Reporter
    ) -> tuple[ReadyCell, LoadedModel | Failure]:
        """The cell with its later turns; where the target cannot answer, that is rows of every arm."""
        progress.say(f"{cell.cell.target.name}: the answers that later turns stand behind")
        try:
            complete = answered(cell, target, pool, self.store.folder, limit_s=self.request.batch_limit_s)
        except NoAnswerError as error:
            return cell, error.failure
        except ConfigError as error:
            return cell, failure_of(error)
        self.notes.prompts_sha_with_answers[cell.name] = complete.prompts.sha
        return complete, target

    def _note_turns(self, cell: ReadyCell, turns: Turns, progress: Reporter) -> None:
        """Say which arms do not stand together, if there are any."""
        if len(turns.groups) > 1:
            groups = "; then ".join(", ".join(arm.name for arm in group) for group in turns.groups)
            self.warn(
                f"{cell.name}: memory does not hold the models of all arms together, so they take turns, forwards and "
                f"backwards by block: {groups}",
                progress,
            )

    def _note_fastest_autoregressive(self, cell: ReadyCell, stage: "_Stage") -> None:
        """Decide, before anything is measured, which autoregressive path speed-ups are taken against.

        A decision stands, however often the run is resumed: it must not depend on what has been measured since.
        """
        warm_up_s = {name: self.notes.warmup_step_s[cell.name][name] for name in sorted(stage.autoregressive)}
        decided = self.decided.get(cell.name) or fastest_path(warm_up_s) or AUTOREGRESSIVE
        self.notes.fastest_autoregressive[cell.name] = decided

    # --- one block

    def _block(
        self,
        cell: ReadyCell,
        turns: Turns,
        block: Block,
        repeat: int,
        progress: Reporter,
        target: LoadedModel | Failure,
    ) -> None:
        """Run every arm on one block, and store all of its rows at once."""
        order = cell.order(block, repeat, self.process)
        batches: dict[tuple[Pass, str], _Batch] = {}
        for arms in turns.block():
            batches |= self._batches(cell, arms, order, block, repeat, progress)
        model = None if isinstance(target, Failure) else target.model
        judge = Judge(cell, model, batches["headline", AUTOREGRESSIVE].outcome)
        attention = cell.cell.machine.attention if isinstance(target, Failure) else target.attention
        requests, steps = [], []
        for which in self._passes(block, repeat):
            for position, arm in enumerate(order):
                if (batch := batches.get((which, arm.name))) is None:
                    continue
                place = Place(
                    self.run_id, self.process, cell, block, repeat, arm, position, which, attention, batch.rule
                )
                verdicts = judge.verdicts(place, batch.outcome)
                if arm.method in registry.baselines() and any(verdict.word == "WRONG" for verdict in verdicts):
                    self._warn_of_outside(cell, arm, progress)
                requests += request_rows(place, batch.outcome, verdicts, batch.conditions, batch.memory)
                steps += step_rows(place, batch.outcome)
        self.store.write_block(cell.block_key(block, repeat, self.process), requests, steps)

    def _batches(
        self, cell: ReadyCell, arms: LiveArms, order: list[Arm], block: Block, repeat: int, progress: Reporter
    ) -> "dict[tuple[Pass, str], _Batch]":
        """Run the arms that are loaded, in their order, each pass to its end before the next."""
        batches: dict[tuple[Pass, str], _Batch] = {}
        with Observer(*watched_devices(cell.where), telemetry=self.measure.telemetry) as observer:
            self.notes.telemetry = observer.telemetry
            for which in self._passes(block, repeat):
                for live in (arms[arm.name] for arm in order if arm.name in arms):
                    if which not in live.passes:
                        continue
                    progress.batch(live.arm, block, repeat)
                    before = batches.get(("headline", live.arm.name))
                    memory = MemoryObserver(live.holdings)
                    observer.start()
                    if before is not None and isinstance(before.outcome, Failure):
                        outcome: Outcome = before.outcome
                    else:
                        outcome = live.run(block, which)
                    batches[which, live.arm.name] = _Batch(outcome, observer.stop(), memory.stop(), live.rule)
                    if which == "headline":
                        progress.measured(live.arm, outcome)
                    if isinstance(outcome, Failure):
                        self._after_failure(cell, live.arm, outcome)
        return batches

    def _passes(self, block: Block, repeat: int) -> tuple[Pass, ...]:
        """Every block counts for the headline; where a step's time goes is asked in the first few only."""
        asked = repeat == 0 and block.index < self.measure.phase_blocks
        return ("headline", "phase") if asked else ("headline",)

    def _after_failure(self, cell: ReadyCell, arm: Arm, failure: Failure) -> None:
        if failure.status == "oom":
            self.out_of_memory.note(cell, arm)
            _release_memory()

    def _warn_of_outside(self, cell: ReadyCell, arm: Arm, progress: Reporter) -> None:
        """Say it once: two libraries differ, so one is wrong, and that need not be a method of ours."""
        sentence = (
            f"{cell.name}: texts of {arm.name} differ from those of the core's autoregressive by more than a near tie; "
            "a divergence_gap of 0 in its rows says that the core is the one to look at"
        )
        self.warn(sentence, progress)

    def warn(self, sentence: str, progress: Reporter) -> None:
        """Note a sentence once, and say it."""
        if sentence not in self.notes.warnings:
            self.notes.warnings.append(sentence)
            progress.say(sentence)

    # --- the record

    def _recorded(self) -> AbstractContextManager[str]:
        first = self.cells[0]
        return recorded(
            self.store,
            self.request.experiment_yaml,
            argv=self.request.argv,
            device=first.where.device,
            threads=first.cell.machine.threads,
            seed=first.cell.decode.seed,
            run_id=self.run_id,
            notes=lambda: vars(self.notes),
            has_failed=lambda: self._counts(self.past.and_now(self.keys(self.todo)))["failed"] > 0,
        )

    def summary(self, blocks: int, kept: int, runs: "Sequence[_Run]") -> RunSummary:
        """How the cells stand, all processes and earlier runs together; cautions are of those measured now."""
        written = {key for own in runs for key in own.keys(own.todo)}
        counts = self._counts(self.past.and_now(written))
        touched = {name for own in runs for name, todo in own.todo.items() if todo}
        keys = {key for own in runs for key in own.keys({name: own.work[name] for name in touched})}
        found = tuple(cautions(self._scalars(keys))) if touched else ()
        return RunSummary(self.store.folder, **counts, blocks_run=blocks, blocks_kept=kept, cautions=found)

    def keys(self, blocks: dict[str, list[tuple[Block, int]]]) -> set[str]:
        """What blocks of cells are stored under."""
        return {
            cell.block_key(block, repeat, self.process)
            for cell in self.cells
            for block, repeat in blocks.get(cell.name, [])
        }

    def _scalars(self, keys: set[str]) -> pd.DataFrame:
        """Rows without their texts and what each step did: those are most of the bytes, and no caution needs them."""
        columns = [column.name for column in REQUESTS if not isinstance(column.type, pa.ListType)]
        return self.store.read("requests", columns, keys)

    def _counts(self, found: pd.DataFrame) -> dict[str, Any]:
        """Trials of these cells by how they ended."""
        rows = found[found["cell"].isin(list(self.work))]
        statuses = rows[["trial_id", "status"]].drop_duplicates().groupby("trial_id")["status"].agg(set)
        failed = statuses.map(lambda seen: bool(seen & {"oom", "timeout", "error"}))
        unsupported = ~failed & statuses.map(lambda seen: "unsupported" in seen)
        skipped = ~failed & ~unsupported & statuses.map(lambda seen: "skipped" in seen)
        reasons = rows["reason"].fillna("")
        wrong, outside = rows["verdict"] == "WRONG", rows["method"].isin(registry.baselines())
        return {
            "finished": int((~failed & ~unsupported & ~skipped).sum()),
            "failed": int(failed.sum()),
            "unsupported": int(unsupported.sum()),
            "skipped": int(skipped.sum()),
            "wrong": int((wrong & ~outside).sum()),
            "outside_wrong": int((wrong & outside).sum()),
            "broke_contract": bool(reasons.str.startswith("ContractError").any()),
        }


class _Stage:
    """Where the arms of one cell are loaded; notes what is learnt of them on the way.

    Attributes:
        autoregressive: The arms that draft nothing, without the twin.
    """

    def __init__(
        self, run: _Run, cell: ReadyCell, target: LoadedModel | Failure, pool: ModelPool, progress: Reporter
    ) -> None:
        self._run, self._cell, self._target, self._pool, self._progress = run, cell, target, pool, progress
        self._largest, *self._smaller = run.largest_blocks(cell)
        self._achieved_s: dict[str, list[float]] = {}
        self.autoregressive: set[str] = set()

    def enter(self, arm: Arm) -> LiveArm:
        """Load an arm; one that ran out of memory at a smaller batch is not tried."""
        request, target = self._run.request, self._run.out_of_memory.skip(self._cell, arm) or self._target
        live = live_arm(arm, self._cell, target, self._pool, request.method_class, limit_s=request.batch_limit_s)
        if live.is_autoregressive and not arm.twin:
            self.autoregressive.add(arm.name)
        for name in filter(self._pool.has, arm.models):
            self._run.notes.weigh(name, self._pool.get(name))
        return live

    def reserve(self, live: LiveArm) -> None:
        """The largest block is what it must have room for."""
        live.reserve(self._largest)

    def warm_up(self, live: LiveArm) -> None:
        """Run it on what is not measured, and note what a step took."""
        passes = live.warm_up([self._largest, *self._smaller], self._run.measure.warmup)
        steps = [float(f"{seconds:.4g}") for seconds in passes]
        noted = self._run.notes.warmup_step_s.setdefault(self._cell.name, {})
        noted[live.arm.name] = noted.get(live.arm.name) or steps
        if live.failure is not None:
            self._progress.say(f"{live.arm.name}: {live.failure.status}: {live.failure.reason}")
        elif isinstance(live, CoreArm) and not (live.arm.twin or live.out_of_memory or live.target.is_spread):
            self._note_limit(live)

    def _note_limit(self, live: CoreArm) -> None:
        """Note what its step asks of the machine; an arm that cannot be counted runs all the same."""
        run = self._run
        try:
            run.limits.note(self._cell, live, self._largest)
        except ResultsError:
            raise
        except Exception as error:  # noqa: BLE001  (a limit is beside the measurement, and never ends it)
            run.warn(f"{live.arm.name}: its limit is not known: {failure_of(error).reason}", self._progress)
        _release_memory()

    def leave(self, gone: LiveArms, models: set[str]) -> None:
        """Note the draft latencies that were kept and what was compiled or captured, and free the memory."""
        while gone:  # taken out one by one, so that no name here keeps the last one's memory
            self._note(gone.popitem()[1])
        self._pool.keep_only({repr(self._cell.cell.target.model), *map(repr, models)})
        _release_memory()

    def models(self) -> set[str]:
        """The drafts of the cell that are loaded."""
        return {name for arm in self._cell.cell.arms for name in loaded_names(arm) if self._pool.has(name)}

    def _note(self, live: LiveArm) -> None:
        self._note_latency(live)
        if preparation := live.preparation():
            self._run.notes.steps.setdefault(self._cell.name, {})[live.arm.name] = preparation

    def _note_latency(self, live: LiveArm) -> None:
        if live.arm.draft_latency_ms is None:
            return
        achieved = self._achieved_s.setdefault(live.arm.name, [])
        achieved += live.achieved_s()
        if achieved:
            self._run.notes.draft_latency_ms.setdefault(self._cell.name, {})[live.arm.name] = {
                "requested": live.arm.draft_latency_ms,
                "least": min(achieved) * 1e3,
                "median": statistics.median(achieved) * 1e3,
                "most": max(achieved) * 1e3,
                "count": len(achieved),
            }


def composed_note(arm: Arm) -> dict[str, Any]:
    """What a report needs to put an arm together that did not run."""
    return {
        "arm": arm.name,
        "label": arm.label,
        "method": arm.method,
        "draft": arm.models[0],
        "options": arm.options,
        "draft_latency_ms": arm.draft_latency_ms,
    }


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
