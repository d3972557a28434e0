"""Training of a method's own weights on a target's hidden states: heads, recurrent drafters, or another method's."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from specbench.decode.drafter import IGNORED, Drafter, Losses, TrainingBatch, losses_by_depth
from specbench.decode.method import Hidden
from specbench.decode.target import CachedModel, tapped
from specbench.train.continuations import Continuations
from specbench.train.examples import Example, Examples
from specbench.train.loop import HeldOut, Optimizers
from specbench.train.processes import Processes
from specbench.train.states import KeptStates, hidden_states

_SHOWN_RANKS = (1, 5)
_HEADS_SHARE = 0.2
"""What the heads count beside the target's own loss in a joint training (Medusa-2, arXiv 2401.10774, section 3.2.2)."""
_TARGET_RATE = 0.25
"""The target's learning rate against the heads' there."""


@dataclass(frozen=True)
class DrafterSchedule:
    """How long a drafter is trained and how fast it learns. The defaults are those of Apple's and Medusa's scripts.

    Attributes:
        epochs: Passes over the data.
        batch_size: Texts of an optimizer step, over all processes.
        micro_batch: Texts of a forward.
        lr: Peak rate of AdamW.
        places_share: Share of every text's places that a step learns from, drawn anew each time. Neighbours teach much
            the same: of the same number of places, few in many texts teach more.
        warmup_share: Share of the steps in which the rate rises; then it falls as a cosine to nothing.
        weight_decay: AdamW's.
        clip: Largest norm of the gradients.
        seed: Of the weights and of the order of the texts.
        joint: Train the target as well (Medusa-2), after a warm-up in which only the heads learn.
        joint_warmup_share: That warm-up's share of the steps.
    """

    epochs: int = 2
    batch_size: int = 128
    micro_batch: int = 4
    lr: float = 1e-3
    places_share: float = 1.0
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    joint: bool = False
    joint_warmup_share: float = 0.5

    def steps(self, texts: int) -> int:
        """Optimizer steps over so many texts."""
        return self.epochs * math.ceil(texts / self.batch_size)

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak rate that step ``step`` (from 0) of ``steps`` trains with."""
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class Texts:
    """Some texts as the drafter and the target learn from them. B texts of up to T tokens, n depths.

    Attributes:
        tokens: (B, T), padded on the right.
        lengths: (B,).
        learn: Whether a token may be a label, (B, T).
        ahead: The tokens after every place, the root first, (B, T, n + 1).
        labels: ``ahead`` without the root, ``IGNORED`` where nothing is learned, (B, T, n).
        counts: Labels of every depth in the whole optimizer step, (n,).
        own_count: Labels of the target itself in the whole step.
        with_beliefs: Whether the target's distributions are learned in place of the labels.
        states: The target's hidden states, (B, T, H), where they are known already.
    """

    tokens: Tensor
    lengths: Tensor
    learn: Tensor
    ahead: Tensor
    labels: Tensor
    counts: Tensor
    own_count: Tensor
    with_beliefs: bool = False
    states: Tensor | None = None

    def places(self, which: Hidden, hidden: Tensor) -> TrainingBatch:
        """Those places that teach anything; one that teaches nothing where there are none, so that no mean is of none.

        Args:
            which: The hidden state that the drafter reads.
            hidden: It, at every token, (B, T, H).
        """
        taught = (self.labels != IGNORED).any(-1)
        if not bool(taught.any()):
            taught = torch.zeros_like(taught)
            taught[0, 0] = True
        beliefs = None
        if self.with_beliefs:
            # Depth i's label follows the token i + 1 places on, and that token's state says what the target expects.
            row, place = taught.nonzero(as_tuple=True)
            later = place[:, None] + 1 + torch.arange(self.labels.shape[2], device=place.device)
            beliefs = hidden[row[:, None], later.clamp_max(hidden.shape[1] - 1)]
        states = hidden[taught].float()
        return TrainingBatch({which: states}, self.ahead[taught], self.labels[taught], self.counts, beliefs)

    def next_tokens(self, hidden: Tensor) -> tuple[Tensor, TrainingBatch]:
        """What the target itself learns, the next token at every place: states (P, H), and their labels."""
        taught = self.learn[:, 1:].clone()
        taught[0, 0] = True  # never no place at all; its label says whether it counts
        tokens = self.tokens[:, 1:]
        labels = tokens.masked_fill(~self.learn[:, 1:], IGNORED)[taught][:, None]
        batch = TrainingBatch({}, tokens[taught][:, None], labels, self.own_count[None])
        return hidden[:, :-1][taught], batch


class Student(nn.Module):
    """What learns: a drafter, and in a joint training the target under it. A forward is the loss over some texts."""

    def __init__(self, drafter: Drafter, target: CachedModel, *, joint: bool) -> None:
        super().__init__()
        self.drafter = drafter
        self._frozen = (target,)  # in a tuple, or a frozen target would be kept in every checkpoint
        if joint:
            self.model = target.module.requires_grad_(requires_grad=True)

    @property
    def target(self) -> CachedModel:
        """The target, whether it learns or not."""
        return self._frozen[0]

    def forward(self, texts: Texts, *, target_learns: bool) -> Losses:
        """The drafter's loss; where the target learns as well, its own with the drafter's share beside it."""
        hidden = self._learning_states(texts) if target_learns else self._states(texts)
        found: Losses = self.drafter(texts.places(self.drafter.hidden, hidden))
        if not target_learns:
            return found
        features, batch = texts.next_tokens(hidden)
        head = self.target.head
        own = losses_by_depth([features], lambda state, _: head(state), batch, [1.0], head)
        return found._replace(loss=own.loss + _HEADS_SHARE * found.loss)

    def _states(self, texts: Texts) -> Tensor:
        """The target's hidden states, (B, T, H), which nothing flows back through."""
        if texts.states is not None:
            return texts.states
        return hidden_states(self.target, self.drafter.hidden, texts.tokens, texts.lengths)

    def _learning_states(self, texts: Texts) -> Tensor:
        """The same with gradients; the head sees the last token alone, as its logits are made elsewhere, in parts."""
        which = self.drafter.hidden
        with tapped(self.target.module, (which,), (texts.lengths - 1)[:, None]) as states:
            self.target.module(input_ids=texts.tokens, use_cache=False)
        return states[which]


