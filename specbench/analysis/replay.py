"""What drafting would have done, from a trace: tokens per step of every gamma, of the oracle and of any stop rule.

A trace holds the target's own text and, at every place of it, what the draft would have proposed there. A step of
speculative decoding begins at a place, keeps so many draft tokens, adds the target's own, and the next one begins
behind that. So a run can be walked through without a model.

Under ``greedy`` and ``match`` a draft token is kept iff it is the text's own: the walk is the run, step by step (in
float32; in half precision the models themselves may differ at a near tie).

Under ``rejection`` with drawn drafts the walk is a chain of chances, and gives an expectation. With p and q the
distributions of target and draft, a drafted token x is drawn and kept with q(x) min(1, p(x) / q(x)) = min(p(x), q(x));
refused, the text goes on with x with the p(x) - min(p(x), q(x)) that is left. Together that is p(x): so whatever a run
keeps, its text is the target's, and *given* the text each token that a draft reaches was kept with the chance
min(p(x), q(x)) / p(x) = min(1, q(x) / p(x)), independently of all others. Walking the target's text with those chances
is therefore the very law of the run, and its expected steps given the texts are exact; what is left is the choice of
prompts and texts, which the interval covers. Source: the acceptance step of Leviathan et al., arXiv 2211.17192,
theorem 1 (appendix A.1), conditioned on the text.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from specbench.analysis.acceptance import block_efficiency, measured
from specbench.analysis.intervals import Interval, Totals, jackknife_interval
from specbench.analysis.stop_rules import Features, Floats, Oracle, StopRule, stop_rule
from specbench.analysis.traces import Trace, TracedText, select, wanted_by
from specbench.errors import ResultsError

Ints = npt.NDArray[np.int64]

_MOST_STATES = 256  # that a rule may be in at one place, on average


@dataclass(frozen=True)
class RowReplay:
    """One text, walked through. S steps at most.

    Attributes:
        prompt: Its place among the prompts, from 0.
        tokens: Of the text, without the prefill's.
        accepted: Chance that the row takes the step and keeps k draft tokens, (S, gamma + 1).
        drafted: Chance that it takes the step and drafts k tokens, (S, gamma + 1).
    """

    prompt: int
    tokens: int
    accepted: Floats
    drafted: Floats

    @property
    def steps(self) -> float:
        """Expected steps; a whole number where the replay is exact."""
        return float(self.accepted.sum())

    @property
    def accepted_tokens(self) -> float:
        """Expected draft tokens kept, before the cut at the end of the text."""
        return _expected(self.accepted)

    @property
    def drafted_tokens(self) -> float:
        """Expected draft tokens."""
        return _expected(self.drafted)

    @property
    def overshoot_tokens(self) -> float:
        """Expected tokens of the last step beyond the end of the text."""
        return self.accepted_tokens + self.steps - self.tokens

    @property
    def accepted_per_step(self) -> list[int]:
        """Draft tokens kept, step by step, where a draft token is kept or not without chance."""
        return [int(count) for count in self.accepted.argmax(1)]

    @property
    def drafted_per_step(self) -> list[int]:
        """Draft tokens, step by step, likewise."""
        return [int(count) for count in self.drafted.argmax(1)]


@dataclass(frozen=True)
class BatchReplay:
    """Some texts decoded together: a step of the batch is as wide as its longest draft.

    Attributes:
        prompts: Places of its rows among the prompts.
        tokens: Of all its texts, without the prefills'.
        steps_by_width: Expected steps whose longest draft has k tokens, (gamma + 1,): each takes k draft forwards and
            a verification of k + 1 tokens a row.
    """

    prompts: tuple[int, ...]
    tokens: int
    steps_by_width: Floats

    @property
    def steps(self) -> float:
        """Expected steps: those of the slowest row."""
        return float(self.steps_by_width.sum())

    @property
    def draft_forwards(self) -> float:
        """Expected forwards of the draft model."""
        return float(self.steps_by_width @ np.arange(len(self.steps_by_width)))


@dataclass(frozen=True)
class Replay:
    """A trace, walked through with one stop rule."""

    label: str
    gamma: int
    rows: tuple[RowReplay, ...]

    @property
    def steps(self) -> float:
        """Of all rows."""
        return sum(row.steps for row in self.rows)

    @property
    def block_efficiency(self) -> float | None:
        """Tokens a step, cut at EOS and length, the target's own included; None where no step was taken."""
        return sum(row.tokens for row in self.rows) / self.steps if self.steps else None

    @property
    def block_efficiency_uncut(self) -> float | None:
        """Tokens a step with the last step of each row taken whole."""
        return sum(row.accepted_tokens for row in self.rows) / self.steps + 1 if self.steps else None

    @property
    def drafted_per_step(self) -> float | None:
        """Draft tokens a step."""
        return sum(row.drafted_tokens for row in self.rows) / self.steps if self.steps else None

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over drafted tokens; None when nothing was drafted."""
        drafted = sum(row.drafted_tokens for row in self.rows)
        return sum(row.accepted_tokens for row in self.rows) / drafted if drafted else None

    @property
    def interval(self) -> Interval | None:
        """95 % interval of ``block_efficiency`` over prompts; None below four of them.

        Autoregressive decoding takes a step a token, so tokens a step are a ratio of steps as a speed-up is one of
        seconds, and the jackknife is the same.
        """
        tokens = np.array([row.tokens for row in self.rows], dtype=np.float64)
        steps = np.array([row.steps for row in self.rows])
        return jackknife_interval(Totals(tokens, tokens), Totals(steps, tokens))

    def batches(self, size: int) -> list[BatchReplay]:
        """The rows in batches of ``size`` in the order of the prompts, the last one partial where it must be."""
        groups: dict[int, list[RowReplay]] = {}
        for row in self.rows:
            groups.setdefault(row.prompt // size, []).append(row)
        return [
            BatchReplay(tuple(row.prompt for row in rows), sum(row.tokens for row in rows), _steps_by_width(rows))
            for _, rows in sorted(groups.items())
        ]

    def batch_efficiency(self, size: int) -> float | None:
        """Tokens per step of a batch and row of it: rows that have ended wait for the slowest one."""
        batches = self.batches(size)
        slots = sum(batch.steps * len(batch.prompts) for batch in batches)
        return sum(batch.tokens for batch in batches) / slots if slots else None


def replay(trace: Trace, rule: StopRule) -> Replay:
    """Walk through a trace.

    Raises:
        ResultsError: The rule drafts more tokens than the trace holds, or remembers too much for an expectation.
    """
    if rule.gamma > trace.provenance.gamma_max:
        raise ResultsError(
            f"{rule.label}: the trace holds drafts of {trace.provenance.gamma_max} tokens; record it with "
            f"gamma {rule.gamma}"
        )
    return Replay(rule.label, rule.gamma, tuple(_walked(text, rule) for text in trace.texts))


@dataclass(frozen=True)
class Comparison:
    """One arm of a run beside its replay.

    Attributes:
        cell: The cell.
        arm: The arm.
        measured: Block efficiency of the run.
        replayed: Block efficiency of the replay.
        rows: Rows of the run.
        equal: Rows whose every step drafted and kept as many tokens as the replay's; None where it is an expectation.
    """

    cell: str
    arm: str
    measured: float | None
    replayed: float | None
    rows: int
    equal: int | None


def compared(found: Sequence[Trace], requests: pd.DataFrame) -> list[Comparison]:
    """Every arm of a run that drafts chains with a draft model, beside its replay from the trace that fits it.

    Args:
        found: Traces.
        requests: Rows of ``requests``, of any arms.

    Raises:
        ResultsError: There is no such arm, or no trace fits one.
    """
    rows = measured(requests)
    drafting = rows[(rows["method"] == "draft_model") & ~rows["options"].map(_drafts_tree).astype(bool)]
    if drafting.empty:
        raise ResultsError("this run has no arm that drafts chains with a draft model")
    gammas = drafting["options"].map(lambda options: json.loads(options)["gamma"])
    in_order = drafting.assign(gamma=gammas).sort_values(["cell", "draft", "gamma", "arm"], kind="stable")
    arms = in_order.groupby(["cell", "arm"], sort=False)
    return [_compared(found, str(cell), str(arm), own) for (cell, arm), own in arms]


def _drafts_tree(options: str) -> bool:
    return json.loads(options).get("tree") is not None


def _compared(found: Sequence[Trace], cell: str, arm: str, rows: pd.DataFrame) -> Comparison:
    trace = select(found, wanted_by(rows), f"{arm} in {cell}")
    walked = replay(trace, stop_rule(json.loads(rows["options"].iloc[0])))
    equal = None
    if trace.is_exact:
        by_id = {text.prompt_id: row for text, row in zip(trace.texts, walked.rows, strict=True)}
        equal = sum(_is_equal(by_id[row["prompt_id"]], row) for row in rows.to_dict("records"))
    return Comparison(cell, arm, block_efficiency(rows), walked.block_efficiency, len(rows), equal)


def _is_equal(walked: RowReplay, row: Mapping[Any, Any]) -> bool:
    kept, drafted = list(row["accepted_per_step"]), list(row["drafted_depth_per_step"])
    return (kept, drafted) == (walked.accepted_per_step, walked.drafted_per_step)


def _expected(chances: Floats) -> float:
    return float((chances @ np.arange(chances.shape[1])).sum())


def _steps_by_width(rows: Iterable[RowReplay]) -> Floats:
    """The longest draft of each step: given the texts, rows are independent, so chances of "at most" multiply."""
    every = [row.drafted for row in rows]
    steps, widths = max(map(len, every)), every[0].shape[1]
    at_most = np.ones((steps, widths + 1))
    for drafted in every:
        chance = np.zeros((steps, widths))
        chance[: len(drafted)] = drafted
        ended = 1 - chance.sum(1, keepdims=True)
        at_most *= np.concatenate([ended, chance], axis=1).cumsum(1)
    found: Floats = np.diff(at_most, axis=1).sum(0)
    return found


def _walked(text: TracedText, rule: StopRule) -> RowReplay:
    """Every way through a text with its chance, step by step."""
    nodes = list(_nodes(text, rule)) if text.places else []
    accepted = np.zeros((len(nodes), rule.gamma + 1))
    drafted = np.zeros((len(nodes), rule.gamma + 1))
    sources, targets, chances = [], [], []
    for index, node in enumerate(nodes):
        for count, chance, following in node.outcomes:
            accepted[index, count] = chance
            if following is not None:
                sources.append(index)
                targets.append(following)
                chances.append(chance)
        drafted[index, node.drafted] = 1
    if isinstance(rule, Oracle):
        drafted = accepted
    moves = csr_array((chances, (targets, sources)), shape=(len(nodes), len(nodes)))
    here = np.zeros(len(nodes))
    here[:1] = 1
    visits = []
    while here.any():
        visits.append(here)
        here = moves @ here
    visited = np.array(visits).reshape(len(visits), len(nodes))
    return RowReplay(text.prompt, text.places, visited @ accepted, visited @ drafted)


class _Node(NamedTuple):
    """A place where a step may begin, with what the rule remembers there.

    Attributes:
        drafted: Tokens of the draft.
        outcomes: Draft tokens kept, the chance of that, and the number of the node that follows; None is the end.
    """

    drafted: int
    outcomes: list[tuple[int, float, int | None]]


def _nodes(text: TracedText, rule: StopRule) -> Iterator[_Node]:
    """All nodes that can be reached, numbered in the order in which they are found; the first one is the start.

    Raises:
        ResultsError: There are too many of them.
    """
    lengths: dict[Hashable, tuple[Ints, Ints]] = {}
    start = (0, rule.start())
    numbers = {start: 0}
    waiting = [start]
    for place, memory in waiting:
        if memory not in lengths:
            on_text = _lengths(rule, memory, text.on_text)
            same = text.drafted is text.on_text
            lengths[memory] = (on_text if same else _lengths(rule, memory, text.drafted), on_text)
        drafted, reach = (int(of[place]) for of in lengths[memory])
        outcomes = []
        for accepted, chance in _outcomes(text.kept[place, :reach]):
            following = (place + accepted + 1, rule.learn(memory, accepted, whole=accepted == reach))
            if following[0] < text.places and following not in numbers:
                numbers[following] = len(numbers)
                waiting.append(following)
            outcomes.append((accepted, chance, numbers.get(following)))
        if len(numbers) > _MOST_STATES * text.places:
            raise ResultsError(f"{rule.label}: it remembers too much of a row for an expectation to be computed")
        yield _Node(drafted, outcomes)


def _lengths(rule: StopRule, memory: Hashable, features: Features) -> Ints:
    """Tokens that are drafted from every place, (places,)."""
    if not rule.gamma:
        return np.zeros(len(features.confidence), dtype=np.int64)
    going = rule.goes_on(memory, Features(*(values[:, : rule.gamma] for values in features)))
    return 1 + going[:, : rule.gamma - 1].cumprod(1).sum(1)


def _outcomes(kept: Floats) -> Iterator[tuple[int, float]]:
    """How many tokens of a draft are kept, and the chance of it, where that is not 0."""
    reached = 1.0
    for accepted, chance in enumerate(kept.tolist()):
        if chance < 1 and reached > 0:
            yield accepted, reached * (1 - chance)
        reached *= chance
    if reached > 0:
        yield len(kept), reached
