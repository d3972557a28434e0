"""Is every text the target's own: one check an arm, from stored rows or from a fresh run, and how a command ends on it.

A row that is missing, empty or uncompared is a fault of the check and never counts as equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from specbench.analysis.acceptance import block_efficiency

Kind = Literal["ids", "distribution", "bias", "none"]

REFERENCE = "autoregressive"


@dataclass(frozen=True)
class Divergence:
    """Where a text first leaves the reference, and how far the token chosen there is from the target's best."""

    prompt_id: str
    position: int
    gap: float | None
    reference: tuple[int, ...] = ()
    output: tuple[int, ...] = ()


@dataclass(frozen=True)
class PositionTest:
    """The tokens at one place of many texts against the target's own distribution, given the text before each.

    Attributes:
        position: Of the token, 0 the prefill's.
        tokens: How many were drawn.
        statistic: Pearson's chi-square over all cells.
        freedom: Its degrees of freedom.
        p_value: How often the target itself would stray so far.
        detectable: Total variation that would be found here with 95 % power.
        shift: Total variation that was found, less what chance alone makes.
    """

    position: int
    tokens: int
    statistic: float
    freedom: int
    p_value: float
    detectable: float
    shift: float


@dataclass(frozen=True)
class ArmCheck:
    """What is known of the text of one arm in one cell.

    Attributes:
        cell: Target, prompts and decode setting in words.
        arm: The arm.
        target: The target as the user named it.
        kind: ``ids`` where the same tokens are promised, ``distribution`` where only their chances are, ``bias`` where
            a lossy rule promises neither and is measured, ``none`` where there is nothing to measure.
        requests: Texts that should have been compared.
        equal: Texts with the reference's ids.
        near_tie: Texts that leave the reference at a near tie, and are the target's own choice ever after.
        wrong: Texts that are not the target's.
        divergences: Of near ties and wrong texts, the worst gap first.
        positions: Of a check of the distribution, or of its bias.
        tokens_per_step: Block efficiency; 1 means that no draft was ever accepted, so that little was tested.
        faults: What kept the check from being whole, a sentence each.
        failure: Status and reason of a batch that did not run.
        note: Why nothing was compared.
    """

    cell: str
    arm: str
    target: str
    kind: Kind
    requests: int = 0
    equal: int = 0
    near_tie: int = 0
    wrong: int = 0
    divergences: tuple[Divergence, ...] = ()
    positions: tuple[PositionTest, ...] = ()
    tokens_per_step: float | None = None
    faults: tuple[str, ...] = ()
    failure: tuple[str, str] | None = None
    note: str = ""

    @property
    def compared(self) -> int:
        """Texts that have a verdict."""
        return self.equal + self.near_tie + self.wrong


@dataclass(frozen=True)
class Outcome:
    """How a check of several arms ended, in the order of what outranks what."""

    broke_contract: bool
    wrong: int
    failed: int
    faulty: int
    compared: int


def outcome(checks: Sequence[ArmCheck]) -> Outcome:
    """Sum up."""
    failures = [check.failure for check in checks if check.failure is not None]
    return Outcome(
        broke_contract=any(reason.startswith("ContractError") for _, reason in failures),
        wrong=sum(check.wrong for check in checks),
        failed=sum(status != "unsupported" for status, _ in failures),
        faulty=sum(bool(check.faults) for check in checks),
        compared=sum(check.compared for check in checks),
    )


def stored_checks(requests: pd.DataFrame) -> list[ArmCheck]:
    """Check the stored ids of a run against those of the autoregressive arm of the same block, repeat and process.

    Equality is found anew. Where ids differ, the stored verdict says whether it was a near tie, which only the model
    can decide; a verdict that contradicts the ids is a fault.

    Args:
        requests: The table ``requests``; both passes are checked.
    """
    return [
        _stored_check(str(cell).partition(" #")[0], str(arm), own, rows[rows["arm"] == REFERENCE])
        for cell, rows in requests.groupby("cell", sort=False)
        for arm, own in rows.groupby("arm", sort=True)
        if arm != REFERENCE or len(rows["arm"].unique()) == 1
    ]


_VERDICTS = ("equal", "near-tie", "WRONG")
_PLACE = ["pass", "process", "block", "repeat", "prompt_id"]


