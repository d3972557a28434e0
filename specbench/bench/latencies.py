"""How long one forward takes, by model, query length, batch size and context: the core's own, over its own cache.

A point is one such combination. All points that memory holds together are visited in rounds, each round in a shuffled
order, so that the machine's moods fall on all alike; every point is run before the first round. A visit is a burst of
forwards, as a draft runs them, with the clock read before and after. Points that memory does not hold beside one
another are measured group by group.

Beside forwards stands what choosing tokens takes: to draw a draft token, and to accept a draft. Each choice of a visit
comes behind a forward, as in a step, and the clock is read around the choice alone.
"""

import gc
import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import torch
import yaml
from torch import Tensor

from specbench.analysis.choosing import Choosing, Kind
from specbench.analysis.latencies import median_interval
from specbench.bench import machine
from specbench.bench.arms import Failure, failure_of
from specbench.bench.cells import MEASUREMENT_VERSION
from specbench.bench.choosing import Choose, chooser
from specbench.bench.dry_run import Size, size_of
from specbench.bench.history import close_stale_runs, only_writer
from specbench.bench.latency_points import MODES, Choice, Mode, Point
from specbench.bench.provenance import recorded
from specbench.bench.timing import Timeline, frozen_objects, no_garbage_collection, seconds_of, timeline
from specbench.config import MachineSettings, RandomModel
from specbench.decode.acceptance import rule_for
from specbench.decode.compiled import Compiled
from specbench.decode.graphs import CudaRecorder, Recorder
from specbench.decode.target import CachedModel, Nodes, Output
from specbench.decode.trace import Phase
from specbench.errors import ConfigError, UnsupportedError, did_you_mean
from specbench.models.loader import ModelPool, Placement, attention_of, placement
from specbench.models.shapes import Numbers, numbers_of
from specbench.models.source import Source, locate
from specbench.models.zoo import ZOO
from specbench.records.schema import blank_row
from specbench.records.store import Store

T = TypeVar("T")

NO_GRAPHS = "CUDA graphs are captured on a GPU, and {device} is none"
"""Why a point in a mode of graphs does not run."""

# A slab of decoding has room behind the last token, so that what attention sees may be rounded up.
_SPARE_SLOTS = 65
# What kernels need beside weights, cache and logits.
_SHARE_FOR_MODELS = 0.9
_WARM_UP_FORWARDS = 3


