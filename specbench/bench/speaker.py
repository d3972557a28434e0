"""A method that answers: loaded like an arm of a run, timed like its headline pass, and heard step by step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from pydantic_core import to_jsonable_python

from specbench.bench.arms import CoreArm, Measured
from specbench.bench.cells import Block, PromptReader, ReadyCell, ready, rule_of
from specbench.bench.prompts import Prompt
from specbench.bench.timing import HeadlineWatch, Timeline, no_garbage_collection, timeline
from specbench.config import brief
from specbench.decode.loop import generate
from specbench.decode.trace import BatchTrace, RowTrace
from specbench.errors import ConfigError, SpecbenchError, UnsupportedError
from specbench.grid import Arm, Plan
from specbench.models.loader import LoadedModel, ModelPool
from specbench.models.zoo import ZOO
from specbench.registry import options_class

Hear = Callable[[list[int], int], None]
"""Told the tokens of one step and the step's number; 0 is the prefill, which yields the first token."""

_WARM_UP_TOKENS = 8


class StepWatch(HeadlineWatch):
    """Times a batch, and passes its first row's tokens on as they reach the host: on a GPU that is a step late."""

    def __init__(self, time_line: Timeline, row: RowTrace, hear: Hear) -> None:
        super().__init__(time_line)
        self._row, self._hear = row, hear
        self._heard_steps = self._heard_tokens = 0

    def step(self) -> None:
        """Leave a mark, and pass on what is new."""
        super().step()
        self._pass_on()

    def finish(self, steps: int) -> None:
        """Resolve the marks, and pass on the rest."""
        super().finish(steps)
        self._pass_on()

    def _pass_on(self) -> None:
        row = self._row
        counts = [row.prefill_tokens, *row.emitted_per_step] if row.output_ids else []
        for step in range(self._heard_steps, len(counts)):
            end = self._heard_tokens + counts[step]
            self._hear(row.output_ids[self._heard_tokens : end], step)
            self._heard_tokens = end
        self._heard_steps = len(counts)


class Speaker(CoreArm):
    """A method that answers people, so that its faults are raised and not rows of a table.

    Raises:
        SpecbenchError: It cannot be loaded, or cannot run such a batch.
    """

    def __init__(self, arm: Arm, cell: ReadyCell, target: LoadedModel, pool: ModelPool) -> None:
        super().__init__(arm, cell, target, pool)
        if self.failure is not None:
            raise UnsupportedError(self.failure.reason)

    def answer(
        self, prompts: Sequence[Prompt], hear: Hear | None = None, max_new_tokens: int | None = None
    ) -> Measured:
        """Answer one batch.

        Args:
            prompts: The batch.
            hear: Told the tokens of its first prompt, step by step.
            max_new_tokens: Where answers end, if earlier than the settings say.

        Raises:
            SpecbenchError: A prompt does not fit, the method broke the contract, or memory ran out.
        """
        trace = BatchTrace.of(len(prompts))
        clock = timeline(self._target.device)
        watch = HeadlineWatch(clock) if hear is None else StepWatch(clock, trace.rows[0], hear)
        decoding = self._cell.decoding
        if max_new_tokens is not None:
            decoding = replace(decoding, max_new_tokens=min(max_new_tokens, decoding.max_new_tokens))
        try:
            with no_garbage_collection():
                generate(self._target, self._method, Block(0, [*prompts]).requests, decoding, watch, trace=trace)
        except Exception as error:  # noqa: BLE001  (each is raised again, the better for words)
            self._failed(error)
        return Measured(trace, watch.timing)

    def get_ready(self, prompts: Sequence[Prompt]) -> None:
        """Let memory be touched and kernels be chosen before the first answer is timed."""
        self.answer(prompts, max_new_tokens=_WARM_UP_TOKENS)

    def _failed(self, error: Exception) -> NoReturn:
        if isinstance(error, SpecbenchError):
            raise error
        failure = super()._failed(error)
        if failure.status == "oom":
            raise UnsupportedError(
                f"{self.arm.name}: out of memory; a smaller batch or shorter texts may fit"
            ) from error
        raise error


def ready_setting(plan: Plan, zoo: Path, read_prompts: PromptReader) -> tuple[ReadyCell, Arm]:
    """The one cell of a plan, made ready, and its one method.

    Raises:
        ConfigError: There are several, or none of them writes text; or as for ``ready``.
    """
    arms = [arm for arm in plan.cells[0].arms if not arm.twin]
    if len(plan.cells) > 1 or len(arms) > 2:
        raise ConfigError("generate runs one setting at a time; a list in an option makes several")
    cell, arm = plan.cells[0], arms[-1]
    if rule_of(cell.decode).simulated:
        raise ConfigError(f"decode.rule: {cell.decode.rule_name} only counts tokens; it writes no text")
    if arm.draft_latency_ms is not None:
        raise ConfigError("draft_latency_ms: only a run keeps a draft latency")
    return ready(plan, zoo, read_prompts)[0], arm


def speaker_for(cell: ReadyCell, arm: Arm, zoo: Path = ZOO) -> Speaker:
    """Load the target, and the method with all that it needs.

    Raises:
        SpecbenchError: As for ``ModelPool`` and ``Speaker``.
    """
    torch.set_num_threads(cell.cell.machine.threads)
    pool = ModelPool(cell.where, zoo)
    return Speaker(arm, cell, pool.get(cell.cell.target.model), pool)


def told_options(arm: Arm) -> dict[str, str]:
    """The options that are not as by default, as short text: what a method's name does not say."""
    fields = options_class(arm.method).model_fields
    return {
        name: brief(value) if isinstance(value, str) else json.dumps(value)
        for name, value in arm.options.items()
        if fields[name].is_required()
        or value != to_jsonable_python(fields[name].get_default(call_default_factory=True))
    }
