"""The command that asks the closed forms."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import Json, open_console, print_json, run_folder
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.analysis.prediction import Chain, Prediction


def predict(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A results folder: put each arm together from its measured parts.", show_default=False),
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
    as_json: Json = False,
) -> None:
    """Speed-up, break-even points and best gamma by the closed forms, for given or for measured costs.

    Examples: specbench predict --alpha 0.8 --gamma 4 --draft-cost 0.1

    specbench predict results/quickstart/MACHINE
    """
    if (folder is None) == (alpha is None):
        raise ConfigError("give either a results folder, or --alpha with --gamma and --draft-cost")
    if folder is not None:
        _predict_run(folder, as_json=as_json)
        return
    assert alpha is not None
    from specbench.analysis.closed_forms import best_gamma
    from specbench.analysis.prediction import Chain, predict

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
        ("operations per token", f"{found.operations_ratio:.3f}{times} those of autoregressive decoding"),
    ]


def _predict_run(folder: Path, *, as_json: bool) -> None:
    from specbench.errors import ResultsError
    from specbench.report.cells import load
    from specbench.report.compositions import compositions, table

    run = run_folder(folder)
    found = compositions(load(run))
    if not found:
        raise ResultsError(f"{run}: no arm with phase times; measure.phase_blocks says in how many blocks to take them")
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    console = open_console()
    for title in dict.fromkeys(entry.title for entry in found):
        console.print(table(title, [entry for entry in found if entry.title == title]))
    console.print(
        "composed: tokens a step x autoregressive step / (draft + verify + accept + update + host), from the phase "
        "pass. measured: headline pass, while all rows of a batch decode. In brackets: where the arm would be as fast "
        "as autoregressive decoding. alpha and best gamma are for chains of one length, verification growing by the "
        "token.",
        style="dim", highlight=False,
    )  # fmt: skip
