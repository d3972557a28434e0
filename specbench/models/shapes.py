"""Shapes of models, named or given by numbers, so that latencies can be measured without weights.

The time of a dense model's forward does not depend on the values of its weights, only on their shape and type. A name
is a label and no more: what a shape weighs is computed from its numbers, and never read off its name.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedConfig

from specbench.errors import ConfigError, UnknownNameError, did_you_mean


@dataclass(frozen=True)
class ModelShape:
    """The shape of a Llama-like decoder: rotary positions, gated feed-forward, no biases.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        feed_forward: Inner width of a feed-forward layer.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        vocab: Rows of the embedding.
        context: Positions that the model was made for, in tokens.
        head_dim: Width of a head; None where the heads share the width of the residual stream.
        tied: Whether embedding and output head are one matrix.
        hub_ids: Hub models of this shape.
        origin: Where the numbers are from; empty for the model's own published configuration.

    Raises:
        ConfigError: No model can have this shape.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocab: int = 32000
    context: int = 2048
    head_dim: int | None = None
    tied: bool = False
    hub_ids: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "feed_forward", "heads", "kv_heads", "vocab", "context", "head_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.head_dim is None and self.hidden % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.hidden}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.kv_heads} heads of keys and values do not divide {self.heads} heads")
        self._check_family()

    def _check_family(self) -> None:
        if self.width_of_head % 2:
            raise ConfigError(f"a head is {self.width_of_head} wide, and rotary positions need an even width")

    @property
    def width_of_head(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Parameters of the model that ``config`` describes, tied ones counted once."""
        attention = 2 * self.hidden * self.width_of_head * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def identity(self) -> str:
        """What tells two shapes of different latency or weights apart: every number, and none of the names."""
        config = self.config()
        positions = config.max_position_embeddings
        return f"{config.model_type} {numbers_of(config)} {positions} tied={self.tied} {self.parameters}"

    def config(self) -> PreTrainedConfig:
        """The configuration that ``transformers`` builds it from."""
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.width_of_head,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tied,
            rms_norm_eps=1e-6,
        )


@dataclass(frozen=True)
class OptShape(ModelShape):
    """The shape of an OPT: learned positions, biases, a plain feed-forward, and tied embeddings.

    Attributes:
        embedding: Width of the embedding where projections lead from it and back; None for the residual stream's.
        post_norm: Whether norms stand behind attention and feed-forward, which leaves no norm at the end.
    """

    embedding: int | None = None
    post_norm: bool = False

    # Two rows of OPT's table of positions stand before position 0.
    _POSITION_OFFSET = 2

    def _check_family(self) -> None:
        if self.kv_heads != self.heads or self.head_dim is not None or not self.tied:
            raise ConfigError("an OPT has as many heads of keys and values as others, and tied embeddings")

    @property
    def parameters(self) -> int:
        """Parameters of the model that ``config`` describes."""
        width, inner = self.hidden, self.feed_forward
        layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
        positions = (self.context + self._POSITION_OFFSET) * width
        ends = self.vocab * (self.embedding or width) + (2 * self.embedding * width if self.embedding else 0)
        return self.layers * layer + positions + ends + (0 if self.post_norm else 2 * width)

    def config(self) -> PreTrainedConfig:
        """The configuration that ``transformers`` builds it from."""
        return OPTConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            ffn_dim=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
            word_embed_proj_dim=self.embedding or self.hidden,
            do_layer_norm_before=not self.post_norm,
            tie_word_embeddings=self.tied,
        )


def _opt(
    layers: int, hidden: int, heads: int, name: str, *, embedding: int | None = None, post_norm: bool = False
) -> OptShape:
    return OptShape(
        layers, hidden, 4 * hidden, heads, heads, vocab=50272, tied=True, embedding=embedding, post_norm=post_norm,
        hub_ids=(f"facebook/{name}",),
    )  # fmt: skip


def _wide(layers: int, hidden: int, origin: str, *hub_ids: str) -> ModelShape:
    return ModelShape(layers, hidden, 11008, 32, 32, context=4096, head_dim=128, hub_ids=hub_ids, origin=origin)


_WIDTH_ALONE = "derived: LLaMA-7B of which depth and the width of the residual stream are pruned; fits the name"
_STORED = "the tensors that are stored under this name, 4096 wide; the name's count is another"

SHAPES: dict[str, ModelShape] = {
    "opt-125m": _opt(12, 768, 12, "opt-125m"),
    "opt-350m": _opt(24, 1024, 16, "opt-350m", embedding=512, post_norm=True),
    "opt-1.3b": _opt(24, 2048, 32, "opt-1.3b"),
    "opt-2.7b": _opt(32, 2560, 32, "opt-2.7b"),
    "opt-6.7b": _opt(32, 4096, 32, "opt-6.7b"),
    "opt-13b": _opt(40, 5120, 40, "opt-13b"),
    "opt-30b": _opt(48, 7168, 56, "opt-30b"),
    "opt-66b": _opt(64, 9216, 72, "opt-66b"),
    "llama-7b": ModelShape(32, 4096, 11008, 32, 32, hub_ids=("huggyllama/llama-7b",)),
    "llama-13b": ModelShape(40, 5120, 13824, 40, 40, hub_ids=("huggyllama/llama-13b",)),
    "llama-30b": ModelShape(60, 6656, 17920, 52, 52, hub_ids=("huggyllama/llama-30b",)),
    "llama-65b": ModelShape(80, 8192, 22016, 64, 64, hub_ids=("huggyllama/llama-65b",)),
    "llama-2-70b": ModelShape(
        80, 8192, 28672, 64, 8, context=4096,
        hub_ids=("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
    ),
    "vicuna-7b-v1.3": ModelShape(32, 4096, 11008, 32, 32, hub_ids=("lmsys/vicuna-7b-v1.3",)),
    "vicuna-13b-v1.3": ModelShape(40, 5120, 13824, 40, 40, hub_ids=("lmsys/vicuna-13b-v1.3",)),
    "vicuna-33b-v1.3": ModelShape(60, 6656, 17920, 52, 52, hub_ids=("lmsys/vicuna-33b-v1.3",)),
    "sheared-llama-1.3b": ModelShape(
        24, 2048, 5504, 16, 16, context=4096,
        hub_ids=("princeton-nlp/Sheared-LLaMA-1.3B", "princeton-nlp/Sheared-LLaMA-1.3B-Pruned"),
    ),
    "sheared-llama-2.7b": ModelShape(
        32, 2560, 6912, 20, 20, context=4096,
        hub_ids=("princeton-nlp/Sheared-LLaMA-2.7B", "princeton-nlp/Sheared-LLaMA-2.7B-Pruned"),
    ),
    "noft-1.3b": ModelShape(
        24, 2048, 5504, 16, 16, context=4096, origin="that of Sheared-LLaMA-1.3B, whose pruning stage it is",
    ),
    "noft-wide-1.3b": _wide(5, 4096, "derived: LLaMA-7B of which depth alone is pruned; fits the name"),
    "noft-wide-796m": _wide(5, 2560, _WIDTH_ALONE),
    "noft-wide-543m": _wide(3, 2560, _WIDTH_ALONE),
    "noft-wide-290m": _wide(1, 2560, _WIDTH_ALONE),
    "wide-sheared-llama-796m": _wide(5, 4096, _STORED, "minghaoyan/Wide-Sheared-LLaMA-796M"),
    "wide-sheared-llama-543m": _wide(3, 4096, _STORED, "minghaoyan/Wide-Sheared-LLaMA-543M"),
    "wide-sheared-llama-290m": _wide(1, 4096, _STORED, "minghaoyan/Wide-Sheared-LLaMA-290M"),
    "llama-68m": ModelShape(2, 768, 3072, 12, 12, hub_ids=("JackFram/llama-68m", "double7/vicuna-68m")),
    "llama-160m": ModelShape(12, 768, 3072, 12, 12, hub_ids=("JackFram/llama-160m", "double7/vicuna-160m")),
    "tinyllama-1.1b": ModelShape(22, 2048, 5632, 32, 4, hub_ids=("TinyLlama/TinyLlama-1.1B-Chat-v1.0",)),
}  # fmt: skip
"""Published shapes. LLaMA-30B is the one that its paper calls 33B; "wide" drafts are those of Decoding Speculative
Decoding: ``noft-wide-*`` as their names count them, ``wide-sheared-llama-*`` as they are stored on the hub."""

_FORM = "LAYERSxHIDDENxHEADSxFEED_FORWARD, like 5x2560x32x11008"
_FURTHER = ("kv_heads", "head_dim", "vocab", "context", "tied")
_TRUTH = {"true": True, "false": False}


def shape_of(text: str) -> ModelShape:
    """A shape by its name, or by its numbers.

    Args:
        text: A name of `SHAPES`; or layers, width, heads and feed-forward width of a Llama-like model, like
            ``5x2560x32x11008``, and behind them what is not as usual: ``80x8192x64x28672,kv_heads=8``. Usual are as
            many heads of keys and values as others, heads that share the width, a vocabulary of 32000, 2048 positions,
            and an output head of its own (``tied=false``).

    Raises:
        UnknownNameError: A name that is not in the table.
        ConfigError: Numbers that are not in this form, or of a shape that cannot exist.
    """
    if text in SHAPES:
        return SHAPES[text]
    if not re.match(r"\s*-?\d", text):
        raise UnknownNameError(f"unknown model shape {text!r}. {did_you_mean(text, SHAPES)} Or numbers: {_FORM}.")
    numbers, *further = text.split(",")
    values = [_further(text, entry) for entry in further]
    try:
        return shape_from(numbers, **dict(values))
    except ConfigError as error:
        raise ConfigError(f"shape {text}: {error}") from None


def shape_from(numbers: str, **further: Any) -> ModelShape:
    """A Llama-like shape from ``LAYERSxHIDDENxHEADSxFEED_FORWARD`` and attributes that are not as usual.

    Raises:
        ConfigError: That is no such text, or no model can have this shape.
    """
    try:
        layers, hidden, heads, feed_forward = map(int, numbers.split("x"))
    except ValueError:
        raise ConfigError(f"not {_FORM}") from None
    return ModelShape(layers, hidden, feed_forward, heads, **{"kv_heads": heads, **further})


def _further(text: str, entry: str) -> tuple[str, int | bool]:
    """One ``key=value`` behind the numbers of a shape."""
    key, _, value = (part.strip() for part in entry.partition("="))
    if key not in _FURTHER:
        raise ConfigError(f"shape {text}: unknown key {key!r}. {did_you_mean(key, _FURTHER)}")
    kinds: tuple[str, Any] = ("true or false", _TRUTH.get) if key == "tied" else ("a whole number", _whole)
    if (found := kinds[1](value)) is None:
        raise ConfigError(f"shape {text}: {key} must be {kinds[0]}, got {value!r}")
    return key, found


def _whole(value: str) -> int | None:
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def shape_of_hub_id(hub_id: str) -> ModelShape | None:
    """The shape of a published model, known without asking the hub; None where the table has none."""
    for shape in SHAPES.values():
        if hub_id in shape.hub_ids:
            return shape
    return None


class Numbers(NamedTuple):
    """The numbers of any causal LM, by whatever names its family calls them; ``feed_forward`` is None where unknown."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int | None
    vocab: int

    @property
    def kv_values_per_token(self) -> int:
        """What one token of one row adds to the cache, in numbers stored."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def numbers_of(config: PreTrainedConfig) -> Numbers:
    """The numbers of a model from its configuration."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    found = [getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
    return Numbers(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        feed_forward=next((int(value) for value in found if isinstance(value, int)), None),
        vocab=int(text.vocab_size),
    )


def build_random(
    shape: ModelShape, *, device: torch.device, dtype: torch.dtype, attention: str | None, seed: int
) -> nn.Module:
    """A model of that shape with random weights, made on the device itself: no copy of it ever stands on the host.

    The weights are drawn as for training from scratch and are never zero: zeros would let kernels and caches cheat.
    The same seed gives the same weights on the same kind of device.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype, attn_implementation=attention)
    return torch.nn.Module.eval(model)