def _stored_check(cell: str, arm: str, own: pd.DataFrame, reference: pd.DataFrame) -> ArmCheck:
    target = str(own["target"].iloc[0])
    if why := _not_promised(own.iloc[0]):
        return ArmCheck(cell, arm, target, "none", len(own), note=why)
    tally = _Tally()
    if doubled := int(own.duplicated(_PLACE).sum()):
        tally.faults.append(f"{doubled} rows stand twice")
    asked = reference[reference["pass"].isin({"headline", *own["pass"]})]  # outside baselines have one pass only
    pairs = _beside(asked).merge(own.drop_duplicates(_PLACE), on=_PLACE, how="outer", indicator="side")
    if missing := int((pairs["side"] == "left_only").sum()):
        tally.faults.append(f"{missing} of {len(asked)} rows are missing")
    if extra := int((pairs["side"] == "right_only").sum()):
        tally.faults.append(f"{extra} rows have no autoregressive row to be compared with")
    both = pairs[pairs["side"] == "both"]
    failed = both[both["status"] != "ok"]
    for row in both[both["status"] == "ok"].to_dict("records"):
        tally.add(row)
    return ArmCheck(
        cell,
        arm,
        target,
        "ids",
        requests=max(len(own), len(asked)),
        equal=tally.counts["equal"],
        near_tie=tally.counts["near-tie"],
        wrong=tally.counts["WRONG"],
        divergences=worst_first(tally.divergences),
        tokens_per_step=block_efficiency(own),
        faults=tuple(tally.faults),
        failure=None if failed.empty else (str(failed["status"].iloc[0]), str(failed["reason"].iloc[0])),
    )


def _not_promised(row: Any) -> str:
    """Why stored ids say nothing of this arm; empty where they do."""
    if row["simulated_acceptance"]:
        return "simulated acceptance: the text is not the target's"
    if not row["lossless"]:
        return f"lossy: the rule {row['rule']} may change the target's text"
    if row["temperature"] > 0 and row["rule"] != "match":
        return "only its distribution is promised, which these few texts cannot show; verify the experiment instead"
    return ""


def _beside(reference: pd.DataFrame) -> pd.DataFrame:
    """The rows that every arm must have, each with the ids of the headline pass."""
    names = [name for name in _PLACE if name != "pass"]
    headline = reference[reference["pass"] == "headline"].drop_duplicates(names)
    ids = headline[[*names, "output_ids"]].rename(columns={"output_ids": "expected_ids"})
    return reference[_PLACE].drop_duplicates().merge(ids, on=names, how="left")


@dataclass
class _Tally:
    """Verdicts of one arm, row by row; what contradicts itself is noted."""

    counts: Counter[str] = field(default_factory=Counter)
    divergences: list[Divergence] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, row: Any) -> None:
        """Count one row, or say why it cannot be counted."""
        expected, found = _ids(row["expected_ids"]), _ids(row["output_ids"])
        verdict = row["verdict"] if isinstance(row["verdict"], str) else "none"
        place = f"{row['prompt_id']} ({row['pass']}, repeat {row['repeat']})"
        if not expected:
            self.faults.append(f"{place}: autoregressive decoding has no text there")
        elif not found:
            self.faults.append(f"{place}: the text is empty")
        elif verdict not in _VERDICTS or (found == expected) != (verdict == "equal"):
            same = "the same as" if found == expected else "other than"
            self.faults.append(f"{place}: its ids are {same} those of autoregressive decoding, its verdict {verdict}")
        else:
            self.counts[verdict] += 1
            if found != expected:
                gap = row["divergence_gap"]
                gap = None if pd.isna(gap) else float(gap)
                position = first_divergence(expected, found)
                self.divergences.append(Divergence(str(row["prompt_id"]), position, gap, expected, found))


def first_divergence(reference: Sequence[int], output: Sequence[int]) -> int:
    """The first position at which two texts differ; the shorter one's length where it begins the other."""
    pairs = zip(reference, output, strict=False)
    shorter = min(len(reference), len(output))
    return next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)


def worst_first(divergences: Iterable[Divergence]) -> tuple[Divergence, ...]:
    """The widest gap first."""
    return tuple(sorted(divergences, key=lambda entry: -(entry.gap or 0.0)))


def _ids(value: Any) -> tuple[int, ...]:
    return () if value is None or isinstance(value, float) else tuple(map(int, value))
