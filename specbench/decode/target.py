"""Any Hugging Face causal LM, unmodified, over a slab cache: a forward over committed tokens plus the nodes of a tree.

The same class runs the target and every draft model. A model is used only after a self-test has shown that its logits
over a tree equal those of plain sequences; one that fails is refused with the reason.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specbench.decode.attention.backend import Sight
from specbench.decode.attention.choice import Attention, choose, foreseen
from specbench.decode.attention.hook import Forward, attending
from specbench.decode.attention.masked import without_cudnn
from specbench.decode.cache import KVShape, SlabCache, probe_cache
from specbench.decode.tree import Layout, lay_out
from specbench.errors import ModelRefusedError, first_line

if TYPE_CHECKING:
    from specbench.decode.method import Hidden

# A KV view grows in strides. On a GPU few shapes should occur; on a CPU every slot more is a slot more to read.
_VIEW_STRIDE = {"cuda": 64, "cpu": 16}
_KNOWN_ATTENTION = {"full_attention", "sliding_attention"}


class Branches(NamedTuple):
    """How the queries of a forward hang together where they do not stand in a line.

    Attributes:
        node: Which node each query is, (M,).
        depth: Its depth below the base, (B, M) or (1, M); its position is ``base + depth``.
        ancestors: Which nodes each query sees, itself included, (B, M, K) or (1, M, K).
        key_depth: Depth of every node 0..K-1, (B, K) or (1, K).
    """

    node: Tensor
    depth: Tensor
    ancestors: Tensor
    key_depth: Tensor


class Nodes(NamedTuple):
    """The tokens of one forward: M queries over a row's committed tokens and up to K nodes behind them.

    What a padding node, or a row that is done, writes into its slots is never seen: a slot becomes visible only to the
    forward that has just written it, or once its node is committed.

    Attributes:
        tokens: (B, M).
        base: Committed tokens that every query sees; node j of row b sits in slot ``base[b] + j``, (B,).
        branches: None where the queries are nodes 0..M-1 in a line, each seeing those before it.
    """

    tokens: Tensor
    base: Tensor
    branches: Branches | None = None


@dataclass(frozen=True)
class Output:
    """What a forward computed: logits (B, M, rows of the vocabulary), and the hidden states that were asked for."""

    logits: Tensor
    hidden: Mapping["Hidden", Tensor] = field(default_factory=dict)


class CachedModel:
    """A causal LM with a slab of its own. Rows are ragged; nothing is ever padded by token id or moved to align.

    Attributes:
        module: The unmodified model, in evaluation mode.
        name: How users call it.
        vocab_size: Tokens of its map; further rows of its logits are padding.
        device: Where tokens go in and logits come out, however many devices the layers live on.
        is_spread: Whether its weights lie on several devices or with several processes.
        pacer: Wraps every forward. The bench keeps a draft latency with it; nobody else knows that it exists.
        attention: How it attends over its slab.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        name: str,
        vocab_size: int | None = None,
        attention: str | Attention = "auto",
    ) -> None:
        self.module = module.eval()
        self.name = name
        self.config = module.config.get_text_config()
        self.vocab_size = vocab_size or int(self.config.vocab_size)
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.max_positions = _max_positions(self.config)
        self.pacer: AbstractContextManager[None] = nullcontext()
        _check_interface(module, name)
        self._embeddings, self._head = module.get_input_embeddings(), module.get_output_embeddings()
        self._masks = _mask_kinds(self.config, name)
        self._taps = _taps_of(module)
        self._seen, self._unseen = torch.tensor([0.0, -torch.inf], dtype=self.dtype, device=self.device).unbind()
        self.kv_shape = _probe_kv_shape(module, name)
        self.is_spread = bool(self.kv_shape.devices) or any(local_part(own) is not own for own in module.parameters())
        _refuse_unknown_windows(self.config, name)
        self._no_mask = self._by_layer(*[torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device)] * 2)
        self.attention = attention if isinstance(attention, Attention) else choose(module, self.windows, attention)
        self._cache: SlabCache | None = None
        self._whole: SlabCache | None = None
        self.release()

    @property
    def cache(self) -> SlabCache:
        """The slab of the current batch."""
        assert self._cache is not None, "allocate() comes first"
        return self._cache

    @property
    def can_be_captured(self) -> bool:
        """Whether CUDA graphs can hold its forwards: one graph is of one device."""
        return self.device.type == "cuda" and not self.is_spread

    @property
    def slab_cache(self) -> SlabCache | None:
        """The slab that it has, if it has one."""
        return self._cache

    @property
    def kv_bytes(self) -> int:
        """Bytes of its slab; 0 without one."""
        return 0 if self._whole is None else self._whole.kv_bytes

    def release(self) -> None:
        """Let go of the slab; the next batch makes another."""
        self._cache = self._whole = None
        self._parts: dict[int, SlabCache] = {}

    def sharing_weights(self) -> "CachedModel":
        """The same weights with a slab of its own, for another user in the same process."""
        return CachedModel(self.module, self.name, self.vocab_size, self.attention)

    @property
    def windows(self) -> list[int | None]:
        """How far each layer looks back; None without end."""
        return _windows(self.config, self._masks)

    def allocate(self, batch: int, slots: int) -> None:
        """Make room for ``batch`` rows of ``slots`` slots; a slab that fits serves again, as nothing stale is read.

        A smaller batch takes the first rows of it: a last partial one must not cost the full ones their place.
        """
        if self._whole is None or self._whole.batch < batch or self._whole.slots < slots:
            self.release()  # let go of the old slab before the new one is made
            with torch.inference_mode(mode=False):  # a forward outside the loop may write to it too
                self._whole = SlabCache(self.kv_shape, batch, slots, self.dtype, self.device)
        if batch not in self._parts:
            self._parts[batch] = self._whole if batch == self._whole.batch else self._whole.first_rows(batch)
        self._cache = self._parts[batch]

    @torch.no_grad()
    def prefill(
        self, tokens: Tensor, lengths: Tensor, hidden: tuple["Hidden", ...] = (), *, all_positions: bool = False
    ) -> Output:
        """Fill the slab with prompts, padded on the right, and return the logits after each row's last token.

        Args:
            tokens: (B, P); what stands at and beyond ``lengths`` is never seen.
            lengths: (B,), at least 1.
            hidden: Hidden states to return.
            all_positions: Return hidden states of every position, not only of the last.

        Returns:
            Logits (B, 1, rows of the vocabulary); hidden states (B, P, H) or (B, 1, H).
        """
        batch, longest = tokens.shape
        position = self.cache.index[:longest]
        slots = torch.where(position < lengths[:, None], position, self.cache.trash)
        last = (lengths - 1)[:, None]
        positions = position.expand(batch, -1)
        is_causal = self.attention.lines is not None and longest <= (self._masks.window or longest)
        if is_causal:
            masks = self._no_mask
        else:
            visible = (position <= position[:, None])[None]
            masks = self._additive(visible, position[None], position[None])
        scope = without_cudnn(self.device) if is_causal else nullcontext()
        with attending(Forward() if is_causal else None), scope:
            self.cache.open(slots, None)
            output = self._run(tokens, positions, masks, hidden, keep=last)
        if all_positions:
            return output
        rows = self.cache.rows
        return Output(output.logits, {key: value[rows, last] for key, value in output.hidden.items()})

    @torch.no_grad()
    def forward(self, nodes: Nodes, longest: int, hidden: tuple["Hidden", ...] = ()) -> Output:
        """Run nodes on top of the committed tokens; their KV stays in the slots behind ``base``.

        Args:
            nodes: The queries.
            longest: No entry of ``nodes.base`` is greater; known without asking the device.
            hidden: Hidden states to return, (B, M, H) each.
        """
        with self.pacer:
            return self._forward(nodes, longest, hidden)

    def _forward(self, nodes: Nodes, longest: int, hidden: tuple["Hidden", ...]) -> Output:
        cache, branches = self.cache, nodes.branches
        backend = self.attention.lines if branches is None else self.attention.trees
        reach = nodes.tokens.shape[1] if branches is None else branches.ancestors.shape[-1]
        if branches is None:
            slots = positions = nodes.base[:, None] + cache.index[:reach]
        else:
            slots, positions = nodes.base[:, None] + branches.node, nodes.base[:, None] + branches.depth
        if self.max_positions is not None:
            # Nodes beyond the last position are beyond the budget as well: they are computed and never kept.
            positions = positions.clamp_max(self.max_positions - 1)
        view = self._view(longest + reach) if backend is None or backend.needs_view else cache.slots
        masks = self._dense(nodes, slots, positions, view) if backend is None or backend.needs_mask else self._no_mask
        cache.open(slots, view)
        if backend is None:
            return self._run(nodes.tokens, positions, masks, hidden)
        with attending(Forward(backend, backend.prepare(self._sight(nodes, reach)))), backend.scope(self.device):
            return self._run(nodes.tokens, positions, masks, hidden)

    def _view(self, reach: int) -> int:
        """How many slots a forward looks at, in strides."""
        stride = _VIEW_STRIDE.get(self.device.type, 64)
        return min(-(-reach // stride) * stride, self.cache.slots - 1)

    def _sight(self, nodes: Nodes, reach: int) -> Sight:
        """What a backend may want to know of a forward."""
        shape = (nodes.tokens.shape[1], reach, self.cache.slots)
        if nodes.branches is None:
            return Sight(nodes.base, *shape, window=self._masks.window)
        _, depth, ancestors, key_depth = nodes.branches
        return Sight(nodes.base, *shape, depth, ancestors, key_depth, self._masks.window)

    def _dense(self, nodes: Nodes, slots: Tensor, positions: Tensor, view: int) -> Tensor | dict[str, Tensor]:
        """The dense mask over the slots in view."""
        if nodes.branches is None:
            key = self.cache.index[:view]
            return self._additive(key <= slots[:, :, None], positions, key[None])
        visible, key_positions = self._visible(nodes.base[:, None], nodes.branches, view)
        return self._additive(visible, positions, key_positions)

    def _visible(self, base: Tensor, branches: Branches, view: int) -> tuple[Tensor, Tensor]:
        """Which slots each node of a tree sees, (B, M, view), and the position of what stands in them."""
        key, index = self.cache.index[:view], self.cache.index
        visible = (key < base)[:, None].expand(-1, len(branches.node), -1).contiguous()
        columns = base + index[: branches.ancestors.shape[-1]]
        ancestors = branches.ancestors.expand(len(base), -1, -1)
        visible.scatter_(2, columns[:, None, :].expand(ancestors.shape), ancestors)
        if self._masks.window is None:
            return visible, key[None]
        key_positions = (base + branches.key_depth).expand(columns.shape)
        return visible, key.expand(len(base), -1).scatter(1, columns, key_positions)

    def partial(self, nodes: Nodes, longest: int, layers: int) -> Output:
        """Run nodes through the first ``layers`` layers only, then the final norm and the head: an early exit.

        Later layers keep nothing of these nodes. Their slots behind ``base`` are scratch until a whole forward has
        written them, so a method that drafts this way on the target's own cache leaves nothing behind.
        """
        with _shortened(self.module, layers):
            return self.forward(nodes, longest)

    def verify(
        self, layout: Layout, tokens: Tensor, lengths: Tensor, longest: int, hidden: tuple["Hidden", ...] = ()
    ) -> Output:
        """Run a whole tree, root and all, (B, N + 1)."""
        branches = None
        if not layout.is_chain:
            branches = Branches(layout.node, layout.depth, layout.ancestors, layout.depth)
        return self.forward(Nodes(tokens, lengths, branches), longest, hidden)

    def _additive(self, visible: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Bool masks (B, M, K) as what the model adds to its attention scores, in its own dtype, (B, 1, M, K)."""
        full = self._to_scores(visible)
        if self._masks.window is None:
            return full
        near = key_positions[:, None, :] > positions[:, :, None] - self._masks.window
        return self._by_layer(full, self._to_scores(visible & near))

    def _by_layer(self, full: Tensor, sliding: Tensor) -> Tensor | dict[str, Tensor]:
        """Masks in the form that a model with windows takes: one for all layers, or one for each kind."""
        if not self._masks.by_layer_type:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _to_scores(self, visible: Tensor) -> Tensor:
        return torch.where(visible, self._seen, self._unseen)[:, None]

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor,
        masks: Tensor | dict[str, Tensor],
        hidden: tuple["Hidden", ...],
        keep: Tensor | None = None,
    ) -> Output:
        if not torch.compiler.is_compiling():  # a prefill has come before, and it is never compiled
            self._taps.tap(self.module, hidden)
        with _catching(self._taps, hidden, keep) as states:
            logits = self.module(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=masks,
                past_key_values=self.cache.as_transformers,
                use_cache=True,
            ).logits
        return Output(logits, {key: state.to(self.device) for key, state in states.items()})

    def head(self, hidden: Tensor) -> Tensor:
        """The output head alone: (..., H) after the final norm -> (..., rows of the vocabulary)."""
        return torch.as_tensor(self._head(hidden)).to(hidden.device)

    @property
    def output_matrix(self) -> Tensor:
        """The output head's weights, (rows of the vocabulary, H)."""
        return torch.as_tensor(self._head.weight)

    def embed(self, tokens: Tensor) -> Tensor:
        """The raw input embedding, (...) -> (..., H)."""
        return torch.as_tensor(self._embeddings(tokens)).to(tokens.device)


class _Taps:
    """Hooks that catch hidden states as they pass; they stay, so that a compiled forward finds what it was made with.

    Attributes:
        wanted: The states to catch.
        keep: Positions that the head shall see, (B, k); None for all.
        states: What was caught.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.wanted: tuple[Hidden, ...] = ()
        self.keep: Tensor | None = None
        self.states: dict[Hidden, Tensor] = {}
        self._tapped: set[Hidden] = set()
        module.get_output_embeddings().register_forward_pre_hook(self._at_head)

    def tap(self, module: PreTrainedModel, wanted: tuple["Hidden", ...]) -> None:
        """Hang hooks where those states pass by, unless they hang there."""
        for key in wanted:
            if key.kind == "layer_input" and key not in self._tapped:
                self._tapped.add(key)
                hook = partial(self._at_layer, key)
                decoder_layers(module)[key.layer].register_forward_pre_hook(hook, with_kwargs=True)

    def _at_head(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for key in self.wanted:
            if key.kind == "post_norm":
                self.states[key] = args[0]
        if self.keep is None:
            return args
        rows = torch.arange(len(self.keep), device=self.keep.device)[:, None]
        return (args[0][rows, self.keep], *args[1:])

    def _at_layer(self, key: "Hidden", _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if key in self.wanted:
            self.states[key] = args[0] if args else kwargs["hidden_states"]


_taps: WeakKeyDictionary[PreTrainedModel, _Taps] = WeakKeyDictionary()


def _taps_of(module: PreTrainedModel) -> _Taps:
    """One for each module, whoever runs it: its forwards never overlap."""
    if module not in _taps:
        _taps[module] = _Taps(module)
    return _taps[module]


@contextmanager
def tapped(
    module: PreTrainedModel, wanted: tuple["Hidden", ...], keep: Tensor | None
) -> Iterator[dict["Hidden", Tensor]]:
    """Catch hidden states as they pass, and let the head see only the positions in ``keep`` (B, k)."""
    taps = _taps_of(module)
    taps.tap(module, wanted)
    with _catching(taps, wanted, keep) as states:
        yield states


@contextmanager
def _catching(taps: _Taps, wanted: tuple["Hidden", ...], keep: Tensor | None) -> Iterator[dict["Hidden", Tensor]]:
    taps.wanted, taps.keep, taps.states = wanted, keep, {}
    try:
        yield taps.states
    finally:
        taps.wanted, taps.keep, taps.states = (), None, {}


def decoder_layers(module: PreTrainedModel) -> nn.ModuleList:
    """The list that holds the model's decoder layers: the one with as many entries as the configuration says."""
    wanted = module.config.get_text_config().num_hidden_layers
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == wanted and not isinstance(child[0], nn.Linear):
            return child
    raise ModelRefusedError(f"{type(module).__name__}: no list of {wanted} decoder layers was found")


def place_of(part: nn.Module, module: nn.Module) -> tuple[nn.Module, str]:
    """Which module within a model holds a part of it, and under which name."""
    return next(
        (holder, name) for holder in module.modules() for name, child in holder.named_children() if child is part
    )


@contextmanager
def _shortened(module: PreTrainedModel, layers: int) -> Iterator[None]:
    """The model with its first layers alone; the list is put back however the forward ends."""
    whole = decoder_layers(module)
    owner, name = place_of(whole, module)
    setattr(owner, name, whole[:layers])
    try:
        yield
    finally:
        setattr(owner, name, whole)


class _MaskKinds(NamedTuple):
    window: int | None
    by_layer_type: bool


def _mask_kinds(config: Any, name: str) -> _MaskKinds:
    """Whether layers attend within a window, and whether the model takes one mask or one for each kind of layer."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if strange := kinds - _KNOWN_ATTENTION:
        raise ModelRefusedError(
            f"{name}: layers of type {', '.join(sorted(strange))} keep a state that cannot be rolled back, or look "
            "back in a way that the core does not know"
        )
    window = getattr(config, "sliding_window", None)
    if kinds:
        return (
            _MaskKinds(window, by_layer_type=True)
            if "sliding_attention" in kinds
            else _MaskKinds(None, by_layer_type=False)
        )
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    return _MaskKinds(window, by_layer_type=False)


def _windows(config: Any, masks: _MaskKinds) -> list[int | None]:
    """How far each layer looks back; None without end."""
    if masks.by_layer_type:
        return [masks.window if kind == "sliding_attention" else None for kind in config.layer_types]
    return [masks.window] * int(config.num_hidden_layers)


def expected_attention(skeleton: nn.Module, wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention that a model will run with, told from the model without its weights.

    Raises:
        ModelRefusedError: It attends in a way that the core does not know.
    """
    config: Any = skeleton.config
    config = config.get_text_config()
    windows = _windows(config, _mask_kinds(config, type(skeleton).__name__))
    return foreseen(skeleton, windows, wanted, device, dtype)


def _refuse_unknown_windows(config: Any, name: str) -> None:
    """A limit on how far attention looks back, under a name that we do not know, would be ignored without a word."""
    known = {"sliding_window", "max_window_layers", "use_sliding_window"}
    for key, value in vars(config).items():
        limits = ("window" in key or "attention_chunk" in key) and key not in known
        if limits and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            raise ModelRefusedError(
                f"{name}: {key} = {value} limits its attention in a way that the core does not know"
            )
    if "local" in str(getattr(config, "attention_types", "")):
        raise ModelRefusedError(
            f"{name}: some of its layers attend locally (attention_types), which the core does not know"
        )


def _max_positions(config: Any) -> int | None:
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def _check_interface(module: PreTrainedModel, name: str) -> None:
    accepted = inspect.signature(module.forward).parameters
    for needed in ("position_ids", "attention_mask", "past_key_values"):
        if needed not in accepted:
            raise ModelRefusedError(
                f"{name} ({type(module).__name__}): its forward takes no {needed}, so rows of unequal length and trees "
                "cannot be placed in its cache"
            )
    if module.get_output_embeddings() is None:
        raise ModelRefusedError(f"{name} ({type(module).__name__}): it has no output head")


@torch.no_grad()
def _probe_kv_shape(module: PreTrainedModel, name: str) -> KVShape:
    """Run one token and look at what the model stores."""
    cache = probe_cache()
    device = next(module.parameters()).device
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    try:
        module(input_ids=token, position_ids=token, past_key_values=cache, use_cache=True)
    except Exception as error:  # whatever a foreign model raises is its reason
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelRefusedError(
            f"{name} ({type(module).__name__}): it does not run with a cache of ours: {reason}"
        ) from error
    shapes = {(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in cache.layers if layer.keys is not None}
    wanted = module.config.get_text_config().num_hidden_layers
    if len(cache.layers) != wanted or not shapes:
        raise ModelRefusedError(
            f"{name} ({type(module).__name__}): {len(cache.layers)} of its {wanted} layers keep keys and values; the "
            "others keep a state that cannot be rolled back"
        )
    if len(shapes) > 1 or len(set(next(iter(shapes)))) > 1:
        raise ModelRefusedError(f"{name} ({type(module).__name__}): its layers store keys and values of unequal shape")
    _, heads, _, dim = next(iter(shapes))[0]
    devices = tuple(layer.keys.device for layer in cache.layers if layer.keys is not None)
    return KVShape(wanted, heads, dim, devices if len({device, *devices}) > 1 else ())


def local_part(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter: all of it, or its share under tensor parallelism."""
    to_local = getattr(parameter, "to_local", None)
    return parameter if to_local is None else torch.as_tensor(to_local())


@dataclass(frozen=True)
class SelfTest:
    """What the self-test measured: the largest difference of a logit, and the largest that may pass."""

    difference: float
    tolerance: float


def self_test(model: CachedModel, seed: int = 0) -> SelfTest:
    """Compare logits over a ragged batch of trees, and after compaction, with plain forwards over each path.

    In float32 a difference of 1e-3 of the logits' scale passes. In half precision the bar is the model's own difference
    between a forward that ends at a token and one that goes on past it, four times over. Where it fails by a backend
    that nobody asked for, the model goes back to its own attention and has another try.

    Raises:
        ModelRefusedError: The logits differ: the model does not honour positions or masks as the core gives them.
    """
    try:
        return _self_test(model, seed)
    except ModelRefusedError as error:
        if model.attention.lines is None or model.attention.is_asked_for:
            raise
        model.attention = model.attention.without_backends(str(error))
    return _self_test(model, seed)


@torch.no_grad()
def _self_test(model: CachedModel, seed: int) -> SelfTest:
    generator = torch.Generator().manual_seed(seed)
    lengths = [6, 3]
    limit = min(model.vocab_size, 1 << 15)
    prompts = [torch.randint(0, limit, (length,), generator=generator).tolist() for length in lengths]
    draft = torch.randint(0, limit, (2, 5), generator=generator).tolist()
    after = torch.randint(0, limit, (2, 1), generator=generator).tolist()
    # 0 and 1 hang from the root, 2 and 3 from 1, 4 from 3; the second row has padding in the last place.
    parents = [[-1, -1, 1, 1, 3], [-1, -1, 1, 1, -2]]
    roots = [row.pop() for row in prompts]
    own = copy(model)
    own.release()  # the caller's slab stays untouched
    try:
        return _compared(own, _Case(prompts, roots, draft, parents, after))
    except ModelRefusedError:
        raise
    except Exception as error:  # whatever a foreign model raises is its reason
        reason = first_line(error)
        raise ModelRefusedError(
            f"{model.name} ({type(model.module).__name__}): it fails on a forward over a token tree: {reason}"
        ) from error


class _Case(NamedTuple):
    """What the self-test decodes: a list entry for every row."""

    prompts: list[list[int]]
    roots: list[int]
    draft: list[list[int]]
    parents: list[list[int]]
    after: list[list[int]]


def _compared(model: CachedModel, case: _Case) -> SelfTest:
    """The comparison itself."""
    got = _tree_logits(model, case)
    reference, own_noise, scale = [], 0.0, 0.0
    for row, expected in enumerate(_sequences(case)):
        for tokens, node in expected:
            logits, noise = _plain_logits(model, tokens)
            scale, own_noise = max(scale, float(logits.abs().max())), max(own_noise, noise)
            reference.append((logits - got[row][node]).abs().max())
    difference = float(torch.stack(reference).max())
    floor = 1e-3 if model.dtype == torch.float32 else 8 * torch.finfo(model.dtype).eps
    tolerance = max(4 * own_noise if model.dtype != torch.float32 else 0.0, floor * max(1.0, scale))
    if not difference <= tolerance:
        raise ModelRefusedError(
            f"{model.name} ({type(model.module).__name__}): its logits over a token tree differ from those of plain "
            f"sequences by {difference:.3g}, and {tolerance:.3g} may pass; it ignores positions or masks"
        )
    return SelfTest(difference, tolerance)


_AFTER = 99  # the key under which the logits after compaction are kept


def _tree_logits(model: CachedModel, case: _Case) -> list[dict[int, Tensor]]:
    device = model.device
    lengths = torch.tensor([len(prompt) for prompt in case.prompts], device=device)
    longest = int(lengths.max())
    model.allocate(2, longest + 16)
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in case.prompts], device=device)
    model.prefill(padded, lengths)
    layout = lay_out(torch.tensor(case.parents, device=device), max_depth=3)
    tokens = torch.tensor([[root, *row] for root, row in zip(case.roots, case.draft, strict=True)], device=device)
    logits = model.verify(layout, tokens, lengths, longest).logits.float()
    rows = [{node: logits[row, node] for node in range(6)} for row in range(2)]
    # Keep the root and node 2, which has to move one slot down past node 1.
    path = torch.tensor([[0, 2], [0, 2]], device=device)
    model.cache.compact(path, torch.tensor([2, 2], device=device), lengths)
    one = lay_out(torch.empty(2, 0, dtype=torch.int64, device=device), max_depth=0)
    logits = model.verify(one, torch.tensor(case.after, device=device), lengths + 2, longest + 2).logits.float()
    for row in range(2):
        rows[row][_AFTER] = logits[row, 0]
    return rows


def _sequences(case: _Case) -> list[list[tuple[list[int], int]]]:
    """For every row, the plain sequences that lead to its nodes."""
    rows = []
    for prompt, root, tokens, above, last in zip(*case, strict=True):
        paths: dict[int, list[int]] = {-1: [*prompt, root]}
        for node, parent in enumerate(above):
            if parent != -2:
                paths[node] = [*paths[parent], tokens[node]]
        sequences = [(path, node + 1) for node, path in paths.items()]
        rows.append([*sequences, ([*paths[1], last[0]], _AFTER)])
    return rows


def _plain_logits(model: CachedModel, tokens: list[int]) -> tuple[Tensor, float]:
    """The model's own logits after a sequence, and how much they change when the forward goes on for four tokens."""
    ids = torch.tensor([tokens], device=model.device)
    logits = model.module(input_ids=ids, use_cache=False).logits[0, -1].float()
    longer = torch.cat([ids, ids[:, :1].expand(1, 4)], dim=1)
    other = model.module(input_ids=longer, use_cache=False).logits[0, len(tokens) - 1].float()
    return logits, float((logits - other).abs().max())
