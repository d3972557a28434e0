"""Files that a kill leaves as they were, or as they should be."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@contextmanager
def replacing(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` in one move.

    Args:
        path: The file.
        suffix: Of the temporary path. One name for all, so that the next run overwrites what a killed one left; where
            several processes may write the same file, it must tell them apart.
    """
    temporary = path.with_name(path.name + suffix)
    yield temporary
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one move, keys in the order given."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def kept_tensor(path: Path, make: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The tensor of a file, made and written where there is none yet; several trainings may do so at once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, f".{os.getpid()}.tmp") as temporary:
            save_file({"values": make().cpu().contiguous()}, temporary)
    return load_file(path, device=str(device))["values"]
