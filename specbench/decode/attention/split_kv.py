"""Our own kernel as a backend: one for single tokens, chains and trees, without a dense mask or a view."""

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specbench.decode.attention.backend import Backend, Call, Facts, Sight

_WORD = 64
_WIDEST_HEAD = 256


class _Tree(NamedTuple):
    """A tree in the kernel's form; ``near_words`` leave out the nodes beyond the window of windowed layers."""

    words: Tensor
    near_words: Tensor
    depth: Tensor


class _Prepared(NamedTuple):
    base: Tensor
    nodes: int
    tree: _Tree | None


class SplitKV(Backend):
    """A kernel in Triton that reads each row's length on the device and cuts long rows into parts.

    The window of a windowed layer counts positions: a committed key's is its slot, a node's is its depth behind them.

    Args:
        is_interpreted: Whether Triton's interpreter runs it, on any device and very slowly, as tests let it.
    """

    name = "split-kv"
    needs_view = False
    needs_mask = False
    takes_trees = True

    def __init__(self, *, is_interpreted: bool = False) -> None:
        self._is_interpreted = is_interpreted

    def unsupported(self, facts: Facts) -> str | None:
        """It needs Triton and a GPU."""
        if find_spec("triton") is None:
            return "Triton is not installed"
        if facts.device.type != "cuda" and not self._is_interpreted:
            return "runs on CUDA only"
        if facts.head_dim > _WIDEST_HEAD:
            return f"takes head dimensions up to {_WIDEST_HEAD}, got {facts.head_dim}"
        return None

    def prepare(self, sight: Sight) -> _Prepared:
        """A tree's ancestors as words, once for all layers; a line needs none."""
        if sight.ancestors is None or sight.depth is None or sight.key_depth is None:
            return _Prepared(sight.base, sight.nodes, None)
        words = near_words = packed(sight.ancestors)
        if sight.window is not None:
            near = sight.key_depth[:, None, :] > sight.depth[:, :, None] - sight.window
            near_words = packed(sight.ancestors & near)
        return _Prepared(sight.base, sight.nodes, _Tree(words, near_words, sight.depth.contiguous()))

    def attend(self, call: Call, prepared: _Prepared) -> Tensor:
        """The kernel; under torch.compile as one operation."""
        from specbench.decode.attention import kernel

        run: Any = kernel.opaque_attend if torch.compiler.is_compiling() else kernel.attend
        tree, words, depth = prepared.tree, None, None
        if tree is not None:
            words, depth = (tree.words if call.window is None else tree.near_words), tree.depth
        found: Tensor = run(
            call.query.transpose(1, 2),
            call.key.transpose(1, 2),
            call.value.transpose(1, 2),
            prepared.base,
            words,
            depth,
            prepared.nodes,
            call.scale,
            call.window or 0,
        )
        return found

    def scope(self, device: torch.device) -> AbstractContextManager[Any]:
        """Triton launches on the current device, whatever its arguments live on."""
        if device.type != "cuda" or device.index in {None, torch.cuda.current_device()}:
            return nullcontext()
        return torch.cuda.device(device)


def packed(flags: Tensor) -> Tensor:
    """Flags (..., K) as words of 64 bits, (..., ceil(K / 64)); flag j is bit j % 64 of word j // 64."""
    flags = F.pad(flags, (0, -flags.shape[-1] % _WORD)).unflatten(-1, (-1, _WORD))
    bit = torch.arange(_WORD, device=flags.device)
    return (flags.to(torch.int64) << bit).sum(-1)
