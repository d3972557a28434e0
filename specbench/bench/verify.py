"""Losslessness of any method on any model, without a clock: each arm's text against the target's own.

Where the same tokens are promised (greedy, ``match``), the reference is the core's autoregressive decoding at batch
size 1, whatever the arm's batch size. Where only their distribution is (``rejection`` above T = 0), many short texts
are drawn and held against the target's exact probabilities.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from specbench import registry
from specbench.analysis.verdicts import ArmCheck, Divergence, worst_first
from specbench.bench import lossless
from specbench.bench.arms import Failure, LiveArm, Measured, MethodClass, failure_of, live_arm
from specbench.bench.cells import Block, ReadyCell, loaded_names, ready
from specbench.bench.conversations import NoAnswerError, answered, waits_for_answers
from specbench.bench.distribution import Sample, is_wrong, position_tests
from specbench.bench.lossless import Verdict
from specbench.bench.prompts import Prompt, key_of
from specbench.bench.timing import frozen_objects
from specbench.decode.loop import sampler_for
from specbench.decode.trace import RowTrace
from specbench.grid import AUTOREGRESSIVE, Arm, Plan, named
from specbench.models.loader import LoadedModel, ModelPool
from specbench.models.zoo import ZOO

REFERENCE = "autoregressive, batch 1 (the reference)"

SAMPLES = 2_000
"""Texts that a check of the distribution draws, unless told otherwise."""

_SAMPLED_PROMPTS = 2
_SAMPLED_PROMPT_TOKENS = 16
_SAMPLED_ROWS = 64
# The prefill's token, a draft of the usual depth, the target's token behind it, and a little of the next step.
_SAMPLED_TOKENS = 8

Announce = Callable[[str], None]


def verify(
    plan: Plan,
    *,
    samples: int = SAMPLES,
    zoo: Path = ZOO,
    method_class: MethodClass = registry.load,
    announce: Announce = lambda _: None,
) -> Iterator[ArmCheck]:
    """Check every arm of every cell.

    Args:
        plan: What an experiment comes to; its repeats and draft latencies play no part.
        samples: Texts drawn for each check of a distribution.
        zoo: Where the embedded family lies.
        method_class: The class of a method, by its name.
        announce: Told what is checked next.

    Raises:
        ConfigError: A model, a draft or the prompts are missing or do not fit.
    """
    verifier = _Verifier(samples, zoo, method_class, announce)
    for cell in ready(_untimed(plan), zoo):
        yield from verifier.cell(cell)


def _untimed(plan: Plan) -> Plan:
    """The plan with each arm once, at its natural latency, and without the autoregressive twin."""
    cells = []
    for cell in plan.cells:
        arms: dict[tuple[str, str], Arm] = {}
        for arm in cell.arms:
            if not arm.twin:
                arms.setdefault((arm.method, repr(arm.options)), replace(arm, draft_latency_ms=None))
        cells.append(replace(cell, arms=named(list(arms.values()))))
    return replace(plan, cells=tuple(cells))


@dataclass
class _Texts:
    """Verdicts on the texts of one arm as they come in."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("equal", "near-tie", "WRONG"), 0))
    divergences: list[Divergence] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    steps: int = 0
    emitted: int = 0

    def add(self, prompt: Prompt, verdict: Verdict, reference: list[int], output: list[int]) -> None:
        """Count one text."""
        assert verdict.word is not None
        self.counts[verdict.word] += 1
        if verdict.first_divergence is not None:
            place = (prompt.id, verdict.first_divergence, verdict.gap)
            self.divergences.append(Divergence(*place, tuple(reference), tuple(output)))

    def count_steps(self, rows: list[RowTrace]) -> None:
        """Take the rows' steps into the block efficiency."""
        self.steps += sum(row.steps for row in rows)
        self.emitted += sum(sum(row.emitted_per_step) for row in rows)

    def check(self, cell: str, arm: str, target: str, requests: int, failure: Failure | None = None) -> ArmCheck:
        """What has come of it."""
        return ArmCheck(
            cell,
            arm,
            target,
            "ids",
            requests=requests,
            equal=self.counts["equal"],
            near_tie=self.counts["near-tie"],
            wrong=self.counts["WRONG"],
            divergences=worst_first(self.divergences),
            tokens_per_step=self.emitted / self.steps if self.steps else None,
            faults=tuple(self.faults),
            failure=_as_pair(failure),
        )


