"""Traces: the target's own texts, with what a draft would have proposed at every place of them. And whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.stop_rules import Features, Floats
from specbench.errors import ResultsError

EXACT_RULES = ("greedy", "match")
"""Rules under which a draft token is kept iff it is the text's own."""


@dataclass(frozen=True)
class TracedText:
    """One prompt of a trace.

    Attributes:
        prompt: Its place among the prompts, from 0.
        prompt_id: Its name.
        output_tokens: Tokens of the text, the prefill's included.
        drafted: Along the drafts, (places, gamma_max).
        kept: Along the text: the chance that a draft which came so far keeps one token more, (places, gamma_max);
            0 or 1 where drafts are compared with the text.
        on_text: Features of the text's own tokens, as far as drafts can be kept, (places, gamma_max).
        overlap: Chance that the draft's next token is accepted, whatever the text's is, (places,).
    """

    prompt: int
    prompt_id: str
    output_tokens: int
    drafted: Features
    kept: Floats
    on_text: Features
    overlap: Floats

    @property
    def places(self) -> int:
        """Places where a step may begin: all tokens of the text but the last."""
        return self.output_tokens - 1


@dataclass(frozen=True)
class Provenance:
    """What a trace is of; the columns of those names in the table ``traces``."""

    target: str
    target_sha: str
    draft: str
    draft_sha: str
    tokenizer_sha: str
    dataset: str
    prompts_sha: str
    dtype: str
    device: str
    temperature: float
    top_k: int | None
    top_p: float | None
    rule: str
    proposal: str
    seed: int
    min_new_tokens: int
    max_new_tokens: int
    ignore_eos: bool
    gamma_max: int

    @property
    def title(self) -> str:
        """For people."""
        drawn = "" if self.temperature == 0 else f", {self.rule}, {self.proposal} drafts"
        return f"{self.target} with {self.draft}, {self.dtype}, {self.dataset}, T={self.temperature:g}{drawn}"


@dataclass(frozen=True)
class Trace:
    """The texts of one target with one draft.

    Attributes:
        provenance: What it is of.
        texts: In the order of the prompts.
        prompts: How many texts there are once it is complete.
    """

    provenance: Provenance
    texts: tuple[TracedText, ...]
    prompts: int

    @property
    def is_exact(self) -> bool:
        """Whether a replay is the run itself, and not what may be expected of it."""
        return self.provenance.rule in EXACT_RULES and self.provenance.dtype == "float32"

    @property
    def is_complete(self) -> bool:
        """Whether every prompt is there."""
        return len(self.texts) == self.prompts

    @property
    def alpha(self) -> float | None:
        """Chance that a draft's first token is accepted, over all places of all texts; None where there is none.

        Source: Leviathan et al., arXiv 2211.17192, section 3.1: the mean of ``beta``.
        """
        chances = np.concatenate([text.overlap for text in self.texts])
        return float(chances.mean()) if len(chances) else None


def traces(table: pd.DataFrame) -> list[Trace]:
    """The traces in a table ``traces``, in the order of what they are of: by target, then by draft, and so on."""
    names = [field.name for field in fields(Provenance)]
    return [_trace(rows) for _, rows in table.groupby(names, dropna=False)]


def _trace(rows: pd.DataFrame) -> Trace:
    first = {field.name: _plain(rows[field.name].iloc[0]) for field in fields(Provenance)}
    if first["top_k"] is not None:
        first["top_k"] = int(first["top_k"])  # a column with nulls reads as float
    texts = tuple(_text(row) for row in rows.drop_duplicates("prompt").sort_values("prompt").to_dict("records"))
    return Trace(Provenance(**first), texts, int(rows["prompts"].iloc[0]))


