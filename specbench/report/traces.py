"""Traces as a terminal shows them: tokens per step of every gamma, of the oracle and of stop rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from specbench.analysis.replay import Comparison, Replay, replay
from specbench.analysis.stop_rules import Fixed, Oracle, StopRule
from specbench.analysis.traces import EXACT_RULES, Trace
from specbench.report.tables import MISSING, number, percent, titled
from specbench.report.words import counted

NOTE = (
    "tok/step: tokens a step, the target's own included, cut at EOS and length; its interval speaks of prompts like "
    "these. in a batch: a row waits until the slowest of its batch has ended. alpha: the chance that a draft's first "
    "token is accepted. exact: a run takes these very steps; expected: what many runs come to."
)
"""What the columns mean."""


def replays(trace: Trace, stops: Sequence[StopRule]) -> list[Replay]:
    """Every gamma as far as the trace goes, the oracle, then the stop rules."""
    most = trace.provenance.gamma_max
    rules: list[StopRule] = [Fixed(length) for length in range(1, most + 1)]
    return [replay(trace, rule) for rule in (*rules, Oracle(most), *stops)]


def trace_table(trace: Trace, found: Sequence[Replay], batch_sizes: Sequence[int]) -> Table:
    """One trace: a line for each way to draft, a column for each size of a batch."""
    shown = titled(_title(trace))
    shown.add_column("drafts", overflow="fold", min_width=16)
    for heading in (
        "tok/step",
        "95 % interval",
        "drafted/step",
        "accepted",
        *(f"in a batch of {n}" for n in batch_sizes),
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in found:
        interval = entry.interval
        shown.add_row(
            entry.label,
            number(entry.block_efficiency),
            MISSING if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
            number(entry.drafted_per_step),
            percent(entry.acceptance_rate),
            *(number(entry.batch_efficiency(size)) for size in batch_sizes),
        )
    return shown


def _title(trace: Trace) -> str:
    tokens = sum(text.output_tokens for text in trace.texts)
    prompts = counted(len(trace.texts), "prompt")
    if not trace.is_complete:
        prompts = f"{len(trace.texts)} of {counted(trace.prompts, 'prompt')}"
    said = f"{trace.provenance.title}: {prompts}, {counted(tokens, 'token')}, alpha {number(trace.alpha)}"
    if trace.provenance.rule not in EXACT_RULES:
        return f"{said}; expected"
    return f"{said}; exact" if trace.is_exact else f"{said}; exact but for near ties"


def as_data(trace: Trace, found: Sequence[Replay], batch_sizes: Sequence[int]) -> dict[str, Any]:
    """The same for a program to read."""
    return {
        **asdict(trace.provenance),
        "prompts": trace.prompts,
        "recorded": len(trace.texts),
        "exact": trace.is_exact,
        "alpha": trace.alpha,
        "replays": [_replay_data(entry, batch_sizes) for entry in found],
    }


def _replay_data(entry: Replay, batch_sizes: Sequence[int]) -> dict[str, Any]:
    interval = entry.interval
    return {
        "drafts": entry.label,
        "gamma": entry.gamma,
        "steps": entry.steps,
        "block_efficiency": entry.block_efficiency,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "block_efficiency_uncut": entry.block_efficiency_uncut,
        "drafted_per_step": entry.drafted_per_step,
        "acceptance_rate": entry.acceptance_rate,
        "batch_efficiency": {size: entry.batch_efficiency(size) for size in batch_sizes},
    }


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Arms of a run beside their replays."""
    shown = titled("measured, and replayed from the trace")
    shown.add_column("cell", overflow="fold")
    shown.add_column("arm", overflow="fold", min_width=16)
    for heading in ("tok/step", "replayed", "rows", "equal in every step"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in found:
        equal = MISSING if entry.equal is None else f"{entry.equal:,}"
        measured = number(entry.measured, 3), number(entry.replayed, 3)
        shown.add_row(entry.cell, entry.arm, *measured, f"{entry.rows:,}", equal)
    return shown