class DrafterTask:
    """A student and the texts that it learns from; the batch of a step depends on the seed and the step alone."""

    def __init__(
        self,
        name: str,
        student: Student,
        examples: Examples,
        schedule: DrafterSchedule,
        *,
        continuations: Continuations | None = None,
        states: KeptStates | None = None,
        with_beliefs: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        processes: Processes | None = None,
    ) -> None:
        self.name = name
        self.module: nn.Module = student
        self._student = student
        self.steps = schedule.steps(len(examples.training))
        self.tokens_per_step = schedule.batch_size * round(np.mean([len(text.tokens) for text in examples.training]))
        self._schedule, self._continuations, self._kept_states = schedule, continuations, states
        self._training = [_Lesson(f"train-{index:07d}", text) for index, text in enumerate(examples.training)]
        self._held_out = [_Lesson(f"held-out-{index:07d}", text) for index, text in enumerate(examples.held_out)]
        self._with_beliefs = with_beliefs
        self._processes = processes or Processes.alone()
        self._wrapped = self._processes.wrap(student, find_unused=schedule.joint)
        self._depth, self._device = student.drafter.depth, student.target.device
        self._autocast = torch.autocast(self._device.type, dtype=dtype, enabled=dtype != torch.float32)

    def backward(self, step: int) -> float:
        """The gradients of one step's texts, a few at a time, each process its share."""
        chosen = self._chosen(step)
        counts = self._counts(chosen)
        own = chosen[self._processes.rank :: self._processes.world]
        size, share = self._schedule.micro_batch, math.ceil(len(chosen) / self._processes.world)
        parts = [own[first : first + size] for first in range(0, share, size)]  # as many in every process
        nats = torch.zeros(self._depth, device=self._device)
        learns = self._target_learns(step)
        for index, part in enumerate(parts):
            with self._without_exchange(last=index + 1 == len(parts)), self._autocast:
                losses = self._wrapped(self._texts(part or [chosen[0].silent()], counts), target_learns=learns)
                # Averaged over the processes by their exchange, and each has divided by the labels of all.
                (losses.loss * self._processes.world).backward()
            nats += losses.nats
        return float((self._processes.sum(nats) / counts[0].to(self._device)).mean())

    def _target_learns(self, step: int) -> bool:
        return self._schedule.joint and step >= self._schedule.joint_warmup_share * self.steps

    def _without_exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes exchange their gradients once a step, with the last texts."""
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return nullcontext()

    @torch.no_grad()
    def evaluate(self) -> HeldOut:
        """Over the held-out texts: the mean loss of all depths, and how often each depth's guesses are right."""
        student, held_out = self._student, self._held_out
        student.eval()
        counts = self._counts(held_out)
        nats = torch.zeros(self._depth, device=self._device)
        hits: Tensor | float = 0.0
        for first in range(0, len(held_out), self._schedule.micro_batch):
            part = held_out[first : first + self._schedule.micro_batch]
            with self._autocast:
                losses = student(self._texts(part, counts), target_learns=False)
            nats, hits = nats + losses.nats, hits + losses.hits
        student.train()
        shares = (torch.as_tensor(hits) / counts[0].to(self._device)[:, None]).tolist()
        by_rank = [tuple(np.diff(row, prepend=0.0).tolist()) for row in shares]
        student.drafter.rank_accuracy = tuple(by_rank)
        loss = nats / counts[0].to(self._device)
        details = {f"held_out_loss_{depth}": value for depth, value in enumerate(loss.tolist(), start=1)}
        for depth, row in enumerate(shares, start=1):
            details |= {f"held_out_top{rank}_{depth}": row[rank - 1] for rank in _SHOWN_RANKS}
        return HeldOut(float(loss.mean()), shares[0][0], details)

    def _chosen(self, step: int) -> "list[_Lesson]":
        texts, size = self._training, self._schedule.batch_size
        epoch, place = divmod(step, math.ceil(len(texts) / size))
        order = np.random.default_rng((self._schedule.seed, epoch)).permutation(len(texts))
        chosen = [texts[index] for index in order[place * size : (place + 1) * size]]
        share = self._schedule.places_share
        if share >= 1:
            return chosen
        generator = np.random.default_rng((self._schedule.seed, step, 1))
        return [replace(lesson, places=generator.random(len(lesson.text.tokens)) < share) for lesson in chosen]

    def _counts(self, lessons: "Sequence[_Lesson]") -> tuple[Tensor, Tensor]:
        """Labels of every depth in these texts, and labels of the target itself, at least one of each."""
        own = sum(int(lesson.text.learn[1:].sum()) for lesson in lessons)
        by_depth = [sum(lesson.labels(self._reach(depth)) for lesson in lessons) for depth in range(self._depth)]
        return torch.tensor(by_depth).clamp_min(1).float(), torch.tensor(max(own, 1)).float()

    def _reach(self, depth: int) -> int:
        """Tokens between a place and the one whose being learned makes the label of a depth (from 0) count.

        Where the labels are the target's continuations, a place teaches all of its own if an answer's token follows.
        """
        return 1 if self._continuations is not None else depth + 2

    def _texts(self, lessons: "Sequence[_Lesson]", counts: tuple[Tensor, Tensor]) -> Texts:
        longest = max(len(lesson.text.tokens) for lesson in lessons)
        tokens = np.zeros((len(lessons), longest), dtype=np.int64)
        learn, taught = np.zeros((2, *tokens.shape), dtype=bool)
        for row, lesson in enumerate(lessons):
            length = len(lesson.text.tokens)
            tokens[row, :length], learn[row, :length] = lesson.text.tokens, lesson.text.learn
            taught[row, :length] = lesson.places
        ids, may, at = (torch.from_numpy(values).to(self._device) for values in (tokens, learn, taught))
        lengths = torch.tensor([len(lesson.text.tokens) for lesson in lessons], device=self._device)
        rows = [
            (lesson.name, row[None, :length], length[None])
            for lesson, row, length in zip(lessons, ids, lengths, strict=True)
        ]
        ahead, counted = _windows(ids, self._depth + 1), _windows(may, self._depth + 1)
        counted = torch.stack([counted[..., self._reach(depth) - 1] for depth in range(self._depth)], dim=-1)
        if self._continuations is not None:
            ahead = _padded([self._continuations.of(*row) for row in rows])
        labels = ahead[:, :, 1:].masked_fill(~(counted & at[..., None]), IGNORED)
        states = _padded([self._kept_states.of(*row) for row in rows]) if self._kept_states else None
        by_depth, own = (count.to(self._device) for count in counts)
        return Texts(ids, lengths, may, ahead, labels, by_depth, own, self._with_beliefs, states)


