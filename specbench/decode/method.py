"""The contract between the core and a method: a method proposes, the core decides.

A method is a class with four verbs. It has no loop, no clock and no counter; acceptance, EOS, length, counting and time
belong to the core. ``methods/README.md`` adds one in five steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from specbench.decode.acceptance import Proposal
from specbench.decode.drafter import Drafter
from specbench.decode.sampling import Sampler
from specbench.decode.target import CachedModel
from specbench.decode.tree import Layout, Topology, lay_out, lay_out_chain, lay_out_topology
from specbench.errors import ConfigError


class Options(BaseModel):
    """Base of every method's options: strict, frozen, each field described and bounded.

    A field that names a model carries ``json_schema_extra={"model": True}``, one that names trained weights of the
    method's own ``json_schema_extra={"drafter": True}``; in place of True may stand the embedded family's stand-in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Hidden(NamedTuple):
    """A hidden state of the target: ``post_norm`` feeds its head, ``layer_input`` is what layer ``layer`` reads."""

    kind: Literal["post_norm", "layer_input"]
    layer: int = 0


POST_NORM = Hidden("post_norm")
"""What the target's head reads."""


@dataclass(frozen=True)
class Needs:
    """What the core must hand to the method beside tokens; anything not asked for is not computed.

    Attributes:
        hidden: Hidden states of the accepted path, and of the prompt as ``prompt_hidden`` says.
        prompt_hidden: Of every prompt position, or of the last only.
        node_topk: The k most likely tokens after every node, probes and rejected nodes included.
    """

    hidden: tuple[Hidden, ...] = ()
    prompt_hidden: Literal["last", "all"] = "last"
    node_topk: int = 0


@dataclass(frozen=True)
class Caps:
    """What a method never exceeds, so that buffers can have their final size before the run.

    Attributes:
        max_nodes: Draft nodes of a row, probes included; 0 for autoregressive.
        max_depth: Depth of the deepest one.
        max_children: Most children of one node.
        cross_request_state: Whether anything survives from one request to the next.
    """

    max_nodes: int
    max_depth: int
    max_children: int = 1
    cross_request_state: bool = False


@dataclass(frozen=True)
class TokenTree:
    """What a method proposes in one step. B rows, N draft nodes, V tokens of the common map.

    ``empty`` and ``chain`` build the common cases.

    Attributes:
        tokens: (B, N), ids of the target's vocabulary.
        parents: (B, N): -1 the root, -2 padding, else an earlier node; or a ``Topology``; or None for a chain.
        drafted: (B, N) bool for a chain or a topology: False marks padding. None means all.
        proposal: ``point`` for tokens chosen without chance or by lookup, ``iid`` for siblings drawn with replacement,
            ``without_replacement`` for siblings drawn in order without it.
        draft_probs: (B, P, V): what the children of node u were really drawn from, after all warping, in row u
            (root 0, draft node i at i + 1) or in row ``draft_rows[b, u]``. For a point proposal None, or what a lossy
            rule that asks for it takes for such a distribution.
        draft_rows: (B, N + 1), or None.
        probe: (B, N) bool, nodes that are computed and never accepted.
    """

    tokens: Tensor
    parents: Tensor | Topology | None = None
    drafted: Tensor | None = None
    proposal: Proposal = "point"
    draft_probs: Tensor | None = None
    draft_rows: Tensor | None = None
    probe: Tensor | None = None

    @staticmethod
    def empty(view: "RowView") -> "TokenTree":
        """No draft at all: the target's next token alone, which is autoregressive decoding."""
        return TokenTree(view.root.new_empty((len(view.root), 0)))

    @staticmethod
    def chain(
        tokens: Tensor,
        *,
        drafted: Tensor | None = None,
        draft_probs: Tensor | None = None,
    ) -> "TokenTree":
        """One path of N tokens a row. With ``draft_probs`` (B, N, V), row i is what token i was drawn from."""
        kind: Proposal = "point" if draft_probs is None else "iid"
        return TokenTree(tokens, None, drafted, kind, draft_probs)

    def layout(self, max_depth: int) -> Layout:
        """The tree as the core's tensors."""
        batch, num_nodes = self.tokens.shape
        if self.parents is None:
            return lay_out_chain(num_nodes, self.drafted, batch, self.tokens.device, self.probe)
        if isinstance(self.parents, Topology) and self.drafted is None and self.probe is None:
            return lay_out_topology(self.parents, batch)
        parents = self.parents.parents if isinstance(self.parents, Topology) else self.parents
        parents = parents.expand(batch, -1)
        if self.drafted is not None:
            parents = parents.masked_fill(~self.drafted, -2)
        return lay_out(parents, max_depth, self.probe)


