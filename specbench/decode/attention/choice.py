"""Which backend a model attends with: the fastest that gives, on shapes like the run's, what a dense mask gives.

Without a clock the first of ``BACKENDS`` that passes is taken. Who has one hands it in, and then another takes its
place where it is faster by a margin, so that two runs on one machine do not differ by chance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from specbench.decode.attention.backend import Backend, Call, Facts, Sight
from specbench.decode.attention.flash import FlashPackage, FlashVarlen
from specbench.decode.attention.hook import Forward, attending, hook, implementation, unhook
from specbench.decode.attention.masked import CuDNN, Doubled, Grouped
from specbench.decode.attention.split_kv import SplitKV
from specbench.decode.cache import probe_cache
from specbench.errors import UnsupportedError, first_line

BACKENDS: tuple[Backend, ...] = (SplitKV(), FlashPackage(), FlashVarlen(), Doubled(), Grouped(), CuDNN())
"""All of them, those first that are expected to be fastest."""

OWN = ("sdpa", "eager")
"""The model's own attention under a dense mask, as ``transformers`` runs it."""

_MARGIN = 0.9  # what takes another's place needs at most this share of its time

_ROWS_CHECKED = 4
_EDGE = 3
_BEYOND_CACHES = 128 << 20  # bytes of keys and values that no cache holds, so that each layer's are fetched anew
_MOST_LAYERS = 40

# What changes the scores in a way that no backend knows.
_UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias")

Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds of one call."""


class Shape(NamedTuple):
    """A forward as the run will have them: rows, queries of each, committed tokens at most, and a tree or a line."""

    batch: int
    queries: int
    context: int
    is_tree: bool


SHAPES = (
    Shape(1, 1, 200, is_tree=False),
    Shape(3, 1, 130, is_tree=False),
    Shape(3, 5, 130, is_tree=False),
    Shape(2, 17, 70, is_tree=True),
    Shape(1, 70, 40, is_tree=True),
)
"""What is checked where nobody knows what will run."""


@dataclass(frozen=True)
class Attention:
    """How a model attends over its slab.

    Attributes:
        own: Its own implementation, under a dense mask; what runs where the backends are None.
        lines: For queries in a line.
        trees: For trees.
        refused: Why the backends that were tried and not taken cannot serve, by name.
        seconds: What each backend took in all shapes that were timed, by name; for lines, then for trees.
        is_asked_for: Whether it was named, and not found.
    """

    own: str
    lines: Backend | None = None
    trees: Backend | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    seconds: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    is_asked_for: bool = False

    @property
    def name(self) -> str:
        """What records call it, and what asks for it again: two names where lines and trees differ."""
        if self.lines is None or self.trees is None:
            return self.own
        return self.lines.name if self.lines is self.trees else f"{self.lines.name}+{self.trees.name}"

    @property
    def needs_view(self) -> bool:
        """Whether a forward depends on how many slots the host lets it see: a CUDA graph then serves one view alone."""
        return self.lines is None or self.trees is None or self.lines.needs_view or self.trees.needs_view

    def without_backends(self, reason: str) -> "Attention":
        """The model's own attention, since what was chosen has failed."""
        return replace(self, lines=None, trees=None, refused={**self.refused, self.name: reason})


def names() -> tuple[str, ...]:
    """What may be asked for beside ``auto``; of the backends two, joined by a plus, for lines and for trees."""
    return (*OWN, *(backend.name for backend in BACKENDS))


