"""Records traces: the target's own texts, and what draft models would propose at every place of them.

The texts are the core's autoregressive ones. A draft is rolled out from all places of a text at once
(``specbench.decode.rollout``), which costs a few forwards where a run costs hundreds of steps, and serves every gamma
and every stop rule (``specbench.analysis.replay``).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbench import registry
from specbench.bench.cells import ReadyCell, ready
from specbench.bench.conversations import NoAnswerError, answered, waits_for_answers
from specbench.bench.machine import as_json, device_name
from specbench.bench.prompts import Prompt
from specbench.decode.acceptance import Match
from specbench.decode.loop import Requests, generate, sampler_for
from specbench.decode.rollout import Places, Text, roll_out, walk
from specbench.decode.sampling import Sampler
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.decode.trace import RowTrace
from specbench.errors import ConfigError, ResultsError, UnsupportedError
from specbench.grid import AUTOREGRESSIVE, DRAFT_MODEL, TRACED_RULES, Plan
from specbench.models.loader import ModelPool
from specbench.models.zoo import ZOO
from specbench.records.schema import blank_row
from specbench.records.store import Store

Row = dict[str, Any]
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Drafting:
    """How one draft model drafts for a cell.

    Attributes:
        draft: The model as the user named it.
        proposal: ``argmax`` or ``sample``.
        gamma: Draft tokens at every place.
    """

    draft: str
    proposal: str
    gamma: int


def record(
    plan: Plan, folder: Path, *, group: int = 8, zoo: Path = ZOO, announce: Announce = lambda _: None
) -> list[Row]:
    """Record a trace for every draft model of every cell of a plan; what the folder holds already is not made again.

    Args:
        plan: What an experiment comes to; of its arms, those of ``draft_model`` that draft chains.
        folder: Where the table ``traces`` lies. It may hold traces of other models and settings.
        group: Prompts that are decoded together, and the unit of resume. No trace depends on it.
        zoo: Where the embedded family lies.
        announce: Told what comes next.

    Returns:
        One mapping for every trace, of those columns that say what it is of.

    Raises:
        ConfigError: There is nothing to trace, or a model or the prompts are missing or do not fit.
        UnsupportedError: A rule that may change a text.
    """
    gamma = 1 if plan.studies.traces is None else plan.studies.traces.gamma
    done: dict[str, Row] = {}
    pool: ModelPool | None = None
    for cell in ready(plan, zoo):
        if pool is None or pool.where != cell.where:
            pool = ModelPool(cell.where, zoo)
        found = record_cell(cell, pool, folder, gamma=gamma, group=group, announce=announce)
        done |= {as_json(provenance): provenance for provenance in found}
    if not done:
        raise ConfigError(f"there is nothing to trace: no arm of {DRAFT_MODEL} that drafts a chain")
    return list(done.values())


def _raise(_: "Drafting", error: Exception) -> None:
    raise error


def record_cell(
    cell: ReadyCell,
    pool: ModelPool,
    folder: Path,
    *,
    gamma: int = 1,
    group: int = 8,
    limit: int | None = None,
    announce: Announce = lambda _: None,
    on_failure: Callable[[Drafting, Exception], None] = _raise,
) -> list[Row]:
    """Record what the folder does not hold yet of the draft models of one cell.

    Args:
        cell: It.
        pool: Its models.
        folder: Where the table ``traces`` lies.
        gamma: Draft tokens at every place, at least.
        group: Prompts that are decoded together.
        limit: Only the groups that hold this many prompts; None for all. The trace is then not complete.
        announce: Told what comes next.
        on_failure: Told of a draft that cannot be traced; the others go on unless it raises.

    Returns:
        What each trace is of.

    Raises:
        SpecbenchError: The target cannot be loaded, or a text of its cell depends on drafts.
    """
    _check_rule(cell)
    torch.set_num_threads(cell.cell.machine.threads)
    recorder = _Recorder(_with_later_turns(cell, pool, folder), pool, Store(folder), announce, on_failure)
    return recorder.record(gamma, group, limit)


def _with_later_turns(cell: ReadyCell, pool: ModelPool, folder: Path) -> ReadyCell:
    if not waits_for_answers(cell):
        return cell
    try:
        return answered(cell, pool.get(cell.cell.target.model), pool, folder)
    except NoAnswerError as error:
        raise UnsupportedError(f"{cell.cell.target.name}: {error.failure.reason}") from error


def draftings(cell: ReadyCell, gamma: int = 1) -> list[Drafting]:
    """Every way in which a cell's arms draft chains, each as far as the longest of them, and as ``gamma``."""
    return [Drafting(*key, max(gamma, longest)) for key, longest in cell.cell.chains.items()]


