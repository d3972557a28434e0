"""The command that looks for the best shape of a draft."""

import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.common import FAILED_TRIALS, Json, announced, machine_settings, open_console, print_json, run_folder
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from specbench.analysis.design import Bar
    from specbench.bench.designs import Search
    from specbench.bench.latencies import Study
    from specbench.models.source import Source

_SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}
_USUAL_CONTEXT = 128


@dataclass(frozen=True)
class _Said:
    """What the command line says of a draft that is known, instead of a run."""

    alpha: float | None
    tokens: float | None
    gamma: int | None
    draft: str | None
    draft_latency_ms: float | None
    host_ms: float | None

    @property
    def first(self) -> str | None:
        """The first option that was given."""
        return next((f"--{name.replace('_', '-')}" for name, value in asdict(self).items() if value is not None), None)

    def acceptance(self) -> float | None:
        """The chance that a draft token is accepted; None where no draft is known."""
        from specbench.analysis.closed_forms import alpha_from_tokens

        if self.alpha is not None and self.tokens is not None:
            raise ConfigError("--alpha and --tokens say the same thing; give one of them")
        if (self.tokens is None) != (self.gamma is None):
            raise ConfigError("--tokens are those of a step of one gamma: give --tokens and --gamma together")
        has_time = self.draft is not None or self.draft_latency_ms is not None
        if has_time != (self.alpha is not None or self.tokens is not None):
            raise ConfigError(
                "of a known draft both must be said: how much is accepted (--alpha, or --tokens and --gamma) and how "
                "long a forward takes (--draft MODEL, measured now, or --draft-latency-ms)"
            )
        if self.tokens is None or self.gamma is None:
            return self.alpha
        if not 1 <= self.tokens <= self.gamma + 1:
            raise ConfigError(f"--tokens {self.tokens:g}: a step of gamma {self.gamma} emits 1 to {self.gamma + 1}")
        return alpha_from_tokens(self.tokens, self.gamma)


