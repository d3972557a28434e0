"""The command that asks the closed forms."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import Json, open_console, print_json, run_folder
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.analysis.prediction import Chain, Prediction
    from specbench.report.decisions import GivenDraft, WhatIf


def predict(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A results folder: which draft and gamma to take, and what it would take for another to win.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, help="Chance that a draft token is accepted.", show_default=False)
    ] = None,
    gamma: Annotated[
        int | None, typer.Option(min=1, help="Draft tokens per step.", show_default="the best one")
    ] = None,
    draft_cost: Annotated[
        float, typer.Option(min=0, help="Time of a draft forward over that of a target forward.")
    ] = 0.0,
    verify_cost: Annotated[
        float, typer.Option(min=0.01, help="Time to verify gamma + 1 tokens over that of one token.")
    ] = 1.0,
    overhead: Annotated[
        float, typer.Option(min=0, help="What else a step costs, over the time of a target forward.")
    ] = 0.0,
    operations_cost: Annotated[
        float | None,
        typer.Option(min=0, help="Operations of a draft forward over the target's.", show_default="--draft-cost"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of a folder: at this batch size, measured or between measured ones.", show_default=False
        ),
    ] = None,
    draft_latency_ms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DRAFT=]MS", help="Of a folder: if a draft forward took so long. Repeatable.", show_default=False
        ),
    ] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ALPHA:MS",
            help="Without a folder: a draft by its acceptance and the time of a forward. Repeatable.",
            show_default=False,
        ),
    ] = None,
    target_ms: Annotated[
        float | None, typer.Option(min=0.0, help="For --draft: time of a target forward.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Which draft and gamma to take, by the closed forms: from a run, or from given costs.

    Examples: specbench predict results/quickstart/MACHINE

    specbench predict results/quickstart/MACHINE --batch-size 2 --draft-latency-ms pico-deep=1.5

    specbench predict --alpha 0.8 --gamma 4 --draft-cost 0.1

    specbench predict --target-ms 30 --draft wide=0.70:1.5 --draft deep=0.76:6
    """
    if sum((folder is not None, alpha is not None, bool(draft))) != 1:
        raise ConfigError("give either a results folder, or --alpha with --gamma and --draft-cost, or --draft")
    if folder is None and (batch_size is not None or draft_latency_ms):
        raise ConfigError("--batch-size and --draft-latency-ms ask about a run: give its results folder")
    if folder is not None:
        _predict_run(folder, _what_if(batch_size, draft_latency_ms or []), as_json=as_json)
    elif draft:
        if draft_cost or operations_cost is not None:
            raise ConfigError("--draft-cost and --operations-cost go with --alpha; a --draft says its time itself")
        slope = _verify_slope(verify_cost, gamma)
        _predict_drafts(draft, target_ms, verify_slope=slope, overhead=overhead, as_json=as_json)
    else:
        assert alpha is not None
        _predict_chain(alpha, gamma, (draft_cost, verify_cost, overhead), operations_cost, as_json=as_json)


def _verify_slope(verify_cost: float, gamma: int | None) -> float:
    if (verify_cost == 1) != (gamma is None):
        raise ConfigError("--draft: each is taken at its best gamma; --gamma says at which one --verify-cost holds")
    return (verify_cost - 1) / gamma if gamma else 0.0


def _predict_chain(
    alpha: float,
    gamma: int | None,
    costs: tuple[float, float, float],
    operations_cost: float | None,
    *,
    as_json: bool,
) -> None:
    from specbench.analysis.closed_forms import best_gamma
    from specbench.analysis.prediction import Chain, predict

    draft_cost, verify_cost, overhead = costs
    if gamma is None:
        if verify_cost != 1:
            raise ConfigError("--verify-cost is the cost of verifying gamma + 1 tokens: give --gamma as well")
        gamma = max(1, best_gamma(alpha, draft_cost, overhead=overhead))
    chain = Chain(alpha, gamma, draft_cost, verify_cost, overhead)
    found = predict(chain, operations_cost)
    if as_json:
        print_json(asdict(chain) | asdict(found))
        return
    for name, value in _lines(chain, found):
        typer.echo(f"{name:<28}{value}")


