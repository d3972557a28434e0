"""Structured pruning: a smaller model of Llama shape that is made of the weights of a larger one.

Layers, heads, feed-forward neurons and dimensions of the residual stream are chosen by what they do to a text. What is
kept is kept as it was; norms alone are rescaled, because a narrower stream has another root mean square.

Sources: layers by block influence, Men et al., ShortGPT (2024, arXiv:2403.03853); heads, neurons and dimensions by
activations over a calibration text, Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation
(Minitron, 2024, arXiv:2407.14679), here times the weights that read them, so that what nobody reads counts as nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from specbench.errors import TrainingError, did_you_mean
from specbench.models.shapes import Numbers, numbers_of
from specbench.train.recipes import Shape

Axis = Literal["hidden", "heads", "kv_heads", "neurons"]

# Which units each dimension of a parameter counts; every parameter of the family's members is among them.
_ENDS: dict[str, tuple[Axis | None, ...]] = {
    "model.embed_tokens.weight": (None, "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": (None, "hidden"),
}
_LAYER: dict[str, tuple[Axis | None, ...]] = {
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
    "self_attn.q_proj.weight": ("heads", "hidden"),
    "self_attn.k_proj.weight": ("kv_heads", "hidden"),
    "self_attn.v_proj.weight": ("kv_heads", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "heads"),
    "self_attn.q_proj.bias": ("heads",),
    "self_attn.k_proj.bias": ("kv_heads",),
    "self_attn.v_proj.bias": ("kv_heads",),
    "self_attn.o_proj.bias": ("hidden",),
    "self_attn.q_norm.weight": (None,),
    "self_attn.k_norm.weight": (None,),
    "mlp.gate_proj.weight": ("neurons", "hidden"),
    "mlp.up_proj.weight": ("neurons", "hidden"),
    "mlp.down_proj.weight": ("hidden", "neurons"),
    "mlp.gate_proj.bias": ("neurons",),
    "mlp.up_proj.bias": ("neurons",),
    "mlp.down_proj.bias": ("hidden",),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Importance:
    """What each unit of a model does to a text; nothing at all is 0.

    Attributes:
        influence: Of each layer: 1 - cosine of its input and its output, mean over tokens, (layers,).
        heads: Mean square of what a head adds to the residual stream, (layers, heads).
        neurons: The same of a feed-forward neuron, (layers, feed-forward).
        spread: Mean square of each dimension at each norm, where its token's mean square counts as 1:
            (2 * layers + 1, hidden); a layer's two norms, and so on, then the last one.
        hidden: Mean square of each dimension behind the norms, mean over them, (hidden,).
    """

    influence: Tensor
    heads: Tensor
    neurons: Tensor
    spread: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Kept:
    """What is left of a model, by its places there, each in its order.

    Attributes:
        layers: Layers.
        hidden: Dimensions of the residual stream.
        heads: Heads of each layer that is kept; whole groups, where heads share their keys and values.
        neurons: Feed-forward neurons of each layer that is kept.
    """

    layers: tuple[int, ...]
    hidden: Tensor
    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]


@dataclass(frozen=True)
class Pruned:
    """A pruned model and what was kept of its source."""

    model: PreTrainedModel
    kept: Kept


def prune(source: PreTrainedModel, shape: Shape, calibration: Iterable[Tensor], layers_by: str = "influence") -> Pruned:
    """A new model of that shape with the weights of ``source``, float32 on its device; heads keep their width.

    Pruned to its own shape, a model gives the same logits. So does one that loses only what does nothing: heads,
    neurons and dimensions whose importance is 0.

    Args:
        source: A Llama, Mistral, Qwen2 or Qwen3, in float32. It stays as it is.
        shape: What it is to be pruned to.
        calibration: Batches of token ids, (batch, length), to judge importance by.
        layers_by: How layers are chosen, by its name in ``LAYERS_BY``.

    Raises:
        TrainingError: The source is of another family, or has no such shape in it; or no such way to choose layers.
    """
    check_prunable(source.config, shape, layers_by)
    if unknown := [name for name in source.state_dict() if _axes(name) is None]:
        raise TrainingError(f"--prune: only models built like Llama can be pruned, and this one has {unknown[0]}")
    found = importance(source, calibration)
    kept = choose(found, numbers_of(source.config), shape, layers_by)
    return Pruned(_build(source, kept, shape, found), kept)


def check_prunable(config: PreTrainedConfig, shape: Shape, layers_by: str) -> None:
    """Refuse a shape that is not inside a model of that configuration, and a way to choose layers that nobody knows.

    Raises:
        TrainingError: With the reason.
    """
    if layers_by not in LAYERS_BY:
        raise TrainingError(f"--layers-by: unknown way {layers_by!r}. {did_you_mean(layers_by, LAYERS_BY)}")
    if config.model_type not in _FAMILIES:
        raise TrainingError(f"--prune: only {', '.join(_FAMILIES)} can be pruned, and this is a {config.model_type}")
    whole = numbers_of(config)
    for name in ("layers", "hidden", "heads", "feed_forward"):
        wanted, there = getattr(shape, name), getattr(whole, name)
        if wanted > there:
            words = name.replace("_", "-")
            raise TrainingError(f"--shape: {words} {wanted} is larger than the {there} of the model that is pruned")
    group = whole.heads // whole.kv_heads
    if shape.heads % group:
        raise TrainingError(
            f"--shape: {group} heads share their keys and values, so that whole groups are kept: give a multiple of "
            f"{group}, got {shape.heads}"
        )
    if config.model_type == "llama" and shape.hidden % shape.heads:
        raise TrainingError(
            f"--shape: in transformers the heads of a llama divide its hidden size, got {shape.heads} heads and "
            f"{shape.hidden}"
        )


# --- what matters


@torch.no_grad()
def importance(model: PreTrainedModel, calibration: Iterable[Tensor]) -> Importance:
    """Judge every unit of a model by what it does to a text.

    Args:
        model: Of Llama shape.
        calibration: Batches of token ids, (batch, length), at least one.

    Raises:
        TrainingError: There is no text.
    """
    layers = model.model.layers
    sums = _Sums(layers=len(layers), numbers=numbers_of(model.config), device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    tokens = 0
    with _watched(model, sums):
        for batch in calibration:
            model(batch.to(sums.device), use_cache=False)
            tokens += batch.numel()
    model.train(was_training)
    if not tokens:
        raise TrainingError("there is no text to judge importance by")
    return sums.result(model, tokens)


class _Sums:
    """What hooks add up over a text."""

    def __init__(self, layers: int, numbers: Numbers, device: torch.device) -> None:
        def zeros(*size: int) -> Tensor:
            return torch.zeros(*size, dtype=torch.float64, device=device)

        self.device = device
        self.influence = zeros(layers)
        self.heads = zeros(layers, numbers.heads)
        self.neurons = zeros(layers, numbers.feed_forward or 0)
        self.spread = zeros(2 * layers + 1, numbers.hidden)

    def result(self, model: PreTrainedModel, tokens: int) -> Importance:
        """The means."""
        spread = self.spread / tokens
        gains = torch.stack([norm.weight.double() for norm in _norms(model)])
        hidden = (spread * gains**2).mean(0)
        return Importance(self.influence / tokens, self.heads / tokens, self.neurons / tokens, spread, hidden)


@contextmanager
def _watched(model: PreTrainedModel, sums: _Sums) -> Iterator[None]:
    """Add what passes through the model to the sums."""
    with ExitStack() as hooks:

        def before(module: nn.Module, hook: Callable[[Tensor], None]) -> None:
            handle = module.register_forward_pre_hook(lambda _, inputs: hook(inputs[0]))
            hooks.callback(handle.remove)

        for place, norm in enumerate(_norms(model)):
            before(norm, _adds_spread(sums.spread[place]))
        for place, layer in enumerate(model.model.layers):
            before(layer.self_attn.o_proj, _adds_heads(sums.heads[place], layer.self_attn.o_proj.weight))
            before(layer.mlp.down_proj, _adds_neurons(sums.neurons[place], layer.mlp.down_proj.weight))
            handle = layer.register_forward_hook(_adds_influence(sums.influence, place))
            hooks.callback(handle.remove)
        yield


def _adds_spread(total: Tensor) -> Callable[[Tensor], None]:
    def hook(stream: Tensor) -> None:
        squares = stream.double() ** 2
        total.add_((squares / squares.mean(-1, keepdim=True).clamp(min=1e-30)).flatten(0, -2).sum(0))

    return hook


def _adds_heads(total: Tensor, weight: Tensor) -> Callable[[Tensor], None]:
    """Squares of what each head adds: a' W' W a, with the head's columns W of the output projection."""
    columns = weight.double().unflatten(1, (len(total), -1))
    gram = torch.einsum("ohi,ohj->hij", columns, columns)

    def hook(mixed: Tensor) -> None:
        values = mixed.double().flatten(0, -2).unflatten(1, (len(total), -1))
        total.add_(torch.einsum("thi,hij,thj->h", values, gram, values))

    return hook