def choose(
    module: nn.Module,
    windows: Sequence[int | None],
    wanted: str = "auto",
    shapes: Sequence[Shape] = SHAPES,
    seconds_of: Stopwatch | None = None,
) -> Attention:
    """Find out how a model may attend, and switch it to our interface where that is by a backend.

    Args:
        module: The model.
        windows: How far each layer looks back, None without end, as its masks have it.
        wanted: ``auto``, or a name.
        shapes: What the backends are checked on, and timed.
        seconds_of: A clock; None to take the first that passes.

    Raises:
        UnsupportedError: The backend that was asked for cannot serve this model here; the message says why.
    """
    own = implementation(module)
    if wanted in OWN:
        return Attention(own, is_asked_for=True)
    facts = facts_of(module, windows)
    if isinstance(facts, str):
        return _none_passes(own, wanted, {wanted: facts})
    faults: dict[str, str | None] = {}

    def passes(backend: Backend) -> bool:
        if backend.name not in faults:
            faults[backend.name] = backend.unsupported(facts) or _failing(backend, facts, shapes)
        return faults[backend.name] is None

    enough = 1 if seconds_of is None else None  # nobody will compare them
    for_lines, for_trees = (list(islice(filter(passes, backends), enough)) for backends in _asked_for(wanted))
    refused = {name: fault for name, fault in faults.items() if fault is not None}
    if not for_lines or not for_trees:
        return _none_passes(own, wanted, refused)
    lines, line_s = _fastest(for_lines, facts, [shape for shape in shapes if not shape.is_tree], seconds_of)
    trees, tree_s = _fastest(for_trees, facts, [shape for shape in shapes if shape.is_tree], seconds_of)
    return Attention(own, lines, trees, refused, (line_s, tree_s), is_asked_for=wanted != "auto")


def foreseen(
    skeleton: nn.Module, windows: Sequence[int | None], wanted: str, device: torch.device, dtype: torch.dtype
) -> str:
    """What `choose` will name without a clock, unless a self-check fails, of a model whose weights are not loaded."""
    own = implementation(skeleton)
    facts = own if wanted in OWN else facts_of(skeleton, windows)
    unhook(skeleton)
    if isinstance(facts, str):
        return own
    there = replace(facts, device=device, dtype=dtype)
    lines, trees = (
        next((backend for backend in backends if not backend.unsupported(there)), None)
        for backends in _asked_for(wanted)
    )
    return Attention(own, lines, trees).name


def _asked_for(wanted: str) -> tuple[list[Backend], list[Backend]]:
    """The backends to try for lines, and those for trees."""
    if wanted == "auto":
        return list(BACKENDS), [backend for backend in BACKENDS if backend.takes_trees]
    known = {backend.name: backend for backend in BACKENDS}
    first, _, second = wanted.partition("+")
    lines = known[first]
    trees = known[second or (first if lines.takes_trees else Grouped.name)]
    if not trees.takes_trees:
        raise UnsupportedError(f"machine.attention: {trees.name} takes no trees")
    return [lines], [trees]


def _none_passes(own: str, wanted: str, refused: Mapping[str, str]) -> Attention:
    """The model's own attention, unless something else was asked for."""
    if wanted == "auto":
        return Attention(own, refused=refused)
    name, reason = next(iter(refused.items()))
    raise UnsupportedError(f"machine.attention: {name}: {reason}")


class _Notes(Backend):
    """Attends to nothing and keeps what it was asked."""

    name, needs_view, needs_mask, takes_trees = "notes", True, False, True

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def unsupported(self, facts: Facts) -> str | None:
        """It serves all."""
        return None

    def attend(self, call: Call, prepared: Any) -> Tensor:
        """Keep the call."""
        self.calls.append(call)
        return call.query.transpose(1, 2).contiguous()


@torch.no_grad()
def facts_of(module: nn.Module, windows: Sequence[int | None]) -> Facts | str:
    """What a model's attention is like, which is then hooked; or why no backend may stand in for it."""
    if (own := implementation(module)) != "sdpa":
        return f"transformers runs this model with {own} attention, not with sdpa"
    devices = {parameter.device for parameter in module.parameters()}
    if len(devices) > 1:
        return "its weights are spread over several devices"
    device = devices.pop()
    calls = _calls(module, device, windows)
    if isinstance(calls, str):
        unhook(module)
        return calls
    asked = calls[0]
    nearest = {call.window for call in calls if call.window is not None}
    return Facts(
        device=device,
        dtype=asked.query.dtype,
        query_heads=asked.query.shape[1],
        kv_heads=asked.key.shape[1],
        head_dim=asked.query.shape[-1],
        window=nearest.pop() if nearest else None,
    )


