"""Each arm's step beside the least time that the machine allows for it, and why it stays far above where it does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from specbench.analysis import acceptance
from specbench.analysis.bottlenecks import FAR_BELOW, Step, likely_cause
from specbench.analysis.roofline import Load, StepLimit, hardware_of, is_cpu, products_s, step_limit
from specbench.config import PIECES
from specbench.records.schema import PHASES
from specbench.report.cells import BASELINE, TWIN, Results
from specbench.report.words import Row, milliseconds, named_some, share

COLUMNS = (
    "draft_limit_ms", "verify_limit_ms", "step_limit_ms", "verify_of_limit", "step_of_limit", "limit_cause",
    "limit_reason",
)  # fmt: skip
"""What is added to a row of the summary; all None where nothing was counted, the last two also above `FAR_BELOW`."""

_MS = 1e3
_ROUGHLY = 0.05
"""By how much a step may beat its limit before that is said: neither of the two is exact."""


@dataclass(frozen=True)
class _Known:
    """An arm's limit, and what it follows from."""

    counted: Mapping[Any, Any]
    ceiling: Mapping[Any, Any]
    load: Load
    limit: StepLimit

    def verify_gap_ms(self, row: Row) -> float | None:
        """How far the verification lies above its limit."""
        return None if row["verify_ms"] is None else row["verify_ms"] - _MS * self.limit.verify_s


class Limits:
    """What a folder knows of limits, to be added to the rows of its summary.

    Args:
        results: The folder.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._counted = {(row["cell"], row["arm"]): row for row in results.limits.to_dict("records")}
        self._ceilings = {row["ceiling_id"]: row for row in results.ceilings.to_dict("records")}

    @cached_property
    def _cores(self) -> int | None:
        """Of the machine, as its latest run saw them."""
        for text in [] if self._results.runs.empty else reversed(self._results.runs["machine"].tolist()):
            found = json.loads(text) if isinstance(text, str) else {}
            if isinstance(found, dict) and isinstance(found.get("cores"), int):
                return int(found["cores"])
        return None

    def add(self, cell: list[dict[str, Any]], timed: Mapping[str, pd.DataFrame], phases: pd.DataFrame) -> None:
        """Add the `COLUMNS` to every row of one cell.

        Args:
            cell: Rows of the summary.
            timed: By arm, the requests that speeds are taken from.
            phases: Phase times by cell title and arm, as index.
        """
        known = {row["arm"]: found for row in cell if (found := self._known(row, timed[row["arm"]])) is not None}
        baseline = next((row for row in cell if row["arm"] == BASELINE and BASELINE in known), None)
        single_gap_ms = None if baseline is None else known[BASELINE].verify_gap_ms(baseline)
        for row in cell:
            row |= _columns(row, known.get(row["arm"]))
            if _is_far_below(row):
                step = self._step(row, known[row["arm"]], timed[row["arm"]], phases, single_gap_ms)
                cause = likely_cause(step)
                row |= {"limit_cause": cause.name, "limit_reason": cause.words}

    def _counted_of(self, row: Row) -> Mapping[Any, Any] | None:
        """What was counted of an arm; whoever drafts nothing moves what the core's own autoregressive arm does."""
        own = self._counted.get((row["cell"], row["arm"]))
        if own is None and (row["arm"] == TWIN or row["depth_per_step"] == 0):
            return self._counted.get((row["cell"], BASELINE))
        return own

    def _known(self, row: Row, own: pd.DataFrame) -> _Known | None:
        counted, load = self._counted_of(row), _load(row, own)
        if counted is None or load is None or counted["verify_ceiling"] not in self._ceilings:
            return None
        ceiling, draft = self._ceilings[counted["verify_ceiling"]], self._ceilings.get(counted["draft_ceiling"])
        drafting = None if draft is None else hardware_of(draft)
        return _Known(counted, ceiling, load, step_limit(counted, load, hardware_of(ceiling), drafting))

    def _step(
        self, row: Row, known: _Known, own: pd.DataFrame, phases: pd.DataFrame, single_gap_ms: float | None
    ) -> Step:
        ceiling, limit = known.ceiling, known.limit
        enqueued_ms = phases.loc[(row["title"], row["arm"]), "launch_ms"]
        alone_s, in_graph_s = products_s(ceiling, known.load.verified), _or_none(ceiling["captured_launch_s"])
        return Step(
            phase_ms={phase: row[f"{phase}_ms"] for phase in PHASES},
            limit_ms={"draft": _MS * limit.draft_s, "verify": _MS * limit.verify_s},
            launches={phase: known.counted[f"{phase}_launches"] for phase in PHASES if phase != "host"},
            launch_ms=_MS * ceiling["launch_s"],
            captured_launch_ms=None if in_graph_s is None else _MS * in_graph_s,
            enqueued_ms=_or_none(enqueued_ms),
            captured=_listed(row["captured_phases"]),
            compiled=_listed(row["compiled_phases"]) | _compiled_in_part(row, known.counted),
            is_cpu=is_cpu(row["device"]),
            dtype=row["dtype"],
            attention=row["attention"],
            threads=int(row["threads"]),
            cores=self._cores,
            wait_share=_or_none(own["cpu_wait_share"].mean()),
            products_ms=None if alone_s is None else _MS * alone_s,
            read_over_copy=ceiling["read_bytes_per_s"] / ceiling["copy_bytes_per_s"],
            kv_share=limit.kv_share,
            nodes=known.load.nodes,
            single_gap_ms=None if row["arm"] in {BASELINE, TWIN} else single_gap_ms,
        )