def _adds_neurons(total: Tensor, weight: Tensor) -> Callable[[Tensor], None]:
    columns = (weight.double() ** 2).sum(0)

    def hook(active: Tensor) -> None:
        total.add_((active.double() ** 2).flatten(0, -2).sum(0) * columns)

    return hook


def _adds_influence(total: Tensor, place: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        total[place] += (1 - F.cosine_similarity(inputs[0].double(), after.double(), dim=-1)).sum()

    return hook


def _norms(model: PreTrainedModel) -> list[Any]:
    """The two norms of each layer, and the last one."""
    return [getattr(layer, name) for layer in model.model.layers for name in _NORMS] + [model.model.norm]


# --- what is kept


def choose(found: Importance, whole: Numbers, shape: Shape, layers_by: str) -> Kept:
    """The most important units of every kind, in the order in which they stand."""
    layers = tuple(LAYERS_BY[layers_by](found.influence, shape.layers).tolist())
    group = whole.heads // whole.kv_heads
    return Kept(
        layers,
        _largest(found.hidden, shape.hidden),
        tuple(_largest_groups(found.heads[layer], shape.heads // group, group) for layer in layers),
        tuple(_largest(found.neurons[layer], shape.feed_forward) for layer in layers),
    )


def _largest(values: Tensor, count: int) -> Tensor:
    """Places of the largest values, in their order; of equals the first ones."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def _evenly(values: Tensor, count: int) -> Tensor:
    """Places from the first to the last one, equally far apart."""
    return torch.linspace(0, len(values) - 1, count).round().long()


LAYERS_BY: dict[str, Callable[[Tensor, int], Tensor]] = {"influence": _largest, "even": _evenly}
"""How layers are chosen by their influence: those of most of it, or evenly spaced ones whatever theirs is."""


def _largest_groups(heads: Tensor, count: int, group: int) -> Tensor:
    """The heads of the groups whose heads do most together."""
    groups = _largest(heads.unflatten(0, (-1, group)).sum(-1), count)
    return (groups[:, None] * group + torch.arange(group, device=groups.device)).flatten()


# --- the smaller model


def _build(source: PreTrainedModel, kept: Kept, shape: Shape, found: Importance) -> PreTrainedModel:
    config = _config(source.config, kept, shape)
    device = next(source.parameters()).device
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=source.config._attn_implementation
        )
    weights = source.state_dict()
    model.load_state_dict({name: _part(weights, name, kept, numbers_of(source.config)) for name in model.state_dict()})
    _rescale(model, kept, found)
    return model.eval()


def _config(config: PreTrainedConfig, kept: Kept, shape: Shape) -> PreTrainedConfig:
    whole = numbers_of(config)
    smaller = deepcopy(config)
    smaller.head_dim = whole.head_dim
    smaller.num_hidden_layers, smaller.hidden_size = shape.layers, shape.hidden
    smaller.num_attention_heads, smaller.intermediate_size = shape.heads, shape.feed_forward
    smaller.num_key_value_heads = shape.heads * whole.kv_heads // whole.heads
    # A narrower stream has a larger mean square, and the constant beside it has to keep its weight. The norms of a
    # Qwen3's queries and keys have the same constant, which is nothing beside their own mean squares.
    smaller.rms_norm_eps = config.rms_norm_eps * whole.hidden / shape.hidden
    if getattr(config, "layer_types", None):
        smaller.layer_types = [config.layer_types[layer] for layer in kept.layers]
    return smaller


def _part(weights: dict[str, Tensor], name: str, kept: Kept, whole: Numbers) -> Tensor:
    """What is kept of the source's parameter that becomes the pruned model's ``name``."""
    place, layer = None, name
    if name.startswith("model.layers."):
        place = int(name.split(".")[2])
        layer = name.replace(f"layers.{place}.", f"layers.{kept.layers[place]}.", 1)
    part = weights[layer]
    for dim, axis in enumerate(_axes(name) or ()):
        if axis is not None:
            part = part.index_select(dim, _units(axis, kept, place, whole).to(part.device))
    return part


def _units(axis: Axis, kept: Kept, place: int | None, whole: Numbers) -> Tensor:
    """Places along one dimension of a parameter."""
    if axis == "hidden":
        return kept.hidden
    assert place is not None, "only layers have heads and neurons"
    if axis == "neurons":
        return kept.neurons[place]
    heads = kept.heads[place]
    if axis == "kv_heads":
        heads = (heads // (whole.heads // whole.kv_heads)).unique()
    return (heads[:, None] * whole.head_dim + torch.arange(whole.head_dim, device=heads.device)).flatten()


@torch.no_grad()
def _rescale(model: PreTrainedModel, kept: Kept, found: Importance) -> None:
    """Let every norm give its dimensions the size that they had: it divides by the root mean square of fewer now."""
    own = [2 * layer + norm for layer in kept.layers for norm in range(len(_NORMS))]
    for place, norm in zip([*own, len(found.spread) - 1], _norms(model), strict=True):
        norm.weight.mul_(found.spread[place, kept.hidden].mean().sqrt())


def _axes(name: str) -> tuple[Axis | None, ...] | None:
    if name.startswith("model.layers."):
        return _LAYER.get(name.split(".", 3)[3])
    return _ENDS.get(name)
