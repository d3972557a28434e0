"""Compiled pieces: norms and MLPs through ``torch.compile``, in forwards that are otherwise as they are.

They are many of a forward's small kernels, and alike in all layers: one graph for each kind of module and form of its
inputs serves every layer, model and arm, since weights are inputs too. Whole phases are compiled anew for every arm.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from specbench.decode.compiled import CompiledIfPossible
from specbench.decode.method import Method, RowView, TokenTree
from specbench.decode.step import Decoding, Step, Verified
from specbench.decode.target import CachedModel, decoder_layers, place_of
from specbench.decode.trace import Phase
from specbench.errors import ModelRefusedError

# The forward of a class, of whichever module. Once all forms are seen a phase is asked for less at each call; a piece
# asks for so little that this would cost what it saves.
_Kind = CompiledIfPossible[..., Any]

_kinds: WeakValueDictionary[type[nn.Module], _Kind] = WeakValueDictionary()


class PiecedStep(Step):
    """A step whose forwards run with compiled pieces; a kind of them that cannot be compiled runs as it is.

    Baselines and other arms run the very same modules. So these are switched for the length of a phase, and switched
    back however it ends.

    Args:
        target: As every step's.
        method: Likewise.
        decoding: Likewise.
        models: By phase, those whose pieces are compiled in it.
    """

    def __init__(
        self, target: CachedModel, method: Method, decoding: Decoding, models: Mapping[Phase, Sequence[CachedModel]]
    ) -> None:
        super().__init__(target, method, decoding)
        self._untouched: dict[str, str] = {}
        self._pieces = {
            phase: {piece: _kind_of(piece) for model in those for piece in self._found_in(model)}
            for phase, those in models.items()
        }

    @property
    def compiled(self) -> dict[str, int]:
        """How many modules of each class are compiled."""
        return dict(Counter(type(piece).__name__ for piece, kind in self._all.items() if kind.refused is None))

    @property
    def refused(self) -> dict[str, str]:
        """Why the modules of a class, or all of a model, run as they are."""
        why = {type(piece).__name__: kind.refused for piece, kind in self._all.items()}
        return self._untouched | {name: reason for name, reason in why.items() if reason is not None}

    def draft(self, view: RowView) -> TokenTree:
        """With compiled pieces."""
        with self._switched("draft"):
            return super().draft(view)

    def verify(self, tree: TokenTree, root: Tensor, lengths: Tensor, longest: int) -> Verified:
        """With compiled pieces."""
        with self._switched("verify"):
            return super().verify(tree, root, lengths, longest)

    @contextmanager
    def _switched(self, phase: Phase) -> Iterator[None]:
        """The pieces of a phase run their compiled forward; their hooks run as before."""
        pieces = self._pieces.get(phase, {})
        for piece, kind in pieces.items():
            vars(piece)["forward"] = partial(kind, piece)  # setattr would first look among parameters and buffers
        try:
            yield
        finally:
            for piece in pieces:
                del vars(piece)["forward"]

    @property
    def _all(self) -> dict[nn.Module, _Kind]:
        """Each once, in however many phases it runs."""
        return {piece: kind for pieces in self._pieces.values() for piece, kind in pieces.items()}

    def _found_in(self, model: CachedModel) -> list[nn.Module]:
        """The pieces of a model; where there are none, it is noted why."""
        found: list[nn.Module] = []
        reason = "its weights lie on several devices, or with several processes"
        if not model.is_spread:
            reason = "beside attention its layers hold nothing of more than one kernel"
            try:
                found = pieces_of(model.module)
            except ModelRefusedError as error:
                reason = str(error)
        if not found:
            self._untouched[model.name] = reason
        return found


def _kind_of(piece: nn.Module) -> _Kind:
    """What all modules of its class share."""
    if (kind := _kinds.get(type(piece))) is None:
        kind = _kinds[type(piece)] = CompiledIfPossible(type(piece).forward)
    return kind


def pieces_of(model: nn.Module) -> list[nn.Module]:
    """What of a model is compiled: norms and MLPs of its layers, norms within their attention, and its last norm.

    Raises:
        ModelRefusedError: It has no list of decoder layers.
    """
    layers = decoder_layers(model)
    holder, _ = place_of(layers, model)
    found = [child for child in holder.children() if _is_norm(child)]
    for layer in layers:
        for name, child in layer.named_children():
            found += filter(_is_norm, child.modules()) if _attends(name, child) else [child]
    return [part for part in found if _is_worth_it(part)]


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm") and not any(module.children())


def _attends(name: str, module: nn.Module) -> bool:
    """Whether a part of a layer is attention, or holds it, or is a norm behind it: all that names can tell."""
    names = (name, *(type(part).__name__ for part in module.modules()))
    return any(word in each.lower() for each in names for word in ("attn", "attention"))


def _is_worth_it(part: nn.Module) -> bool:
    """Not a module of torch's own, which is one kernel already, nor one whose forward somebody has replaced."""
    return not type(part).forward.__module__.startswith("torch.nn") and "forward" not in vars(part)