def _check_rule(cell: ReadyCell) -> None:
    rule = cell.decoding.rule
    if rule.simulated or (cell.decoding.temperature > 0 and rule.name not in TRACED_RULES):
        raise UnsupportedError(
            f"{cell.cell.target.name}: under the rule {rule.name} a text depends on its drafts, so there is nothing to "
            f"trace; the rules are {', '.join(TRACED_RULES)}"
        )


class _Group(NamedTuple):
    """Some prompts that follow one another, and the place of the first one among all."""

    first: int
    prompts: list[Prompt]

    @property
    def words(self) -> str:
        """For people."""
        return f"prompts {self.first + 1} to {self.first + len(self.prompts)}"


class _Written(NamedTuple):
    """A group with the target's own texts.

    Attributes:
        group: The prompts.
        texts: What the target wrote.
        beyond: What it would have written after the end of each.
    """

    group: _Group
    texts: list[RowTrace]
    beyond: list[list[int]]


@dataclass(frozen=True)
class _Recorder:
    """Records all drafts of one cell."""

    cell: ReadyCell
    pool: ModelPool
    store: Store
    announce: Announce
    on_failure: Callable[[Drafting, Exception], None]

    def record(self, gamma: int, size: int, limit: int | None) -> list[Row]:
        """Record what is missing, in groups of ``size`` prompts; returns what each trace is of."""
        traced = {drafting: _provenance(self.cell, drafting) for drafting in draftings(self.cell, gamma)}
        todo: list[tuple[_Group, list[Drafting]]] = []
        for group in _groups(self.cell, size, limit):
            keys = {drafting: _key(provenance, group) for drafting, provenance in traced.items()}
            todo.append((group, [one for one, key in keys.items() if not self.store.has_part("traces", key)]))
        if any(missing for _, missing in todo):
            self._fill(traced, todo)
        return list(traced.values())

    def _fill(self, traced: dict[Drafting, Row], todo: list[tuple[_Group, list[Drafting]]]) -> None:
        name = self.cell.cell.target.name
        self.announce(f"{name}: loading")
        target = self.pool.get(self.cell.cell.target.model)
        drafts: dict[str, CachedModel] = {}
        failed: set[Drafting] = set()
        for group, wanted in todo:
            missing = [drafting for drafting in wanted if drafting not in failed]
            if not missing:
                continue
            self.announce(f"{name}: {group.words}")
            written = _written(target.model, self.cell.decoding, group, max(drafting.gamma for drafting in missing))
            for drafting in missing:
                self.announce(f"{name} with {drafting.draft}: {group.words}")
                try:
                    if drafting.draft not in drafts:
                        drafts[drafting.draft] = self.pool.draft(drafting.draft, target)
                    rows = _rows(target.model, drafts[drafting.draft], self.cell.decoding, drafting, written)
                    self._write(traced[drafting], group, rows)
                except ResultsError:
                    raise
                except Exception as error:  # noqa: BLE001  (one draft's fault must not end the others)
                    failed.add(drafting)
                    self.on_failure(drafting, error)

    def _write(self, provenance: Row, group: _Group, rows: Iterable[Row]) -> None:
        shared = {**blank_row("traces"), **provenance, "prompts": len(self.cell.prompts.prompts)}
        self.store.write_part("traces", _key(provenance, group), [shared | row for row in rows])


def _groups(cell: ReadyCell, size: int, limit: int | None) -> Iterator[_Group]:
    prompts = cell.prompts.prompts
    for first in range(0, min(len(prompts), limit or len(prompts)), size):
        yield _Group(first, prompts[first : first + size])


