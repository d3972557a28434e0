"""Shapes for a draft as a terminal shows them."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from specbench.analysis.design import Design
from specbench.config import brief
from specbench.report.designs import Found, alpha_of, to_beat
from specbench.report.tables import MISSING, TIMES, number, significant
from specbench.report.words import counted

LEGEND = (
    "forward: one token a row, with its 95 % interval. needs: the acceptance of a draft token, were it the same at "
    "every position, with which the shape is as fast as what is fastest so far, at the gamma that is best by then. "
    "pays: the same against autoregressive decoding. alike: its speed over that of the fastest so far, were as much "
    "accepted as of the best known draft. *: on the front, no other is faster with as many layers and parameters. "
    "Bold: recommended."
)
"""What the columns mean."""


def design_table(found: Found) -> Table:
    """One line a shape, by depth and latency; the known draft first."""
    title = f"drafts for {brief(found.target)}, against {found.bar.rival}"
    table = Table(
        title=Text(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    table.add_column("shape", overflow="fold", min_width=16)
    for heading in ("", "parameters", "forward ms", "needs", "at gamma", "pays", "alike"):
        table.add_column(heading, justify="right", no_wrap=True)
    if found.known is not None:
        table.add_row(*map(Text, _cells(found.known, brief(str(found.bar.draft)), "known")), style="dim")
    best = set(found.recommended.values())
    for entry in found.designs:
        mark = "*" if entry.on_front else "" if entry.within_budget else "too slow"
        style = "bold" if entry in best else None if entry.within_budget else "dim"
        table.add_row(*map(Text, _cells(entry, entry.shape, mark)), style=style)
    return table


def _cells(entry: Design, name: str, mark: str) -> list[str]:
    forward = entry.forward
    low, high = (significant(1000 * value) for value in (forward.low, forward.high))
    return [
        name,
        mark,
        f"{entry.parameters:,}",
        f"{significant(1000 * forward.value)} ({low} to {high})",
        number(alpha_of(entry.needed)) if entry.needed else "never",
        str(entry.needed.gamma) if entry.needed else MISSING,
        number(alpha_of(entry.pays)) if entry.pays else "never",
        number(entry.gain, 2, TIMES),
    ]


def sentences(found: Found) -> list[str]:
    """What to take from it."""
    bar, said = found.bar, [to_beat(found)]
    if not found.recommended:
        said.append("No shape is worth training: even with all of its tokens accepted none would be as fast.")
        return [*said, *_failures(found)]
    name, entry = next(iter(found.recommended.items()))
    assert entry.needed is not None  # or it would not be recommended
    needs = f"{entry.shape} needs the least acceptance, {number(entry.needed.alpha)}"
    if bar.alpha is not None and entry.needed.alpha is not None:
        how = "less" if entry.needed.alpha < bar.alpha else "more"
        needs += f", {how} than the best known draft has"
    said.append(f"Worth training: {', '.join(found.recommended)}. Of these {needs}.")
    largest = max(bar.rest_s)
    if entry.needed.gamma == largest:
        said.append(f"Gamma {largest} is the largest that was looked at; {name} may need less at a larger one.")
    return [*said, *_failures(found)]


def _failures(found: Found) -> list[str]:
    return [
        f"{counted(len(own), 'shape')} could not be measured: {reason}."
        for reason, own in found.failed.groupby("reason", sort=False)
    ]
