"""The report as one HTML file that needs nothing else: no network, no other file; light, dark, printable."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.report import phases, telemetry
from specbench.report.cells import Results
from specbench.report.findings import Answer, answers, findings
from specbench.report.limits import COLUMNS as LIMIT_COLUMNS
from specbench.report.metrics import LOOPING, Frames
from specbench.report.plots import FIGURES, Drawing, look_of, mark
from specbench.report.tables import COLUMNS, MORE_COLUMNS, Shown, as_html, plain_html
from specbench.report.words import counted, share

Images = Mapping[str, bytes]
"""Figure name -> the SVG, which follows the theme by itself."""

_MOST_ROWS = 1000
"""Rows of a table below a figure; the file in ``tables/`` has them all."""

_NUMBERS_BELOW = {
    "batch_size": "batch_size", "category": "category", "context_length": "prompt_tokens", "gamma": "gamma",
    "width": "width", "length": "length", "temperature": "temperature",
}  # fmt: skip

_SECTIONS = {
    "telemetry": ("What the GPU did", f"{telemetry.READING} The same is in tables/telemetry.csv."),
    "models": (
        "Models",
        "Shapes as the tensors have them: a name that says another size is not believed. Where weights are random, the "
        "times are the shape's. More in tables/models.csv.",
    ),
    "composed_arms": (
        "Arms that were not run",
        "Composed of a trace, forward times and the autoregressive arm; how far that can be trusted is seen where the "
        "same is measured. More in tables/composed_arms.csv.",
    ),
    "left_out": (
        "Not composed",
        "A composed point needs a trace and forward times of its cell; these had none that fit.",
    ),
}
"""Tables without a figure: frame -> heading, and how to read it."""


def page(results: Results, frames: Frames, images: Images, warnings: Sequence[str]) -> str:
    """The whole report; `images` are embedded, so the file stands alone."""
    title = html.escape(f"{results.experiment} on {results.machine}")
    style = look_of(frames)
    marks = {arm: mark(style, arm) for arm in style.colours}
    body = [
        f"<h1>{title}</h1>",
        f'<p class="facts">{html.escape(facts(results))}</p>',
        _contents(images, frames),
        *_summary(answers(results, frames)),
        _warning_box(warnings),
        *_overview(frames, marks),
        *(_figure(name, FIGURES[name], (svg, _numbers(name, frames, marks))) for name, svg in images.items()),
        *_sections(frames),
        *_by_cell(results, frames),
        *_loops(frames, marks),
        '<h2 id="provenance">Where this comes from</h2>',
        *_provenance(results),
        "<dialog></dialog>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title} - specbench</title><link rel="icon" href="data:,">'
        f"<style>{_asset('page.css')}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def facts(results: Results) -> str:
    """Target, hardware, data type and prompts in one line: what every figure of the run has in its footer."""
    rows = results.requests
    if rows.empty:
        return _facts_without_requests(results)
    parts = [
        f"target {_listed(rows['target'])}",
        f"{_listed(rows['dtype'])} on {_listed(rows['device'])}",
        f"CPU threads: {_listed(rows['threads'])}",
        f"prompts: {rows['prompt_id'].nunique()} from {_listed(rows['dataset'].fillna('an unnamed source'))}",
        f"new tokens: up to {_listed(rows['max_new_tokens'])}",
        f"repeats: {rows['repeat'].nunique()}",
        f"processes: {rows['process'].nunique()}",
    ]
    return "; ".join(parts) + "."


def _facts_without_requests(results: Results) -> str:
    tables = {"forwards": results.latencies, "scores": results.scores}
    known = [rows for rows in tables.values() if len(rows)]
    parts = [f"{name} of {counted(rows['model'].nunique(), 'model')}" for name, rows in tables.items() if len(rows)]
    parts += [f"traces of {counted(len(results.traces), 'draft')}"] if results.traces else []
    if known:
        first = known[0]
        parts.append(f"{_listed(first['dtype'])} on {_listed(first['device'])}")
        parts.append(f"CPU threads: {_listed(first['threads'])}")
    return "; ".join(parts) + "."


def _listed(values: pd.Series) -> str:
    return " and ".join(str(value) for value in values.unique())


def _contents(images: Images, frames: Frames) -> str:
    has_runs = len(frames.summary) > 0
    places = {"summary": "Summary"} | ({"numbers": "Numbers"} if has_runs else {})
    places |= {name: FIGURES[name].heading for name in images}
    places |= {_anchor(name): heading for name, (heading, _) in _SECTIONS.items() if len(getattr(frames, name))}
    places |= {"cells": "By cell"} if has_runs else {}
    places |= {"loops": "Texts that loop"} if len(frames.loops) else {}
    places |= {"provenance": "Where this comes from"}
    links = "".join(f'<li><a href="#{name}">{html.escape(heading)}</a></li>' for name, heading in places.items())
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _summary(found: list[Answer]) -> Iterator[str]:
    yield '<section id="summary"><h2>Summary</h2>'
    for number, answer in enumerate(found, 1):
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in answer.sentences)
        yield f"<h3>{number}. {html.escape(answer.question)}</h3><ul>{items}</ul>"
    yield "</section>"


def _overview(frames: Frames, marks: Mapping[str, str]) -> Iterator[str]:
    if frames.summary.empty:
        return
    yield '<h2 id="numbers">Numbers</h2>'
    yield (
        '<p class="note">Press a heading to sort; hold the pointer on it for its meaning. '
        "Speeds are of the headline pass. Full precision is in tables/summary.csv.</p>"
    )
    yield as_html(frames.summary, COLUMNS, marks)
    yield f"<details><summary>More columns</summary>{as_html(frames.summary, MORE_COLUMNS, marks)}</details>"
    yield _legend()


def _sections(frames: Frames) -> Iterator[str]:
    for name, (heading, note) in _SECTIONS.items():
        frame = getattr(frames, name)
        if len(frame):
            yield f'<h2 id="{_anchor(name)}">{heading}</h2><p class="note">{html.escape(note)}</p>{plain_html(frame)}'


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _warning_box(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="warnings"><h2>Before you use these numbers</h2><ul>{items}</ul></section>'


def _figure(name: str, drawing: Drawing, content: tuple[bytes, str]) -> str:
    svg, numbers = content
    heading = html.escape(drawing.heading)
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return (
        f'<figure id="{name}"><h2>{heading}</h2>'
        f'<button class="enlarge" aria-label="Enlarge the figure: {heading}">'
        f'<img src="{source}" alt="{html.escape(drawing.title)}"></button>'
        f"<figcaption><p><b>How to read it:</b> {html.escape(drawing.reading)}</p>"
        f"<p>Drawn from {html.escape(drawing.rows)}; also in figures/{name}.png and .svg, "
        f"numbers in {drawing.table}.</p>"
        f"</figcaption>{numbers}</figure>"
    )


def _numbers(name: str, frames: Frames, marks: Mapping[str, str]) -> str:
    """The numbers of a figure, folded away; those of the first one stand above it already."""
    frame = {
        "alpha_against_latency": frames.costs[frames.costs["alpha"].notna()],
        "step_time": phases.shown(frames.phases),
        "limits": frames.summary[["title", "arm", "step_s", *LIMIT_COLUMNS]].dropna(subset="step_of_limit"),
        "acceptance": frames.positions,
        "accepted_lengths": frames.lengths,
        "published": frames.published,
        "beam_shape": frames.beams.drop(columns="group"),
        "prefix_tree": frames.beams[frames.beams["beam_nodes"].notna()].drop(columns="group"),
        "rules": frames.rules,
        "draft_latency": frames.latency_axis[frames.latency_axis["kind"] != "line"],
        "drafts": frames.best_drafts,
        "draft_depth": frames.depths.drop(columns="panel"),
        "lookahead": frames.drafts,
        "step_by_draft": frames.best_drafts,
        "skill": frames.skill,
        "forward_depth": frames.forward_lines[frames.forward_lines["along"] == "depth"],
        "forward_tokens": frames.forwards,
        "forward_width": frames.forward_lines[frames.forward_lines["along"] == "width"],
        "changes": frames.changes,
        "predicted": frames.composed if len(frames.composed) else frames.forecasts,
    }.get(name)
    if name in _NUMBERS_BELOW:
        frame = frames.along[frames.along["axis"] == _NUMBERS_BELOW[name]].drop(columns=["axis", "panel", "x"])
        frame = frame.rename(columns={"label": _NUMBERS_BELOW[name]})
    if frame is None:
        return ""
    cut = f"<p>The first {_MOST_ROWS} of {len(frame):,} rows.</p>" if len(frame) > _MOST_ROWS else ""
    return f"<details><summary>Its numbers</summary>{cut}{plain_html(frame.head(_MOST_ROWS), marks)}</details>"


def _by_cell(results: Results, frames: Frames) -> Iterator[str]:
    if frames.summary.empty:
        return
    yield '<h2 id="cells">By cell</h2>'
    for title, sentences in findings(results, frames):
        first, rest = html.escape(sentences[0]), html.escape(" ".join(sentences[1:]))
        yield f"<h3>{html.escape(title)}</h3><p><b>{first}</b> {rest}</p>"
    yield f'<p class="note">Intervals speak of {html.escape(results.estimand)}.</p>'


def _loops(frames: Frames, marks: Mapping[str, str]) -> Iterator[str]:
    if frames.loops.empty:
        return
    yield '<h2 id="loops">Texts that loop</h2>'
    yield (
        f"<p>{counted(len(frames.loops), 'text')} of which more than {share(LOOPING)} of the 4-grams occurred before; "
        "a loop is easy to draft, so such texts flatter every drafter. All are in tables/loops.csv.</p>"
    )
    yield f"<details><summary>The worst</summary>{plain_html(frames.loops.head(50), marks)}</details>"


def _legend() -> str:
    columns: dict[str, Shown] = {column.heading: column for column in (*COLUMNS, *MORE_COLUMNS)}
    items = "".join(
        f"<li><b>{html.escape(heading)}</b>: {html.escape(column.meaning)}</li>" for heading, column in columns.items()
    )
    return f"<details><summary>What the columns mean</summary><ul>{items}</ul></details>"


def _provenance(results: Results) -> Iterator[str]:
    if results.runs.empty:
        yield "<p>No runs.parquet: not known.</p>"
        return
    for run in results.runs.to_dict("records"):
        known = {
            "run": run["run_id"], "started": run["started_at"], "status": run["status"],
            "commit": f"{run['git_sha'] or 'unknown'}{' with changes' if run['git_dirty'] else ''}",
            "command": _command(run["argv"]), "device": run["device"], "CPU threads": run["threads"],
            "seed": run["seed"], "schema version": run["schema_version"],
            "measurement version": run["measurement_version"],
        }  # fmt: skip
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in known.items())
        yield f'<div class="scroll" tabindex="0"><table>{rows}</table></div>'
        for name in ("machine", "versions", "experiment", "notes"):
            text = html.escape(_pretty(run[name]))
            yield f"<details><summary>{name}</summary><pre>{text}</pre></details>"


def _command(argv: str) -> str:
    parsed = json.loads(argv)
    return " ".join(map(str, parsed)) if isinstance(parsed, list) else str(parsed)


def _pretty(text: Any) -> str:
    """JSON with indentation; anything else as it stands."""
    try:
        return json.dumps(json.loads(text), indent=2)
    except (TypeError, ValueError):
        return str(text)