class HostReads:
    """How a method reads tensors on the host, and how often the host had to wait for the device on that account.

    Args:
        is_free: Whether nothing is waited for: on a CPU, unless a phase is recorded and run without Python later.
    """

    def __init__(self, *, is_free: bool) -> None:
        self._is_free = is_free
        self.count = 0

    def any(self, flags: Tensor) -> bool:
        """Whether any flag is set: one wait."""
        self.count += 1
        return bool(flags.any())

    def tokens(self, tokens: Tensor, lengths: Tensor) -> list[list[int]]:
        """The first ``lengths[b]`` ids of every row as Python lists: one wait."""
        self.count += 1
        packed = torch.cat([lengths[:, None], tokens], dim=1).tolist()
        return [row[1 : row[0] + 1] for row in packed]

    def largest(self, counts: Tensor, limit: int) -> int:
        """The largest of some counts where that costs nothing, else the limit that they all keep: never a wait."""
        return int(counts.max()) if self._is_free else limit

    def take(self) -> int:
        """The count since the last call."""
        count, self.count = self.count, 0
        return count


@dataclass(frozen=True)
class RowView:
    """What a method drafts from; it reads and never writes. B rows.

    Attributes:
        root: The last committed token of every row; its KV is not in the target's cache yet, (B,).
        lengths: KV entries of every row, which is the root's position, (B,).
        tokens: Prompt and output, (B, T); ids up to and including position ``lengths`` are valid.
        active: Rows that still decode, (B,) bool.
        budget: Tokens that each row may still emit, (B,).
        sampler: Warping and noise, the very object that verifies.
        longest: No length is greater; known on the host without asking the device.
        capacity: Slots that a cache of this batch needs, draft nodes and one trash slot included.
        text_limit: No row's prompt and output together grow longer.
        host: How to read a tensor on the host where that cannot be avoided.
    """

    root: Tensor
    lengths: Tensor
    tokens: Tensor
    active: Tensor
    budget: Tensor
    sampler: Sampler
    longest: int
    capacity: int
    text_limit: int
    host: HostReads


@dataclass(frozen=True)
class Prefill:
    """What the target computed over the prompts.

    Attributes:
        tokens: Prompts, padded on the right, (B, P).
        lengths: Tokens of every prompt, (B,).
        hidden: By ``Needs.hidden``: (B, P, H), or (B, 1, H) where only the last position was asked for.
        node_topk: (B, 1, k) ids after the last prompt token, where asked for.
    """

    tokens: Tensor
    lengths: Tensor
    hidden: dict[Hidden, Tensor] = field(default_factory=dict)
    node_topk: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """What became of a draft. A = max_depth + 1 path columns.

    Attributes:
        path: Nodes of the accepted path, the root (0) first, -1 beyond it, (B, A).
        accepted_tokens: Draft tokens accepted, before the cut at EOS and length, (B,).
        emitted_tokens: Tokens that became text, 0 for rows that were done, (B,).
        emitted: Those tokens, -1 beyond them, (B, A); the last one is the new root.
        lengths_before: KV entries before the step, (B,).
        hidden: By ``Needs.hidden``, gathered along the path, (B, A, H).
        node_topk: (B, N + 1, k) ids after every node, where asked for.
    """

    path: Tensor
    accepted_tokens: Tensor
    emitted_tokens: Tensor
    emitted: Tensor
    lengths_before: Tensor
    hidden: dict[Hidden, Tensor] = field(default_factory=dict)
    node_topk: Tensor | None = None

    def last_hidden(self, which: Hidden) -> Tensor:
        """The hidden state behind the new root's logits, (B, H); any for rows that are done."""
        states = self.hidden[which]
        column = (self.emitted_tokens - 1).clamp_min(0)
        return states[torch.arange(len(column), device=column.device), column]


