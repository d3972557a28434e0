"""What measuring costs: the headline pass against the bare loop, and the phase pass and telemetry against that.

    python -m specbench.bench.overhead --out overhead.json
    python -m specbench.bench.overhead --method draft_model --set gamma=2

Every batch of prompts is decoded in each way, one after the other, round by round; the order turns, so that each way
comes as often early as late, and follows each neighbour as often as it is followed by it. All are timed alike, from
outside: from before the prefill to when the call has returned, so a cost holds all that measuring adds to a request.
Prompts are short, or their prefill would hide what a step costs.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from specbench.analysis.intervals import Interval, Totals, jackknife_interval, ratio
from specbench.bench.floor import ReadyMethod, Setting, command, equal_batches, opened, write
from specbench.bench.telemetry import Monitor, gpus_of
from specbench.bench.timing import (
    HeadlineWatch,
    PhaseWatch,
    frozen_objects,
    no_garbage_collection,
    seconds_of,
)
from specbench.config import MachineSettings
from specbench.decode.loop import Requests
from specbench.decode.trace import NullWatch, Watch
from specbench.models.loader import ModelPool

Way = Literal["bare loop", "headline pass", "phase pass", "telemetry"]

COMPARED: tuple[tuple[Way, Way], ...] = (
    ("headline pass", "bare loop"),
    ("phase pass", "headline pass"),
    ("telemetry", "headline pass"),
)
"""What is measured, and what it is held against; telemetry is the headline pass with the GPU asked meanwhile."""

_PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Cost:
    """How much longer a request takes one way than another, as a fraction.

    Attributes:
        way: What is measured.
        against: What it is held against.
        share: Time of the one over that of the other, less 1.
        interval: 95 % interval of the ratio of both, over batches of prompts; None below four of them.
    """

    way: Way
    against: Way
    share: float
    interval: Interval | None


@dataclass(frozen=True)
class Overhead:
    """What measuring costs in one setting.

    Attributes:
        setting: What was decoded.
        rounds: How often each batch was decoded in each way.
        request_ms: Milliseconds of a batch in the bare loop, on average.
        steps: Its steps, on average.
        costs: The price of each way.
        without_telemetry: Why there is no telemetry to measure; empty where there is.
        telemetry_busy_share: Share of the time in which the thread that asks the GPU was busy; None without one.
    """

    setting: Setting
    rounds: int
    request_ms: float
    steps: float
    costs: list[Cost]
    without_telemetry: str
    telemetry_busy_share: float | None


def measure(setting: Setting, pool: ModelPool, rounds: int = 4) -> Overhead:
    """Decode the same batches in every way, turn by turn."""
    subject = _Subject(setting, pool)
    batches = equal_batches(setting, pool.get(setting.target))
    subject.get_ready(batches[0])
    for way in subject.ways:  # whatever is allocated, chosen or compiled the first time
        subject.seconds(way, batches[0])
    subject.busy_s = 0.0
    totals = _timed(subject, batches, rounds)
    bare, watched = totals["bare loop"], totals.get("telemetry")
    return Overhead(
        setting=setting,
        rounds=rounds,
        request_ms=float(bare.seconds.mean()) / rounds * 1e3,
        steps=float(bare.tokens.mean()) / rounds,
        costs=[_cost(way, against, totals) for way, against in COMPARED if way in totals],
        without_telemetry=subject.without_telemetry,
        telemetry_busy_share=None if watched is None else subject.busy_s / float(watched.seconds.sum()),
    )


def _timed(subject: "_Subject", batches: Sequence[Requests], rounds: int) -> dict[Way, Totals]:
    """Seconds and steps by way, an entry a batch, over all rounds."""
    totals = {way: Totals(np.zeros(len(batches)), np.zeros(len(batches))) for way in subject.ways}
    orders = _orders(subject.ways)
    with frozen_objects():
        for turn, (index, requests) in itertools.product(range(rounds), enumerate(batches)):
            for way in orders[(turn + index) % len(orders)]:
                seconds, steps = subject.seconds(way, requests)
                totals[way].seconds[index] += seconds
                totals[way].tokens[index] += steps
    return totals


def _orders(ways: Sequence[Way]) -> list[list[Way]]:
    """Every turn of the ways, forwards and backwards."""
    turns = [[*ways[start:], *ways[:start]] for start in range(len(ways))]
    return [order for turn in turns for order in (turn, turn[::-1])]


def _cost(way: Way, against: Way, totals: dict[Way, Totals]) -> Cost:
    dear, cheap = totals[way], totals[against]
    return Cost(way, against, ratio(dear, cheap) - 1, jackknife_interval(dear, cheap))


class _Subject:
    """The method that is decoded, and everything that may look on.

    Attributes:
        ways: How it can be decoded here.
        without_telemetry: Why GPUs cannot be asked; empty where they can.
        busy_s: How long the thread that asks them was busy.
    """

    def __init__(self, setting: Setting, pool: ModelPool) -> None:
        # As arms run where nothing is asked for: on a GPU from graphs, beside which a look at the clock weighs most.
        self._ready = ReadyMethod(setting, pool, MachineSettings())
        gpus, self.without_telemetry = gpus_of([pool.where.device])
        self._monitor = Monitor(gpus)
        self.ways: tuple[Way, ...] = ("bare loop", "headline pass", "phase pass", *(("telemetry",) if gpus else ()))
        self.busy_s = 0.0

    def seconds(self, way: Way, requests: Requests) -> tuple[float, int]:
        """Wall time of one batch and its steps."""
        steps = []

        def decode() -> None:
            steps.append(self._ready.decode(requests, self._watch(way)).steps)

        with self._looking_on(way), no_garbage_collection():
            taken_s = seconds_of(decode, self._ready.clock)
        return taken_s, steps[0]

    def get_ready(self, requests: Requests) -> None:
        """Capture what can be captured."""
        self._ready.prepare(requests)

    def _watch(self, way: Way) -> Watch:
        if way == "bare loop":
            return NullWatch()
        clock = self._ready.clock
        return PhaseWatch(clock) if way == "phase pass" else HeadlineWatch(clock)

    @contextmanager
    def _looking_on(self, way: Way) -> Iterator[None]:
        """Around a batch as in a run: the thread looks, and counters are read before and after."""
        if way != "telemetry":
            yield
            return
        with self._monitor as monitor:
            monitor.start()
            yield
            self.busy_s += monitor.stop().telemetry_busy_s or 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each cost, and write JSON where asked."""
    parser = command("overhead", __doc__)
    parser.set_defaults(method=["autoregressive"], device="auto")
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args(arguments)
    pool, settings = opened(asked)
    found = []
    for setting in settings:
        found.append(measure(replace(setting, prompt_tokens=_PROMPT_TOKENS), pool, asked.rounds))
        for line in in_words(found[-1]):
            print(line)  # noqa: T201  (a command)
    write(asked, pool, {"overheads": [asdict(overhead) for overhead in found]})


def in_words(overhead: Overhead) -> list[str]:
    """A line for the setting, and one for each cost."""
    setting = overhead.setting
    lines = [
        f"{setting.method}, batch {setting.batch_size}: {overhead.request_ms:.1f} ms in {overhead.steps:.0f} steps, "
        f"{overhead.rounds} rounds"
    ]
    lines += [_line(cost) for cost in overhead.costs]
    if overhead.without_telemetry:
        lines.append(f"  telemetry: not measured: {overhead.without_telemetry}")
    elif overhead.telemetry_busy_share is not None:
        lines.append(f"  its thread was busy for {100 * overhead.telemetry_busy_share:.3f} % of the time")
    return lines


def _line(cost: Cost) -> str:
    interval = cost.interval
    spread = (
        f"[{100 * (interval.low - 1):+.2f}, {100 * (interval.high - 1):+.2f}] over {interval.units} batches"
        if interval
        else "no interval"
    )
    return f"  {cost.way} against {cost.against}: {100 * cost.share:+.2f} % {spread}"


if __name__ == "__main__":
    main()
