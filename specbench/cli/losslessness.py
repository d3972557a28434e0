"""The command that asks whether a text is the target's own."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.common import (
    FAILED_TRIALS,
    NOTHING_RAN,
    Json,
    Set,
    announced,
    fail,
    method_options,
    open_console,
    plan_of,
    plan_of_values,
    print_json,
    run_folder,
    text_of,
)
from specbench.errors import ConfigError, ContractError, NotLosslessError, ResultsError

if TYPE_CHECKING:
    from specbench.analysis.verdicts import ArmCheck
    from specbench.grid import Plan

_DEFAULT_BATCH_SIZES, _DEFAULT_COUNT, _DEFAULT_TOKENS = (1, 4), 8, 64


def verify(
    subject: Annotated[
        Path | None,
        typer.Argument(help="An experiment file, or a folder of results.", show_default="the options below"),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Embedded model, folder or hub id.", show_default=False)] = None,
    method: Annotated[str | None, typer.Option(help="A method by its name; see specbench list.")] = None,
    draft: Annotated[str | None, typer.Option(help="The method's draft model.", show_default=False)] = None,
    gamma: Annotated[int | None, typer.Option(min=1, help="Its draft tokens per step.", show_default=False)] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other option of the method. Repeatable.", show_default=False),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="Repeatable.", show_default="0, the greedy text")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="auto, greedy, match or rejection; of a lossy one the bias is measured.", show_default="auto"
        ),
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="1 and 4")] = None,
    prompts: Annotated[str | None, typer.Option(help="A prompt source or file.", show_default="stdlib")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Prompts to take.", show_default="8")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer prompts are cut.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of a text.", show_default="64")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.", show_default="auto")] = None,
    samples: Annotated[int, typer.Option(min=200, help="Texts drawn to check a distribution.")] = 2_000,
    show: Annotated[bool, typer.Option("--show", help="Print the text around each divergence.")] = False,
    override: Set = None,
    as_json: Json = False,
) -> None:
    """Check that a method's text is the target's own; nothing is timed.

    Examples: specbench verify experiments/quickstart.yaml

    specbench verify --target pico --method draft_model --draft pico-wide --gamma 4

    specbench verify results/quickstart/MACHINE
    """
    given = {
        "target": target, "method": method, "draft": draft, "gamma": gamma, "option": option,
        "temperature": temperature, "rule": rule, "batch_size": batch_size, "prompts": prompts, "count": count,
        "max_prompt_tokens": max_prompt_tokens, "max_new_tokens": max_new_tokens, "device": device, "dtype": dtype,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if subject is not None and given:
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{name}: {subject} says what to verify; use --set with an experiment file")
    if subject is not None and subject.is_dir():
        checks = _stored(subject)
    else:
        plan = plan_of(subject, override)[1] if subject is not None else _plan_of_options(given, override)
        checks = _fresh(plan, samples)
    _print(checks, show=show, as_json=as_json)
    _exit(checks)


def _plan_of_options(given: dict[str, Any], overrides: list[str] | None) -> "Plan":
    """The experiment that the options of the command line stand for."""
    if "target" not in given or "method" not in given:
        raise ConfigError("name an experiment file, a folder of results, or --target and --method")
    options: dict[str, Any] = {name: given[name] for name in ("draft", "gamma") if name in given}
    options |= method_options(given.get("option", []), "--option")
    decode = {name: given[name] for name in ("temperature", "rule") if name in given}
    machine = {name: given[name] for name in ("device", "dtype") if name in given}
    source = {name: given[name] for name in ("max_prompt_tokens",) if name in given}
    values: dict[str, Any] = {
        "name": "verify",
        "targets": [{"model": given["target"]}],
        "prompts": {
            "source": given.get("prompts", "stdlib"),
            "count": given.get("count", _DEFAULT_COUNT),
            **source,
        },
        "decode": {
            "max_new_tokens": given.get("max_new_tokens", _DEFAULT_TOKENS),
            "batch_size": list(given.get("batch_size", _DEFAULT_BATCH_SIZES)),
            **decode,
        },
        "methods": [{given["method"]: options}],
        "machine": machine,
    }
    return plan_of_values(values, overrides)


def _fresh(plan: "Plan", samples: int) -> "list[ArmCheck]":
    from specbench.bench.verify import verify

    with announced() as announce:
        return list(verify(plan, samples=samples, announce=announce))


def _stored(subject: Path) -> "list[ArmCheck]":
    from specbench.analysis.verdicts import stored_checks
    from specbench.records.store import Store
    from specbench.report.cells import load, missing_blocks

    folder = run_folder(subject)
    if missing := missing_blocks(load(folder)):
        typer.echo(f"note: {missing} blocks of the run are missing; what is there is checked", err=True)
    return stored_checks(Store(folder).read("requests"))


def _print(checks: "list[ArmCheck]", *, show: bool, as_json: bool) -> None:
    from specbench.report.verdicts import as_data, context, table

    if as_json:
        print_json([as_data(check) for check in checks])
        return
    console = open_console()
    for cell in dict.fromkeys(check.cell for check in checks):
        console.print(table(cell, [check for check in checks if check.cell == cell]))
    if show:
        for check in checks:
            decode = text_of(check.target)
            for divergence in check.divergences:
                console.print(context(check, divergence, decode))


def _exit(checks: "Iterable[ArmCheck]") -> None:
    """End with what outranks the rest: a broken contract, wrong text, a faulty check, a failed arm, nothing at all."""
    from specbench.analysis.verdicts import outcome

    found = outcome(list(checks))
    if found.broke_contract:
        fail("a method broke the contract", ContractError.exit_code)
    if found.wrong:
        fail(f"not lossless: {found.wrong:,} texts are not the target's own", NotLosslessError.exit_code)
    if found.faulty:
        fail(f"{found.faulty} arms could not be checked in full; nothing that is missing counts as equal",
             ResultsError.exit_code)  # fmt: skip
    if found.failed:
        fail(f"{found.failed} arms failed", FAILED_TRIALS)
    if not found.compared:
        fail("nothing was compared", NOTHING_RAN)