def _predict_drafts(
    given: list[str], target_ms: float | None, *, verify_slope: float, overhead: float, as_json: bool
) -> None:
    from specbench.report.decision_tables import NEEDS, change_table, sentence
    from specbench.report.decisions import decide_by_numbers

    if not target_ms:
        raise ConfigError("--draft is in milliseconds: give those of a target forward as --target-ms")
    drafts = [_given_draft(text) for text in given]
    if len({one.name for one in drafts}) < len(drafts):
        raise ConfigError("--draft: two of them have the same name")
    found = decide_by_numbers(drafts, target_ms / 1000, verify_slope=verify_slope, overhead=overhead)
    if as_json:
        print_json(asdict(found) | {"sentence": sentence(found)})
        return
    console = open_console()
    console.print(sentence(found), highlight=False, markup=False)
    console.print()
    console.print(change_table(found))
    console.print(NEEDS, style="dim", highlight=False)


def _given_draft(text: str) -> "GivenDraft":
    from specbench.report.decisions import GivenDraft

    name, _, numbers = text.rpartition("=")
    try:
        alpha, forward_ms = map(float, numbers.split(":"))
    except ValueError:
        alpha = forward_ms = math.nan
    if not (name and 0 <= alpha <= 1 and 0 <= forward_ms < math.inf):
        raise ConfigError(f"--draft {text}: write its acceptance and the milliseconds of a forward, like wide=0.7:1.5")
    return GivenDraft(name, alpha, forward_ms / 1000)


def _lines(chain: "Chain", found: "Prediction") -> list[tuple[str, str]]:
    times = "\N{MULTIPLICATION SIGN}"
    even = "never: even full acceptance is too slow"
    if found.break_even_alpha is not None:
        even = f"{found.break_even_alpha:.3f}"
    longest = "never: even a draft for nothing is too slow"
    if found.break_even_draft_cost > 0:
        longest = f"{found.break_even_draft_cost:.3f} of a target forward"
    best = f"{found.best_gamma} ({found.best_speedup:.2f}{times})" if found.best_gamma else "0: no draft pays"
    return [
        ("tokens per step", f"{found.tokens:.3f} of at most {chain.gamma + 1}"),
        ("speed-up", f"{found.speedup:.3f}{times}"),
        ("best gamma", best),
        ("break-even acceptance", even),
        ("break-even draft cost", longest),
        ("memory-bound speed-up", f"{found.memory_bound_speedup:.3f}{times} if forwards only wait for their weights"),
        ("target efficiency", f"{found.target_efficiency:.3f}: one token over gamma + 1"),
        ("operations per token", f"{found.operations_ratio:.3f}{times} those of autoregressive decoding"),
    ]


def _what_if(batch_size: int | None, latencies: list[str]) -> "WhatIf":
    from specbench.report.decisions import WhatIf

    asked: dict[str | None, float] = {}
    for text in latencies:
        draft, _, value = text.rpartition("=")
        try:
            asked[draft or None] = float(value)
        except ValueError:
            asked[draft or None] = -1.0
        if not 0 <= asked[draft or None] < math.inf:
            raise ConfigError(f"--draft-latency-ms {text}: write milliseconds, like 1.5 or pico-deep=1.5")
    return WhatIf(batch_size, asked)


def _predict_run(folder: Path, what_if: "WhatIf", *, as_json: bool) -> None:
    from specbench.report import decision_tables
    from specbench.report.cells import load
    from specbench.report.decisions import decisions

    run = load(run_folder(folder))
    found = decisions(run, what_if)
    if as_json:
        print_json([asdict(entry) | {"sentence": decision_tables.sentence(entry)} for entry in found])
        return
    console = open_console()
    for entry in found:
        console.print(entry.title, highlight=False, markup=False, style="bold")
        console.print(decision_tables.sentence(entry), highlight=False, markup=False)
        for remark in decision_tables.remarks(entry):
            console.print(remark, highlight=False, markup=False, style="dim")
        console.print()
        console.print(decision_tables.forecast_table(entry))
        console.print(decision_tables.change_table(entry))
    for line in (*decision_tables.LEGEND, f"Intervals: {run.estimand}."):
        console.print(line, style="dim", highlight=False)
