"""specbench.bench.progress"""

import io

import pytest
from rich.console import Console

from specbench.bench import progress
from specbench.bench.arms import Failure, Measured
from specbench.bench.cells import ready
from specbench.bench.progress import LiveReporter, PlainReporter, SoFar, duration, narrated, reporter
from specbench.bench.timing import Timing
from specbench.decode.trace import BatchTrace, RowTrace
from tests.unit.bench.bench_plans import ONE_CELL, plan_of, run


def measured(seconds, tokens, steps):
    row = RowTrace(output_ids=[1] * (tokens + 1), accepted_per_step=[0] * steps)
    return Measured(BatchTrace([row]), Timing(0.1, 0.1, seconds, [seconds]))


def test_the_speed_up_so_far_is_time_per_token_against_autoregressive(folder):
    (cell,) = ready(plan_of(folder, ONE_CELL), folder / "zoo")
    so_far = SoFar(cell)
    arms = {arm.name: arm for arm in cell.cell.arms}
    so_far.add(arms["autoregressive"], measured(2.0, 10, 10))
    so_far.add(arms["draft_model"], measured(1.0, 10, 4))
    so_far.add(arms["prompt_lookup"], Failure("oom", "out of memory"))
    assert so_far.lines() == [
        ("autoregressive", "1.00x", "1.00"),
        ("autoregressive-twin", "-", "-"),
        ("draft_model", "2.00x", "2.50"),
        ("prompt_lookup", "oom", "-"),
    ]


@pytest.mark.parametrize(
    ("rule", "note", "own"),
    [("typical", " (lossy)", ""), ("{synthetic: {mean_length: 2.0}}", " (simulated)", " (simulated)")],
)
def test_a_speed_up_so_far_is_shown_with_what_must_be_known_of_the_text(folder, rule, note, own):
    text = ONE_CELL.replace("batch_size: 2", f"batch_size: 2, rule: {rule}")
    (cell,) = ready(plan_of(folder, text + "\n"), folder / "zoo")
    so_far = SoFar(cell)
    for arm in cell.cell.arms:
        so_far.add(arm, measured(1.0, 10, 10))
    found = {name: speedup for name, speedup, _ in so_far.lines()}
    assert found == {
        "autoregressive": f"1.00x{own}", "autoregressive-twin": f"1.00x{own}",
        "draft_model": f"1.00x{note}", "prompt_lookup": f"1.00x{note}",
    }  # fmt: skip


def test_without_a_terminal_there_are_plain_lines(folder):
    output = io.StringIO()
    run(folder, ONE_CELL, console=Console(file=output))
    lines = output.getvalue().splitlines()
    assert lines[0] == "3 blocks to run"
    assert "loading and warming up 4 arms" in lines[1]
    blocks = [line for line in lines if line.startswith("block")]  # a noisy machine adds warnings behind them
    assert blocks[-1].startswith("block 3 of 3: autoregressive 1.00x, autoregressive-twin ")
    assert "\x1b" not in output.getvalue()


def test_on_a_terminal_a_table_stays_at_the_end(folder):
    output = io.StringIO()
    run(folder, ONE_CELL, console=Console(file=output, force_terminal=True, width=120))
    assert "speed-up so far" in output.getvalue()
    assert "3/3" in output.getvalue()


def test_the_console_decides():
    assert isinstance(reporter(Console(file=io.StringIO()), 1, 0), PlainReporter)
    assert isinstance(reporter(Console(file=io.StringIO(), force_terminal=True), 1, 0), LiveReporter)


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_without_a_terminal_a_narration_is_a_line_now_and_then(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(progress, "monotonic_s", lambda: now_s)
    output = io.StringIO()
    with narrated(Console(file=output)) as say:
        for now_s in (100.0, 101.0, 104.0, 105.5, 106.0):
            say(f"at {now_s:g} [1/2]")
    assert output.getvalue().splitlines() == ["at 100 [1/2]", "at 105.5 [1/2]"]


def test_on_a_terminal_a_narration_leaves_nothing_behind():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60)
    with narrated(console) as say:
        say("scores: [x]")
    console.print("done")
    assert output.getvalue().rstrip().endswith("done")
