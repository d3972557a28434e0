"""What a target would go on with at every place of a text: the paper's labels for a distilled ReDrafter.

Source: Cheng et al., arXiv 2403.09919, section 3.3: at every position of a text the target's own greedy tokens are what
the drafter learns to name, instead of the text's.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from specbench.decode.rollout import Text, roll_out
from specbench.decode.sampling import first_largest
from specbench.decode.target import CachedModel
from specbench.train.files import kept_tensor


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations, made once for a text and kept on disk.

    Attributes:
        target: The model that goes on.
        folder: Where they are kept; the name must tell target and data apart from any others.
        length: Tokens of a continuation.
    """

    target: CachedModel
    folder: Path
    length: int

    def of(self, name: str, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The continuation of every place of the texts ``name``, (B, T, length); see ``greedy_continuations``."""
        path = self.folder / f"{name}-{self.length}.safetensors"
        found = kept_tensor(
            path, lambda: greedy_continuations(self.target, tokens, lengths, self.length).int(), tokens.device
        )
        return found.long()


def greedy_continuations(target: CachedModel, tokens: Tensor, lengths: Tensor, length: int) -> Tensor:
    """What the target writes after every beginning of a text, greedily, (B, T, length).

    Args:
        target: The model; its slab is used.
        tokens: (B, T), padded on the right; what stands at places beyond a row's length is of no use.
        lengths: (B,).
        length: Tokens of every continuation.
    """

    def most_likely(logits: Tensor, _: Tensor) -> tuple[Tensor]:
        return (first_largest(logits[..., : target.vocab_size]),)

    text = Text(tokens, lengths.new_zeros(lengths.shape), tokens.shape[1])
    return roll_out(target, text, length, most_likely)[0]
