"""An experiment as an ordered list of cells, each with the arms that are compared in it.

A cell is one target, prompt setting, decode setting and machine setting; its arms run on the same prompts in
the same run. The core's autoregressive arm is always there, twice: the twins differ in nothing but noise. Beside the
cells stand studies, which time no text: traces, forward times and scores.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from specbench.axes import Point, points, validate
from specbench.config import (
    PIECES,
    ArmSettings,
    DecodeSettings,
    Experiment,
    LatencySection,
    MachineSettings,
    MeasureSettings,
    MethodEntry,
    ModelSpec,
    PromptSettings,
    ScoreSection,
    TargetSpec,
    TraceSection,
    brief,
    interpret,
    is_random,
)
from specbench.document import Document, Faults, dotted
from specbench.errors import ContractError, SpecbenchError

AUTOREGRESSIVE = "autoregressive"
TWIN = "autoregressive-twin"
DRAFT_MODEL = "draft_model"
"""The method whose chains can be traced, and composed from traces and forward times."""

TRACED_RULES = ("greedy", "match", "rejection")
"""Acceptance rules under which a text does not depend on its drafts."""

COMPOSED = "composed"
"""The latency mode of arms that do not run."""

OptionsClass = Callable[[str], type[BaseModel]]
O = TypeVar("O", bound=BaseModel)  # noqa: E741  (the options of one method)


@dataclass(frozen=True)
class Arm:
    """One way to decode: a method with all its options.

    Attributes:
        method: The method's name in the registry.
        label: What tables and figures call it: the user's word, or the method's name.
        name: Unique within a cell, and the same in every run.
        options: Every option of the method, defaults included, as plain JSON values.
        draft_latency_ms: Lower bound on the time of a draft forward; None is as measured.
        latency_mode: ``measured`` where it runs, ``composed`` where a report puts it together.
        twin: Whether this is the second of the two autoregressive arms.
        model_options: The options that hold a model, each with its stand-ins from the embedded family.
        drafter_options: The options that hold trained weights of the method's own, each with its stand-ins.
    """

    method: str
    label: str
    name: str
    options: dict[str, Any]
    draft_latency_ms: float | None = None
    latency_mode: str = "measured"
    twin: bool = False
    model_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drafter_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def build(self, options_class: type[O]) -> O:
        """The options as the method's own class."""
        return options_class.model_validate_json(json.dumps(self.options))

    @property
    def models(self) -> list[str]:
        """The models that its options name."""
        return self._given(self.model_options)

    @property
    def drafters(self) -> list[str]:
        """The trained weights of its method's own that they name."""
        return self._given(self.drafter_options)

    def _given(self, options: Iterable[str]) -> list[str]:
        return [self.options[option] for option in options if self.options.get(option) is not None]

    @property
    def chain(self) -> int | None:
        """Tokens of its drafts, at most, where they are chains of a draft model."""
        if self.method != DRAFT_MODEL or self.options["tree"] is not None:
            return None
        return int(self.options["gamma"])


@dataclass(frozen=True)
class Cell:
    """Everything that the arms of one comparison share.

    Attributes:
        index: Its place in the plan.
        target: The target.
        prompts: The prompts.
        decode: How texts are decoded.
        machine: What it runs on.
        arms: What runs.
        composed: Arms that do not run: traces and forward times stand for them.
    """

    index: int
    target: TargetSpec
    prompts: PromptSettings
    decode: DecodeSettings
    machine: MachineSettings
    arms: tuple[Arm, ...]
    composed: tuple[Arm, ...] = ()

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        """Those that run, and those that are composed."""
        return self.arms + self.composed

    @property
    def chains(self) -> dict[tuple[str, str], int]:
        """Tokens of the longest chains by draft model and proposal, ``argmax`` or ``sample``."""
        found: dict[tuple[str, str], int] = {}
        for arm in self.all_arms:
            if arm.chain is not None:
                drawn = self.decode.temperature > 0 and arm.options["proposal"] != "argmax"
                key = arm.options["draft"], "sample" if drawn else "argmax"
                found[key] = max(found.get(key, 0), arm.chain)
        return found

    @property
    def text_id(self) -> str:
        """The same for cells whose autoregressive texts are the same, whatever their batch size."""
        decode = self.decode.model_copy(update={"batch_size": 1})
        return repr((self.target, self.prompts, decode, self.machine))


