"""The arms of a cell, loaded: all at once if memory holds their models, else in groups that take turns.

Groups alternate by block, A B, B A, A B, ...: each of them is first as often as last, so that a machine that gets
slower does not count against one of them, and a block costs one change of models.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from specbench.bench.arms import LiveArm
from specbench.bench.cells import loaded_names
from specbench.bench.timing import frozen_objects
from specbench.grid import AUTOREGRESSIVE, Arm

LiveArms = dict[str, LiveArm]
"""Arms that are loaded, by name."""


class Stage(Protocol):
    """Where arms are loaded."""

    def enter(self, arm: Arm) -> LiveArm:
        """Load an arm."""

    def reserve(self, live: LiveArm) -> None:
        """Give it the room that it needs in what all arms share."""

    def warm_up(self, live: LiveArm) -> None:
        """Run it on what is not measured."""

    def leave(self, gone: LiveArms, models: set[str]) -> None:
        """Let go of some arms, to which nobody else refers, and of every draft but ``models``."""

    def models(self) -> set[str]:
        """The drafts that are loaded, also those that an earlier cell has left."""


class Turns:
    """Which arms stand together, and which of them are loaded.

    Groups are found by trying: an arm that runs out of memory while it is loaded or warmed up, beside models that it
    has no use for, is tried again without them.

    Args:
        arms: All arms of the cell.
        stage: Where they are loaded.

    Attributes:
        groups: The arms in groups; one group if they fit together. Of several, the first has the autoregressive
            baseline and the last its twin, so that the noise floor holds what changing models adds.
    """

    def __init__(self, arms: Sequence[Arm], stage: Stage) -> None:
        self._stage = stage
        self._live: LiveArms = {}
        self._frozen = ExitStack()
        self._settled = False
        self.groups = self._found([arm for arm in arms if not arm.twin])
        self.groups[-1] += [arm for arm in arms if arm.twin]
        self._settled = True
        self._change_to(self.groups[-1])

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        kept = self._stage.models() if len(self.groups) == 1 else set()  # the next cell may use what fits
        self._leave([*self._live], kept)

    def block(self) -> Iterator[LiveArms]:
        """Each group once, loaded; first the one that was last in the block before."""
        ahead = self._live.keys() == {arm.name for arm in self.groups[0]}
        for group in self.groups if ahead else reversed(self.groups):
            self._change_to(group)
            yield self._live

    def _found(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        groups, rest = [], list(arms)
        while rest:
            rest = self._enter(rest)
            groups.append([arm for arm in arms if arm.name in self._live])
            if rest:
                self._clear()
        return sorted(filter(None, groups), key=lambda group: all(arm.method != AUTOREGRESSIVE for arm in group))

    def _change_to(self, group: Sequence[Arm]) -> None:
        if not self._live.keys() <= {arm.name for arm in group}:
            self._clear()
        self._enter(group)

    def _enter(self, arms: Sequence[Arm]) -> list[Arm]:
        """Load and warm up what is not there yet and fits beside what is, and return the rest.

        Warming up comes after all are loaded: an arm must have room beside the others' models as well.
        """
        new = [arm for arm in arms if arm.name not in self._live]
        if not new:
            return []
        for arm in new:
            self._live[arm.name] = self._stage.enter(arm)
            self._drop_if_crowded(arm)
        self._freeze()
        for arm in new:
            if arm.name in self._live:
                self._stage.reserve(self._live[arm.name])
                self._drop_if_crowded(arm)
        for arm in new:
            if arm.name in self._live:
                self._stage.warm_up(self._live[arm.name])
                self._drop_if_crowded(arm)
        self._freeze()
        return [arm for arm in new if arm.name not in self._live]

    def _drop_if_crowded(self, arm: Arm) -> None:
        """While groups are being found; later on, an arm that has no room any more is one that fails."""
        crowded = self._live[arm.name].out_of_memory and self._stage.models() - {*loaded_names(arm)}
        if crowded and not self._settled:
            others = [live.arm for name, live in self._live.items() if name != arm.name and live.failure is None]
            self._leave([arm.name], {model for other in others for model in loaded_names(other)})

    def _clear(self) -> None:
        self._leave([*self._live], set())

    def _leave(self, names: Sequence[str], models: set[str]) -> None:
        self._frozen.close()
        self._stage.leave({name: self._live.pop(name) for name in names}, models)

    def _freeze(self) -> None:
        self._frozen.close()
        self._frozen.enter_context(frozen_objects())