def _plain(value: Any) -> Any:
    """A cell of a table as Python has it; None where it is empty."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _text(row: Mapping[Any, Any]) -> TracedText:
    gamma, places = int(row["gamma_max"]), int(row["output_tokens"]) - 1

    def by_place(name: str) -> Floats:
        found: Floats = np.asarray(row[name], dtype=np.float32).reshape(places, gamma)
        return found

    def from_place_on(name: str) -> Floats:
        values = np.asarray(row[name], dtype=np.float32)
        return np.lib.stride_tricks.sliding_window_view(values, gamma) if places else values.reshape(0, gamma)

    named = int(row["prompt"]), str(row["prompt_id"]), places + 1
    drafted = Features(by_place("confidence"), by_place("entropy"))
    if row["matched"] is None:
        on_text = Features(from_place_on("text_confidence"), from_place_on("text_entropy"))
        overlap = np.asarray(row["overlap"], dtype=np.float32)[:places]
        return TracedText(*named, drafted, from_place_on("acceptance"), on_text, overlap)
    kept = (np.arange(gamma) < np.asarray(row["matched"], dtype=np.int64)[:, None]).astype(np.float32)
    # As far as a draft is kept it is the text, so that its own features serve for both.
    return TracedText(*named, drafted, kept, drafted, kept[:, 0])


_SUBJECTS = {
    "target": ("target", "target_sha"),
    "draft": ("draft", "draft_sha"),
    "tokenizer": ("tokenizer_sha",),
    "prompts": ("dataset", "prompts_sha"),
}
"""What may be another one: the columns of its name and its hash; of those that are known, the last one decides."""

_ONLY_WHEN_DRAWN = ("seed", "top_k", "top_p", "rule", "proposal")


def differences(trace: Trace, wanted: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a trace differs from what is wanted: what it is, and what was wanted, in words; empty where it fits.

    Args:
        trace: The trace.
        wanted: Columns of ``traces`` and their values; those that are left out may be anything. ``gamma_max`` is the
            least that will do.
    """
    has = asdict(trace.provenance)
    found: list[tuple[str, str]] = []
    for subject, columns in _SUBJECTS.items():
        known = [column for column in columns if column in wanted]
        if known and has[known[-1]] != wanted[known[-1]]:
            found.append((_named(subject, has, columns), _named(subject, wanted, columns)))
    settled = {column for columns in _SUBJECTS.values() for column in columns}
    if has["temperature"] == wanted.get("temperature", has["temperature"]) == 0:
        settled.update(_ONLY_WHEN_DRAWN)
    others = [name for name in wanted if name not in settled and not _fits(name, has[name], wanted[name])]
    return found + [(_setting(name, has), _setting(name, wanted)) for name in others]


def _fits(name: str, has: Any, wanted: Any) -> bool:
    return bool(has >= wanted if name == "gamma_max" else has == wanted)


def _named(subject: str, side: Mapping[str, Any], columns: Sequence[str]) -> str:
    *names, last = [str(side[column]) for column in columns if column in side]
    return f"{subject} {names[0]} ({last})" if names else f"{subject} {last}"


def _setting(name: str, side: Mapping[str, Any]) -> str:
    value = side[name]
    return f"{name} {'none' if value is None else f'{value:g}' if isinstance(value, float) else value}"


def require(trace: Trace, wanted: Mapping[str, Any], of: str) -> None:
    """Refuse a trace of anything else, and one that is not complete.

    Args:
        trace: The trace.
        wanted: As ``differences`` takes it.
        of: Whose values those are, for the message.

    Raises:
        ResultsError: In one line, with both sides.
    """
    if found := differences(trace, wanted):
        ours, theirs = (", ".join(side) for side in zip(*found, strict=True))
        raise ResultsError(f"the trace is of {ours}, but {of} has {theirs}")
    if not trace.is_complete:
        raise ResultsError(
            f"the trace of {trace.provenance.title} holds {len(trace.texts)} of {trace.prompts} prompts; the command "
            "that began it goes on with it"
        )


def select(found: Sequence[Trace], wanted: Mapping[str, Any], of: str) -> Trace:
    """The one trace of several that is wanted.

    Raises:
        ResultsError: There is none; the line says in what the nearest one differs.
    """
    if not found:
        raise ResultsError("there is no trace here; specbench trace records one")
    nearest = min(found, key=lambda trace: (len(differences(trace, wanted)), not trace.is_complete))
    require(nearest, wanted, of)
    return nearest


_OF_REQUESTS = (
    "method", "options", "target", "target_sha", "draft", "dataset", "prompts_sha", "dtype", "temperature", "rule",
    "seed", "max_new_tokens",
)  # fmt: skip


def wanted_by(requests: pd.DataFrame) -> dict[str, Any]:
    """What a trace must be of to stand for some rows of ``requests``, all of one arm of the method ``draft_model``.

    Raises:
        ResultsError: The rows are not all of one setting, or of another method; the line names the column.
    """
    wanted: dict[str, Any] = {}
    for name in _OF_REQUESTS:
        values = requests[name].drop_duplicates()
        if len(values) != 1:
            raise ResultsError(f"these rows have {len(values)} different values of {name}; a trace stands for one")
        wanted[name] = _plain(values.iloc[0])
    method, options = wanted.pop("method"), json.loads(wanted.pop("options"))
    if method != "draft_model" or options.get("tree"):
        raise ResultsError(f"a trace stands for chains of a draft model, and these rows are of {method} {options}")
    wanted["proposal"] = "argmax" if options["proposal"] == "argmax" else "sample"
    return wanted | {"gamma_max": options["gamma"]}