@dataclass(frozen=True)
class Studies:
    """What is measured beside the trials.

    Attributes:
        targets: The models of the targets, whether or not they have cells.
        machines: Every setting in which forward times and scores are taken.
        traces: What draft models would propose.
        latencies: How long forwards take.
        scores: How skilled models are.
    """

    targets: tuple[ModelSpec, ...] = ()
    machines: tuple[MachineSettings, ...] = ()
    traces: TraceSection | None = None
    latencies: LatencySection | None = None
    scores: ScoreSection | None = None

    def __bool__(self) -> bool:
        return any(section is not None for section in (self.traces, self.latencies, self.scores))


@dataclass(frozen=True)
class Plan:
    """What an experiment comes to."""

    experiment_name: str
    cells: tuple[Cell, ...]
    measure: MeasureSettings
    studies: Studies = Studies()

    @property
    def trials(self) -> Iterator[tuple[Cell, Arm]]:
        """Every arm of every cell that runs, in order."""
        return ((cell, arm) for cell in self.cells for arm in cell.arms)

    @property
    def texts(self) -> list[Cell]:
        """One cell of those whose texts are the same: what is true of the texts of one holds for the others."""
        return list({cell.text_id: cell for cell in self.cells}.values())

    @property
    def traces(self) -> int:
        """How many traces the section asks for."""
        return 0 if self.studies.traces is None else sum(len(cell.chains) for cell in self.texts)

    @property
    def latencies(self) -> LatencySection | None:
        """The section with every model named and every default but the context's resolved; None without one."""
        section = self.studies.latencies
        if section is None:
            return None
        chains = {arm.chain for cell in self.cells for arm in cell.all_arms} - {None}
        drafted = {2, *(gamma + 1 for gamma in chains if gamma)} if chains else set()
        found = {
            "models": self._studied(section.models),
            "query_tokens": section.query_tokens or tuple(sorted({1, *drafted})),
            "batch_sizes": section.batch_sizes
            or tuple(dict.fromkeys(cell.decode.batch_size for cell in self.cells))
            or (1,),
        }
        return section.model_copy(update=found)

    @property
    def scores(self) -> ScoreSection | None:
        """The section with every model named, random ones left out: they have no skill; None without one."""
        section = self.studies.scores
        if section is None:
            return None
        skilled = [model for model in self._studied(section.models) if not is_random(model)]
        return section.model_copy(update={"models": tuple(skilled)})

    def _studied(self, more: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
        """The targets, the draft models of all arms, and ``more``, each once."""
        drafts = (model for cell in self.cells for arm in cell.all_arms for model in arm.models)
        return tuple(dict.fromkeys([*self.studies.targets, *drafts, *more]))


def expand(experiment: Experiment, options_class: OptionsClass) -> Plan:
    """The plan of an experiment.

    Args:
        experiment: A checked experiment.
        options_class: The class that checks a method's options, by the method's name.

    Raises:
        ConfigError: One line for each fault in the methods and their options.
    """
    faults = Faults(experiment.document)
    plan = _plan(experiment, options_class, faults)
    faults.raise_any()
    return plan


def read_plan(document: Document, options_class: OptionsClass) -> tuple[Experiment, Plan]:
    """The experiment in a document and its plan, with the faults of both reported together.

    Raises:
        ConfigError: One line for each fault.
    """
    faults = Faults(document)
    experiment = interpret(document, faults)
    plan = _plan(experiment, options_class, faults)
    faults.raise_any()
    return experiment, plan


def _plan(experiment: Experiment, options_class: OptionsClass, faults: Faults) -> Plan:
    shared = _arms(experiment.methods, options_class, faults)
    found = list(shared)
    cells: list[Cell] = []
    names: set[str] = set()
    for index, target in enumerate(experiment.targets):
        name = target.spec.name
        if name in names:
            faults.add(("targets", index), "another target has that name; a label tells them apart", got=name)
        names.add(name)
        own = _arms(target.methods, options_class, faults)
        found += own
        arms, composed = split(_with_twins([*own, *shared], faults))
        for machine, prompts, decode in product(experiment.machine, experiment.prompts, experiment.decode):
            cells.append(Cell(len(cells), target.spec, prompts, decode, machine, arms, composed))
    _check_studies(experiment, found, faults)
    studies = Studies(
        tuple(target.spec.model for target in experiment.targets),
        experiment.machine,
        experiment.traces,
        experiment.latencies,
        experiment.scores,
    )
    return Plan(experiment.name, tuple(cells), experiment.measure, studies)


def split(arms: Sequence[Arm]) -> tuple[tuple[Arm, ...], tuple[Arm, ...]]:
    """The arms that run, and those that are composed."""
    return (
        tuple(arm for arm in arms if arm.latency_mode != COMPOSED),
        tuple(arm for arm in arms if arm.latency_mode == COMPOSED),
    )


def _check_studies(experiment: Experiment, found: "Sequence[_Found]", faults: Faults) -> None:
    """Note what the sections and the arms that are to be composed cannot do for one another."""
    composed = [item for item in found if item.arm.latency_mode == COMPOSED]
    if experiment.traces is not None and found and all(item.arm.chain is None for item in found) and not composed:
        faults.add(("traces",), f"no arm is a {DRAFT_MODEL} that drafts chains, so there is nothing to trace")
    for item in composed:
        if item.arm.chain is None:
            faults.add(
                (*item.entry.key, "latency_mode"), f"only chains of a {DRAFT_MODEL} can be composed", got=COMPOSED
            )
    if not composed:
        return
    key = (*composed[0].entry.key, "latency_mode")
    for name, gives in (("traces", "what drafts would be accepted"), ("latencies", "how long forwards take")):
        if getattr(experiment, name) is None:
            faults.add(key, f"composed needs the section {name}, which says {gives}")
    for decode in experiment.decode:
        if not is_traceable(decode):
            faults.add(("decode", "rule"), "under it a text depends on its drafts, so no arm can be composed",
                       got=decode.rule_name)  # fmt: skip
    _check_reach(experiment, [item.arm for item in composed], faults)


def _check_reach(experiment: Experiment, composed: Sequence[Arm], faults: Faults) -> None:
    """Note where the forward times that are asked for do not enclose those that composing takes."""
    section = experiment.latencies
    if section is None:
        return
    for machine in experiment.machine:
        own = executions(machine)
        if machine.compile == "pieces":
            faults.add(("machine", "compile"), "composed arms take the times of forwards that run as they would, and "
                       f"none are taken with {PIECES}", got=machine.compile)  # fmt: skip
        elif section.modes is not None and not own & set(section.modes):
            faults.add(("latencies", "modes"), f"composed arms take the times of forwards that run as they would, "
                       f"{' or '.join(sorted(own))}", got=list(section.modes))  # fmt: skip
    gammas = [arm.chain for arm in composed if arm.chain is not None]
    needed = {
        "query_tokens": [1, *(gamma + 1 for gamma in gammas)],
        "batch_sizes": [decode.batch_size for decode in experiment.decode],
    }
    for name, values in needed.items():
        given = getattr(section, name)
        beyond = [value for value in values if given is not None and not min(given) <= value <= max(given)]
        if beyond:
            faults.add(("latencies", name), f"composed arms need {max(beyond)}, and nothing is said beyond what is "
                       "measured", got=list(given))  # fmt: skip


def is_traceable(decode: DecodeSettings) -> bool:
    """Whether a text is the same whatever is drafted."""
    is_certain = decode.temperature == 0 and decode.rule_name != "synthetic"
    return is_certain or decode.rule_name in TRACED_RULES


def executions(machine: MachineSettings) -> set[str]:
    """How phases may come to run; the device may be known later."""
    return {machine.execution(kind) for kind in (("cpu",) if machine.device == "cpu" else ("cpu", "cuda"))}


@dataclass(frozen=True)
class _Found:
    """An arm without its name, and the entry that it comes from."""

    arm: Arm
    entry: MethodEntry


def _arms(entries: Sequence[MethodEntry], options_class: OptionsClass, faults: Faults) -> list[_Found]:
    return [found for entry in entries for found in _expanded(entry, options_class, faults)]


def _expanded(entry: MethodEntry, options_class: OptionsClass, faults: Faults) -> list[_Found]:
    """The arms of one entry, one for each point of its axes.

    Raises:
        ContractError: The method has an option whose name is taken.
    """
    try:
        model = options_class(entry.method)
    except ContractError:
        raise
    except SpecbenchError as error:
        faults.add(entry.key, str(error))
        return []
    clash = sorted({*ArmSettings.model_fields, "zip", "grid"} & set(model.model_fields))
    if clash:
        raise ContractError(f"method {entry.method!r} has an option {clash[0]!r}, a name that every entry uses itself")
    arms = (
        _arm(entry, point, model, faults) for point in points(entry.options, [model, ArmSettings], entry.key, faults)
    )
    return [_Found(arm, entry) for arm in arms if arm is not None]


def _arm(entry: MethodEntry, point: Point, model: type[BaseModel], faults: Faults) -> Arm | None:
    common = validate(_part(point, ArmSettings, inside=True), ArmSettings, faults)
    options = validate(_part(point, ArmSettings, inside=False), model, faults)
    if common is None or options is None:
        return None
    if entry.method == AUTOREGRESSIVE and common.draft_latency_ms is not None:
        faults.add((*entry.key, "draft_latency_ms"), "autoregressive drafts nothing that could take time")
    return Arm(
        method=entry.method,
        label=common.label or entry.method,
        name="",
        options=options.model_dump(mode="json"),
        draft_latency_ms=common.draft_latency_ms,
        latency_mode=common.latency_mode,
        model_options=options_declared(model, "model"),
        drafter_options=options_declared(model, "drafter"),
    )


def _part(point: Point, model: type[BaseModel], *, inside: bool) -> Point:
    """The keys of a point that are fields of ``model``, or those that are not."""
    kept = {name: value for name, value in point.value.items() if (name in model.model_fields) == inside}
    return Point(kept, point.origins)


DRAFTS = ("pico-wide", "pico-deep", "pico-flat", "pico-tall", "pico-small", "pico-large")
"""The draft models of the embedded family."""

_STAND_INS = {"model": DRAFTS, "drafter": ()}


def options_declared(model: type[BaseModel], kind: Literal["model", "drafter"]) -> dict[str, tuple[str, ...]]:
    """The options declared with ``json_schema_extra={kind: True}``, or with the name of their stand-in.

    Returns:
        The stand-ins of each, from the embedded family.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        declared = extra.get(kind) if isinstance(extra, dict) else None
        if declared:
            found[name] = (declared,) if isinstance(declared, str) else _STAND_INS[kind]
    return found


def _with_twins(found: Sequence[_Found], faults: Faults) -> tuple[Arm, ...]:
    """All arms of a cell: the twins first, then the others in the order of the file, each with its name."""
    baseline: Arm | None = None
    others: list[_Found] = []
    for item in found:
        if item.arm.method == AUTOREGRESSIVE:
            if baseline is not None:
                faults.add(item.entry.key, "autoregressive is given twice; its second arm is made without asking")
            baseline = item.arm
        elif same := [other for other in others if same_work(item.arm, other.arm)]:
            faults.add(item.entry.key, f"an arm with the same options stands at {dotted(same[0].entry.key)}")
        else:
            others.append(item)
    first = baseline or Arm(AUTOREGRESSIVE, AUTOREGRESSIVE, "", {})
    return named((first, replace(first, twin=True), *(item.arm for item in others)))


def same_work(arm: Arm, other: Arm) -> bool:
    """Whether two arms differ in name alone."""
    return _identity(arm) == _identity(other)


def _identity(arm: Arm) -> tuple[str, str, float | None, str, bool]:
    return arm.method, canonical(arm.options), arm.draft_latency_ms, arm.latency_mode, arm.twin


def named(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms with their names: the label, and the options in which those of one label differ."""
    peers: dict[str, list[Arm]] = {}
    for arm in arms:
        peers.setdefault(arm.label, []).append(arm)
    taken: Counter[str] = Counter()
    result = []
    for arm in arms:
        name = _name(arm, peers[arm.label])
        taken[name] += 1
        result.append(replace(arm, name=name if taken[name] == 1 else f"{name} #{taken[name]}"))
    return tuple(result)


def _name(arm: Arm, peers: Sequence[Arm]) -> str:
    if arm.method == AUTOREGRESSIVE:
        return TWIN if arm.twin else AUTOREGRESSIVE
    shown = _shown_models(peers)
    own = _leaves(arm, shown)
    others = [_leaves(peer, shown) for peer in peers]
    differing = [
        f"{option}={own[option]}" for option in own if any(other.get(option) != own[option] for other in others)
    ]
    return " ".join([arm.label, *differing])


def _shown_models(arms: Sequence[Arm]) -> dict[str, str]:
    """How the models of some arms are written: in brief, unless two of them would read the same."""
    models = {model for arm in arms for name in arm.model_options if isinstance(model := arm.options.get(name), str)}
    shown = {model: brief(model) for model in models}
    return shown if len(set(shown.values())) == len(models) else {model: model for model in models}


def _leaves(arm: Arm, models: Mapping[str, str]) -> dict[str, str]:
    """Every option that holds one value, nested ones with a dotted name, as short text."""
    leaves = dict(_flat("", arm.options))
    leaves |= {name: models[leaves[name]] for name in arm.model_options if leaves.get(name) in models}
    latency = "" if arm.draft_latency_ms is None else f"{arm.draft_latency_ms:g}ms"
    is_composed = arm.latency_mode == COMPOSED
    return {**leaves, "latency": f"{COMPOSED} {latency}".rstrip() if is_composed else latency or "measured"}


def _flat(prefix: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield prefix + name, _short(value)


def _short(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "x".join(map(_short, value)) or "none"
    return str(value)


def canonical(value: object) -> str:
    """A value as JSON that is the same wherever the values are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def config_hash(arm: Arm, cell: Cell) -> str:
    """Sixteen hex digits of everything in the configuration that can change a result.

    Labels cannot; device and threads describe the machine, which belongs to the run and not to the trial.
    """
    return _digest(
        {
            "method": arm.method,
            "options": arm.options,
            "draft_latency_ms": arm.draft_latency_ms,
            "twin": arm.twin,
            "target": cell.target.model_dump(mode="json", include={"model"}),
            "prompts": cell.prompts.model_dump(mode="json"),
            "decode": cell.decode.model_dump(mode="json"),
            "machine": cell.machine.model_dump(mode="json", include={"dtype", "attention"})
            | cell.machine.model_dump(mode="json", include={"compile", "graphs"}, exclude_defaults=True),
        }
    )


def trial_id(
    cell: Cell, arm: Arm, *, weights_sha: str, tokenizer_sha: str, prompts_sha: str, measurement_version: int
) -> str:
    """Sixteen hex digits that name a trial: its configuration, and what it was really run with.

    ``cell.machine`` must be resolved: ``auto`` stands for another precision on another machine.
    """
    return _digest(
        {
            "config": config_hash(arm, cell),
            "weights": weights_sha,
            "tokenizer": tokenizer_sha,
            "prompts": prompts_sha,
            "measurement": measurement_version,
        }
    )