def _calls(module: nn.Module, device: torch.device, windows: Sequence[int | None]) -> list[Call] | str:
    """What one token's forward asks of every layer, or what is strange about it."""
    notes = _Notes()
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    mask = torch.zeros(1, 1, 1, 1, dtype=next(module.parameters()).dtype, device=device)
    hook(module)
    inputs = {"input_ids": token, "position_ids": token, "attention_mask": mask}
    try:
        with attending(Forward(notes)):
            module(**inputs, past_key_values=probe_cache(), use_cache=True)
    except Exception as error:  # noqa: BLE001  (whatever a foreign model raises is its reason)
        if device.type == "meta" and notes.calls:  # experts, for one, cannot run without weights
            return notes.calls
        return f"it does not run through transformers' attention interface: {first_line(error)}"
    if len(notes.calls) != len(windows):
        return f"{len(notes.calls)} of its {len(windows)} layers use transformers' attention interface"
    if strange := {name for call in notes.calls for name in _UNKNOWN if call.others.get(name) is not None}:
        return f"its attention has {', '.join(sorted(strange))}"
    if any(call.query.shape[-1] != call.value.shape[-1] for call in notes.calls):
        return "its values are not as wide as its keys"
    if [call.window for call in notes.calls] != list(windows):
        return "its layers do not tell attention how far they look back"
    return notes.calls


def _failing(backend: Backend, facts: Facts, shapes: Sequence[Shape]) -> str | None:
    """What a backend raises, or by how much it is off."""
    for shape in shapes:
        if shape.is_tree and not backend.takes_trees:
            continue
        for window in dict.fromkeys([None, facts.window]):
            try:
                off, tolerance = _Trial(facts, shape, window).outcome(backend)
            except Exception as error:  # noqa: BLE001  (whatever a kernel raises is its reason)
                return f"it fails: {first_line(error)}"
            if not off <= tolerance:
                return f"its self-check is off by {off:.2g} where {tolerance:.2g} may pass, at {shape}"
    return None


