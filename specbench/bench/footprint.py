"""What the cells of a plan will need of memory, before a weight is loaded: their arms decode a step without storage.

It is an estimate of everything that stands together while a cell runs: each model once, whoever shares it, the slabs of
all arms, and the most that any arm needs beside them. What captured graphs keep is not in it.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from torch import nn
from transformers import AutoModelForCausalLM

from specbench import registry
from specbench.bench.cells import decoding_of
from specbench.bench.memory import META, StepMemory, step_memory, weight_bytes
from specbench.config import ModelSpec
from specbench.decode.drafter import Drafter
from specbench.decode.loop import Requests
from specbench.decode.method import D, LoadContext
from specbench.decode.target import CachedModel
from specbench.errors import SpecbenchError, first_line
from specbench.grid import AUTOREGRESSIVE, Arm, Cell
from specbench.models.drafters import locate_drafter
from specbench.models.loader import Placement, implementation_of
from specbench.models.shapes import numbers_of, shape_of_hub_id
from specbench.models.source import Source, locate


@dataclass(frozen=True)
class Footprint:
    """Of a cell, in bytes, on all devices together.

    Attributes:
        weights: Target, drafts and trained weights of methods.
        caches: Slabs of keys and values.
        transient: The most that lives beside them: logits, activations, buffers.
    """

    weights: int
    caches: int
    transient: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.caches + self.transient


def source_of(model: ModelSpec, zoo: Path) -> Source:
    """A model's files, or its shape where it is published and known.

    Raises:
        SpecbenchError: As ``locate``.
    """
    shape = shape_of_hub_id(model) if isinstance(model, str) else None
    return Source(str(model), "random", shape=shape, zoo=zoo) if shape else locate(model, zoo)


class _Seen(NamedTuple):
    """An arm that has been weighed: what it runs on, and what its batch takes."""

    modules: list[nn.Module]
    step: StepMemory


class Footprints:
    """Weighs cells; what several of them share is built once.

    Args:
        zoo: Where the embedded family lies.

    Attributes:
        problems: What is out of reach, or could not be weighed, in words.
    """

    def __init__(self, zoo: Path) -> None:
        self.problems: list[str] = []
        self._zoo = zoo
        self._bare: dict[tuple[str, Placement], tuple[Source, CachedModel]] = {}
        self._drafters: dict[tuple[str, type[Drafter], int], Drafter] = {}
        self._seen: dict[str, _Seen] = {}

    def of(self, cell: Cell, where: Placement, longest: int) -> Footprint | None:
        """What a cell needs; None where a model is out of reach or an arm cannot be weighed.

        Args:
            cell: The cell.
            where: Says in which precision and with which attention.
            longest: Tokens of the longest prompt.
        """
        try:
            return self._weighed(cell, where, longest)
        except SpecbenchError as error:
            self.problems.append(str(error))
        except Exception as error:  # noqa: BLE001  (a method may be anyone's, and is run here without values)
            self.problems.append(f"{cell.target.name}: its memory is not known: {first_line(error)}")
        return None

    def _weighed(self, cell: Cell, where: Placement, longest: int) -> Footprint:
        _, target = self._model(cell.target.model, where)
        room = (target.max_positions or longest + cell.decode.max_new_tokens) - cell.decode.max_new_tokens
        longest = max(1, min(longest, room))
        arms = [arm for arm in cell.arms if not arm.twin]
        on_core = [self._arm(arm, cell, where, longest) for arm in arms if arm.method not in registry.baselines()]
        plain = on_core[[arm.name for arm in arms].index(AUTOREGRESSIVE)].step.transient
        outside = [self._outside(arm, cell, where, longest) for arm in arms if arm.method in registry.baselines()]
        modules = [target.module, *(module for seen in (*on_core, *outside) for module in seen.modules)]
        return Footprint(
            weights=weight_bytes(modules),
            caches=max(seen.step.target_cache for seen in on_core) + sum(seen.step.draft_caches for seen in on_core),
            transient=max(
                *(seen.step.transient for seen in on_core), *(plain + seen.step.transient for seen in outside), 0
            ),
        )

    def _arm(self, arm: Arm, cell: Cell, where: Placement, longest: int) -> _Seen:
        """A method on the core: its prefill and one step."""
        key = f"{arm.method} {arm.options} {cell.target.model!r} {cell.decode!r} {where} {longest}"
        if key not in self._seen:
            (source, target), size = self._model(cell.target.model, where), cell.decode.batch_size
            context = _Context(self, where, target)
            kind = registry.load(arm.method)
            method = kind(arm.build(kind.Options))
            method.load(LoadContext(target, context.draft_model, context.drafter))
            requests = Requests([[0] * longest] * size, list(range(size)))
            step = step_memory(target, method, context.drafts, requests, decoding_of(cell.decode, source))
            self._seen[key] = _Seen([*(draft.module for draft in context.drafts), *context.drafters], step)
        return self._seen[key]

    def _outside(self, arm: Arm, cell: Cell, where: Placement, longest: int) -> _Seen:
        """An outside baseline: beside what a plain forward takes, caches that live as long as a batch."""
        models = [self._model(name, where)[1] for name in (cell.target.model, *arm.models)]
        tokens = cell.decode.batch_size * (longest + cell.decode.max_new_tokens)
        values = sum(numbers_of(model.config).kv_values_per_token for model in models)
        return _Seen([model.module for model in models], StepMemory(0, 0, tokens * values * where.dtype.itemsize))

    def _model(self, reference: ModelSpec, where: Placement) -> tuple[Source, CachedModel]:
        """A model of shapes and no storage."""
        key = repr(reference), where
        if key not in self._bare:
            source = source_of(reference, self._zoo)
            own = implementation_of(source, where.attention)
            with META:
                module = AutoModelForCausalLM.from_config(
                    copy.deepcopy(source.config), dtype=where.dtype, attn_implementation=own, trust_remote_code=False
                )
            # A backend of ours cannot prove itself without values, and needs no more than a dense mask does.
            self._bare[key] = source, CachedModel(module, source.name, source.vocab_size, attention=own)
        return self._bare[key]

    def drafter(self, kind: type[D], reference: str, target: CachedModel) -> D:
        """Trained weights, of which only the shapes are kept."""
        key = reference, kind, id(target.module)
        if key not in self._drafters:
            self._drafters[key] = locate_drafter(reference, self._zoo).load(kind, target)
        return cast("D", self._drafters[key]).bind(target).eval()

    def draft(self, reference: str, where: Placement) -> CachedModel:
        """A draft model with a slab of its own."""
        shared = copy.copy(self._model(reference, where)[1])
        shared.release()
        return shared


class _Context:
    """What a method is loaded with, and what it took of that."""

    def __init__(self, weighed: Footprints, where: Placement, target: CachedModel) -> None:
        self._weighed, self._where, self._target = weighed, where, target
        self.drafts: list[CachedModel] = []
        self.drafters: list[Drafter] = []

    def draft_model(self, name: str) -> CachedModel:
        """A draft model."""
        self.drafts.append(self._weighed.draft(name, self._where))
        return self.drafts[-1]

    def drafter(self, kind: type[D], reference: str) -> D:
        """Trained weights of the method's own."""
        found = self._weighed.drafter(kind, reference, self._target)
        self.drafters.append(found)
        return found
