"""Outcomes as rows of the tables in ``specbench.records.schema``; what a report can derive is not computed here."""

from dataclasses import asdict, dataclass
from typing import Any

from specbench.bench.arms import Failure, Measured, Outcome, Pass
from specbench.bench.cells import Block, ReadyCell, loaded_names
from specbench.bench.conditions import Conditions
from specbench.bench.lossless import Verdict, claims, repeat_ngram_share
from specbench.bench.machine import as_json, device_name
from specbench.bench.memory import MemoryUse
from specbench.decode.acceptance import Rule
from specbench.decode.trace import RowTrace
from specbench.grid import AUTOREGRESSIVE, Arm
from specbench.records.schema import blank_row

Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where in a run a batch stands.

    Attributes:
        run_id: The run.
        process: Which of its processes, from 0.
        cell: The cell.
        block: The batch of prompts.
        repeat: Which repetition, from 0.
        arm: What ran.
        order: The arm's position in the order of its block.
        which: The pass.
        attention: The backend that really ran.
        rule: What decided on the arm's drafts.
    """

    run_id: str
    process: int
    cell: ReadyCell
    block: Block
    repeat: int
    arm: Arm
    order: int
    which: Pass
    attention: str
    rule: Rule

    @property
    def trial_id(self) -> str:
        """The trial that the batch belongs to."""
        return self.cell.trial_ids[self.arm.name]

    @property
    def drafts(self) -> bool:
        """Whether there is anything for the rule to decide on."""
        return self.arm.method != AUTOREGRESSIVE

    @property
    def batch_id(self) -> str:
        """Names the timed generation."""
        return f"{self.trial_id}-b{self.block.index}-r{self.repeat}-{self.which}-p{self.process}"


def request_rows(
    place: Place, outcome: Outcome, verdicts: list[Verdict], conditions: Conditions, memory: MemoryUse
) -> list[Row]:
    """One row a prompt, whether it was measured or not."""
    shared = _shared(place) | asdict(conditions) | asdict(memory)
    rows = []
    for index, prompt in enumerate(place.block.prompts):
        row = {
            **shared,
            "row": index,
            "category": prompt.category,
            "prompt_id": prompt.id,
            "turn": prompt.turn,
            "prompt_tokens": len(prompt.ids) or None,
        }
        if isinstance(outcome, Failure):
            row |= {"status": outcome.status, "reason": outcome.reason}
        else:
            row |= {"status": "ok", **_measured(outcome, outcome.trace.rows[index], verdicts[index])}
        rows.append(row)
    return rows


def _shared(place: Place) -> Row:
    cell, decode, rule = place.cell, place.cell.cell.decode, place.rule
    latency = place.arm.draft_latency_ms
    return {
        **blank_row("requests"),
        "run_id": place.run_id,
        "trial_id": place.trial_id,
        "cell": cell.name,
        "method": place.arm.method,
        "label": place.arm.label,
        "arm": place.arm.name,
        "options": as_json(place.arm.options),
        "target": cell.cell.target.name,
        "draft": ", ".join(loaded_names(place.arm)) or None,
        "dtype": cell.where.dtype_name,
        "device": device_name(cell.where.device),
        "threads": cell.cell.machine.threads,
        "attention": place.attention,
        "execution": cell.cell.machine.execution(cell.where.device.type),
        "captured_phases": "",
        "compiled_phases": "",
        "batch_size": decode.batch_size,
        "batch_id": place.batch_id,
        "block": place.block.index,
        "repeat": place.repeat,
        "order_in_block": place.order,
        "pass": place.which,
        "process": place.process,
        "dataset": cell.prompts.dataset,
        "temperature": decode.temperature,
        "rule": rule.name,
        "lossless": claims(rule, drafts=place.drafts),
        "seed": decode.seed,
        "max_new_tokens": decode.max_new_tokens,
        "latency_mode": "measured" if latency is None else "injected",
        "draft_latency_ms": latency,
        "simulated_acceptance": rule.simulated,
        "target_sha": cell.target_sha,
        "prompts_sha": cell.prompts.sha,
    }


def _measured(outcome: Measured, row: RowTrace, verdict: Verdict) -> Row:
    return {
        **decoded(outcome, row),
        "verdict": verdict.word,
        "first_divergence": verdict.first_divergence,
        "divergence_gap": verdict.gap,
    }


def decoded(outcome: Measured, row: RowTrace) -> Row:
    """What one request came to, and when: all that needs no other arm."""
    return {
        "captured_phases": ",".join(outcome.trace.captured_phases),
        "compiled_phases": ",".join(outcome.trace.compiled_phases),
        "output_ids": row.output_ids,
        "output_tokens": len(row.output_ids),
        "prefill_tokens": row.prefill_tokens,
        "finish_reason": row.finish_reason,
        "overshoot_tokens": row.overshoot_tokens,
        "steps": row.steps,
        "drafted_tokens": sum(row.drafted_depth_per_step),
        "accepted_tokens": sum(row.accepted_per_step),
        "accepted_per_step": row.accepted_per_step,
        "drafted_depth_per_step": row.drafted_depth_per_step,
        "drafted_nodes_per_step": row.drafted_nodes_per_step,
        "prefill_s": outcome.timing.prefill_s,
        "ttft_s": outcome.timing.ttft_s,
        "decode_s": outcome.timing.decode_s,
        "row_done_s": outcome.timing.row_done_s(row.steps),
        "repeat_ngram_share": repeat_ngram_share(row.output_ids),
    }


def step_rows(place: Place, outcome: Outcome) -> list[Row]:
    """One row a step of a batch of the phase pass; none for a batch that failed."""
    if isinstance(outcome, Failure):
        return []
    trace = outcome.trace
    return [
        {
            "run_id": place.run_id,
            "trial_id": place.trial_id,
            "batch_id": place.batch_id,
            "cell": place.cell.name,
            "arm": place.arm.name,
            "method": place.arm.method,
            "step": index,
            "draft_s": times.draft_s,
            "verify_s": times.verify_s,
            "accept_s": times.accept_s,
            "update_s": times.update_s,
            "host_s": times.host_s,
            "step_s": times.step_s,
            "launch_s": times.launch_s,
            "syncs": trace.syncs_per_step[index],
            "nodes": sum(row.drafted_nodes_per_step[index] for row in trace.rows if row.steps > index),
            "rows_active": sum(row.steps > index for row in trace.rows),
            "emitted_tokens": sum(row.emitted_per_step[index] for row in trace.rows if row.steps > index),
        }
        for index, times in enumerate(outcome.timing.steps)
    ]