class _Trial:
    """One forward's attention over noise, with what may go wrong made visible.

    Rows have lengths of their own; behind their nodes lie large values that nobody may see, in the last slot NaN. The
    nodes, and what stands at the end of the committed keys and of the window, weigh so much that one key too many, or
    too few, shows among thousands in half precision too.
    """

    def __init__(self, facts: Facts, shape: Shape, window: int | None, layers: int = 1) -> None:
        self._facts, self._window, self._scale = facts, window, facts.head_dim**-0.5
        batch, queries, context, is_tree = shape
        chance = torch.Generator(facts.device).manual_seed(queries)
        noise = partial(torch.randn, generator=chance, dtype=facts.dtype, device=facts.device)
        slots = -(-(context + queries) // 64) * 64 + 1
        base = (context - torch.arange(batch) * (context // (batch + 1))).to(facts.device)
        behind = torch.arange(slots, device=facts.device) - base[:, None]
        sees, depth = (part.to(facts.device) for part in _ancestry(queries, is_tree=is_tree))
        self._query = noise(batch, queries, facts.query_heads, facts.head_dim).transpose(1, 2)
        self._layers = [noise(2, batch, slots, facts.kv_heads, facts.head_dim) for _ in range(layers)]
        is_edge = (behind >= -_EDGE) | ((behind + (window or slots)).abs() <= _EDGE)
        weight = torch.where(is_edge, max(8.0, context / 8), 1.0).to(facts.dtype)
        for layer in self._layers:
            layer[1] *= weight[..., None, None]
            layer[:, behind >= queries] = 30
            layer[:, :, -1] = torch.nan
        self._visible = _visible(behind, sees, depth, window or slots)
        self._sight = Sight(base, queries, queries, slots, window=window)
        if is_tree:
            self._sight = self._sight._replace(depth=depth[None], ancestors=sees[None], key_depth=depth[None])

    def call(self, backend: Backend) -> Callable[[], list[Tensor]]:
        """What a forward's layers do, their preparation apart."""
        prepared = backend.prepare(self._sight)
        end = self._sight.slots - 1 if backend.needs_view else self._sight.slots
        mask = torch.zeros(self._visible.shape, dtype=self._facts.dtype, device=self._facts.device)
        mask = mask.masked_fill(~self._visible, -torch.inf)[:, None]
        seen = [layer[:, :, :end].transpose(2, 3) for layer in self._layers]
        calls = [Call(self._query, key, value, mask, self._scale, self._window) for key, value in seen]

        def attend() -> list[Tensor]:
            with backend.scope(self._facts.device):
                return [backend.attend(call, prepared) for call in calls]

        return attend

    def outcome(self, backend: Backend) -> tuple[float, float]:
        """The largest difference from attention that is written out, in double precision; and what may pass.

        That is four roundings of the largest entry; in float32 rather more, since sums are taken in another order.
        """
        batch = len(self._query)
        rows = torch.arange(0, batch, max(1, batch // _ROWS_CHECKED), device=self._facts.device)
        wanted = self._reference(rows)
        largest, difference = float(wanted.abs().max()), float((self.call(backend)()[0][rows] - wanted).abs().max())
        is_single = self._facts.dtype == torch.float32
        return difference, largest * (1e-4 if is_single else 4 * torch.finfo(self._facts.dtype).eps)

    def _reference(self, rows: Tensor) -> Tensor:
        key, value = self._layers[0][:, rows, :-1].double().repeat_interleave(self._facts.group, dim=3)
        score = torch.einsum("bhmd,bshd->bhms", self._query[rows].double(), key) * self._scale
        score = score.masked_fill(~self._visible[rows, None], -torch.inf)
        return torch.einsum("bhms,bshd->bmhd", score.softmax(-1), value)


def _ancestry(queries: int, *, is_tree: bool) -> tuple[Tensor, Tensor]:
    """Which nodes each query sees, (M, M), and its depth, (M,): in a line, or in a tree of two children each."""
    sees, depth = torch.eye(queries, dtype=torch.bool), torch.zeros(queries, dtype=torch.int64)
    for node in range(1, queries):
        parent = (node - 1) // 2 if is_tree else node - 1
        sees[node] |= sees[parent]
        depth[node] = depth[parent] + 1
    return sees, depth


def _visible(behind: Tensor, sees: Tensor, depth: Tensor, window: int) -> Tensor:
    """Which slots but the last each query sees, (B, M, slots - 1); ``behind`` (B, slots) counts from the root's."""
    committed = (behind[:, None, :] < 0) & (behind[:, None, :] > depth[:, None] - window)
    is_node = (behind >= 0) & (behind < len(sees))
    near = sees & (depth > depth[:, None] - window)
    nodes = near[:, behind.clamp(0, len(sees) - 1)].transpose(0, 1) & is_node[:, None]
    return (committed | nodes)[:, :, :-1]


def _fastest(
    passing: Sequence[Backend], facts: Facts, shapes: Sequence[Shape], seconds_of: Stopwatch | None
) -> tuple[Backend, dict[str, float]]:
    """The first, unless another is faster by the margin; and what each took in all shapes together."""
    if seconds_of is None or len(passing) == 1:
        return passing[0], {}
    seconds = dict.fromkeys((backend.name for backend in passing), 0.0)
    for shape in shapes:
        layer_bytes = 2 * shape.batch * shape.context * facts.kv_heads * facts.head_dim * facts.dtype.itemsize
        trial = _Trial(facts, shape, facts.window, layers=min(_MOST_LAYERS, 1 + _BEYOND_CACHES // layer_bytes))
        for backend in passing:
            seconds[backend.name] += seconds_of(trial.call(backend))
    best = min(passing, key=lambda backend: seconds[backend.name])
    is_clear = seconds[best.name] < _MARGIN * seconds[passing[0].name]
    return (best if is_clear else passing[0]), seconds
