"""What the target kept of what was drafted, in the words of the papers but with one meaning each.

``accepted_per_step`` is stored before the cut at EOS or at the length limit, so every function here but
`block_efficiency` takes the last step of a row whole. That is on purpose: a long step is more likely to cross
the limit, so cutting or dropping the last step biases means down, by up to a tenth at 64 tokens. By Wald's
identity the mean over all steps, the last one whole, is unbiased where steps are alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from specbench.analysis.memo import of_frame

Floats = npt.NDArray[np.float64]

ODD_STEPS = 0.1
"""Share of a chain's steps that may be shorter than its gamma."""


@of_frame
def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have numbers: those whose status is ``ok``."""
    fine = rows["status"].to_numpy() == "ok"
    return rows if fine.all() else rows[fine]  # no copy where none is needed: a report asks some thousand times


def decode_tokens(rows: pd.DataFrame) -> pd.Series:
    """Tokens of each row that decode steps emitted: all but those that were there when its prefill ended.

    The prefill yields one; an outside baseline that drafts along with it has more by then (`prefill_tokens`).
    """
    before = rows.get("prefill_tokens")
    return rows["output_tokens"] - (1 if before is None else before.fillna(1))


def block_efficiency(rows: pd.DataFrame) -> float | None:
    """Tokens emitted in decode steps per step, cut at EOS and length: what a user gets of a step.

    Includes the target's own token: 1.0 for autoregressive. The token of the prefill counts on neither side.
    """
    rows = measured(rows)
    rows = rows[rows["steps"].notna()]
    steps = float(rows["steps"].sum())
    return float(decode_tokens(rows).sum()) / steps if steps else None


def block_efficiency_uncut(rows: pd.DataFrame) -> float | None:
    """Tokens per decode step with the last step of each row taken whole: the method's own property.

    Equals 1 plus the sum of `survival`. Source: Leviathan et al., Fast Inference from Transformers via
    Speculative Decoding (2023), section 3.1, for the quantity; Wald's identity for the whole last step.
    """
    accepted = _per_step(rows, "accepted_per_step")
    return float(accepted.mean()) + 1 if len(accepted) else None


def mean_accepted(rows: pd.DataFrame) -> float | None:
    """Draft tokens accepted per step, without the target's own token."""
    accepted = _per_step(rows, "accepted_per_step")
    return float(accepted.mean()) if len(accepted) else None


def acceptance_rate(rows: pd.DataFrame) -> float | None:
    """Accepted over drafted tokens along one path, in [0, 1]; None when nothing was drafted, never 0.

    Not `alpha`: positions behind a rejection count as drafted and not accepted.
    """
    rows = measured(rows)
    drafted = float(rows["drafted_tokens"].sum())
    return float(rows["accepted_tokens"].sum()) / drafted if drafted else None


def survival(rows: pd.DataFrame) -> Floats:
    """P(at least i + 1 draft tokens are accepted in a step), for i = 0, 1, ... up to the deepest draft.

    Over all steps, also those that drafted less than i + 1 tokens or nothing.
    """
    accepted, depth = _pairs(rows)
    kept: Floats = np.array([float((accepted > i).mean()) for i in range(_deepest(depth))])
    return kept


def conditional_acceptance(rows: pd.DataFrame) -> Floats:
    """``survival(i) / survival(i - 1)``; NaN from where nothing survives.

    Where drafts have various depths this falls also because fewer steps drafted that far; see `alpha`.
    """
    kept = survival(rows)
    before = np.concatenate([[1.0], kept[:-1]]) if len(kept) else kept
    shares: Floats = np.divide(kept, before, out=np.full_like(kept, np.nan), where=before > 0)
    return shares


def alpha(rows: pd.DataFrame) -> Floats:
    """P(draft token i is accepted, given that it was drafted and its predecessors accepted), i = 0, 1, ...

    Equals `conditional_acceptance` where all drafts have one depth. NaN where no step came that far.

    Source: Leviathan et al. (2023), definition 3.1, by position.
    """
    accepted, depth = _pairs(rows)
    values = np.full(_deepest(depth), np.nan)
    for i in range(len(values)):
        reached = (accepted >= i) & (depth > i)
        if reached.any():
            values[i] = float((accepted[reached] > i).mean())
    return values


def reached(rows: pd.DataFrame) -> Floats:
    """Steps that drafted token i and accepted all before it, for i = 0, 1, ...: how many `alpha` rests on."""
    accepted, depth = _pairs(rows)
    return np.array([float(((accepted >= i) & (depth > i)).sum()) for i in range(_deepest(depth))])


def drafted_share(rows: pd.DataFrame) -> Floats:
    """Share of steps whose draft was at least i + 1 tokens deep, for i = 0, 1, ..."""
    _, depth = _pairs(rows)
    return np.array([float((depth > i).mean()) for i in range(_deepest(depth))])


def accepted_lengths(rows: pd.DataFrame) -> Floats:
    """Share of steps that kept exactly i draft tokens, for i = 0, 1, ... up to the deepest draft.

    They sum to 1; their mean is `mean_accepted`. Empty where no step was recorded.
    """
    accepted, depth = _pairs(rows)
    counts = np.bincount(accepted.astype(np.int64), minlength=_deepest(depth) + 1)
    return counts / len(accepted) if len(accepted) else np.empty(0)


def chain_depth(rows: pd.DataFrame) -> int | None:
    """The one gamma of an arm whose every step drafts a chain of it; None for any other draft.

    A share of `ODD_STEPS` may be shorter: drafts end at the length limit.
    """
    _, depth = _pairs(rows)
    nodes = _per_step(rows, "drafted_nodes_per_step")
    if not len(depth) or len(nodes) != len(depth) or (nodes != depth).any():
        return None
    usual = int(np.median(depth))
    return usual if usual and float((depth != usual).mean()) <= ODD_STEPS else None


@of_frame
def _pairs(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Accepted tokens and depth of the draft, one entry a step of a row."""
    rows = measured(rows)
    rows = rows[rows["accepted_per_step"].notna() & rows["drafted_depth_per_step"].notna()]
    return _per_step(rows, "accepted_per_step"), _per_step(rows, "drafted_depth_per_step")


def _per_step(rows: pd.DataFrame, column: str) -> Floats:
    lists = measured(rows)[column].dropna().to_numpy()
    return np.concatenate(lists).astype(np.float64) if len(lists) else np.empty(0)


def _deepest(depth: Floats) -> int:
    return int(depth.max()) if len(depth) else 0
