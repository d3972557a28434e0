"""The KV cache: one slab for all layers and rows, a length per row, and a move of the accepted path.

The slab is ``[layer, key or value, row, slot, head, dim]``: slots stand before heads, so that a row's tokens lie next
to one another, and compaction is one gather and one scatter for all layers. Slots equal positions for committed tokens;
a step's nodes sit in the slots after them, and the last slot is trash for everything that must not be kept.
A model that is spread over several devices has a slab on each, with the layers that live there.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class KVShape:
    """The size of one token's keys and values in one layer, the same in all layers.

    Attributes:
        layers: Layers that keep any.
        heads: Heads of keys and values; under tensor parallelism those of this process alone.
        dim: Width of a head.
        devices: Where each layer keeps them, one entry a layer; empty where all do so on the model's device.
    """

    layers: int
    heads: int
    dim: int
    devices: tuple[torch.device, ...] = ()


@dataclass
class Window:
    """Where the forward that is running writes, and how many slots it attends to.

    Attributes:
        rows: Row of every token, (B, 1).
        slots: Slot of every token, (B, M).
        view: Slots that are visible, or None in a prefill, where fresh keys and values are all there is.
        places: Of a model on the CPU, the slot of every token where rows lie end to end, (B * M,).
    """

    rows: Tensor
    slots: Tensor
    view: int | None
    places: Tensor | None = None

    def on(self, device: torch.device) -> "Window":
        """The same window with its tensors on another device."""
        parts = ((part.name, getattr(self, part.name)) for part in fields(self))
        moved: dict[str, Any] = {name: value.to(device) for name, value in parts if isinstance(value, Tensor)}
        return replace(self, **moved)


class SlabCache:
    """The slab, and a face of it that ``transformers`` takes for a cache.

    Attributes:
        slabs: The slab of every device that holds layers, ``[its layers, 2, row, slot, head, dim]``.
        window: Where the forward that is running writes, on the model's own device.
    """

    def __init__(self, shape: KVShape, batch: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        places = shape.devices or (device,) * shape.layers
        size = (2, batch, slots, shape.heads, shape.dim)
        slabs = [torch.zeros(places.count(place), *size, dtype=dtype, device=place) for place in dict.fromkeys(places)]
        self._lay(slabs, places, device)

    def first_rows(self, batch: int) -> "SlabCache":
        """A cache for fewer rows in the same place, so that what knows the address of this one stays right."""
        fewer = SlabCache.__new__(SlabCache)
        fewer._lay([slab[:, :, :batch] for slab in self.slabs], self._places, self.rows.device)
        return fewer

    def _lay(self, slabs: list[Tensor], places: tuple[torch.device, ...], device: torch.device) -> None:
        self.slabs, self._places = slabs, places
        _, _, batch, slots, _, _ = slabs[0].shape
        by_device = dict(zip(dict.fromkeys(places), slabs, strict=True))
        self.batch, self.slots = batch, slots
        self.rows = torch.arange(batch, device=device)[:, None]
        self.index = torch.arange(slots, device=device)
        self.window: Window | None = None
        self._copy: Tensor | None = None
        self._carried: tuple[Window | None, dict[torch.device, Window]] = (None, {})
        parts = [by_device[place][places[:layer].count(place)] for layer, place in enumerate(places)]
        self.as_transformers = Cache(layers=[_SlabLayer(self, part) for part in parts])

    def open(self, slots: Tensor, view: int | None) -> None:
        """Let the next forward write its tokens to those slots, (B, M), and see ``view`` of each row."""
        places = (self.rows * self.slots + slots).flatten() if slots.device.type == "cpu" else None
        self.window = Window(self.rows, slots, view, places)

    def window_on(self, device: torch.device) -> Window:
        """The window as layers on ``device`` need it; carried there once for all of them."""
        assert self.window is not None, "a slab is written only by CachedModel.forward"
        if device == self.rows.device:
            return self.window
        if self._carried[0] is not self.window:
            self._carried = (self.window, {})
        copies = self._carried[1]
        if device not in copies:
            copies[device] = self.window.on(device)
        return copies[device]

    def copied(self, seen: Tensor) -> Tensor:
        """A dense copy that lasts until the next one is made.

        All layers share its place, which therefore stays in the processor's caches. The compiler finds places itself.
        """
        if torch.compiler.is_compiling():
            return seen.clone()
        if self._copy is None or (self._copy.shape, self._copy.device) != (seen.shape, seen.device):
            with torch.inference_mode(mode=False):
                self._copy = torch.empty(seen.shape, dtype=seen.dtype, device=seen.device)
        return self._copy.copy_(seen)

    @property
    def slab(self) -> Tensor:
        """The slab of a model that lives on one device."""
        (slab,) = self.slabs
        return slab

    @property
    def trash(self) -> int:
        """The slot that nobody reads."""
        return self.slots - 1

    @property
    def kv_bytes(self) -> int:
        """Bytes that the slabs hold."""
        return sum(slab.nbytes for slab in self.slabs)

    def compact(
        self, path: Int[Tensor, "batch columns"], kept: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"]
    ) -> None:
        """Move the KV of an accepted path to the slots right behind the row's committed tokens.

        Args:
            path: Nodes of the path, the root first, -1 beyond it, (B, A).
            kept: How many path columns stay, the root included, (B,); 0 for rows that were done.
            lengths: Committed tokens before the step, which is the root's slot, (B,).
        """
        depth = self.index[1 : path.shape[1]]
        stays = depth < kept[:, None]
        source = torch.where(stays, lengths[:, None] + path[:, 1:], self.trash)
        target = torch.where(stays, lengths[:, None] + depth, self.trash)
        for slab in self.slabs:
            rows, to, of = (places.to(slab.device) for places in (self.rows, target, source))
            # The right-hand side is gathered whole before anything is written.
            slab[:, :, rows, to] = slab[:, :, rows, of]


class _SlabLayer(CacheLayerMixin):
    """One layer of the slab, in the form that attention modules call."""

    is_compileable = True
    is_sliding = False

    def __init__(self, owner: SlabCache, both: Tensor) -> None:
        super().__init__()
        self._both, self._end_to_end = both, both.view(2, -1, *both.shape[3:])
        self.keys, self.values = both
        self.is_initialized = True
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The slab exists already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, heads, M, dim) to their slots; return what the queries may look at, (B, heads, view, dim)."""
        window = self._owner.window_on(self._both.device)
        if self._both.device.type != "cuda":
            return self._updated_on_cpu(window, key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        # Two index tensors: the one form of this write that torch.compile does not turn into a copy of the cache.
        self.keys[window.rows, window.slots] = key_states.transpose(1, 2)
        self.values[window.rows, window.slots] = value_states.transpose(1, 2)
        if window.view is None:
            return key_states, value_states
        return self.keys[:, : window.view].transpose(1, 2), self.values[:, : window.view].transpose(1, 2)

    def _updated_on_cpu(self, window: Window, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """One write, and one copy of what is seen.

        By the time that a layer's turn comes, the weights have pushed its part of the slab out of the processor's
        caches, and attention would fetch it again head by head. A copy from end to end fetches it in one stretch: with
        it, a step's attention took .5 to .8 of the time at batch sizes 1 to 8.
        """
        fresh = torch.stack((key_states.transpose(1, 2), value_states.transpose(1, 2)))  # (2, B, M, heads, dim)
        if window.places is None or torch.compiler.is_compiling():  # compiled, the other form takes longer
            self._both[:, window.rows, window.slots] = fresh
        else:
            self._end_to_end.index_copy_(1, window.places, fresh.flatten(1, 2))
        if window.view is None:
            return key_states, value_states
        keys, values = self._owner.copied(self._both[:, :, : window.view]).transpose(2, 3)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Never used for a mask: every forward brings its own."""
        return self._owner.slots, 0

    def get_seq_length(self) -> int:
        """Rows have lengths of their own, so there is no one answer; positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """Slots of a row."""
        return self._owner.slots


class _Probe(CacheLayerMixin):
    """A layer that remembers nothing but the shape of what it was given."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to make."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Note the tensors and hand them on."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if the cache were empty."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """As if the cache were empty."""
        return 0

    def get_max_length(self) -> int:
        """No end."""
        return -1


def probe_cache() -> Cache:
    """A cache that shows, after one forward, what a model would store in it."""
    return Cache(layer_class_to_replicate=_Probe)
