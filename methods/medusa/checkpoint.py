"""Files of Medusa heads, in the layouts that exist.

* Medusa's own: ``medusa_lm_head.safetensors`` or ``.pt``, ``{head}.{layer}.linear.{weight,bias}`` and
  ``{head}.{layers}.weight``. Its ``config.json`` may claim fewer heads than the file holds; the file is right.
* A whole model that was trained jointly (Medusa-2): the same names behind ``medusa_head.`` among the model's weights.
* vLLM's: ``blocks.{head}.layers.{layer}.{weight,bias}`` and ``lm_heads.{head}.weight``.

A file without output matrices belongs to heads that use the target's.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specbench.decode.drafter import write_checkpoint
from specbench.errors import ConfigError

WEIGHTS = "medusa_lm_head.safetensors"

_OWN = re.compile(r"(?:medusa_head\.)?(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)")
_VLLM_BLOCK = re.compile(r"(?:medusa_heads\.)?blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_VLLM_OUTPUT = re.compile(r"(?:medusa_heads\.)?lm_heads\.(\d+)\.weight")


@dataclass(frozen=True)
class Found:
    """Heads as they were found in a folder.

    Attributes:
        weights: By Medusa's own names.
        heads: How many there are.
        layers: Residual blocks of each.
        hidden_size: What they read.
        rows: Tokens of their output matrices; None where they use the target's.
        truncated: Whether the file says that they name the first tokens of the map only.
        rank_accuracy: How often rank r of head i was right, where the file says so.
    """

    weights: dict[str, Tensor]
    heads: int
    layers: int
    hidden_size: int
    rows: int | None
    truncated: bool
    rank_accuracy: tuple[tuple[float, ...], ...] | None


def read(folder: Path) -> Found:
    """The heads in a folder.

    Raises:
        ConfigError: It holds none, or some of their weights are missing.
    """
    found: dict[tuple[int, int, str], Tensor] = {}
    for name, weight in _tensors(folder):
        if place := _place(name):
            found[place] = weight
    if not found:
        raise ConfigError(
            f"{folder}: no Medusa heads in it (weights like 0.0.linear.weight or blocks.0.layers.0.weight)"
        )
    heads = 1 + max(head for head, _, _ in found)
    layers = 1 + max(layer for _, layer, part in found if part != "weight")
    outputs = {head for head, _, part in found if part == "weight"}
    wanted = {(head, layer, f"linear.{part}") for head in range(heads) for layer in range(layers) for part in _PARTS}
    wanted |= {(head, layers, "weight") for head in range(heads)} if outputs else set()
    # vLLM's output matrices do not say how many blocks stand before them.
    found = {
        (head, layers if part == "weight" else layer, part): weight for (head, layer, part), weight in found.items()
    }
    if missing := sorted(wanted - found.keys()):
        raise ConfigError(f"{folder}: of {heads} Medusa heads the weight {_name(*missing[0])} is missing")
    settings = _settings(folder)
    accuracy = settings.get("rank_accuracy")
    return Found(
        weights={_name(*place): weight for place, weight in found.items()},
        heads=heads,
        layers=layers,
        hidden_size=found[0, 0, "linear.weight"].shape[1],
        rows=found[0, layers, "weight"].shape[0] if outputs else None,
        truncated=settings.get("truncated_vocab_size") is not None,
        rank_accuracy=tuple(map(tuple, accuracy)) if accuracy else None,
    )


_PARTS = ("weight", "bias")


def write(folder: Path, weights: Mapping[str, Tensor], target_name: str, **settings: object) -> None:
    """Write heads in Medusa's own layout; ``settings`` are ``heads``, ``layers`` and what else the config shall say."""
    config = {
        "base_model_name_or_path": target_name,
        "medusa_num_heads": settings.pop("heads"),
        "medusa_num_layers": settings.pop("layers"),
        **settings,
    }
    write_checkpoint(folder, WEIGHTS, weights, config)


def _place(name: str) -> tuple[int, int, str] | None:
    """(head, layer, part) of a weight, or None where it is none of a head's."""
    if match := _OWN.fullmatch(name):
        return int(match[1]), int(match[2]), match[3]
    if match := _VLLM_BLOCK.fullmatch(name):
        return int(match[1]), int(match[2]), f"linear.{match[3]}"
    if match := _VLLM_OUTPUT.fullmatch(name):
        return int(match[1]), -1, "weight"
    return None


def _name(head: int, layer: int, part: str) -> str:
    return f"{head}.{layer}.{part}"


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a folder's files that may be a head's; files of safetensors go before pickled ones."""
    safe = sorted(folder.glob("*.safetensors"))
    for path in safe:
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_tensor(name)) for name in file.keys() if _place(name))  # noqa: SIM118 (no dict)
    for path in [] if safe else sorted([*folder.glob("*.pt"), *folder.glob("*.bin")]):
        yield from torch.load(path, weights_only=True, map_location="cpu").items()


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}
