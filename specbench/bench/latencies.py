"""How long one forward takes, by model, query length, batch size and context: the core's own, over its own cache.

A point is one such combination. All points that memory holds together are visited in rounds, each round in a shuffled
order, so that the machine's moods fall on all alike; every point is run before the first round. A visit is a burst of
forwards, as a draft runs them, with the clock read before and after. Points that memory does not hold beside one
another are measured group by group.
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
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
import yaml
from torch import Tensor

from specbench.analysis.latencies import median_interval
from specbench.bench import machine
from specbench.bench.arms import Failure, failure_of
from specbench.bench.cells import MEASUREMENT_VERSION
from specbench.bench.dry_run import Size, size_of
from specbench.bench.history import close_stale_runs, only_writer
from specbench.bench.provenance import recorded
from specbench.bench.timing import Timeline, frozen_objects, no_garbage_collection, seconds_of, timeline
from specbench.config import MachineSettings, RandomModel
from specbench.decode.compiled import Compiled
from specbench.decode.target import CachedModel, Nodes, Output
from specbench.errors import ConfigError, did_you_mean
from specbench.models.loader import ModelPool, Placement, attention_of, placement
from specbench.models.shapes import Numbers, numbers_of
from specbench.models.source import Source, locate
from specbench.models.zoo import ZOO
from specbench.records.schema import blank_row
from specbench.records.store import Store

Mode = Literal["eager", "compiled"]
MODES: tuple[Mode, ...] = ("eager", "compiled")

TABLE = "latencies"

# A slab of decoding has room behind the last token, so that what attention sees may be rounded up.
_SPARE_SLOTS = 65
# What kernels need beside weights, cache and logits.
_SHARE_FOR_MODELS = 0.9
_WARM_UP_FORWARDS = 3


@dataclass(frozen=True, order=True)
class Point:
    """One combination.

    Attributes:
        query_tokens: Tokens of each row that the forward reads, in a line.
        batch_size: Rows.
        context_tokens: Keys and values of each row before them.
        mode: ``eager``, or ``compiled`` by ``torch.compile``, masks and all.
    """

    query_tokens: int
    batch_size: int
    context_tokens: int
    mode: Mode = "eager"

    @property
    def length(self) -> int:
        """Tokens of a row after the forward."""
        return self.context_tokens + self.query_tokens


@dataclass(frozen=True)
class Study:
    """What is measured: every combination.

    Attributes:
        models: Embedded family, hub id, folder, ``random:SHAPE``, or a shape with random weights.
        query_tokens: Tokens of a forward: 1 for a draft's, gamma + 1 for a verification.
        batch_sizes: Rows.
        context_tokens: Keys and values before the query.
        modes: How forwards run.
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
        for name in ("rounds", "burst"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")

    @property
    def points(self) -> list[Point]:
        """Every combination once."""
        axes = (self.query_tokens, self.batch_sizes, self.context_tokens, self.modes)
        return [Point(*values) for values in dict.fromkeys(product(*axes))]

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
        return blank_row(TABLE) | {
            "run_id": run_id,
            "point_id": self.point_id(point),
            "model": self.source.name,
            "weights_sha": self.source.weights_sha,
            "random_weights": self.source.kind == "random",
            **self.numbers._asdict(),
            "parameters": self.source.parameters,
            "weight_bytes": self.size.weights,
            **asdict(point),
            "forward_s": None if failure else median(samples),
            "forward_low_s": interval[0] if interval else None,
            "forward_high_s": interval[1] if interval else None,
            "rounds": len(samples),
            **self.setting,
            "status": failure.status if failure else "ok",
            "reason": failure.reason if failure else None,
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


def measure(
    study: Study,
    folder: Path,
    *,
    argv: Sequence[str] = (),
    zoo: Path = ZOO,
    clock: Timeline | None = None,
    room_bytes: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Measure what the folder does not hold yet, and return the study's rows of ``latencies``.

    Args:
        study: What to measure.
        folder: Where ``latencies`` and ``runs`` are kept.
        argv: The command line, for the record.
        zoo: Where the embedded family lies.
        clock: How time is read; the device's own where None.
        room_bytes: Memory that models may take; what is free where None.
        say: Told what is on.

    Raises:
        ConfigError: A model is missing, or another run writes to the folder.
        UnsupportedError: There is no such device, or the hub cannot be reached.
        ResultsError: The folder cannot be read or written.
    """
    where = placement(study.machine)
    torch.set_num_threads(study.machine.threads)
    subjects = [Subject(reference, study, where, zoo) for reference in dict.fromkeys(study.models)]
    ids = [subject.point_id(point) for subject in subjects for point in study.points]
    store = Store(folder)
    with only_writer(folder):
        close_stale_runs(store)
        todo = set(ids) - _finished(store, study)
        if todo:
            run = _Run(study, store, where, ModelPool(where, zoo), clock or timeline(where.device), say)
            room = _SHARE_FOR_MODELS * machine.free_bytes(where.device) if room_bytes is None else room_bytes
            run.measure(subjects, todo, room, argv)
        rows = store.read(TABLE)
    return rows.set_index("point_id", drop=False).loc[ids].reset_index(drop=True)


def _finished(store: Store, study: Study) -> set[str]:
    """Points that were measured in at least as many rounds; one that failed was measured in none."""
    if not (store.folder / f"{TABLE}.parquet").exists():
        return set()
    rows = store.read(TABLE, ["point_id", "rounds"])
    return set(rows[rows["rounds"] >= study.rounds]["point_id"])


class _Visited:
    """A point on the device: its forward, what that took so far, or why it does not run."""

    def __init__(self, subject: Subject, point: Point, failure: Failure | None = None) -> None:
        self.subject, self.point, self.failure = subject, point, failure
        self.samples: list[float] = []

    @torch.inference_mode()
    def make_ready(self, model: CachedModel, seed: int) -> None:
        """Give it a place in the model's slab, and run it unmeasured."""
        try:
            self._forward = _forward(model, self.point, seed)
            for _ in range(_WARM_UP_FORWARDS):
                self._forward()
        except Exception as error:  # noqa: BLE001  (one point's fault must not end the others)
            self.failure = failure_of(error)
            if self.point.mode == "compiled" and self.failure.status == "error":
                self.failure = Failure("unsupported", f"torch.compile: {self.failure.reason}")

    @torch.inference_mode()
    def visit(self, burst: int, clock: Timeline) -> None:
        """Take one sample."""

        def forwards() -> None:
            for _ in range(burst):
                self._forward()

        if self.failure is not None:
            return
        try:
            self.samples.append(seconds_of(forwards, clock) / burst)
        except Exception as error:  # noqa: BLE001  (as above)
            self.failure, self.samples = failure_of(error), []

    def row(self, run_id: str) -> dict[str, Any]:
        """Its row of the table."""
        return self.subject.row(run_id, self.point, self.samples, self.failure)


class _Run:
    """One call of `measure`, group by group."""

    def __init__(
        self,
        study: Study,
        store: Store,
        where: Placement,
        pool: ModelPool,
        clock: Timeline,
        say: Callable[[str], None],
    ) -> None:
        self._study, self._store, self._where, self._pool = study, store, where, pool
        self._clock, self._say = clock, say

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
        faults = {point: subject.fault(point, room_bytes) for point in points}
        self._write(subject.row(self._run_id, point, failure=fault) for point, fault in faults.items() if fault)
        possible = [point for point, fault in faults.items() if fault is None]
        for size in dict.fromkeys(point.batch_size for point in possible):
            yield Unit(subject, tuple(point for point in possible if point.batch_size == size))

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Each row is a part of its own, so that a point that is measured again replaces what was there."""
        for row in rows:
            self._store.write_part(TABLE, row["point_id"], [row])

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
        self._write(one.row(self._run_id) for one in ready)
        if "compiled" in self._study.modes:
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
                    one.visit(study.burst, self._clock)

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
            own[-1].make_ready(model, self._study.seed)
        return own


def _forward(model: CachedModel, point: Point, seed: int) -> Callable[[], Output]:
    """The forward of a point, over a cache that is full of noise: as with weights, only zeros would be cheaper."""
    nodes = _nodes(model, point, seed)
    model.allocate(point.batch_size, point.length + _SPARE_SLOTS)
    for slab in model.cache.slabs:
        slab.normal_()
    run = Compiled(model.forward) if point.mode == "compiled" else model.forward
    return lambda: run(nodes, point.context_tokens)


def _nodes(model: CachedModel, point: Point, seed: int) -> Nodes:
    chance = torch.Generator().manual_seed(seed)
    shape = (point.batch_size, point.query_tokens)
    tokens: Tensor = torch.randint(0, model.vocab_size, shape, generator=chance).to(model.device)
    return Nodes(tokens, torch.full((point.batch_size,), point.context_tokens, device=model.device))
