"""What a new draft has to beat: by a run of the same machine, or by numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from specbench.analysis.contest import Contender
from specbench.analysis.design import Bar, geometric_tokens
from specbench.analysis.latencies import LatencyTable
from specbench.errors import ResultsError
from specbench.report.cells import BASELINE, Results
from specbench.report.composed import mean_context
from specbench.report.contenders import NO_DRAFT, CellFit, Fit, fitted_cells
from specbench.report.words import counted

SETTING = ("device", "dtype", "threads", "attention")
"""Columns of a run that must be those of the latencies that are set beside it."""


@dataclass(frozen=True)
class KnownCell:
    """The cell of a run that new drafts are set against.

    Attributes:
        fit: Its drafts, and decoding without one.
        best: The best draft model among them.
        setting: Column of `SETTING` -> its value.
        context_tokens: Keys and values of its longest row, on average over steps.
        experiment: What an experiment must say to be like it: ``prompts`` and ``decode``.
    """

    fit: CellFit
    best: Fit
    setting: Mapping[str, Any]
    context_tokens: int
    experiment: Mapping[str, Any]

    @property
    def draft(self) -> str:
        """The best draft model, as the run names it."""
        return str(self.best.draft)

    def bar(self, table: LatencyTable, target: str, context_tokens: int, largest_gamma: int) -> Bar:
        """What a new draft has to beat.

        A shape that is faster than every draft of the run may want a larger gamma than was run. Behind the largest one,
        a verification is longer by what the table's is, and of the best draft as much is accepted as its `alpha` says.

        Args:
            table: Forward times of the target, up to ``largest_gamma + 1`` tokens, and of the best draft model.
            target: As the table names it.
            context_tokens: Keys and values of each row there.
            largest_gamma: The largest gamma that is looked at; the run's where that is larger.
        """
        own, plain = self.best.contender, self.fit.autoregressive
        rival = min([plain, *(fit.contender for fit in self.fit.in_contest)], key=lambda one: one.best_s_per_token)
        at = (self.fit.batch_size, context_tokens)
        pace = self.fit.single_s / table.forward_s(target, 1, *at)
        draft_s, largest = own.forward_s(own.best_gamma), own.gammas[-1]
        alpha = own.alpha(largest)
        assert alpha is not None  # a draft model's drafts are chains
        further = range(largest + 1, largest_gamma + 1)
        verify_s = {gamma: pace * table.forward_s(target, gamma + 1, *at) for gamma in (largest, *further)}
        rest_s = {gamma: own.rest_s[largest] + verify_s[gamma] - verify_s[largest] for gamma in further}
        return Bar(
            rival=rival.name,
            s_per_token=rival.best_s_per_token,
            plain_s_per_token=plain.best_s_per_token,
            rest_s={**own.rest_s, **rest_s},
            kept={**own.kept, **dict.fromkeys(further, own.kept.get(largest, 1.0))},
            extra_s=max(0.0, draft_s - pace * table.forward_s(self.draft, 1, *at)),
            pace=pace,
            draft=self.draft,
            tokens={**own.tokens, **geometric_tokens(alpha, further)},
            draft_s=draft_s,
            alpha=own.alpha(own.best_gamma),
        )


def known_cell(results: Results, target: str, target_sha: str, batch_size: int, wanted: str = "") -> KnownCell:
    """The cell of a run that new drafts for a target are set against.

    Args:
        results: The run.
        target: The target as the user names it, which the run may have called otherwise.
        target_sha: Hash of its weights and tokenizer, as ``requests`` has it.
        batch_size: Of the cell.
        wanted: A part of the cell's title, where several are left.

    Raises:
        ResultsError: There is no such cell, or several, or no draft model was run in it.
    """
    cells = fitted_cells(results, lambda baseline: baseline["block"].unique())
    if not cells:
        raise ResultsError(f"{results.folder}: no arm with phase times, so what a step is made of is not known")
    of_target = [cell for cell in cells if _baseline(results, cell)["target_sha"] == target_sha]
    if not of_target:
        known = ", ".join(sorted({cell.target for cell in cells}))
        raise ResultsError(f"{results.folder}: it is of other targets than {target}, or of other weights: {known}")
    own = [cell for cell in of_target if cell.batch_size == batch_size and wanted in cell.title]
    if len(own) != 1:
        words = f"batch size {batch_size}" + (f" with {wanted!r} in its title" if wanted else "")
        titles = "; ".join(cell.title for cell in (own or of_target))
        raise ResultsError(
            f"{results.folder}: {counted(len(own), 'cell')} of {target} at {words}; choose one by --batch-size and "
            f"--cell: {titles}"
        )
    (cell,) = own
    arms = results.timed[cell.title]
    models = [fit for fit in cell.in_contest if fit.contender.is_chain and _is_draft_model(fit, arms)]
    if not models:
        raise ResultsError(
            f"{results.folder}: no draft model was run in {cell.title}, so what a step with one costs is not known"
        )
    first = _baseline(results, cell)
    return KnownCell(
        fit=cell,
        best=min(models, key=lambda fit: fit.contender.best_s_per_token),
        setting={name: _plain(first[name]) for name in SETTING},
        context_tokens=mean_context(arms[BASELINE]),
        experiment=_like(results, first),
    )


def _baseline(results: Results, cell: CellFit) -> pd.Series:
    """A row of the autoregressive arm, which speaks for its cell."""
    return results.timed[cell.title][BASELINE].iloc[0]


def _like(results: Results, row: pd.Series) -> dict[str, Any]:
    """The prompts and the decode section of the run, with the values of one cell."""
    said: dict[str, Any] = next(iter(results.experiments), {})
    own = {name: _plain(row[name]) for name in ("batch_size", "temperature", "max_new_tokens", "seed")}
    prompts = {"prompts": said["prompts"]} if "prompts" in said else {}
    return prompts | {"decode": {**(said.get("decode") or {}), **own}}


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own."""
    return value.item() if hasattr(value, "item") else value