def _listed(phases: Any) -> frozenset[str]:
    """What a column lists with commas; nothing in rows of before there was such a column."""
    return frozenset(phases.split(",")) if isinstance(phases, str) and phases else frozenset()


def _compiled_in_part(row: Row, counted: Mapping[Any, Any]) -> frozenset[str]:
    """The phases of whose forwards pieces were compiled: the verification, and that of a draft model."""
    if PIECES not in row["execution"]:
        return frozenset()
    return frozenset({"verify", "draft"} if counted["draft_forwards"] else {"verify"})


def _load(row: Row, own: pd.DataFrame) -> Load | None:
    """With what the arm's steps were run; None where none were recorded."""
    rows = acceptance.measured(own)
    steps, output = rows["steps"].astype(float), rows["output_tokens"].astype(float)
    together = steps.groupby(rows["batch_id"]).max().sum()
    if not together:
        return None
    # The context grows from the prompt to the whole text, and every row counts by its steps.
    context = rows["prompt_tokens"].astype(float) + (output - 1) / 2
    return Load(
        rows=float(steps.sum() / together),
        nodes=_or_none(row["nodes_per_step"]) or 0.0,
        context_tokens=float((context * steps).sum() / steps.sum()),
    )


def _or_none(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _columns(row: Row, known: _Known | None) -> dict[str, Any]:
    columns: dict[str, Any] = dict.fromkeys(COLUMNS)
    if known is None:
        return columns
    limit = known.limit
    return columns | {
        "draft_limit_ms": _MS * limit.draft_s,
        "verify_limit_ms": _MS * limit.verify_s,
        "step_limit_ms": _MS * limit.step_s,
        "verify_of_limit": _quotient(_MS * limit.verify_s, row["verify_ms"]),
        "step_of_limit": _quotient(limit.step_s, row["step_s"]),
    }


def _quotient(part: float, whole: float | None) -> float | None:
    return None if whole is None or not whole > 0 else part / whole


def _is_far_below(row: Row) -> bool:
    """Whether a cause is to be named: not of a draft that was slowed on purpose, nor without phase times."""
    reached = row["step_of_limit"]
    return reached is not None and reached < FAR_BELOW and row["verify_ms"] is not None and _runs_as_it_is(row)


def _runs_as_it_is(row: Row) -> bool:
    return bool(pd.isna(row["draft_latency_ms"]))


# --- in words


def reached(row: Row) -> str:
    """How much of the limit an arm's step reaches, and why no more; empty where it is not known."""
    if row["step_of_limit"] is None or pd.isna(row["step_of_limit"]):
        return ""
    why = f": likely {row['limit_cause']}, as {row['limit_reason']}" if pd.notna(row["limit_reason"]) else ""
    least, whole = milliseconds(row["step_limit_ms"]), milliseconds(_MS * row["step_s"])
    return (
        f"A step of {row['arm']} reaches {share(row['step_of_limit'])} of what this machine allows ({least} of {whole} "
        f"are the least that its weights, keys and products take){why}."
    )


def warnings(summary: pd.DataFrame) -> Iterator[str]:
    """One sentence for each cause that keeps arms below `FAR_BELOW`, with the arm that is furthest below."""
    beyond = summary[summary["step_of_limit"].astype(float) > 1 + _ROUGHLY]
    if len(beyond):
        arms = named_some([str(arm) for arm in beyond["arm"].unique()])
        yield (
            f"Faster than the limit, by up to {share(beyond['step_of_limit'].max() - 1)}: {arms}. The machine was "
            "busier when its ceilings were measured than later, so shares of the limit are too high in this run."
        )
    far = summary[summary["limit_cause"].notna()]
    for cause, rows in far.groupby("limit_cause", sort=False):
        worst = rows.loc[rows["step_of_limit"].astype(float).idxmin()]
        arms = named_some([str(arm) for arm in rows["arm"].unique()])
        where = "" if len(summary["title"].unique()) == 1 else f" ({worst['title']})"
        yield (
            f"Below {share(FAR_BELOW)} of what this machine allows, likely {cause}: {arms}. Furthest below is "
            f"{worst['arm']}{where} with {share(worst['step_of_limit'])}: {worst['limit_reason']}. Speed-ups over a "
            "baseline that is held up like this are speed-ups over the hold-up."
        )
