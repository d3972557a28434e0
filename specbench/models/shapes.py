"""Shapes of published models, so that their latencies can be measured without their weights.

The time of a dense model's forward does not depend on the values of its weights, only on their shape and type.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from specbench.errors import UnknownNameError, did_you_mean


@dataclass(frozen=True)
class NamedShape:
    """The shape of a Llama-like decoder, as its published configuration gives it.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        feed_forward: Inner width of a feed-forward layer.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        vocab: Rows of the embedding.
        context: Positions that the model was made for, in tokens.
        hub_ids: Hub models of this shape.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocab: int = 32000
    context: int = 2048
    hub_ids: tuple[str, ...] = ()

    def config(self) -> LlamaConfig:
        """The configuration that ``transformers`` builds it from; embedding and head are untied, as published."""
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            rms_norm_eps=1e-6,
        )


SHAPES: dict[str, NamedShape] = {
    "vicuna-7b-v1.3": NamedShape(32, 4096, 11008, 32, 32, hub_ids=("lmsys/vicuna-7b-v1.3",)),
    "vicuna-13b-v1.3": NamedShape(40, 5120, 13824, 40, 40, hub_ids=("lmsys/vicuna-13b-v1.3",)),
    "vicuna-33b-v1.3": NamedShape(60, 6656, 17920, 52, 52, hub_ids=("lmsys/vicuna-33b-v1.3",)),
    "llama-68m": NamedShape(2, 768, 3072, 12, 12, hub_ids=("JackFram/llama-68m", "double7/vicuna-68m")),
    "llama-160m": NamedShape(12, 768, 3072, 12, 12, hub_ids=("JackFram/llama-160m", "double7/vicuna-160m")),
    "tinyllama-1.1b": NamedShape(22, 2048, 5632, 32, 4, hub_ids=("TinyLlama/TinyLlama-1.1B-Chat-v1.0",)),
}


def shape_named(name: str) -> NamedShape:
    """The shape of that name.

    Raises:
        UnknownNameError: With the nearest known name.
    """
    if name not in SHAPES:
        raise UnknownNameError(f"unknown model shape {name!r}. {did_you_mean(name, SHAPES)}")
    return SHAPES[name]


def shape_of_hub_id(hub_id: str) -> NamedShape | None:
    """The shape of a published model, known without asking the hub; None where the table has none."""
    for shape in SHAPES.values():
        if hub_id in shape.hub_ids:
            return shape
    return None


def build_random(
    shape: NamedShape, *, device: torch.device, dtype: torch.dtype, attention: str | None, seed: int
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
