"""Medusa heads: residual blocks and an output matrix over the target's last hidden state, for every token ahead.

Source: Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
arXiv 2401.10774.
Head i (from 0) reads the state whose logits gave the root, and names the token i + 1 places behind the root.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.medusa import checkpoint
from specbench.decode.drafter import Drafter, Losses, ResidualBlock, TrainingBatch, losses_by_depth
from specbench.decode.method import POST_NORM
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError

_DECAY = 0.8
"""What a head counts in the loss, against the one before it (section 3.2.1 of the paper)."""


class HeadSettings(BaseModel):
    """The shape of Medusa heads; the defaults are those of the published ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: int = Field(5, ge=1, le=16, description="heads, so tokens named beyond the root")
    layers: int = Field(1, ge=1, le=8, description="residual blocks of a head")
    shared_output: bool = Field(
        default=False, description="use the target's output matrix in place of one for every head"
    )


class MedusaHeads(Drafter):
    """K heads. Names of weights, without the leading ``heads.``, are those of the published files."""

    hidden = POST_NORM
    Settings = HeadSettings

    def __init__(self, settings: HeadSettings, hidden_size: int, rows: int) -> None:
        super().__init__()
        self.settings, self.hidden_size, self.rows = settings, hidden_size, rows
        self.depth = settings.heads
        self.heads = nn.ModuleList(self._head() for _ in range(settings.heads))

    def _head(self) -> nn.Sequential:
        parts: list[nn.Module] = [ResidualBlock(self.hidden_size) for _ in range(self.settings.layers)]
        if not self.settings.shared_output:
            parts.append(nn.Linear(self.hidden_size, self.rows, bias=False))
        return nn.Sequential(*parts)

    @classmethod
    def new(cls, settings: BaseModel, target: CachedModel) -> Self:
        """Heads that all say what the target's own head says."""
        assert isinstance(settings, HeadSettings)
        output = target.output_matrix
        made = cls(settings, output.shape[1], output.shape[0]).to(target.device)
        if not settings.shared_output:
            with torch.no_grad():
                for head in made._parts():
                    torch.as_tensor(head[-1].weight).copy_(output)
        return made

    @classmethod
    def load(cls, folder: Path, target: CachedModel) -> Self:
        """Heads in any of the published layouts, or ours."""
        found = checkpoint.read(folder)
        hidden_size, rows = target.output_matrix.shape[1], found.rows or target.output_matrix.shape[0]
        if found.hidden_size != hidden_size:
            raise ConfigError(
                f"{folder}: heads over a hidden state of {found.hidden_size} numbers, and that of {target.name} has "
                f"{hidden_size}"
            )
        if rows < target.vocab_size and not found.truncated:
            raise ConfigError(
                f"{folder}: heads over {rows} tokens, and {target.name} has {target.vocab_size}; they belong to "
                "another token map"
            )
        settings = HeadSettings(heads=found.heads, layers=found.layers, shared_output=found.rows is None)
        with torch.device("meta"):
            made = cls(settings, hidden_size, rows)
        made.load_state_dict({f"heads.{name}": weight for name, weight in found.weights.items()}, assign=True)
        made.rank_accuracy = found.rank_accuracy
        return made.to(device=target.device, dtype=target.dtype)

    def save(self, folder: Path, target_name: str) -> None:
        """Write ``medusa_lm_head.safetensors`` and its config, as Medusa's own trainer does."""
        weights = {name.removeprefix("heads."): weight for name, weight in self.state_dict().items()}
        checkpoint.write(
            folder,
            weights,
            target_name,
            heads=self.settings.heads,
            layers=self.settings.layers,
            hidden_size=self.hidden_size,
            vocab_size=self.rows,
            rank_accuracy=self.rank_accuracy,
        )

    def forward(self, batch: TrainingBatch) -> Losses:
        """Every head's cross-entropy, each counting 0.8 of the one before it."""
        state = batch.hidden[POST_NORM]
        weights = [_DECAY**head for head in range(self.depth)]
        return losses_by_depth(self.features(state, self.depth), self.output, batch, weights, self.target.head)

    def features(self, state: Tensor, heads: int) -> list[Tensor]:
        """What the first ``heads`` heads hand to their output matrices, each (..., H)."""
        found = []
        for head in self._parts()[:heads]:
            feature = state
            for block in [*head][: self.settings.layers]:
                feature = block(feature)
            found.append(feature)
        return found

    def output(self, feature: Tensor, head: int) -> Tensor:
        """One head's logits, (..., H) -> (..., rows)."""
        if self.settings.shared_output:
            return self.target.head(feature)
        return torch.as_tensor(self._parts()[head][-1](feature))

    def logits(self, state: Tensor, heads: int) -> Tensor:
        """The first ``heads`` heads' logits, (B, H) -> (B, heads, rows)."""
        features = self.features(state, heads)
        if self.settings.shared_output:
            return self.target.head(torch.stack(features, dim=1))  # one pass over the matrix for all heads
        return torch.stack([self.output(feature, head) for head, feature in enumerate(features)], dim=1)

    def _parts(self) -> Sequence[nn.Sequential]:
        return [head for head in self.heads if isinstance(head, nn.Sequential)]