@dataclass(frozen=True)
class _Lesson:
    """A text as a step takes it.

    Attributes:
        name: What is kept of it on disk has this name.
        text: Its tokens, and which are learned.
        places: The places that teach, (T,) of bool; all of them unless given.
    """

    name: str
    text: Example
    places: np.ndarray | bool = True

    def labels(self, reach: int) -> int:
        """How many places teach, where a place counts if the token so many further on is learned."""
        places = np.broadcast_to(self.places, self.text.learn.shape)
        return int((places[:-reach] & self.text.learn[reach:]).sum())

    def silent(self) -> "_Lesson":
        """The same, and nothing is learned from it."""
        return replace(self, text=replace(self.text, learn=np.zeros_like(self.text.learn)))


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Of every text one (1, T, ...) -> (B, longest T, ...)."""
    return nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)


def _windows(values: Tensor, length: int) -> Tensor:
    """The ``length`` values after every place, zeros beyond the end, (B, T) -> (B, T, length)."""
    return nn.functional.pad(values[:, 1:], (0, length)).unfold(1, length, 1)


def adamw(student: Student, schedule: DrafterSchedule, steps: int) -> Optimizers:
    """AdamW under one cosine; a target that learns as well does so at a quarter of the drafter's rate."""
    groups = [([*student.drafter.parameters()], schedule.lr)]
    if schedule.joint:
        groups.append(([*student.model.parameters()], schedule.lr * _TARGET_RATE))
    return Optimizers(
        [(torch.optim.AdamW(weights, lr=peak, weight_decay=schedule.weight_decay), peak) for weights, peak in groups],
        lambda step: schedule.factor(step, steps),
    )
