"""The command that records what draft models would do, and replays it."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.common import (
    Json,
    Set,
    announced,
    fail,
    open_console,
    plan_of,
    plan_of_values,
    print_json,
    run_folder,
)
from specbench.errors import ConfigError, ResultsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from specbench.analysis.stop_rules import StopRule
    from specbench.analysis.traces import Trace
    from specbench.grid import Plan

TRACES = Path("results/traces")


def trace(
    subject: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of traces to print, or an experiment whose draft models to trace.",
            show_default="the options below",
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Embedded model, folder or hub id.", show_default=False)] = None,
    draft: Annotated[
        list[str] | None, typer.Option(help="The draft model, likewise. Repeatable.", show_default=False)
    ] = None,
    gamma: Annotated[int | None, typer.Option(min=1, max=64, help="Tokens of every draft.", show_default="8")] = None,
    proposal: Annotated[
        str | None, typer.Option(help="auto, argmax or sample; auto draws above temperature 0.", show_default="auto")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="A prompt source or file.", show_default="stdlib")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Prompts to take.", show_default="8")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer prompts are cut.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of a text.", show_default="128")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.", show_default="0")] = None,
    rule: Annotated[str | None, typer.Option(help="auto, greedy, match or rejection.", show_default="auto")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampling noise.", show_default="0")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.", show_default="auto")] = None,
    group: Annotated[int, typer.Option(min=1, help="Prompts that are recorded together; no trace depends on it.")] = 8,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the traces; what it holds is not made again.", show_default=str(TRACES)),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Print for batches of this size. Repeatable.", show_default="4"),
    ] = None,
    start: Annotated[int, typer.Option(min=1, help="The heuristic's first draft.")] = 5,
    threshold: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Print for this confidence threshold. Repeatable.", show_default="0.4"),
    ] = None,
    bound: Annotated[
        list[float] | None,
        typer.Option(max=1, help="Print for this bound of the entropy rule. Repeatable.", show_default="0.4"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A results folder: set its arms beside their replays.", show_default=False)
    ] = None,
    override: Set = None,
    as_json: Json = False,
) -> None:
    """Record what draft models would do at every place of a target's texts; print tokens a step of every gamma.

    Examples: specbench trace --target pico --draft pico-wide --gamma 8 --out traces

    specbench trace traces --threshold 0.2 --threshold 0.6

    specbench trace traces --run results/quickstart/MACHINE
    """
    given = {
        "target": target, "draft": draft, "gamma": gamma, "proposal": proposal, "prompts": prompts, "count": count,
        "max_prompt_tokens": max_prompt_tokens, "max_new_tokens": max_new_tokens, "temperature": temperature,
        "rule": rule, "seed": seed, "device": device, "dtype": dtype, "set": override,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    found = _traces(subject, given, out, group)
    if run is not None:
        _print_comparison(found, run, as_json=as_json)
        return
    stops = partial(_stops, start=start, thresholds=threshold or [0.4], bounds=bound or [0.4])
    _print(found, stops, tuple(batch_size or (4,)), as_json=as_json)


def _traces(subject: Path | None, given: dict[str, Any], out: Path | None, group: int) -> "list[Trace]":
    """The traces of a folder, of which the options may want some, or those that are recorded now."""
    if subject is not None and subject.is_dir():
        if out is not None:
            raise ConfigError(f"--out: {subject} is a folder of traces, and nothing is recorded")
        return _wanted(subject, given)
    if subject is not None:
        if options := [name for name in given if name != "set"]:
            flag = options[0].replace("_", "-")
            raise ConfigError(f"--{flag}: {subject} says what to trace; use --set with an experiment file")
        plan = plan_of(subject, given.get("set"))[1]
    else:
        plan = plan_of_values(_values(given), given.get("set"))
    return _recorded(plan, out or TRACES, group)


def _values(given: dict[str, Any]) -> dict[str, Any]:
    """The experiment that the options of the command line stand for."""
    if "target" not in given or "draft" not in given:
        raise ConfigError("name a folder of traces, an experiment file, or --target and --draft")
    options = {"gamma": given.get("gamma", 8), "proposal": given.get("proposal", "auto")}

    def part(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names if name in given}

    return {
        "name": "trace",
        "targets": [{"model": given["target"]}],
        "prompts": {
            "source": given.get("prompts", "stdlib"),
            "count": given.get("count", 8),
            **part("max_prompt_tokens"),
        },
        "decode": part("max_new_tokens", "temperature", "rule", "seed"),
        "methods": [{"draft_model": {"draft": name, **options}} for name in given["draft"]],
        "machine": part("device", "dtype"),
    }


def _recorded(plan: "Plan", out: Path, group: int) -> "list[Trace]":
    from specbench.analysis.traces import select
    from specbench.bench.traces import record

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: this is a file; give a folder")
    with announced() as announce:
        provenances = record(plan, out, group=group, announce=announce)
    stored = _stored(out)
    return [select(stored, provenance, "what was recorded") for provenance in provenances]


def _stored(folder: Path) -> "list[Trace]":
    from specbench.analysis.traces import traces
    from specbench.records.store import Store

    if not (folder / "traces.parquet").exists():
        raise ResultsError(f"{folder}: no trace in it; specbench trace --target T --draft D --out {folder} makes one")
    return traces(Store(folder).read("traces"))


_COLUMNS = {
    "target": "target", "draft": "draft", "gamma": "gamma_max", "prompts": "dataset", "temperature": "temperature",
    "rule": "rule", "proposal": "proposal", "seed": "seed", "dtype": "dtype", "max_new_tokens": "max_new_tokens",
}  # fmt: skip
"""Options that say which trace of a folder is wanted, and the columns that they speak of."""


def _wanted(folder: Path, given: dict[str, Any]) -> "list[Trace]":
    from specbench.analysis.traces import differences, select

    if unknown := [name for name in given if name not in _COLUMNS]:
        flag = unknown[0].replace("_", "-")
        raise ConfigError(f"--{flag}: {folder} holds traces that were recorded before; it cannot choose among them")
    stored = _stored(folder)
    drafts = given.pop("draft", [None])
    wanted = {_COLUMNS[name]: value for name, value in given.items()}
    kept = []
    for name in drafts:
        own = wanted if name is None else wanted | {"draft": name}
        if given or name is not None:
            select(stored, own, "the command line")
        kept += [trace for trace in stored if not differences(trace, own)]
    return kept


def _stops(gamma: int, *, start: int, thresholds: list[float], bounds: list[float]) -> "list[StopRule]":
    from specbench.analysis.stop_rules import Confidence, Entropy, Heuristic

    return [
        Heuristic(gamma, start),
        *(Confidence(gamma, threshold) for threshold in thresholds),
        *(Entropy(gamma, bound) for bound in bounds),
    ]


def _print(
    found: "list[Trace]", stops: "Callable[[int], list[StopRule]]", batch_sizes: tuple[int, ...], *, as_json: bool
) -> None:
    from specbench.report.traces import NOTE, as_data, replays, trace_table

    pairs = [(entry, replays(entry, stops(entry.provenance.gamma_max))) for entry in found]
    if as_json:
        print_json([as_data(entry, walked, batch_sizes) for entry, walked in pairs])
        return
    console = open_console()
    for entry, walked in pairs:
        console.print(trace_table(entry, walked, batch_sizes))
    console.print(NOTE, style="dim", highlight=False)


def _print_comparison(found: "list[Trace]", run: Path, *, as_json: bool) -> None:
    from specbench.analysis.replay import compared
    from specbench.records.store import Store
    from specbench.report.traces import comparison_table

    requests = Store(run_folder(run)).read("requests")
    arms = compared(found, requests[requests["pass"] == "headline"])
    if as_json:
        print_json([asdict(entry) for entry in arms])
    else:
        open_console().print(comparison_table(arms))
    if other := sum(entry.rows - entry.equal for entry in arms if entry.equal is not None):
        fail(f"{other:,} rows of the run went other ways than their replays", ResultsError.exit_code)