def _key(provenance: Row, group: _Group) -> str:
    """Names the rows of a group in the store; other prompts in it, or any other setting, make it another one."""
    said = as_json([provenance, group.first, [prompt.id for prompt in group.prompts]])
    return f"{provenance['target']} {provenance['draft']} {group.first} {sha256(said.encode()).hexdigest()[:16]}"


def _provenance(cell: ReadyCell, drafting: Drafting) -> Row:
    decoding = cell.decoding
    (draft_sha,) = {
        source.weights_sha for drafts in cell.drafts.values() for source in drafts if source.name == drafting.draft
    }
    return {
        "target": cell.cell.target.name,
        "target_sha": cell.target_sha,
        "draft": drafting.draft,
        "draft_sha": draft_sha,
        "tokenizer_sha": cell.target.tokenizer_sha,
        "dataset": cell.prompts.dataset,
        "prompts_sha": cell.prompts.sha,
        "dtype": cell.where.dtype_name,
        "device": device_name(cell.where.device),
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "rule": "greedy" if decoding.temperature == 0 else decoding.rule.name,
        "proposal": drafting.proposal,
        "seed": decoding.seed,
        "min_new_tokens": decoding.min_new_tokens,
        "max_new_tokens": decoding.max_new_tokens,
        "ignore_eos": cell.cell.decode.ignore_eos,
        "gamma_max": drafting.gamma,
    }


def _written(target: CachedModel, decoding: Decoding, group: _Group, gamma: int) -> _Written:
    """The texts of some prompts, and ``gamma`` - 1 tokens beyond them: a step may be cut, and is verified whole."""
    kind = registry.load(AUTOREGRESSIVE)
    method = kind(kind.Options())
    requests = Requests([prompt.ids for prompt in group.prompts], [prompt.key for prompt in group.prompts])
    texts = generate(target, method, requests, decoding).rows
    told = [prompt + row.output_ids for prompt, row in zip(requests.prompts, texts, strict=True)]
    room = gamma - 1
    if target.max_positions is not None:
        # Where the context ends with the text there is nothing beyond it; what a run drafts there it cannot keep.
        room = min(room, target.max_positions - max(map(len, told)))
    if room < 1:
        return _Written(group, texts, [[] for _ in texts])
    endless = replace(decoding, max_new_tokens=room, min_new_tokens=0, eos_ids=())
    beyond = generate(target, method, Requests(told, requests.keys), endless).rows
    return _Written(group, texts, [row.output_ids for row in beyond])


def _rows(
    target: CachedModel, draft: CachedModel, decoding: Decoding, drafting: Drafting, written: _Written
) -> Iterator[Row]:
    """What a draft would have done along the texts of a group, a row each."""
    first, prompts = written.group
    lengths = [len(prompt.ids) for prompt in prompts]
    _check_context(draft, max(lengths) + decoding.max_new_tokens)
    sampler = sampler_for(target, [prompt.key for prompt in prompts], lengths, decoding)
    along = _Along.of(written, drafting.gamma, target.device)
    drafted = _drafted(draft, sampler, along, sampled=drafting.proposal == "sample")
    by_chance = drafting.proposal == "sample" and not isinstance(decoding.rule, Match)
    kept = _kept_by_chance(target, draft, sampler, along) if by_chance else along.matched(drafted["tokens"])
    for index, (prompt, text) in enumerate(zip(prompts, written.texts, strict=True)):
        places = len(text.output_ids) - 1
        known = places + drafting.gamma - 1 if by_chance and places else places
        yield {
            "prompt": first + index,
            "prompt_id": prompt.id,
            "category": prompt.category,
            "prompt_tokens": len(prompt.ids),
            "output_ids": text.output_ids,
            "output_tokens": len(text.output_ids),
            "finish_reason": text.finish_reason,
            "confidence": drafted["confidence"][index, :places].flatten().tolist(),
            "entropy": drafted["entropy"][index, :places].flatten().tolist(),
            **{name: values[index, :known].tolist() for name, values in kept.items()},
        }


def _check_context(draft: CachedModel, needed: int) -> None:
    if draft.max_positions is not None and needed > draft.max_positions:
        raise UnsupportedError(
            f"the draft {draft.name} has {draft.max_positions} positions, and prompts with new tokens take {needed}"
        )


