"""The report as one HTML file that needs nothing else: no network, no other file; light, dark, printable."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from specbench.report.metrics import Frames, Results
from specbench.report.tables import COLUMNS, MORE_COLUMNS, Shown, as_html
from specbench.report.words import findings, warnings

Images = Mapping[str, Mapping[str, bytes]]
"""Figure name -> theme -> the SVG."""

_CAPTIONS = {
    "speedup": (
        "Speed-up",
        "Seconds per decoded token of the core's autoregressive arm over those of each arm, on the same "
        "prompts and in the same blocks. Large marks are all batches together with their 95 % interval, "
        "small dots the single timed batches. The band at 1 is the A/A noise floor: what the same work "
        "measured twice differs by. Hollow marks do not keep the target's text. An interval needs four "
        "batches of prompts.",
    ),
    "tokens_against_efficiency": (
        "Tokens per second against tokens per step",
        "Speed is block efficiency over step time, so each ray through the origin is one step time: an "
        "arm moves along its ray when more is accepted, and to a steeper one when its step gets shorter. "
        "Large marks are all batches, dots the single ones.",
    ),
    "step_time": (
        "Where a step's time goes",
        "Mean decode step by phase, from the phase pass; at the right its wall time and the tokens that "
        "it emits per row. Host is the wall time that no phase accounts for.",
    ),
    "acceptance": (
        "Acceptance by position",
        "Above: how often a step keeps at least so many draft tokens, over all steps. Below: how often a "
        "position is accepted once it was drafted and all before it were accepted; points that rest on "
        "fewer than 20 steps are left out.",
    ),
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --paper: #fff; --quiet: #6b7280; --line: #e2e4e9;
  --soft: #f5f6f8; --warn: #fff6e5; --warn-line: #e0a100; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181d; --quiet: #9aa1ac;
  --line: #333842; --soft: #1f2229; --warn: #2e2716; --warn-line: #b98900; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 2rem 1.5rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p, li { max-width: 78ch; } p { margin: .4rem 0; } ul { margin: .3rem 0; padding-left: 1.2rem; }
.facts, figcaption, .note { color: var(--quiet); font-size: .9rem; }
.warnings { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .6rem 1rem;
  margin: 1.2rem 0; }
.warnings h2 { margin: 0; font-size: 1rem; }
figure { margin: .6rem 0 0; } figure img { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.arm { overflow-wrap: anywhere; min-width: 15rem; } td.cell { white-space: nowrap; }
th { background: var(--soft); white-space: nowrap; }
.sortable th { cursor: pointer; } .sortable th[aria-sort=ascending]::after { content: " \\2191"; }
.sortable th[aria-sort=descending]::after { content: " \\2193"; }
tr.quiet td { color: var(--quiet); }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 8px; } th, td { padding: 2px 4px; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.children[column].dataset.key;
    const order = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : (up ? 1 : -1) *
      (isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b));
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
"""


def page(results: Results, frames: Frames, images: Images) -> str:
    """The whole report; `images` are embedded, so the file stands alone."""
    title = html.escape(f"{results.experiment} on {results.machine}")
    body = [
        f"<h1>{title}</h1>",
        f'<p class="facts">{html.escape(_facts(results))}</p>',
        _warning_box(warnings(results, frames)),
        "<h2>What was found</h2>",
        *_finding_parts(results, frames),
        *(_figure(name, images[name]) for name in _CAPTIONS if name in images),
        "<h2>Numbers</h2>",
        '<p class="note">Click a heading to sort; hold the pointer on it for its meaning. '
        "Speeds are of the headline pass. Full precision is in tables/summary.csv.</p>",
        as_html(frames.summary, COLUMNS),
        "<h3>More</h3>",
        as_html(frames.summary, MORE_COLUMNS),
        _legend(),
        "<h2>Where this comes from</h2>",
        *_provenance(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} - specbench</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _facts(results: Results) -> str:
    rows = results.requests
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


def _listed(values: pd.Series) -> str:
    return " and ".join(str(value) for value in values.unique())


def _warning_box(sentences: list[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="warnings"><h2>Before you use these numbers</h2><ul>{items}</ul></section>'


def _finding_parts(results: Results, frames: Frames) -> list[str]:
    parts = []
    for title, sentences in findings(results, frames):
        first, rest = html.escape(sentences[0]), html.escape(" ".join(sentences[1:]))
        parts.append(f"<h3>{html.escape(title)}</h3><p><b>{first}</b> {rest}</p>")
    scope = "Intervals speak of prompts like these on this machine"
    if results.requests["process"].nunique() < 2:
        scope += "; they come from one process and exclude run-to-run variation"
    return [*parts, f'<p class="note">{scope}.</p>']


def _figure(name: str, themes: Mapping[str, bytes]) -> str:
    heading, caption = _CAPTIONS[name]
    light, dark = (_data_uri(themes[theme]) for theme in ("light", "dark"))
    return (
        f'<figure id="{name}"><h2>{heading}</h2><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{heading}"></picture>'
        f"<figcaption><p>{html.escape(caption)}</p></figcaption></figure>"
    )


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _legend() -> str:
    columns: dict[str, Shown] = {column.heading: column for column in (*COLUMNS, *MORE_COLUMNS)}
    items = "".join(
        f"<li><b>{html.escape(heading)}</b>: {html.escape(column.meaning)}</li>" for heading, column in columns.items()
    )
    return f"<details><summary>What the columns mean</summary><ul>{items}</ul></details>"


def _provenance(results: Results) -> list[str]:
    if results.runs.empty:
        return ["<p>No runs.parquet: not known.</p>"]
    parts = []
    for run in results.runs.to_dict("records"):
        facts = {
            "run": run["run_id"], "started": run["started_at"], "status": run["status"],
            "commit": f"{run['git_sha'] or 'unknown'}{' with changes' if run['git_dirty'] else ''}",
            "command": _command(run["argv"]), "device": run["device"], "CPU threads": run["threads"],
            "seed": run["seed"], "schema version": run["schema_version"],
            "measurement version": run["measurement_version"],
        }  # fmt: skip
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
        parts.append(f'<div class="scroll"><table>{rows}</table></div>')
        for name in ("machine", "versions", "experiment", "notes"):
            text = html.escape(_pretty(run[name]))
            parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return parts


def _text(value: Any) -> str:
    return html.escape(str(value))


def _command(argv: str) -> str:
    parsed = json.loads(argv)
    return " ".join(map(str, parsed)) if isinstance(parsed, list) else str(parsed)


def _pretty(text: Any) -> str:
    """JSON with indentation; anything else as it stands."""
    try:
        return json.dumps(json.loads(text), indent=2)
    except (TypeError, ValueError):
        return str(text)
