"""What precision a plan can expect: from the noise of earlier results of the same cell here, else from usual noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from specbench.analysis.intervals import MIN_UNITS
from specbench.analysis.precision import Noise, noise_of
from specbench.errors import ResultsError
from specbench.grid import AUTOREGRESSIVE, Cell
from specbench.records.store import Store, is_run_folder

USUAL_BETWEEN = 0.20
"""Prompts of batch size 1 differ by so much in their speed-up; the embedded family's own differ by .06 to .31."""

USUAL_WITHIN = 0.04
"""Repeats of a prompt differ by so much; those published with Medusa (A100, three runs) by .02 to .09."""

PRECISIONS = (0.05, 0.02, 0.01)
"""For which the prompts are counted."""


@dataclass(frozen=True)
class Forecast:
    """What to expect of one cell.

    Attributes:
        noise: Of its noisiest arm.
        source: Where the noise is known from, in words.
        units: Full batches that the plan has.
        batch_size: Prompts of each.
        repeats: How often the plan runs each.
    """

    noise: Noise
    source: str
    units: int
    batch_size: int
    repeats: int

    @property
    def half_width(self) -> float | None:
        """Half-width of a speed-up's interval, on the log scale; None where the plan has too few batches for one."""
        return self.noise.half_width(self.units, self.repeats) if self.units >= MIN_UNITS else None

    def prompts_needed(self, precision: float) -> int:
        """Prompts for a precision, with the plan's repeats."""
        return self.batch_size * self.noise.units_needed(precision, self.repeats)

    def repeats_needed(self, precision: float) -> int | None:
        """Repeats for a precision, with the plan's prompts; None where no number of them does."""
        return self.noise.repeats_needed(precision, self.units) if self.units >= MIN_UNITS else None


def forecast(cell: Cell, units: int, repeats: int, folder: Path | None) -> Forecast:
    """What to expect of a cell.

    Args:
        cell: The cell.
        units: Full batches of prompts.
        repeats: Repeats of each.
        folder: Where earlier results of the experiment on this machine would be; None to look for none.

    Raises:
        ResultsError: The folder cannot be read.
    """
    known = list(_earlier(cell, folder))
    noise = max(known, key=lambda arm: arm.half_width(max(units, MIN_UNITS), repeats), default=None)
    size = cell.decode.batch_size
    if noise is not None:
        return Forecast(noise, "earlier results", units, size, repeats)
    usual = Noise(USUAL_BETWEEN / size**0.5, USUAL_WITHIN)  # a batch averages over its prompts
    return Forecast(usual, "usual noise", units, size, repeats)


def _earlier(cell: Cell, folder: Path | None) -> Iterator[Noise]:
    """The noise of every arm of the cell's latest run, as far as it had repeats."""
    if folder is None or not is_run_folder(folder):
        return
    rows = _same_cell(Store(folder).read("requests"), cell)
    rows = rows[rows["cell"].isin(rows[rows["run_id"] == rows["run_id"].max()]["cell"])]
    baseline = rows[rows["arm"] == AUTOREGRESSIVE]
    for _, own in rows[rows["arm"] != AUTOREGRESSIVE].groupby("arm"):
        try:
            noise = noise_of(baseline, own)
        except ResultsError:  # prompts or weights have changed on the way: these rows tell nothing
            continue
        if noise is not None:
            yield noise


def _same_cell(rows: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Headline rows that ran as the cell will, whatever their exact weights and prompts."""
    decode = cell.decode
    same = (
        (rows["pass"] == "headline")
        & (rows["target"] == cell.target.name)
        & (rows["temperature"] == decode.temperature)
        & (rows["batch_size"] == decode.batch_size)
        & (rows["max_new_tokens"] == decode.max_new_tokens)
    )
    return rows[same]
