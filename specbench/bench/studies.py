"""What an experiment measures beside its trials: traces, forward times and scores, into the run's own folder.

What is there is not made again. What cannot be made is a row of ``studies`` with its reason, or of ``latencies``, and
the rest goes on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specbench.analysis.choosing import Choosing
from specbench.bench.arms import Failure, failure_of
from specbench.bench.cells import ReadyCell
from specbench.bench.history import only_writer
from specbench.bench.latencies import Study, measure
from specbench.bench.latency_points import choosings, modes_of
from specbench.bench.provenance import recorded
from specbench.bench.score_data import ChoiceSet, TextSet, read_score_data
from specbench.bench.scores import ScoreSettings, score
from specbench.bench.timing import utc_now
from specbench.bench.traces import Drafting, draftings, record_cell
from specbench.config import LatencySection, MachineSettings, ScoreSection, TraceSection, brief
from specbench.errors import ResultsError, SpecbenchError
from specbench.grid import Plan
from specbench.models.loader import ModelPool, Placement, placement
from specbench.models.zoo import ZOO
from specbench.records.store import Store

ScoreData = Sequence[TextSet | ChoiceSet]

_CONTEXT_TOKENS = (128,)
_BROKEN = ("oom", "timeout", "error")


@dataclass
class StudySummary:
    """How the studies of a run ended.

    Attributes:
        made: Those that are there, made now or before, by kind.
        failed: Those that ran out of memory or time, or raised.
        unsupported: Those that cannot be made here.
        sentences: What to tell of them.
    """

    made: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    unsupported: int = 0
    sentences: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        """What is there: ``6 traces, 60 forward times, 7 scores``."""
        nouns = {"trace": "trace", "latency": "forward time", "choosing": "choice time", "score": "score"}
        counts = ((self.made[kind], noun) for kind, noun in nouns.items())
        return ", ".join(f"{count:,} {noun}{'s' * (count != 1)}" for count, noun in counts if count)

    def count(self, kind: str, status: str) -> None:
        """Count one."""
        self.made[kind] += status == "ok"
        self.failed += status in _BROKEN
        self.unsupported += status == "unsupported"


def score_data(plan: Plan) -> ScoreData:
    """The texts and questions of the section ``scores``; nothing where there is none.

    Raises:
        ConfigError: They are missing, or neither texts nor questions with choices.
        UnsupportedError: They are on the hub, which cannot be reached.
    """
    section = plan.scores
    if section is None:
        return []
    try:
        return [
            read_score_data(name, count=section.count, column=section.field, examples=section.examples)
            for name in section.data
        ]
    except SpecbenchError as error:
        words = str(error).replace("--", "scores.").removeprefix("scores.data").removeprefix("prompts").lstrip(": ")
        raise type(error)(f"scores.data: {words}") from error


def run_studies(
    plan: Plan,
    cells: Sequence[ReadyCell],
    data: ScoreData,
    folder: Path,
    *,
    argv: Sequence[str],
    experiment_yaml: str,
    limit: int | None = None,
    zoo: Path = ZOO,
    say: Callable[[str], None] = lambda _: None,
) -> StudySummary:
    """Make what the folder does not hold yet.

    Args:
        plan: The experiment's.
        cells: Its cells, made ready.
        data: Of its scores.
        folder: The run's own.
        argv: The command line, for the record.
        experiment_yaml: The experiment as it was understood, for the record.
        limit: Traces take only the first groups of prompts that hold so many.
        zoo: Where the embedded family lies.
        say: Told what is on.

    Raises:
        ConfigError: Another run writes to the folder.
        ResultsError: The folder cannot be read or written.
    """
    studies = _Studies(folder, argv, zoo, say)
    with nullcontext() if cells else _recorded(plan, studies.store, argv, experiment_yaml):
        if plan.studies.traces is not None:
            studies.traces(cells, plan.studies.traces, limit)
        if plan.latencies is not None:
            section = plan.latencies.model_copy(update={"context_tokens": contexts(plan.latencies, cells)})
            ways = choosings(plan)
            for machine in plan.studies.machines:
                studies.latencies(section, machine, ways)
        if plan.scores is not None:
            for machine in plan.studies.machines:
                studies.scores(plan.scores, data, machine)
    return studies.summary


def _recorded(plan: Plan, store: Store, argv: Sequence[str], experiment_yaml: str) -> Any:
    """The row of ``runs`` of an experiment that has no trials, which would write one."""
    first = plan.studies.machines[0]
    device = placement(first).device
    return recorded(store, experiment_yaml, argv=argv, device=device, threads=first.threads, seed=0)


def contexts(section: LatencySection, cells: Sequence[ReadyCell]) -> tuple[int, ...]:
    """The contexts at which forwards are timed: those that were asked for, else the ends of what the cells reach."""
    if section.context_tokens is not None:
        return section.context_tokens
    if not cells:
        return _CONTEXT_TOKENS
    lengths = [(len(prompt.ids), cell.decoding.max_new_tokens) for cell in cells for prompt in cell.prompts.prompts]
    return min(prompt for prompt, _ in lengths), max(prompt + new for prompt, new in lengths)


class _Studies:
    """Makes the studies of one run, and keeps count."""

    def __init__(self, folder: Path, argv: Sequence[str], zoo: Path, say: Callable[[str], None]) -> None:
        self.store, self.summary = Store(folder), StudySummary()
        self._argv, self._zoo, self._say = argv, zoo, say

    def traces(self, cells: Sequence[ReadyCell], section: TraceSection, limit: int | None) -> None:
        """Record the traces of all cells; models stay loaded from one to the next."""
        pools: dict[Placement, ModelPool] = {}
        with only_writer(self.store.folder):
            for cell in {cell.cell.text_id: cell for cell in cells}.values():
                if cell.where not in pools:
                    pools = {cell.where: ModelPool(cell.where, self._zoo)}
                drafts = draftings(cell, section.gamma)
                pools[cell.where].keep_only({repr(cell.cell.target.model), *(repr(one.draft) for one in drafts)})
                self._trace(cell, pools[cell.where], section, limit)

    def _trace(self, cell: ReadyCell, pool: ModelPool, section: TraceSection, limit: int | None) -> None:
        failed: dict[Drafting, Exception] = {}
        drafts = draftings(cell, section.gamma)
        try:
            record_cell(
                cell, pool, self.store.folder, gamma=section.gamma, group=section.group, limit=limit,
                announce=lambda words: self._say(f"traces: {words}"), on_failure=failed.__setitem__,
            )  # fmt: skip
        except ResultsError:
            raise
        except Exception as error:  # noqa: BLE001  (a target that cannot be traced must not end the others)
            failed |= dict.fromkeys(drafts, error)
        for drafting in drafts:
            decode = cell.cell.decode
            subject = (
                f"{cell.cell.target.name} with {brief(drafting.draft)} ({drafting.proposal}), {cell.prompts.dataset}, "
                f"T={decode.temperature:g}, {decode.rule_words}, {cell.where.dtype_name}"
            )
            self._ended("trace", subject, failed.get(drafting))

    def latencies(self, section: LatencySection, machine: MachineSettings, ways: tuple[Choosing, ...]) -> None:
        """Time forwards and choices in one setting of the machine; a point that fails is a row of its own."""
        settings = section.model_dump(include={"query_tokens", "batch_sizes", "rounds", "burst", "seed"})
        study = Study(
            section.models, context_tokens=section.context_tokens or (), choosing=ways,
            modes=modes_of(section, machine, placement(machine).device), machine=machine, **settings,
        )  # fmt: skip
        try:
            found = measure(study, self.store.folder, argv=self._argv, zoo=self._zoo, say=self._say_of("latencies"))
        except ResultsError:
            raise
        except Exception as error:  # noqa: BLE001  (scores may follow)
            self._ended("latency", f"{len(study.points)} points, {machine.dtype}", error)
            return
        for kind, rows in (("latency", found.forwards), ("choosing", found.choices)):
            for status in rows["status"]:
                self.summary.count(kind, status)
            for (model, status), own in rows[rows["status"] != "ok"].groupby(["model", "status"], sort=False):
                self._tell(kind, f"{model}: {len(own)} of its points", Failure(status, own["reason"].iloc[0]))

    def scores(self, section: ScoreSection, data: ScoreData, machine: MachineSettings) -> None:
        """Score every model on every data set."""
        settings = ScoreSettings(machine, section.length, section.batch_size)
        with only_writer(self.store.folder):
            for model in section.models:
                left = data
                while left:
                    left = self._score(str(model), left, settings)

    def _score(self, model: str, data: ScoreData, settings: ScoreSettings) -> ScoreData:
        """Score a model as far as it goes; what comes after a data set that it fails on is returned."""
        scored = score([model], data, settings, self.store.folder, zoo=self._zoo, announce=self._say_of("scores"))
        for index, entry in enumerate(data):
            subject = f"{brief(model)} on {entry.name}"
            try:
                next(scored)
            except ResultsError:
                raise
            except Exception as error:  # noqa: BLE001  (one model's fault must not end the others)
                self._ended("score", subject, error)
                return data[index + 1 :]
            self._ended("score", subject)
        return []

    def _say_of(self, what: str) -> Callable[[str], None]:
        return lambda words: self._say(f"{what}: {words}")

    def _ended(self, kind: str, subject: str, error: Exception | None = None) -> None:
        """Count it, and keep a row of what failed, now or before."""
        failure = None if error is None else _failure(error)
        self.summary.count(kind, "ok" if failure is None else failure.status)
        key = f"{kind} {subject}"
        if failure is None and not self.store.has_part("studies", key):
            return
        row = {
            "kind": kind,
            "subject": subject,
            "status": "ok" if failure is None else failure.status,
            "reason": None if failure is None else failure.reason,
            "ended_at": utc_now(),
        }
        self.store.write_part("studies", key, [row])
        if failure is not None:
            self._tell(kind, subject, failure)

    def _tell(self, kind: str, subject: str, failure: Failure) -> None:
        self.summary.sentences.append(f"{kind} of {subject}: {failure.status}: {failure.reason}")


def _failure(error: Exception) -> Failure:
    """What a user can mend is no fault of the program."""
    return Failure("unsupported", str(error)) if isinstance(error, SpecbenchError) else failure_of(error)