@dataclass
class _Verifier:
    """Checks cell by cell, and keeps what cells share: models, and the reference's texts."""

    samples: int
    zoo: Path
    method_class: MethodClass
    announce: Announce
    pool: ModelPool | None = None
    references: dict[str, list[list[int]] | Failure] = field(default_factory=dict)

    def cell(self, cell: ReadyCell) -> Iterator[ArmCheck]:
        """Every arm of one cell."""
        torch.set_num_threads(cell.cell.machine.threads)
        self.announce(f"{_words(cell)}: loading {cell.cell.target.name}")
        target = self._target(cell)
        if isinstance(target, Failure):
            for arm in cell.cell.arms:
                yield ArmCheck(_words(cell), arm.name, _name(cell), "none", failure=_as_pair(target))
            return
        cell = self._with_later_turns(cell, target)
        with frozen_objects():  # else every batch walks over all that the imports have left
            for arm in cell.cell.arms:
                self.announce(f"{_words(cell)}: {arm.name}")
                yield from self._arm(cell, arm, target)

    def _target(self, cell: ReadyCell) -> LoadedModel | Failure:
        if self.pool is None or self.pool.where != cell.where:
            self.pool = ModelPool(cell.where, self.zoo)
        used = {repr(cell.cell.target.model)} | {repr(name) for arm in cell.cell.arms for name in loaded_names(arm)}
        self.pool.keep_only(used)
        try:
            return self.pool.get(cell.cell.target.model)
        except Exception as error:  # noqa: BLE001  (a target that cannot be loaded fails every arm, not the command)
            return failure_of(error)

    def _with_later_turns(self, cell: ReadyCell, target: LoadedModel) -> ReadyCell:
        """The cell whole; where its target cannot answer, its first turns, which say why just as well."""
        assert self.pool is not None
        if not waits_for_answers(cell):
            return cell
        try:
            return answered(cell, target, self.pool, folder=None)
        except NoAnswerError:
            first = [prompt for prompt in cell.prompts.prompts if prompt.turn == 1]
            return replace(cell, prompts=replace(cell.prompts, prompts=first))

    def _live(self, arm: Arm, cell: ReadyCell, target: LoadedModel) -> LiveArm:
        assert self.pool is not None
        return live_arm(arm, cell, target, self.pool, self.method_class)

    def _arm(self, cell: ReadyCell, arm: Arm, target: LoadedModel) -> Iterator[ArmCheck]:
        live = self._live(arm, cell, target)
        if live.failure is not None:
            yield ArmCheck(_words(cell), arm.name, _name(cell), "none", failure=_as_pair(live.failure))
            return
        rule, drafts = live.rule, arm.method != AUTOREGRESSIVE
        is_lossy = not lossless.claims(rule, drafts=drafts)
        if rule.simulated or (is_lossy and cell.decoding.temperature == 0):
            why = (
                "simulated acceptance" if rule.simulated else f"lossy by the rule {rule.name}, but not at temperature 0"
            )
            yield ArmCheck(_words(cell), arm.name, _name(cell), "none", note=f"{why}; there is nothing to verify")
        elif lossless.applies(rule, cell.decoding.temperature, drafts=drafts):
            yield from self._same_ids(cell, arm, live, target)
        elif (done := f"{_setting(cell)} {arm.name}") not in self.references:
            self.references[done] = []  # another batch size draws from the same distribution
            yield self._distribution(cell, arm, target, lossy=rule.name if is_lossy else None)

    # --- where the same tokens are promised

    def _same_ids(self, cell: ReadyCell, arm: Arm, live: LiveArm, target: LoadedModel) -> Iterator[ArmCheck]:
        known = _setting(cell) in self.references
        reference = self._reference(cell, target)
        if isinstance(reference, Failure):
            failure = replace(reference, reason=f"the reference failed: {reference.reason}")
            yield ArmCheck(_words(cell), arm.name, _name(cell), "ids", failure=_as_pair(failure))
            return
        if not known:
            yield _reference_check(cell, target, reference)
        if arm.method != AUTOREGRESSIVE or cell.cell.decode.batch_size > 1:
            yield self._against(cell, live, target, reference)

    def _reference(self, cell: ReadyCell, target: LoadedModel) -> list[list[int]] | Failure:
        """The core's autoregressive texts at batch size 1, made once for all cells that share them."""
        setting = _setting(cell)
        if setting not in self.references:
            arm = next(arm for arm in cell.cell.arms if arm.method == AUTOREGRESSIVE)
            live = self._live(arm, _with_batch_size(cell, 1), target)
            texts: list[list[int]] = []
            for index, prompt in enumerate(cell.prompts.prompts):
                outcome = live.run(Block(index, [prompt]), "headline")
                if isinstance(outcome, Failure):
                    self.references[setting] = outcome
                    return outcome
                texts.append(outcome.trace.rows[0].output_ids)
            self.references[setting] = texts
        return self.references[setting]

    def _against(self, cell: ReadyCell, live: LiveArm, target: LoadedModel, reference: list[list[int]]) -> ArmCheck:
        texts, failure = _Texts(), None
        expected = dict(zip((prompt.id for prompt in cell.prompts.prompts), reference, strict=True))
        for block in cell.blocks():
            outcome = live.run(block, "headline")
            if isinstance(outcome, Failure):
                failure = outcome
                continue
            texts.count_steps(outcome.trace.rows)
            _compare_block(cell, target, block, outcome, expected, texts)
        return texts.check(_words(cell), live.arm.name, _name(cell), len(reference), failure)

    # --- where only the distribution is promised

    def _distribution(self, cell: ReadyCell, arm: Arm, target: LoadedModel, *, lossy: str | None) -> ArmCheck:
        """A test of the distribution; of a lossy rule, which is named, a measurement of its bias."""
        wide = _with_batch_size(cell, _SAMPLED_ROWS, max_new_tokens=_SAMPLED_TOKENS)
        live = self._live(arm, wide, target)
        if live.failure is not None:  # it may not run with so many rows
            wide = _with_batch_size(cell, cell.cell.decode.batch_size, max_new_tokens=_SAMPLED_TOKENS)
            live = self._live(arm, wide, target)
        texts, samples = _Texts(), []
        prompts = cell.prompts.prompts[:_SAMPLED_PROMPTS]
        for prompt in prompts:
            sample = self._sample(wide, live, prompt, max(1, self.samples // len(prompts)), texts)
            if isinstance(sample, Failure):
                return texts.check(_words(cell), arm.name, _name(cell), self.samples, sample)
            samples.append(sample)
        tests = position_tests(target.model, samples, wide.decoding)
        if not tests:
            texts.faults.append(
                "the target leaves no choice at any place, or the texts are too few: nothing was tested"
            )
        drawn = sum(len(sample.texts) for sample in samples)
        wrong = bool(tests) and is_wrong(tests)
        check = replace(texts.check(_words(cell, batch=False), arm.name, _name(cell), drawn), positions=tuple(tests))
        if lossy is not None:
            return replace(check, kind="bias", note=f"lossy by the rule {lossy}")
        return replace(
            check,
            kind="distribution",
            equal=drawn if tests and not wrong else 0,
            wrong=drawn if wrong else 0,
        )

    def _sample(self, cell: ReadyCell, live: LiveArm, prompt: Prompt, count: int, texts: _Texts) -> Sample | Failure:
        """Texts of one prompt, cut short, each with chance of its own."""
        ids = prompt.ids[-_SAMPLED_PROMPT_TOKENS:]
        names = [f"{prompt.id} sample {index}" for index in range(count)]
        drawn = [replace(prompt, id=name, key=key_of(name), ids=ids) for name in names]
        sample, size = Sample(ids, [], []), cell.cell.decode.batch_size
        for start in range(0, count, size):
            block = Block(start // size, drawn[start : start + size])
            outcome = live.run(block, "headline")
            if isinstance(outcome, Failure):
                return outcome
            texts.count_steps(outcome.trace.rows)
            if fault := _unequal(block, outcome):
                texts.faults.append(fault)
                continue
            sample.keys.extend(entry.key for entry in block.prompts)
            sample.texts.extend(row.output_ids for row in outcome.trace.rows)
        return sample


def _compare_block(
    cell: ReadyCell,
    target: LoadedModel,
    block: Block,
    outcome: Measured,
    expected: dict[str, list[int]],
    texts: _Texts,
) -> None:
    """Judge every text of one batch."""
    if fault := _unequal(block, outcome):
        texts.faults.append(fault)
        return
    for prompt, row in zip(block.prompts, outcome.trace.rows, strict=True):
        sampler = sampler_for(target.model, [prompt.key], [len(prompt.ids)], cell.decoding)
        verdict = lossless.compare(target.model, prompt.ids, expected[prompt.id], row.output_ids, sampler)
        texts.add(prompt, verdict, expected[prompt.id], row.output_ids)


def _unequal(block: Block, outcome: Measured) -> str:
    """What makes a batch impossible to judge; empty where nothing does."""
    rows = outcome.trace.rows
    if len(rows) != len(block.prompts):
        return f"batch {block.index}: {len(rows)} texts for {len(block.prompts)} prompts"
    empty = [prompt.id for prompt, row in zip(block.prompts, rows, strict=True) if not row.output_ids]
    return f"batch {block.index}: empty text for {', '.join(empty)}" if empty else ""


def _reference_check(cell: ReadyCell, target: LoadedModel, reference: list[list[int]]) -> ArmCheck:
    """Autoregressive decoding itself, against one plain forward over each text."""
    texts = _Texts()
    for prompt, ids in zip(cell.prompts.prompts, reference, strict=True):
        sampler = sampler_for(target.model, [prompt.key], [len(prompt.ids)], cell.decoding)
        if ids:
            texts.add(prompt, lossless.judge_reference(target.model, prompt.ids, ids, sampler), ids, ids)
        else:
            texts.faults.append(f"{prompt.id}: the reference is empty")
    return replace(texts.check(_words(cell, batch=False), REFERENCE, _name(cell), len(reference)), tokens_per_step=1.0)


def _with_batch_size(cell: ReadyCell, size: int, *, max_new_tokens: int | None = None) -> ReadyCell:
    """The cell with batches of another size, and with shorter texts where that is asked for."""
    update = {"batch_size": size} | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {})
    decode = cell.cell.decode.model_copy(update=update)
    decoding = replace(cell.decoding, max_new_tokens=decode.max_new_tokens)
    return replace(cell, cell=replace(cell.cell, decode=decode), decoding=decoding)


def _setting(cell: ReadyCell) -> str:
    """All that the reference's texts depend on."""
    decode = cell.cell.decode.model_copy(update={"batch_size": 1})
    return f"{cell.cell.target.name} {cell.target_sha} {cell.prompts.sha} {decode!r} {cell.cell.machine!r}"


def _words(cell: ReadyCell, *, batch: bool = True) -> str:
    """The cell as people read it."""
    decode = cell.cell.decode
    rule = "" if decode.rule == "auto" else f", {decode.rule_words}"
    size = f", batch {decode.batch_size}" if batch else ""
    return (
        f"{cell.cell.target.name} {cell.where.dtype_name}, {cell.prompts.dataset}, T={decode.temperature:g}{rule}{size}"
    )


def _name(cell: ReadyCell) -> str:
    """The target as its tokenizer can be found again."""
    model = cell.cell.target.model
    return model if isinstance(model, str) else model.shape


def _as_pair(failure: Failure | None) -> tuple[str, str] | None:
    return None if failure is None else (failure.status, failure.reason)
