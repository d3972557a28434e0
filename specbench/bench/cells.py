"""A cell made ready: everything that decides its rows, known before a weight is loaded or a file is written."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from specbench.bench.prompts import Prompt, PromptSet, load_prompts
from specbench.config import DecodeSettings, MachineSettings, RandomModel, SyntheticRule, TypicalRule
from specbench.decode.acceptance import Rule, Synthetic, Typical, rule_for
from specbench.decode.loop import Requests
from specbench.decode.step import Decoding
from specbench.errors import ConfigError, SpecbenchError
from specbench.grid import Arm, Cell, Plan, trial_id
from specbench.models.drafters import DrafterFiles, RandomDrafter, locate_drafter
from specbench.models.loader import Placement, attention_of, placement
from specbench.models.source import Source, check_same_token_map, locate
from specbench.models.zoo import ZOO

MEASUREMENT_VERSION = 1
"""Raised whenever the protocol changes so that old numbers must not stand beside new ones."""

T = TypeVar("T")

PromptReader = Callable[..., PromptSet]
"""From prompt settings and a target to the prompts of a cell."""


@dataclass(frozen=True)
class Block:
    """One batch of prompts, the unit of resume and of every interval."""

    index: int
    prompts: list[Prompt]

    @property
    def requests(self) -> Requests:
        """The batch as the loop takes it."""
        return Requests([prompt.ids for prompt in self.prompts], [prompt.key for prompt in self.prompts])

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.ids) for prompt in self.prompts)


@dataclass(frozen=True)
class ReadyCell:
    """A cell whose models, prompts and trials are known.

    Attributes:
        cell: The cell; ``auto`` in its machine settings is resolved.
        where: Where its models go.
        target: The target's files.
        drafts: For every arm by name, the models that its options name.
        drafters: For every arm by name, the trained weights of its method's own that they name.
        prompts: The prompts.
        decoding: How its arms decode.
        trial_ids: Of every arm, by its name.
    """

    cell: Cell
    where: Placement
    target: Source
    drafts: dict[str, list[Source]]
    drafters: dict[str, list[DrafterFiles | RandomDrafter]]
    prompts: PromptSet
    decoding: Decoding
    trial_ids: dict[str, str]

    @property
    def name(self) -> str:
        """What the rows call the cell: readable, and another one as soon as any of its trials changes."""
        decode = self.cell.decode
        digest = hashlib.sha256(" ".join(self.trial_ids.values()).encode()).hexdigest()[:6]
        rule = "" if decode.rule == "auto" else f", {decode.rule_words}"
        return (
            f"{self.cell.target.name}, {self.prompts.dataset}, T={decode.temperature:g}{rule}, "
            f"batch {decode.batch_size} #{digest}"
        )

    @property
    def target_sha(self) -> str:
        """Hash of the target's weights and tokenizer."""
        return target_sha(self.target)

    def blocks(self, limit: int | None = None) -> list[Block]:
        """The prompts in batches, the last one partial where it does not come out even.

        Args:
            limit: Only the first blocks that hold this many prompts.
        """
        size, prompts = self.cell.decode.batch_size, self.prompts.prompts
        wanted = prompts if limit is None else prompts[:limit]
        return [Block(start // size, prompts[start : start + size]) for start in range(0, len(wanted), size)]

    def block_key(self, block: Block, repeat: int, process: int) -> str:
        """Names the block's rows in the store; a change in any of its arms makes it another block."""
        digest = hashlib.sha256("\n".join(self.trial_ids.values()).encode()).hexdigest()[:16]
        return (
            f"{self.cell.target.name} b{self.cell.decode.batch_size} block{block.index} repeat{repeat} "
            f"process{process} {digest}"
        )

    def order(self, block: Block, repeat: int, process: int) -> list[Arm]:
        """The arms in the order in which they run on a block: shuffled, and the same again after a resume."""
        arms = list(self.cell.arms)
        random.Random(f"{self.cell.decode.seed} {self.name} {process} {repeat} {block.index}").shuffle(arms)
        return arms


def ready(plan: Plan, zoo: Path = ZOO, read_prompts: PromptReader = load_prompts) -> list[ReadyCell]:
    """Find every model, of the studies as well; check every draft against its target, read and tokenise every prompt.

    Args:
        plan: What an experiment comes to.
        zoo: Where the embedded family lies.
        read_prompts: Takes what ``load_prompts`` takes.

    Raises:
        ConfigError: One line for each thing that is missing or does not fit; nothing was run.
    """
    shared = _Shared(zoo, read_prompts)
    faults: list[str] = []
    cells: list[ReadyCell] = []
    for cell in plan.cells:
        try:
            cells.append(_ready_cell(cell, shared, faults))
        except SpecbenchError as error:
            faults.append(str(error))
    for model in _studied(plan):
        try:
            shared.source(model)
        except SpecbenchError as error:
            faults.append(str(error))
    for setting in plan.studies.machines:
        _noting(faults, setting)
    if faults:
        raise ConfigError("\n".join(_grouped(faults)))
    return cells


def _studied(plan: Plan) -> Iterator[str | RandomModel]:
    """The models whose forwards are timed, or whose skill is measured."""
    for section in (plan.latencies, plan.scores):
        yield from () if section is None else section.models


class _Shared:
    """What cells have in common: looked for once, and so are its faults, however many cells ask."""

    def __init__(self, zoo: Path, read_prompts: PromptReader) -> None:
        self._zoo, self._read_prompts = zoo, read_prompts
        self._found: dict[str, Any] = {}

    def source(self, model: str | RandomModel) -> Source:
        """A model."""
        return self._once(f"source {model!r}", lambda: locate(model, self._zoo))

    def draft(self, model: str, target: str | RandomModel) -> Source:
        """A model that has the target's token map."""

        def checked() -> Source:
            draft = self.source(model)
            check_same_token_map(self.source(target), draft)
            return draft

        return self._once(f"draft {model!r} {target!r}", checked)

    def drafter(self, name: str) -> DrafterFiles | RandomDrafter:
        """Weights of a method's own."""
        return self._once(f"drafter {name}", lambda: locate_drafter(name, self._zoo))

    def prompts(self, cell: Cell) -> PromptSet:
        """The prompts of a cell."""
        decode, target = cell.decode, cell.target.model
        room = {
            "max_new_tokens": decode.max_new_tokens,
            "chat_template_kwargs": decode.chat_template_kwargs,
            "turns": decode.turns,
        }
        return self._once(
            f"prompts {cell.prompts!r} {target!r} {room}",
            lambda: self._read_prompts(cell.prompts, self.source(target), **room),
        )

    def _once(self, key: str, find: Callable[[], T]) -> T:
        if key not in self._found:
            try:
                self._found[key] = find()
            except SpecbenchError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, SpecbenchError):
            raise found
        return cast("T", found)


def _ready_cell(cell: Cell, shared: _Shared, faults: list[str]) -> ReadyCell:
    where = _noting(faults, cell.machine)
    target = shared.source(cell.target.model)
    drafts = {arm.name: [shared.draft(name, cell.target.model) for name in arm.models] for arm in cell.all_arms}
    drafters = {arm.name: [shared.drafter(name) for name in arm.drafters] for arm in cell.arms}
    prompts = shared.prompts(cell)
    resolved = replace(cell, machine=resolved_machine(cell.machine, where, target))
    trials = {
        arm.name: trial_id(
            resolved,
            arm,
            weights_sha=_shas(target, *drafts[arm.name], *drafters[arm.name]),
            tokenizer_sha=target.tokenizer_sha,
            prompts_sha=prompts.sha,
            measurement_version=MEASUREMENT_VERSION,
        )
        for arm in cell.arms
    }
    return ReadyCell(resolved, where, target, drafts, drafters, prompts, decoding_of(cell.decode, target), trials)


def _noting(faults: list[str], machine: MachineSettings) -> Placement:
    """The placement; where it is missing, note that and look for further faults as if on a CPU."""
    try:
        return placement(machine)
    except SpecbenchError as error:
        faults.append(str(error))
        return placement(machine.model_copy(update={"device": "cpu", "parallel": "none"}))


def target_sha(target: Source) -> str:
    """Hash of a target's weights and tokenizer: what tells its rows from those of any other."""
    return hashlib.sha256(f"{target.weights_sha} {target.tokenizer_sha}".encode()).hexdigest()[:16]


def _shas(*sources: Source | DrafterFiles | RandomDrafter) -> str:
    return " ".join(source.weights_sha for source in sources)


def loaded_names(arm: Arm) -> list[str]:
    """All that is loaded for an arm beside the target."""
    return [*arm.models, *arm.drafters]


def resolved_machine(machine: MachineSettings, where: Placement, target: Source) -> MachineSettings:
    """The settings with every ``auto`` replaced by what it stands for here."""
    return machine.model_copy(
        update={
            "device": str(where.device),
            "dtype": where.dtype_name,
            "attention": attention_of(target, where),
        }
    )


def _grouped(faults: Iterable[str]) -> Iterator[str]:
    """Each fault once; models that fail for one reason share a line."""
    by_reason: dict[str, list[str]] = {}
    for fault in faults:
        name, colon, reason = fault.partition(": ")
        subject, reason = (name, reason) if colon else ("", fault)
        if subject not in by_reason.setdefault(reason, []):
            by_reason[reason].append(subject)
    for reason, names in by_reason.items():
        subject = ", ".join(filter(None, names))
        yield f"{subject}: {reason}" if subject else reason


def decoding_of(decode: DecodeSettings, target: Source) -> Decoding:
    """The settings as the loop takes them. Simulated acceptance ignores EOS, since its text means nothing."""
    rule = rule_of(decode)
    return Decoding(
        max_new_tokens=decode.max_new_tokens,
        min_new_tokens=decode.min_new_tokens,
        temperature=decode.temperature,
        top_k=decode.top_k or None,
        top_p=None if decode.top_p == 1 else decode.top_p,
        rule=rule,
        seed=decode.seed,
        eos_ids=() if decode.ignore_eos or rule.simulated else target.eos_ids,
    )


def rule_of(decode: DecodeSettings) -> Rule:
    """The acceptance rule of the settings."""
    if isinstance(decode.rule, SyntheticRule):
        settings = decode.rule.synthetic
        return Synthetic(rates=settings.rates, mean_length=settings.mean_length, trace=settings.trace)
    if isinstance(decode.rule, TypicalRule):
        return Typical(decode.rule.typical.epsilon, decode.rule.typical.delta)
    return rule_for(decode.rule, decode.temperature)