def design(
    target: Annotated[
        str, typer.Argument(help="The target: embedded, a folder, a hub id or random:SHAPE.", show_default=False)
    ],
    parameters: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT", help="Parameters of each shape, within 5 %, like 3.4M.", show_default="the known draft's"
        ),
    ] = None,
    max_ms: Annotated[
        float | None,
        typer.Option(min=0, help="Longest forward of one token, in milliseconds.", show_default="any"),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="LxHxAxF", help="A shape to look at besides, like 2x320x5x640. Repeatable."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Results of this machine: the fastest arm in it is to be beaten.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 1,
    cell: Annotated[
        str, typer.Option(help="Of --against: words in the cell's title, like 'T = 0.8'.", show_default=False)
    ] = "",
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Chance that a token of the known draft is accepted.", show_default=False),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Or: tokens of a step with it, at --gamma.", show_default=False)
    ] = None,
    gamma: Annotated[int | None, typer.Option(min=1, help="Draft tokens of that step.", show_default=False)] = None,
    draft: Annotated[
        str | None, typer.Option(help="The known draft, whose forward is measured.", show_default=False)
    ] = None,
    draft_latency_ms: Annotated[
        float | None, typer.Option(min=0, help="Or: milliseconds of its forward.", show_default=False)
    ] = None,
    host_ms: Annotated[
        float | None,
        typer.Option(min=0, help="Milliseconds of a step beside its forwards.", show_default="0; --against knows"),
    ] = None,
    largest_gamma: Annotated[int, typer.Option(min=1, help="The largest gamma to look at.")] = 8,
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Layers to look at. Repeatable.", show_default="1, 2, 3, 4, 6, 8, ... up to the target's"),
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option(help="Widths to look at. Repeatable.", show_default="every possible one")
    ] = None,
    head_width: Annotated[
        int | None, typer.Option(min=1, help="Width of an attention head.", show_default="the target's")
    ] = None,
    per_depth: Annotated[int, typer.Option(min=1, help="Shapes of each depth, at most, of equal parameters.")] = 3,
    keep: Annotated[int, typer.Option(min=1, help="Shapes to recommend, at most.")] = 4,
    context: Annotated[
        int | None, typer.Option(min=0, help="Tokens in the cache.", show_default=f"the run's; {_USUAL_CONTEXT}")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Visits of every shape; an interval takes six.")] = 20,
    burst: Annotated[int, typer.Option(min=1, help="Forwards of a visit.")] = 4,
    seed: Annotated[int, typer.Option(help="Decides the order and the tokens.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto.", show_default="the run's; auto")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.", show_default="the run's; 1")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of what is found.", show_default="results/design-TARGET/MACHINE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the draft's best shape on this machine: what each costs, and the acceptance with which it would win.

    Example: specbench design pico --against results/quickstart/MACHINE

    specbench design pico --max-ms 1.5 --alpha 0.6 --draft pico-wide

    What it writes goes on: specbench train draft FOLDER/shapes.yaml, then specbench run FOLDER/experiment.yaml
    """
    from specbench.bench.designs import Search
    from specbench.bench.latencies import Study
    from specbench.bench.machine import machine_slug
    from specbench.models.loader import placement
    from specbench.models.source import locate

    said = _Said(alpha, tokens, gamma, draft, draft_latency_ms, host_ms)
    if against is not None and said.first is not None:
        raise ConfigError(f"{said.first}: --against says what there is to beat; give one of the two")
    source = locate(target)
    machine = machine_settings(device, dtype or "auto", threads or 1)
    ask = _Ask(
        source=source,
        search=Search(
            parameters=None if parameters is None else _parameters(parameters),
            any_size=max_ms is not None,
            depths=tuple(depth or ()),
            widths=tuple(width or ()),
            head_dim=head_width,
            per_depth=per_depth,
            shapes=tuple(shape or ()),
        ),
        study=Study(
            (target,),
            batch_sizes=(batch_size,),
            context_tokens=(_USUAL_CONTEXT if context is None else context,),
            rounds=rounds,
            burst=burst,
            seed=seed,
            machine=machine,
        ),
        folder=out or Path("results") / f"design-{_slug(target)}" / machine_slug(placement(machine).device),
    )
    if ask.folder.exists() and not ask.folder.is_dir():
        raise ConfigError(f"--out {ask.folder}: this is a file; give a folder")
    if against is None:
        beside = _by_numbers(ask, said, largest_gamma)
    else:
        given = {"dtype": dtype, "threads": threads, "context": context}
        given = {name: value for name, value in given.items() if value is not None}
        beside = _by_run(ask, against, cell, largest_gamma, given)
    _finish(ask, beside, None if max_ms is None else max_ms / 1000, keep, as_json=as_json)


@dataclass(frozen=True)
class _Ask:
    """What is looked for, how it is measured, and where that is kept."""

    source: "Source"
    search: "Search"
    study: "Study"
    folder: Path

    def measured(self, study: "Study", known: str | None, largest_gamma: int) -> "pd.DataFrame":
        """Forward times of the candidates, of the target and of a known draft; see `bench.designs.measure_shapes`."""
        from specbench.bench.designs import candidates, measure_shapes

        length, most = max(study.context_tokens) + largest_gamma + 1, self.source.max_positions
        if most is not None and length > most:
            raise ConfigError(
                f"--context and --largest-gamma: {length:,} tokens exceed the {most:,} positions of {self.source.name}"
            )
        shapes = candidates(self._search(known), self.source)
        with announced() as say:
            return measure_shapes(
                shapes,
                self.source.name,
                study,
                self.folder,
                largest_gamma=largest_gamma,
                known=known,
                argv=sys.argv,
                say=say,
            )

    def _search(self, known: str | None) -> "Search":
        """For shapes as large as the known draft, where nothing else is asked for."""
        from specbench.models.source import locate

        search = self.search
        if search.parameters is not None or search.any_size or search.shapes:
            return search
        if known is None:
            raise ConfigError("say which shapes to look at: --parameters, --max-ms or --shape")
        return replace(search, parameters=locate(known).parameters)


@dataclass(frozen=True)
class _Beside:
    """What was measured, what has to be beaten, and what an experiment that is like it says."""

    rows: "pd.DataFrame"
    bar: "Bar"
    like: "Mapping[str, Any]"


def _by_run(ask: _Ask, against: Path, cell: str, largest_gamma: int, given: dict[str, Any]) -> _Beside:
    """Against the fastest arm of a run, under its settings; what is given must not contradict them."""
    from specbench.analysis.latencies import LatencyTable
    from specbench.bench.cells import target_sha
    from specbench.bench.machine import device_name
    from specbench.config import MachineSettings
    from specbench.models.loader import placement
    from specbench.report.cells import load
    from specbench.report.design_bars import check_same_setting, known_cell

    results, study = load(run_folder(against)), ask.study
    known = known_cell(results, ask.source.name, target_sha(ask.source), study.batch_sizes[0], cell)
    theirs = {name: known.setting[name] for name in ("dtype", "threads", "attention")}
    machine = MachineSettings.model_validate({"device": study.machine.device, **theirs})
    here = {"device": device_name(placement(machine).device)} | {name: given[name] for name in given if name in theirs}
    check_same_setting(results, known, here)
    context = given.get("context", known.context_tokens)
    study = replace(study, context_tokens=(context,), machine=machine)
    largest_gamma = max(largest_gamma, *known.best.contender.gammas)
    rows = ask.measured(study, known.draft, largest_gamma)
    return _Beside(rows, known.bar(LatencyTable(rows), ask.source.name, context, largest_gamma), known.experiment)


def _by_numbers(ask: _Ask, said: _Said, largest_gamma: int) -> _Beside:
    """Against a draft of which only numbers are known, or against decoding without one."""
    from specbench.analysis.latencies import LatencyTable
    from specbench.report.design_bars import Numbers

    alpha, study = said.acceptance(), ask.study
    rows = ask.measured(study, said.draft, largest_gamma)
    numbers = Numbers(
        alpha=alpha,
        name=said.draft or "the known draft",
        draft_s=None if said.draft_latency_ms is None else said.draft_latency_ms / 1000,
        host_s=(said.host_ms or 0.0) / 1000,
        largest_gamma=largest_gamma,
    )
    at = study.batch_sizes[0], study.context_tokens[0]
    return _Beside(rows, numbers.bar(LatencyTable(rows), ask.source.name, *at), {})


def _finish(ask: _Ask, beside: _Beside, budget_s: float | None, keep: int, *, as_json: bool) -> None:
    from specbench.report.design_tables import LEGEND, design_table, sentences
    from specbench.report.designs import EXPERIMENT, SHAPES, design_rows, judged, write_designs

    slug = _slug(ask.source.name)
    found = judged(beside.rows, beside.bar, ask.source.name, budget_s=budget_s, keep=keep, prefix=slug)
    written = write_designs(found, ask.folder, name=f"{slug}-drafts", like=beside.like)
    if as_json:
        print_json(design_rows(found))
    else:
        console = open_console()
        console.print(design_table(found))
        for sentence in sentences(found):
            console.print(sentence, highlight=False, markup=False)
        console.print(LEGEND, style="dim", highlight=False, markup=False)
        lines = [f"In {ask.folder}: {', '.join(path.name for path in written)}."]
        if found.recommended:
            shapes, experiment = ask.folder / SHAPES, ask.folder / EXPERIMENT
            lines.append(f"Next: specbench train draft {shapes}, then specbench run {experiment}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.failed["status"].isin({"oom", "timeout", "error"}).any():
        raise typer.Exit(FAILED_TRIALS)


def _parameters(text: str) -> int:
    """``3.4M``, ``796m``, ``1.3B`` or ``3400000``."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)([kmb]?)", text.replace(",", "").replace("_", "").lower())
    if found is None or (count := round(float(found[1]) * _SUFFIXES[found[2]])) < 1:
        raise ConfigError(f"--parameters {text}: write a number of them, like 3.4M, 1.3B or 3400000")
    return count


def _slug(model: str) -> str:
    """A model's name as a part of a file's: the last part of a path or hub id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.") or "target"