class _Along(NamedTuple):
    """The texts of a group as tensors.

    Attributes:
        outputs: What the target wrote, and what it would have written beyond, -1 behind that, (B, places + gamma).
        told: The same behind its prompts, 0 in place of -1, (B, T).
        first: Index in ``told`` of every row's first output token, (B,).
        gamma: Draft tokens at every place.
    """

    outputs: Tensor
    told: Tensor
    first: Tensor
    gamma: int

    @classmethod
    def of(cls, written: _Written, gamma: int, device: torch.device) -> "_Along":
        """The texts of a group, as far as drafts of ``gamma`` tokens reach."""
        # Where every text ended with its first token, one place is looked at all the same, and no row keeps it.
        reach = max(1, max(len(text.output_ids) for text in written.texts) - 1) + gamma
        wholes = [text.output_ids + beyond for text, beyond in zip(written.texts, written.beyond, strict=True)]
        outputs = [whole[:reach] + [-1] * (reach - len(whole)) for whole in wholes]
        prompts = [prompt.ids for prompt in written.group.prompts]
        longest = max(map(len, prompts)) + reach
        told = [
            prompt + output + [0] * (longest - len(prompt) - reach)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
        return cls(
            torch.tensor(outputs, device=device),
            torch.tensor(told, device=device).clamp_min(0),
            torch.tensor(list(map(len, prompts)), device=device),
            gamma,
        )

    def text(self, count: int) -> Text:
        """The texts, looked at from ``count`` places."""
        return Text(self.told, self.first, count)

    @property
    def places(self) -> int:
        """Places of the longest text, at least 1."""
        return self.outputs.shape[1] - self.gamma

    def matched(self, tokens: Tensor) -> dict[str, Tensor]:
        """How many tokens of each draft (B, places, gamma) are the text's own, (B, places)."""
        own = self.outputs[:, 1:].unfold(1, self.gamma, 1)
        return {"matched": (tokens == own).cumprod(-1).sum(-1)}


def _drafted(draft: CachedModel, sampler: Sampler, along: _Along, *, sampled: bool) -> dict[str, Tensor]:
    """The drafts behind every place, and how sure of them the draft model is, (B, places, gamma) each."""

    def choose(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = sampler.propose(logits, positions, sampled=sampled)
        return tokens, sampler.confidence(logits, tokens), sampler.entropy(logits)

    names = ("tokens", "confidence", "entropy")
    return dict(zip(names, roll_out(draft, along.text(along.places), along.gamma, choose), strict=True))


def _kept_by_chance(target: CachedModel, draft: CachedModel, sampler: Sampler, along: _Along) -> dict[str, Tensor]:
    """How target and draft agree on the text's own tokens, (B, places + gamma - 1) each; see the table's columns."""
    text = along.text(along.places + along.gamma - 1)
    at_once = text.places_at_once(sampler.vocab_size)
    own = along.outputs[:, 1:]
    found: list[tuple[Tensor, ...]] = []
    for theirs, ours in zip(walk(target, text, at_once), walk(draft, text, at_once), strict=True):
        done = sum(part[0].shape[1] for part in found)
        found.append(_agreement(theirs, ours, own[:, done : done + theirs.logits.shape[1]], sampler))
    names = ("acceptance", "overlap", "text_confidence", "text_entropy")
    return dict(zip(names, (torch.cat(parts, dim=1) for parts in zip(*found, strict=True)), strict=True))


def _agreement(target: Places, draft: Places, own: Tensor, sampler: Sampler) -> tuple[Tensor, ...]:
    """Acceptance, overlap, confidence and entropy at some places; nothing is kept of a token that is not known."""
    token = own.clamp_min(0)
    p, q = (sampler.probs(places.logits, places.positions) for places in (target, draft))
    p_own, q_own = (probs.gather(-1, token[..., None])[..., 0] for probs in (p, q))
    chance = torch.where(q_own < p_own, q_own / p_own, 1.0)
    return (
        chance.masked_fill(own < 0, 0.0),
        torch.minimum(p, q).sum(-1),
        sampler.confidence(draft.logits, token),
        sampler.entropy(draft.logits),
    )
