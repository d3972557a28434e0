"""A plan made small enough for any machine: the same grid and the same studies on the embedded family."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from specbench.config import (
    DecodeSettings,
    LatencySection,
    MachineSettings,
    MeasureSettings,
    ModelSpec,
    PromptSettings,
    RandomModel,
    ScoreSection,
    TargetSpec,
    is_random,
)
from specbench.grid import DRAFTS, Arm, Cell, Plan, Studies, canonical, named, same_work, split

T = TypeVar("T")

_TARGET = "pico"
_MOST_PROMPTS = 4
_MOST_PROMPT_TOKENS = 128
_MOST_NEW_TOKENS = 32
_MOST_ROWS = 4
_SMALL_SHAPES = tuple(
    f"{numbers},vocab=128"
    for numbers in ("1x256x4x512", "4x128x4x264", "16x64x4x136", "2x128x4x256", "4x192x4x384", "8x64x4x128")
)
"""Of about as many parameters are the first three, which trade depth for width."""


def rehearsal(plan: Plan) -> Plan:
    """The same grid, small enough for any machine: the embedded family for every model, few short prompts.

    Cells and arms that become equal are kept once; models that differ stay different as far as they can.
    """
    cells: list[Cell] = []
    for cell in plan.cells:
        arms, composed = split(_small_arms(cell.all_arms))
        small = replace(
            cell,
            index=len(cells),
            target=TargetSpec(model=_TARGET),
            prompts=_small_prompts(cell.prompts),
            decode=_small_decode(cell.decode),
            machine=_small_machine(cell.machine),
            arms=arms,
            composed=composed,
        )
        if not any(replace(small, index=other.index) == other for other in cells):
            cells.append(small)
    return Plan(
        f"{plan.experiment_name}-rehearsal", tuple(cells), _small_measure(plan.measure), _small_studies(plan.studies)
    )


def _small_prompts(prompts: PromptSettings) -> PromptSettings:
    most = min(prompts.max_prompt_tokens or _MOST_PROMPT_TOKENS, _MOST_PROMPT_TOKENS)
    return PromptSettings(source="stdlib", count=min(prompts.number, _MOST_PROMPTS), max_prompt_tokens=most)


def _small_machine(machine: MachineSettings) -> MachineSettings:
    """A CPU, which has no graphs to be with or without."""
    as_here = {"device": "cpu", "dtype": "auto", "attention": "auto", "parallel": "none", "graphs": True}
    return machine.model_copy(update=as_here)


def _small_measure(measure: MeasureSettings) -> MeasureSettings:
    most = {"repeats": 1, "warmup": 1, "processes": 2, "phase_blocks": 2}
    return measure.model_copy(update={name: min(getattr(measure, name), value) for name, value in most.items()})


def _small_decode(decode: DecodeSettings) -> DecodeSettings:
    tokens = min(decode.max_new_tokens, _MOST_NEW_TOKENS)
    return decode.model_copy(
        update={
            "max_new_tokens": tokens,
            "min_new_tokens": min(decode.min_new_tokens, tokens),
            "batch_size": min(decode.batch_size, _MOST_ROWS),
            "chat_template_kwargs": {},
        }
    )


@dataclass
class _Understudies:
    """Who stands in for whom: the same stand-in for the same model, and one after the other for new ones."""

    family: tuple[str, ...]
    chosen: dict[str, str] = field(default_factory=dict)

    def of(self, model: object) -> str:
        """The model itself if it is of the family."""
        own = (
            model
            if isinstance(model, str) and model in self.family
            else self.family[len(self.chosen) % len(self.family)]
        )
        return self.chosen.setdefault(canonical(model), own)


def _small_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    understudies: dict[str, _Understudies] = {}
    kept: list[Arm] = []
    for arm in arms:
        options = dict(arm.options)
        for option, family in {**arm.model_options, **arm.drafter_options}.items():
            if options[option] is not None and family:
                options[option] = understudies.setdefault(option, _Understudies(family)).of(options[option])
        small = replace(arm, options=options)
        if not any(same_work(small, other) for other in kept):
            kept.append(small)
    return named(kept)


def _small_studies(studies: Studies) -> Studies:
    return replace(
        studies,
        targets=(_TARGET,) if studies.targets else (),
        machines=_once(map(_small_machine, studies.machines)),
        latencies=studies.latencies and _small_latencies(studies.latencies),
        scores=studies.scores and _small_scores(studies.scores),
    )


def _small_latencies(section: LatencySection) -> LatencySection:
    """The ends of every axis, so that all that lies between them can still be asked for."""
    return section.model_copy(
        update={
            "models": _small_models(section.models),
            "query_tokens": _ends(section.query_tokens),
            "batch_sizes": _ends(section.batch_sizes, _MOST_ROWS),
            # Contexts of full length would not enclose those of short texts.
            "context_tokens": None,
            "rounds": min(section.rounds, 6),
            "burst": 1,
        }
    )


def _small_scores(section: ScoreSection) -> ScoreSection:
    return ScoreSection(
        count=min(section.count or _MOST_PROMPTS, _MOST_PROMPTS),
        length=min(section.length, _MOST_PROMPT_TOKENS),
        models=tuple(str(model) for model in _small_models(section.models)),
    )


def _small_models(models: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    shapes, family = _Understudies(_SMALL_SHAPES), _Understudies((*DRAFTS, _TARGET))
    return _once(
        RandomModel(shape=shapes.of(_plain(model))) if is_random(model) else family.of(model) for model in models
    )


def _plain(model: ModelSpec) -> object:
    return model if isinstance(model, str) else model.model_dump()


def _ends(values: Sequence[int] | None, most: int | None = None) -> tuple[int, ...] | None:
    if values is None:
        return None
    ends = (min(values), max(values))
    return _once(ends if most is None else (min(end, most) for end in ends))


def _once(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
