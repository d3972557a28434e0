"""An experiment as an ordered list of cells, each with the arms that are compared in it.

A cell is one target, prompt setting, decode setting and machine setting; its arms run on the same prompts in
the same run. The core's autoregressive arm is always there, twice: the twins differ in nothing but noise.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from specbench.axes import Point, points, validate
from specbench.config import (
    ArmSettings,
    DecodeSettings,
    Experiment,
    MachineSettings,
    MeasureSettings,
    MethodEntry,
    PromptSettings,
    TargetSpec,
    brief,
    interpret,
)
from specbench.document import Document, Faults, dotted
from specbench.errors import ContractError, SpecbenchError

AUTOREGRESSIVE = "autoregressive"
TWIN = "autoregressive-twin"

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
        twin: Whether this is the second of the two autoregressive arms.
        model_options: The options that hold a model, each with its stand-ins from the embedded family.
        drafter_options: The options that hold trained weights of the method's own, each with its stand-ins.
    """

    method: str
    label: str
    name: str
    options: dict[str, Any]
    draft_latency_ms: float | None = None
    twin: bool = False
    model_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drafter_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def build(self, options_class: type[O]) -> O:
        """The options as the method's own class."""
        return options_class.model_validate_json(json.dumps(self.options))


@dataclass(frozen=True)
class Cell:
    """Everything that the arms of one comparison share."""

    index: int
    target: TargetSpec
    prompts: PromptSettings
    decode: DecodeSettings
    machine: MachineSettings
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Plan:
    """What an experiment comes to."""

    experiment_name: str
    cells: tuple[Cell, ...]
    measure: MeasureSettings

    @property
    def trials(self) -> Iterator[tuple[Cell, Arm]]:
        """Every arm of every cell, in order."""
        return ((cell, arm) for cell in self.cells for arm in cell.arms)


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
    cells: list[Cell] = []
    names: set[str] = set()
    for index, target in enumerate(experiment.targets):
        name = target.spec.name
        if name in names:
            faults.add(("targets", index), "another target has that name; a label tells them apart", got=name)
        names.add(name)
        arms = _with_twins([*_arms(target.methods, options_class, faults), *shared], faults)
        for machine, prompts, decode in product(experiment.machine, experiment.prompts, experiment.decode):
            cells.append(Cell(len(cells), target.spec, prompts, decode, machine, arms))
    return Plan(experiment.name, tuple(cells), experiment.measure)


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
        model_options=options_declared(model, "model"),
        drafter_options=options_declared(model, "drafter"),
    )


def _part(point: Point, model: type[BaseModel], *, inside: bool) -> Point:
    """The keys of a point that are fields of ``model``, or those that are not."""
    kept = {name: value for name, value in point.value.items() if (name in model.model_fields) == inside}
    return Point(kept, point.origins)


_STAND_INS = {"model": ("pico-wide", "pico-deep"), "drafter": ()}


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
        elif same := [other for other in others if _same(item.arm, other.arm)]:
            faults.add(item.entry.key, f"an arm with the same options stands at {dotted(same[0].entry.key)}")
        else:
            others.append(item)
    first = baseline or Arm(AUTOREGRESSIVE, AUTOREGRESSIVE, "", {})
    return named((first, replace(first, twin=True), *(item.arm for item in others)))


def _same(arm: Arm, other: Arm) -> bool:
    return _identity(arm) == _identity(other)


def _identity(arm: Arm) -> tuple[str, str, float | None, bool]:
    return arm.method, _canonical(arm.options), arm.draft_latency_ms, arm.twin


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
    latency = arm.draft_latency_ms
    return {**leaves, "latency": "measured" if latency is None else f"{latency:g}ms"}


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


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


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
            "machine": cell.machine.model_dump(mode="json", include={"dtype", "attention"}),
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


def rehearsal(plan: Plan) -> Plan:
    """The same grid, small enough for any machine: the embedded family for every model, few short prompts.

    Cells and arms that become equal are kept once; drafts that differ stay different as far as they can.
    """
    cells: list[Cell] = []
    for cell in plan.cells:
        small = replace(
            cell,
            index=len(cells),
            target=TargetSpec(model="pico"),
            prompts=PromptSettings(
                source="stdlib", count=min(cell.prompts.number, 4), max_prompt_tokens=_at_most(cell)
            ),
            decode=_small_decode(cell.decode),
            machine=cell.machine.model_copy(update={"device": "cpu", "dtype": "auto", "attention": "auto"}),
            arms=_small_arms(cell.arms),
        )
        if not any(replace(small, index=other.index) == other for other in cells):
            cells.append(small)
    return Plan(f"{plan.experiment_name}-rehearsal", tuple(cells), plan.measure)


def _at_most(cell: Cell) -> int:
    return min(cell.prompts.max_prompt_tokens or 128, 128)


def _small_decode(decode: DecodeSettings) -> DecodeSettings:
    tokens = min(decode.max_new_tokens, 32)
    return decode.model_copy(
        update={
            "max_new_tokens": tokens,
            "min_new_tokens": min(decode.min_new_tokens, tokens),
            "batch_size": min(decode.batch_size, 4),
            "chat_template_kwargs": {},
        }
    )


def _small_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    stand_ins: dict[str, dict[str, str]] = {}  # option -> model -> its stand-in, the same in every arm
    kept: list[Arm] = []
    for arm in arms:
        options = dict(arm.options)
        for option, family in {**arm.model_options, **arm.drafter_options}.items():
            if options[option] is not None and family:
                seen = stand_ins.setdefault(option, {})
                model = _canonical(options[option])
                own = options[option] if options[option] in family else family[len(seen) % len(family)]
                options[option] = seen.setdefault(model, own)
        small = replace(arm, options=options)
        if not any(_same(small, other) for other in kept):
            kept.append(small)
    return named(kept)