D = TypeVar("D", bound=Drafter)


class DrafterSource(Protocol):
    """Gives a method its trained weights, bound to the target and shared with all who ask for the same."""

    def __call__(self, kind: type[D], reference: str) -> D:
        """The weights of that kind at a name, a folder or a hub id."""


def _no_drafters(kind: type[D], reference: str) -> D:  # noqa: ARG001 (the form of a DrafterSource)
    raise ConfigError(f"{reference}: there are no trained weights here")


@dataclass(frozen=True)
class LoadContext:
    """What a method may take hold of when it is loaded.

    Attributes:
        target: The target; read it, never change it.
        draft_model: Name or folder of a causal LM -> the model with a cache of the method's own, checked to have the
            target's token map. The bench keeps its draft latency through this handle.
        drafter: Kind and name, or folder, of a method's own trained weights -> the weights, bound to the target.
    """

    target: CachedModel
    draft_model: Callable[[str], CachedModel]
    drafter: DrafterSource = _no_drafters


class Method(ABC):
    """Base of every method: proposes a draft, and learns what became of it.

    The verbs are called in this order: ``load`` once, then for every batch ``begin`` once and ``draft``, ``update`` in
    turn. All tensors live on the target's device, and every row has a length of its own.

    Attributes:
        name: What experiments call it, the same as in the table or entry point that registers it.
        Options: Its options; a default for every one of them is a kindness.
        examples: Option sets that between them reach all of its code: the contract suite tries each. An option that
            names a draft model or trained weights is given as ``near``, ``same`` or ``far``: accepted in part, whole,
            hardly ever.
        trains: The weights that it learns, for a method that ``specbench train`` can train.
    """

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]] = Options
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    trains: ClassVar[type[Drafter] | None] = None

    def __init__(self, options: BaseModel) -> None:
        self.options = options

    def needs(self) -> Needs:
        """What the core must compute for this method; nothing, unless overridden."""
        return Needs()

    @abstractmethod
    def caps(self) -> Caps:
        """The most that a draft of this method can be; called after ``load``."""

    def unsupported(self, batch_size: int, rule: str) -> str | None:
        """Why this method cannot run such a batch, in words for a user; None when it can."""
        return None

    def load(self, context: LoadContext) -> None:
        """Take hold of weights or data; not timed."""

    def begin(self, view: RowView, prefill: Prefill) -> None:
        """Start a batch: the method's own prefill, charged to ``prefill_s``. All state of earlier batches is void."""

    def carries(self) -> tuple[str, ...] | None:
        """Names of the attributes that live from one ``draft`` or ``update`` to the next; called after ``load``.

        A method that names them all, tensors that keep their shape for a whole batch, promises that what it does
        follows from them and from its arguments, without a look at the host. Its phases may then be recorded once and
        replayed: Python runs no more, and the core moves these tensors. None, the default, promises nothing.
        """
        return None

    @abstractmethod
    def draft(self, view: RowView) -> TokenTree:
        """Propose a tree of tokens for every row; rows that are not active may hold anything."""

    def update(self, view: RowView, result: StepResult) -> None:
        """Learn what was accepted; ``view`` is the state after the step."""
