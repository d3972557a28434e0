"""The verdicts of a block: every arm's texts against those of the autoregressive arm beside it."""

from specbench.bench.arms import Failure, Measured, Outcome
from specbench.bench.cells import ReadyCell
from specbench.bench.lossless import NOT_APPLICABLE, Verdict, applies, claims, compare
from specbench.bench.rows import Place
from specbench.decode.loop import sampler_for
from specbench.decode.target import CachedModel


class Judge:
    """Compares texts with those of the autoregressive arm of the same block and repeat."""

    def __init__(self, cell: ReadyCell, target: CachedModel | None, reference: Outcome) -> None:
        self._cell, self._target, self._reference = cell, target, reference
        self._has_reference = claims(cell.decoding.rule, drafts=False)

    def verdicts(self, place: Place, outcome: Outcome) -> list[Verdict]:
        """One a row; not applicable to the reference itself, and where it has failed."""
        rows = len(place.block.prompts)
        if self._target is None or isinstance(outcome, Failure) or not isinstance(self._reference, Measured):
            return [NOT_APPLICABLE] * rows
        promised = applies(place.rule, self._cell.decoding.temperature, drafts=place.drafts)
        if not (promised and self._has_reference) or outcome is self._reference:
            return [NOT_APPLICABLE] * rows
        return [
            compare(
                self._target,
                prompt.ids,
                self._reference.trace.rows[row].output_ids,
                outcome.trace.rows[row].output_ids,
                sampler_for(self._target, [prompt.key], [len(prompt.ids)], self._cell.decoding),
            )
            for row, prompt in enumerate(place.block.prompts)
        ]
