"""What `specbench verify` shows: one line an arm, and the text around a divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from specbench.analysis.verdicts import ArmCheck, Divergence
from specbench.report.tables import MISSING, number, titled

Decode = Callable[[Sequence[int]], str]
"""Token ids as text."""

_CONTEXT = 12


def table(cell: str, checks: Sequence[ArmCheck]) -> Table:
    """One cell, as a terminal shows it."""
    shown = titled(cell)
    shown.add_column("arm", overflow="fold", min_width=18)
    for heading in ("texts", "equal", "near-tie", "WRONG", "first at", "worst gap", "tok/step"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("remarks", overflow="fold", min_width=20)
    for check in checks:
        shown.add_row(check.arm, *_cells(check), remark(check), style=_style(check))
    return shown


def _cells(check: ArmCheck) -> Iterator[str]:
    yield f"{check.requests:,}" if check.requests else MISSING
    counts = (check.equal, check.near_tie, check.wrong)
    if check.kind == "ids":
        yield from (str(count) for count in counts)
    else:
        yield from (MISSING,) * 3
    yield str(min(entry.position for entry in check.divergences)) if check.divergences else MISSING
    gap = check.divergences[0].gap if check.divergences else None
    yield MISSING if gap is None else f"{gap:.2g}"
    yield number(check.tokens_per_step)


def _style(check: ArmCheck) -> str:
    if check.wrong or check.faults or (check.failure and check.failure[0] != "unsupported"):
        return "red"
    if check.kind == "none" or check.failure:
        return "dim"
    if check.kind == "bias":
        return "yellow"
    return "yellow" if check.near_tie else ""


def remark(check: ArmCheck) -> str:
    """All that the counts do not say, in words."""
    parts = [*check.faults[:3]]
    if len(check.faults) > 3:
        parts.append(f"and {len(check.faults) - 3} faults more")
    if check.failure:
        parts.append(": ".join(check.failure))
    if check.note:
        parts.append(check.note)
    if check.positions:
        parts.append(_distribution(check))
    if check.kind == "ids" and check.tokens_per_step == 1 and not check.arm.startswith("autoregressive"):
        parts.append("no draft token was accepted, so little was tested")
    return "; ".join(parts)


def _distribution(check: ArmCheck) -> str:
    worst = min(check.positions, key=lambda test: test.p_value)
    where = f"least p {worst.p_value:.2g} at token {worst.position + 1}"
    if check.kind == "bias":
        moved = ", ".join(f"{100 * test.shift:.1f}" for test in check.positions)
        first, last = check.positions[0].position + 1, check.positions[-1].position + 1
        return f"moves {moved} % of the probability at tokens {first} to {last} ({where})"
    if check.wrong:
        return f"WRONG: not the target's distribution ({where})"
    finest = min(test.detectable for test in check.positions)
    coarsest = max(test.detectable for test in check.positions)
    shifts = f"{100 * finest:.0f} to {100 * coarsest:.0f} %" if coarsest - finest > 0.005 else f"{100 * finest:.0f} %"
    return (
        f"fits the target's distribution at tokens {check.positions[0].position + 1} to "
        f"{check.positions[-1].position + 1} ({where}); a shift of {shifts} of the probability would show"
    )


def context(check: ArmCheck, divergence: Divergence, decode: Decode) -> Text:
    """The text before a divergence, and the two ways in which it goes on."""
    at = divergence.position
    before = decode(divergence.output[max(0, at - _CONTEXT) : at])
    gap = "unknown" if divergence.gap is None else f"{divergence.gap:.3g}"
    return Text.assemble(
        (f"{check.arm}, prompt {divergence.prompt_id}: token {at + 1}, logit gap {gap}\n", "bold"),
        ("  before     ", "dim"),
        (f"{before!r}\n", "dim"),
        ("  reference  ", "dim"),
        (f"{decode(divergence.reference[at : at + _CONTEXT])!r}\n", "green"),
        ("  this arm   ", "dim"),
        (f"{decode(divergence.output[at : at + _CONTEXT])!r}\n", "red"),
    )


def as_data(check: ArmCheck) -> dict[str, Any]:
    """The check for a program to read."""
    return {
        "cell": check.cell, "arm": check.arm, "kind": check.kind, "texts": check.requests, "equal": check.equal,
        "near_tie": check.near_tie, "wrong": check.wrong, "tokens_per_step": check.tokens_per_step,
        "faults": list(check.faults), "failure": check.failure and ": ".join(check.failure), "note": check.note,
        "divergences": [
            {"prompt_id": entry.prompt_id, "position": entry.position, "gap": entry.gap} for entry in check.divergences
        ],
        "positions": [vars(test) for test in check.positions],
    }  # fmt: skip