@dataclass(frozen=True)
class Study:
    """What is measured: every combination.

    Attributes:
        models: Embedded family, hub id, folder, ``random:SHAPE``, or a shape with random weights.
        query_tokens: Tokens of a forward: 1 for a draft's, gamma + 1 for a verification.
        batch_sizes: Rows.
        context_tokens: Keys and values before the query.
        choosing: Ways of choosing tokens, each timed beside the forwards, at the shortest context; none unless given.
        modes: How forwards and choices run.
        rounds: Visits of every point; the median's interval takes six.
        burst: Forwards of a visit.
        seed: Decides the order and the tokens.
        machine: What it runs on.

    Raises:
        ConfigError: Nothing to measure, or a number that cannot be.
    """

    models: tuple[str | RandomModel, ...]
    query_tokens: tuple[int, ...] = (1,)
    batch_sizes: tuple[int, ...] = (1,)
    context_tokens: tuple[int, ...] = (128,)
    choosing: tuple[Choosing, ...] = ()
    modes: tuple[Mode, ...] = ("eager",)
    rounds: int = 20
    burst: int = 4
    seed: int = 0
    machine: MachineSettings = field(default_factory=MachineSettings)

    def __post_init__(self) -> None:
        for name in ("models", "query_tokens", "batch_sizes", "context_tokens", "modes"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: give at least one")
        least = {"query_tokens": 1, "batch_sizes": 1, "context_tokens": 0}
        for name, bound in least.items():
            if min(getattr(self, name)) < bound:
                raise ConfigError(f"{name}: must be at least {bound}, got {min(getattr(self, name))}")
        for mode in self.modes:
            if mode not in MODES:
                raise ConfigError(f"modes: unknown mode {mode!r}. {did_you_mean(mode, MODES)}")
        for how in self.choosing:
            rule_for(how.rule, how.temperature)
        for name in ("rounds", "burst"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")

    @property
    def forwards(self) -> list[Point]:
        """Every combination once."""
        axes = (self.query_tokens, self.batch_sizes, self.context_tokens, self.modes)
        return [Point(*values) for values in dict.fromkeys(product(*axes))]

    @property
    def choices(self) -> list[Choice]:
        """A draw, and the accept phase behind every query length and behind none: what there is without a draft."""
        kinds: list[tuple[Kind, int]] = [("draw", 1)]
        kinds += [("accept", tokens) for tokens in dict.fromkeys((1, *self.query_tokens))]
        context = min(self.context_tokens)
        return [
            Choice(tokens, rows, context, mode, kind=kind, how=how)
            for how, (kind, tokens), rows, mode in dict.fromkeys(
                product(self.choosing, kinds, self.batch_sizes, self.modes)
            )
        ]

    @property
    def points(self) -> list[Point]:
        """All that is timed of each model."""
        return [*self.forwards, *self.choices]

    @property
    def settings(self) -> dict[str, Any]:
        """All of it, for the record."""
        own = asdict(self) | {"machine": self.machine.model_dump(mode="json")}
        models = [model if isinstance(model, str) else model.model_dump(mode="json") for model in self.models]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {"latency": plain | {"models": models}}


class Subject:
    """One model of a study: what it is, and what its rows say, without a weight loaded.

    Attributes:
        reference: As the user gave it.
        source: Its files.
        where: Where it goes.
    """

    def __init__(self, reference: str | RandomModel, study: Study, where: Placement, zoo: Path) -> None:
        self.reference, self.where = reference, where
        self.source: Source = locate(reference, zoo)
        self._study = study

    @cached_property
    def numbers(self) -> Numbers:
        """Its shape."""
        return numbers_of(self.source.config)

    @cached_property
    def size(self) -> Size:
        """What it weighs."""
        return size_of(self.source, self.where.dtype)

    @cached_property
    def attention(self) -> str:
        """The backend that will run."""
        return attention_of(self.source, self.where)

    def slab_bytes(self, point: Point) -> int:
        """What the cache of a point takes."""
        return point.batch_size * (point.length + _SPARE_SLOTS) * self.size.kv_per_token

    def bytes_of(self, point: Point) -> int:
        """What a point takes when it stands alone, its logits included."""
        logits = point.batch_size * point.query_tokens * self.numbers.vocab * self.where.dtype.itemsize
        return self.size.weights + self.slab_bytes(point) + logits

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What a time depends on beside model and point."""
        return {
            "dtype": self.where.dtype_name,
            "device": machine.device_name(self.where.device),
            "threads": self._study.machine.threads,
            "attention": self.attention,
            "burst": self._study.burst,
        }

    def point_id(self, point: Point) -> str:
        """What makes two rows the same measurement: resuming leaves out a point whose id is in the table."""
        parts = [self.source.name, self.source.weights_sha, asdict(point), self.setting, _software()]
        return hashlib.sha256(machine.as_json(parts).encode()).hexdigest()[:16]

    def row(
        self, run_id: str, point: Point, samples: Sequence[float] = (), failure: Failure | None = None
    ) -> dict[str, Any]:
        """The row of one point, measured or not."""
        interval = None if failure or not samples else median_interval(samples)
        timed = "choice" if isinstance(point, Choice) else "forward"
        return blank_row(point.table) | {
            "run_id": run_id,
            "point_id": self.point_id(point),
            "model": self.source.name,
            "weights_sha": self.source.weights_sha,
            **({"vocab": self.source.vocab_size} if isinstance(point, Choice) else self._shape),
            **point.columns,
            f"{timed}_s": None if failure else median(samples),
            f"{timed}_low_s": interval[0] if interval else None,
            f"{timed}_high_s": interval[1] if interval else None,
            "rounds": len(samples),
            **self.setting,
            "status": failure.status if failure else "ok",
            "reason": failure.reason if failure else None,
        }

    @cached_property
    def _shape(self) -> dict[str, Any]:
        """What a forward's row says of the model."""
        return {
            "random_weights": self.source.kind == "random",
            **self.numbers._asdict(),
            "parameters": self.source.parameters,
            "weight_bytes": self.size.weights,
        }

    def fault(self, point: Point, room_bytes: float) -> Failure | None:
        """Why a point cannot be measured, as far as that is known beforehand."""
        most = self.source.max_positions
        if most is not None and point.length > most:
            words = f"a context of {point.context_tokens} and {point.query_tokens} more"
            return Failure("unsupported", f"{words} exceed its {most} positions")
        if (needed := self.bytes_of(point)) > room_bytes:
            return Failure("oom", f"it needs {needed / 1e9:.3g} GB, and {room_bytes / 1e9:.3g} GB are free for it")
        return None


@cache
def _software() -> list[Any]:
    """The versions that a time depends on."""
    versions = machine.versions()
    return [versions["torch"], versions["transformers"], versions["cuda"], MEASUREMENT_VERSION]


class Unit(NamedTuple):
    """What shares one slab: the points of a model and batch size."""

    subject: Subject
    points: tuple[Point, ...]

    @property
    def slab_bytes(self) -> int:
        """What its cache takes."""
        return max(map(self.subject.slab_bytes, self.points))

    @property
    def scratch_bytes(self) -> int:
        """What comes and goes with a forward."""
        alone = max(map(self.subject.bytes_of, self.points))
        return max(0, alone - self.subject.size.weights - self.slab_bytes)


def groups(units: Iterable[Unit], room_bytes: float) -> list[list[Unit]]:
    """Units in their order, as many together as memory holds; a model that two units share counts once."""
    found: list[list[Unit]] = []
    for unit in units:
        if not found or _bytes([*found[-1], unit]) > room_bytes:
            found.append([])
        found[-1].append(unit)
    return found


def _bytes(units: Sequence[Unit]) -> int:
    weights = {id(unit.subject): unit.subject.size.weights for unit in units}
    slabs = sum(unit.slab_bytes for unit in units)
    return sum(weights.values()) + slabs + max(unit.scratch_bytes for unit in units)


class Measured(NamedTuple):
    """The rows of a study.

    Attributes:
        forwards: Of ``latencies``.
        choices: Of ``choosing``.
    """

    forwards: pd.DataFrame
    choices: pd.DataFrame


def measure(
    study: Study,
    folder: Path,
    *,
    argv: Sequence[str] = (),
    zoo: Path = ZOO,
    clock: Timeline | None = None,
    room_bytes: float | None = None,
    recorder: Recorder | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure what the folder does not hold yet, and return the study's rows.

    Args:
        study: What to measure.
        folder: Where ``latencies``, ``choosing`` and ``runs`` are kept.
        argv: The command line, for the record.
        zoo: Where the embedded family lies.
        clock: How time is read; the device's own where None.
        room_bytes: Memory that models may take; what is free where None.
        recorder: What records graphs; the device's own where None. A device without one has no graphs.
        say: Told what is on.

    Raises:
        ConfigError: A model is missing, or another run writes to the folder.
        UnsupportedError: There is no such device, or the hub cannot be reached.
        ResultsError: The folder cannot be read or written.
    """
    where = placement(study.machine)
    torch.set_num_threads(study.machine.threads)
    subjects = [Subject(reference, study, where, zoo) for reference in dict.fromkeys(study.models)]
    ids = {
        table: [subject.point_id(point) for subject in subjects for point in points]
        for table, points in ((Point.table, study.forwards), (Choice.table, study.choices))
    }
    store = Store(folder)
    with only_writer(folder):
        close_stale_runs(store)
        todo = {one for table, wanted in ids.items() for one in set(wanted) - _finished(store, table, study.rounds)}
        if todo:
            how = _Means(clock or timeline(where.device), recorder or _recorder(where.device))
            run = _Run(study, store, where, ModelPool(where, zoo), how, say)
            room = _SHARE_FOR_MODELS * machine.free_bytes(where.device) if room_bytes is None else room_bytes
            run.measure(subjects, todo, room, argv)
        return Measured(*(_read(store, table, wanted) for table, wanted in ids.items()))


def _recorder(device: torch.device) -> Recorder | None:
    """What records graphs on a device."""
    return CudaRecorder(device) if device.type == "cuda" else None


def _finished(store: Store, table: str, rounds: int) -> set[str]:
    """Points that were measured in at least as many rounds; one that failed was measured in none."""
    if not store.has(table):
        return set()
    rows = store.read(table, ["point_id", "rounds"])
    return set(rows[rows["rounds"] >= rounds]["point_id"])


def _read(store: Store, table: str, ids: Sequence[str]) -> pd.DataFrame:
    """The rows of some points, in their order."""
    rows = store.read(table) if ids else store.none_of(table)
    return rows.set_index("point_id", drop=False).loc[ids].reset_index(drop=True)


class _Means(NamedTuple):
    """How points are run and timed.

    Attributes:
        clock: How time is read.
        recorder: What records graphs; None where there are none.
    """

    clock: Timeline
    recorder: Recorder | None


class _Visited:
    """A point on the device: what is timed, what that took so far, or why it does not run."""

    def __init__(self, subject: Subject, point: Point, failure: Failure | None = None) -> None:
        self.subject, self.point, self.failure = subject, point, failure
        self.samples: list[float] = []
        self._attention: str | None = None

    @torch.inference_mode()
    def make_ready(self, model: CachedModel, seed: int, means: _Means) -> None:
        """Give it a place in the model's slab, and run it unmeasured."""
        self._attention = model.attention.name
        try:
            self._burst_s = _burst(model, self.point, seed, means)
            self._burst_s(_WARM_UP_FORWARDS)
        except Exception as error:  # noqa: BLE001  (one point's fault must not end the others)
            self.failure = failure_of(error)
            if self.failure.status == "error" and (self.point.is_captured or self.point.is_compiled):
                by = "CUDA graphs" if self.point.is_captured else "torch.compile"
                self.failure = Failure("unsupported", f"{by}: {self.failure.reason}")

    @torch.inference_mode()
    def visit(self, times: int) -> None:
        """Take one sample, of so many forwards or choices."""
        if self.failure is not None:
            return
        try:
            self.samples.append(self._burst_s(times) / times)
        except Exception as error:  # noqa: BLE001  (as above)
            self.failure, self.samples = failure_of(error), []

    def row(self, run_id: str) -> dict[str, Any]:
        """Its row of the table."""
        row = self.subject.row(run_id, self.point, self.samples, self.failure)
        # What was foreseen may have failed its self-check on this very machine.
        return row | ({} if self._attention is None else {"attention": self._attention})


class _Run:
    """One call of `measure`, group by group."""

    def __init__(
        self,
        study: Study,
        store: Store,
        where: Placement,
        pool: ModelPool,
        means: _Means,
        say: Callable[[str], None],
    ) -> None:
        self._study, self._store, self._where, self._pool = study, store, where, pool
        self._means, self._say = means, say

    def measure(self, subjects: Sequence[Subject], todo: set[str], room_bytes: float, argv: Sequence[str]) -> None:
        """Measure the points whose ids are asked for; the rows of a group are written when it has ended."""
        settings, study = self._study.settings, self._study
        device, threads = self._where.device, study.machine.threads
        asked = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        with recorded(self._store, asked, argv=argv, device=device, threads=threads, seed=study.seed) as run_id:
            self._run_id = run_id
            units: list[Unit] = []
            for subject in subjects:
                points = [point for point in study.points if subject.point_id(point) in todo]
                units += self._units(subject, points, room_bytes)
            waiting = deque(groups(units, room_bytes))
            while waiting:
                waiting += [[unit] for unit in self._group(waiting.popleft())]
                if waiting:
                    self._make_room(waiting[0])

    def _units(self, subject: Subject, points: Sequence[Point], room_bytes: float) -> Iterator[Unit]:
        """The points by batch size; what cannot run is written at once."""
        faults = {point: self._no_graph(point) or subject.fault(point, room_bytes) for point in points}
        self._write(_Visited(subject, point, fault) for point, fault in faults.items() if fault)
        possible = [point for point, fault in faults.items() if fault is None]
        for size in dict.fromkeys(point.batch_size for point in possible):
            yield Unit(subject, tuple(point for point in possible if point.batch_size == size))

    def _no_graph(self, point: Point) -> Failure | None:
        if not point.is_captured or self._means.recorder is not None:
            return None
        return Failure("unsupported", NO_GRAPHS.format(device=self._where.device))

    def _write(self, ended: Iterable[_Visited]) -> None:
        """Each row is a part of its own, so that a point that is measured again replaces what was there."""
        for one in ended:
            row = one.row(self._run_id)
            self._store.write_part(one.point.table, row["point_id"], [row])

    def _group(self, units: Sequence[Unit]) -> list[Unit]:
        """Measure some units together; those that found no room beside the others are returned."""
        crowded: list[Unit] = []
        ready: list[_Visited] = []
        for unit in units:
            self._say(f"{unit.subject.source.name}: making ready")
            own = self._made_ready(unit)
            out_of_memory = any(one.failure is not None and one.failure.status == "oom" for one in own)
            if out_of_memory and len(units) > 1:
                crowded.append(unit)
            else:
                ready += own
        self._rounds(ready)
        self._write(ready)
        if self._where.device.type == "cuda" or any(one.point.is_compiled for one in ready):
            torch.compiler.reset()
        return crowded

    def _make_room(self, units: Sequence[Unit]) -> None:
        """Let go of the models that the next group does not use."""
        self._pool.keep_only({repr(unit.subject.reference) for unit in units})
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rounds(self, ready: Sequence[_Visited]) -> None:
        study, chance = self._study, random.Random(self._study.seed)
        with frozen_objects(), no_garbage_collection():
            for index in range(study.rounds):
                self._say(f"round {index + 1} of {study.rounds}, {len(ready)} points")
                for one in chance.sample(ready, len(ready)):
                    one.visit(study.burst)

    def _made_ready(self, unit: Unit) -> list[_Visited]:
        """Every point of a unit, warmed up; the longest first, whose slab then serves them all."""
        try:
            model = self._pool.get(unit.subject.reference).model.sharing_weights()
        except Exception as error:  # noqa: BLE001  (a model that cannot be loaded is rows of every point)
            failure = failure_of(error)
            return [_Visited(unit.subject, point, failure) for point in unit.points]
        own = []
        for point in sorted(unit.points, key=lambda point: point.length, reverse=True):
            own.append(_Visited(unit.subject, point))
            own[-1].make_ready(model, self._study.seed, self._means)
        return own


def _burst(model: CachedModel, point: Point, seed: int, means: _Means) -> Callable[[int], float]:
    """What takes a point so many times, one after the other, and says how many seconds that took."""
    if not isinstance(point, Choice):
        forward = _as_asked(_forward(model, point, seed), "verify", model, point, means)
        return lambda times: _burst_of_forwards(forward, times, means.clock)
    forward = _as_asked(_forward(model, point.forward, seed), "verify", model, point.forward, means)
    choose = chooser(model, point, seed)
    if point.is_captured:
        output = forward()
        again = _as_asked(lambda: choose(output), "draft" if point.kind == "draw" else "accept", model, point, means)
        return lambda times: _burst_of_choices(forward, lambda _: again(), times, means.clock)
    return lambda times: _burst_of_choices(forward, choose, times, means.clock)


def _burst_of_forwards(forward: Callable[[], Output], times: int, clock: Timeline) -> float:
    def forwards() -> None:
        for _ in range(times):
            forward()

    return seconds_of(forwards, clock)


def _burst_of_choices(forward: Callable[[], Output], choose: Choose, times: int, clock: Timeline) -> float:
    """Seconds of the choices alone."""
    laps = []
    for _ in range(times):
        output = forward()
        begin = clock.mark()
        choose(output)
        laps.append((begin, clock.mark()))
    clock.wall()
    return sum(clock.seconds(*lap) for lap in laps)


def _as_asked(work: Callable[[], T], phase: Phase, model: CachedModel, point: Point, means: _Means) -> Callable[[], T]:
    """Some work as it is, or a graph of it whose result lies where the first one lay."""
    if not point.is_captured:
        return work
    if model.is_spread:
        raise UnsupportedError("one graph is of one device, and the weights are spread")
    assert means.recorder is not None, "such a point is refused before"
    result, replay = means.recorder.record(phase, work)

    def again() -> T:
        replay()
        return result

    return again


def _forward(model: CachedModel, point: Point, seed: int) -> Callable[[], Output]:
    """The forward of a point, over a cache that is full of noise: as with weights, only zeros would be cheaper."""
    nodes = _nodes(model, point, seed)
    model.allocate(point.batch_size, point.length + _SPARE_SLOTS)
    for slab in model.cache.slabs:
        slab.normal_()
    run = Compiled(model.forward, has_one_form=True) if point.is_compiled else model.forward
    return lambda: run(nodes, point.context_tokens)


def _nodes(model: CachedModel, point: Point, seed: int) -> Nodes:
    chance = torch.Generator().manual_seed(seed)
    shape = (point.batch_size, point.query_tokens)
    tokens: Tensor = torch.randint(0, model.vocab_size, shape, generator=chance).to(model.device)
    return Nodes(tokens, torch.full((point.batch_size,), point.context_tokens, device=model.device))