def _is_draft_model(fit: Fit, arms: Mapping[str, pd.DataFrame]) -> bool:
    return fit.draft is not None and all(arms[arm]["method"].iloc[0] == "draft_model" for arm in fit.arms.values())


def check_same_setting(results: Results, known: KnownCell, here: Mapping[str, Any]) -> None:
    """Refuse a run of another device or setting: its step times say nothing of forwards measured here.

    Args:
        results: The run.
        known: Its cell.
        here: Column of `SETTING` -> its value in what is to be measured.

    Raises:
        ResultsError: They differ; the message names the column and both values.
    """
    for name, value in here.items():
        if (theirs := known.setting[name]) != value:
            raise ResultsError(
                f"{results.folder}: its {name} is {theirs!r}, and here it is {value!r}; latencies of two settings do "
                "not compare"
            )


@dataclass(frozen=True)
class Numbers:
    """What is said of a draft instead of a run.

    Attributes:
        alpha: The chance that one of its tokens is accepted; None for no draft at all.
        name: Of the draft; of a model, as the table names it.
        draft_s: Seconds of its forward; None to take the table's.
        host_s: Seconds of a step beside its forwards.
        largest_gamma: The largest gamma that is looked at.
    """

    alpha: float | None
    name: str
    draft_s: float | None
    host_s: float
    largest_gamma: int

    def bar(self, table: LatencyTable, target: str, batch_size: int, context_tokens: int) -> Bar:
        """What a new draft has to beat: that one, or decoding without one where that is faster.

        Args:
            table: Forward times of the target up to ``largest_gamma + 1`` tokens, and of the draft.
            target: As the table names it.
            batch_size: Rows.
            context_tokens: Keys and values of each.
        """
        gammas = range(1, self.largest_gamma + 1)
        rest_s = {
            gamma: self.host_s + table.forward_s(target, gamma + 1, batch_size, context_tokens) for gamma in gammas
        }
        plain_s = self.host_s + table.forward_s(target, 1, batch_size, context_tokens)
        if self.alpha is None:
            return Bar(NO_DRAFT, plain_s, plain_s, rest_s, {})
        tokens = geometric_tokens(self.alpha, gammas)
        draft_s = self.draft_s
        if draft_s is None:
            draft_s = table.forward_s(self.name, 1, batch_size, context_tokens)
        own = Contender(self.name, tokens, {}, rest_s, {}).with_forward_s(draft_s).best_s_per_token
        return Bar(
            rival=self.name if own < plain_s else NO_DRAFT,
            s_per_token=min(own, plain_s),
            plain_s_per_token=plain_s,
            rest_s=rest_s,
            kept={},
            draft=self.name,
            tokens=tokens,
            draft_s=draft_s,
            alpha=self.alpha,
        )
