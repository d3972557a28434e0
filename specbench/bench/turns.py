"""The arms of a cell, loaded: all at once if memory holds their models, else in groups that take turns.

Groups alternate by block, A B, B A, A B, ...: each of them is first as often as last, so that a machine that gets
slower does not count against one of them, and a block costs one change of models.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from specbench.bench.arms import LiveArm
from specbench.bench.cells import model_names
from specbench.bench.timing import frozen_objects
from specbench.grid import AUTOREGRESSIVE, Arm

LiveArms = dict[str, LiveArm]
"""Arms that are loaded, by name."""


class Stage(Protocol):
    """Where arms are loaded."""

    def enter(self, arm: Arm) -> LiveArm:
        """Load an arm."""

    def warm_up(self, live: LiveArm) -> None:
        """Run it on what is not measured."""

    def leave(self, gone: LiveArms, models: set[str]) -> None:
        """Let go of some arms, to which nobody else refers, and of every draft but ``models``."""


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
        self._clear()

    def block(self) -> Iterator[LiveArms]:
        """Each group once, loaded; first the one that was last in the block before."""
        ahead = self._live.keys() == {arm.name for arm in self.groups[0]}
        for group in self.groups if ahead else reversed(self.groups):
            self._change_to(group)
            yield self._live

    def _found(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        groups, rest = [], list(arms)
        while rest:
            self._clear()
            rest = self._enter(rest)
            groups.append([arm for arm in arms if arm.name in self._live])
        return sorted(groups, key=lambda group: all(arm.method != AUTOREGRESSIVE for arm in group))

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
                self._stage.warm_up(self._live[arm.name])
                self._drop_if_crowded(arm)
        self._freeze()
        return [arm for arm in new if arm.name not in self._live]

    def _drop_if_crowded(self, arm: Arm) -> None:
        """While groups are being found; later on, an arm that has no room any more is one that fails."""
        if self._settled:
            return
        if self._live[arm.name].out_of_memory and self._models() - set(model_names(arm)):
            self._leave({arm.name: self._live.pop(arm.name)})

    def _models(self) -> set[str]:
        """The drafts of the arms that are loaded and can run."""
        return {name for live in self._live.values() if live.failure is None for name in model_names(live.arm)}

    def _clear(self) -> None:
        gone, self._live = self._live, {}
        self._leave(gone)

    def _leave(self, gone: LiveArms) -> None:
        self._frozen.close()
        self._stage.leave(gone, self._models())

    def _freeze(self) -> None:
        self._frozen.close()
        self._frozen.enter_context(frozen_objects())
