"""What a run tells while it runs: what is on, how far, time left, speed-up so far; plain lines without a terminal."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specbench import registry
from specbench.bench.arms import Failure, Outcome
from specbench.bench.cells import Block, ReadyCell
from specbench.bench.lossless import claims
from specbench.bench.timing import monotonic_s
from specbench.grid import AUTOREGRESSIVE, Arm

# Without a terminal a line goes to a log, which wants one now and then and not one a second.
_SECONDS_BETWEEN_LINES = 5.0


class SoFar:
    """Decode seconds and tokens of every arm of one cell, as far as measured: for the eye, not for a result."""

    def __init__(self, cell: ReadyCell) -> None:
        self.cell = cell
        self._sums: dict[str, tuple[float, int, int]] = {arm.name: (0.0, 0, 0) for arm in cell.cell.arms}
        self._failures: dict[str, Failure] = {}

    def add(self, arm: Arm, outcome: Outcome) -> None:
        """Count one batch of the headline pass."""
        if isinstance(outcome, Failure):
            self._failures[arm.name] = outcome
            return
        seconds, tokens, steps = self._sums[arm.name]
        rows = outcome.trace.rows
        tokens += sum(len(row.output_ids) - row.prefill_tokens for row in rows)
        steps += sum(row.steps for row in rows)
        self._sums[arm.name] = (seconds + outcome.timing.decode_s, tokens, steps)

    def lines(self) -> list[tuple[str, str, str]]:
        """For each arm its name, its speed-up and its tokens a step."""
        return [(arm.name, self._speedup(arm), self._tokens(arm.name)) for arm in self.cell.cell.arms]

    def _speedup(self, arm: Arm) -> str:
        if arm.name in self._failures:
            return self._failures[arm.name].status
        own, base = self._sums[arm.name], self._sums[AUTOREGRESSIVE]
        if not all((own[0], own[1], base[0], base[1])):
            return "-"
        return f"{(base[0] / base[1]) / (own[0] / own[1]):.2f}x{self._note(arm)}"

    def _note(self, arm: Arm) -> str:
        """What a reader must know of the arm's text; outside baselines decide by rules of their own."""
        rule = self.cell.decoding.rule
        if arm.method in registry.baselines() or claims(rule, drafts=arm.method != AUTOREGRESSIVE):
            return ""
        return " (simulated)" if rule.simulated else " (lossy)"

    def _tokens(self, name: str) -> str:
        _, tokens, steps = self._sums[name]
        return f"{tokens / steps:.2f}" if steps else "-"


class Reporter(Protocol):
    """Told about a run's progress."""

    def __enter__(self) -> "Reporter":
        """The run begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The run has ended, one way or the other."""

    def cell(self, cell: ReadyCell) -> None:
        """A cell begins: models are loaded and warmed up."""

    def batch(self, arm: Arm, block: Block, repeat: int) -> None:
        """An arm begins a batch."""

    def measured(self, arm: Arm, outcome: Outcome) -> None:
        """A batch of the headline pass has ended."""

    def block_done(self) -> None:
        """A block is stored."""

    def say(self, sentence: str) -> None:
        """Something that a user should know."""


class _Base:
    """What both reporters keep count of."""

    def __init__(self, console: Console, blocks: int, kept: int) -> None:
        self.console, self.blocks, self.kept, self.done = console, blocks, kept, 0
        self._so_far: SoFar | None = None
        self._began = monotonic_s()

    def measured(self, arm: Arm, outcome: Outcome) -> None:
        """Count it."""
        if self._so_far is not None:
            self._so_far.add(arm, outcome)

    def left(self) -> str:
        """Time left, from the mean of the blocks so far, in words."""
        if not self.done:
            return ""
        return f"about {duration((monotonic_s() - self._began) / self.done * (self.blocks - self.done))} left"


class PlainReporter(_Base):
    """Lines of text, for logs and pipes."""

    def __init__(self, console: Console, blocks: int, kept: int) -> None:
        super().__init__(console, blocks, kept)
        self._last = monotonic_s()

    def __enter__(self) -> "PlainReporter":
        """Say what there is to do."""
        kept = f", {self.kept} are there already" if self.kept else ""
        self.say(f"{self.blocks} blocks to run{kept}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def cell(self, cell: ReadyCell) -> None:
        """Name it."""
        self._so_far = SoFar(cell)
        self.say(f"{cell.name}: loading and warming up {len(cell.cell.arms)} arms")

    def batch(self, arm: Arm, block: Block, repeat: int) -> None:
        """Too much for a log."""

    def block_done(self) -> None:
        """A line now and then, and at the end."""
        self.done += 1
        now = monotonic_s()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self.done == self.blocks:
            self._last = now
            speeds = ", ".join(f"{name} {speed}" for name, speed, _ in self._so_far.lines()) if self._so_far else ""
            end = "" if self.done == self.blocks else f"; {self.left()}"
            self.say(f"block {self.done} of {self.blocks}: {speeds}{end}")

    def say(self, sentence: str) -> None:
        """One line."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


class LiveReporter(_Base):
    """A bar and a table that stay in place, for a terminal."""

    def __init__(self, console: Console, blocks: int, kept: int) -> None:
        super().__init__(console, blocks, kept)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("blocks"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("preparing", total=blocks, left="")
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveReporter":
        """Show the bar."""
        self._live.start()
        if self.kept:
            self.say(f"{self.kept} blocks are there already")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away, and leave the last table."""
        self._live.stop()
        if kind is None and self._so_far is not None:
            self.console.print(self._table())

    def cell(self, cell: ReadyCell) -> None:
        """A new table; the old one stays above."""
        if self._so_far is not None:
            self.console.print(self._table())
        self._so_far = SoFar(cell)
        self._show("loading and warming up")

    def batch(self, arm: Arm, block: Block, repeat: int) -> None:
        """Show what runs."""
        self._show(f"{arm.name}, block {block.index + 1}, repeat {repeat + 1}")

    def block_done(self) -> None:
        """Move the bar."""
        self.done += 1
        self._bar.update(self._task, completed=self.done, left=self.left())

    def say(self, sentence: str) -> None:
        """A line above the bar."""
        self.console.print(sentence, highlight=False, markup=False)

    def _show(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        self._live.update(Group(self._table(), self._bar))

    def _table(self) -> Table:
        assert self._so_far is not None
        table = Table(title=self._so_far.cell.name, title_justify="left", box=None, padding=(0, 2))
        table.add_column("arm")
        table.add_column("speed-up so far", justify="right")
        table.add_column("tokens a step", justify="right")
        for line in self._so_far.lines():
            table.add_row(*line)
        return table


def reporter(console: Console, blocks: int, kept: int) -> Reporter:
    """The reporter that fits the console."""
    kind = LiveReporter if console.is_terminal and not console.is_dumb_terminal else PlainReporter
    return kind(console, blocks, kept)


@contextmanager
def narrated(console: Console) -> Iterator[Callable[[str], None]]:
    """Says what is on where no blocks are counted: in one place on a terminal, else in a line now and then."""
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status("preparing") as status:
            yield lambda words: status.update(escape(words))
        return
    last_s = -math.inf

    def now_and_then(words: str) -> None:
        nonlocal last_s
        if monotonic_s() - last_s >= _SECONDS_BETWEEN_LINES:
            last_s = monotonic_s()
            console.print(words, highlight=False, markup=False, soft_wrap=True)

    yield now_and_then


def duration(seconds: float) -> str:
    """Seconds in words: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
