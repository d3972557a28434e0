"""What choosing tokens takes beside forwards, from a table: drawing a draft token, and accepting a draft."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from specbench.analysis.points import OutsideError, Points, latest, reasons
from specbench.errors import ResultsError

Kind = Literal["draw", "accept"]
"""``draw``: a draft model's logits become its next token, and the distribution that it was drawn from where the rule
asks for that. ``accept``: the accept phase of a step."""

AXES = ("query_tokens", "batch_size")
"""The columns between whose values times are interpolated: tokens that were verified in a row, and rows."""


@dataclass(frozen=True)
class Choosing:
    """How tokens are chosen; the columns of those names.

    Attributes:
        temperature: 0 takes the most likely token.
        rule: What accepts a draft.
        proposal: ``argmax`` or ``sample``: how a draft names its next token.
        top_k: The most likely tokens that are kept; None for all.
        top_p: The probability that the tokens that are kept reach; None for all.
    """

    temperature: float
    rule: str
    proposal: str
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def of(
        cls, temperature: float, rule: str, proposal: str, top_k: int | None = None, top_p: float | None = None
    ) -> Choosing:
        """At T = 0 one token is left, whatever else was asked for."""
        return cls(0.0, "greedy", "argmax") if temperature == 0 else cls(temperature, rule, proposal, top_k, top_p)

    @property
    def words(self) -> str:
        """For people."""
        if self.temperature == 0:
            return "T = 0"
        kept = [f"top_k {self.top_k}"] if self.top_k is not None else []
        kept += [f"top_p {self.top_p:g}"] if self.top_p is not None else []
        drafts = "drafts drawn" if self.proposal == "sample" else "drafts by argmax"
        return ", ".join([f"T = {self.temperature:g}", self.rule, drafts, *kept])


class ChoosingTable:
    """Times of choosing tokens, all of one setting.

    Args:
        rows: Rows of ``choosing``; none at all where it was not measured.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self._all = latest(rows, ["model", "mode", "kind", *_COLUMNS, *AXES])

    def points(self, kind: Kind, model: str, how: Choosing, mode: str) -> Points:
        """The points of a model and way of choosing.

        Raises:
            ResultsError: There are none; the message says what is missing.
        """
        rows = self._all
        for column, wanted in {"kind": kind, "model": model, "mode": mode, **asdict(how)}.items():
            rows = rows[rows[column].isna() if wanted is None else rows[column] == wanted]
        measured = rows[rows["status"] == "ok"]
        if measured.empty:
            what = "drawing a draft token from" if kind == "draw" else "accepting by"
            raise ResultsError(f"no time of {what} {model}, {mode}, {how.words} in this table{reasons(rows)}")
        return Points.of(measured, AXES, "choice")

    def choice_s(
        self, kind: Kind, model: str, query_tokens: int, batch_size: int, how: Choosing, *, mode: str = "eager"
    ) -> tuple[float, float]:
        """Seconds of one choice, and half their 95 % interval as a share of them; that is NaN where none is known.

        Error: as of `Points`. Of a draft that ends early a step accepts within the room of its longest one; the table
        has as much room as tokens.

        Args:
            kind: Which one.
            model: Whose logits are read, as the table names it: the draft's for ``draw``, the target's for ``accept``.
            query_tokens: Tokens of each row that were verified: of a draft of N N + 1. 1 for ``draw``.
            batch_size: Rows.
            how: How tokens are chosen.
            mode: How it runs.

        Raises:
            ResultsError: It was not measured, or the place lies outside of what was.
        """
        points, at = self.points(kind, model, how, mode), (query_tokens, batch_size)
        try:
            return points.seconds(at), points.uncertainty(at)
        except OutsideError as error:
            raise ResultsError(f"{kind}, {model}, {mode}, {how.words}: {error}") from None


_COLUMNS = ("temperature", "rule", "proposal", "top_k", "top_p")
