"""The recurrent drafter: a small recurrent net that names the next token from the target's last hidden state.

Source: Cheng et al., "Recurrent Drafter for Fast Speculative Decoding in Large Language Models", arXiv 2403.09919, and
github.com/apple/ml-recurrent-drafter. From state s and token x, with the target's embedding e and last hidden state h:

    s' = silu(W e(x) + U s + b)        or, without the net, s' = e(x) + s
    logits = output(blocks(project([h, s'])))

``project`` is there only where the blocks are not twice as wide as h. Files are Apple's: a ``config.json`` and a state
dict with the keys ``input_proj``, ``lm_head``, ``rnn_u``, ``rnn_w``.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from specbench.decode.drafter import (
    Drafter,
    Losses,
    ResidualBlock,
    TrainingBatch,
    losses_by_depth,
    write_checkpoint,
)
from specbench.decode.method import POST_NORM
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError

WEIGHTS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_MODEL_TYPE = "recurrent_drafting_drafter"
_OPTIONAL = {"shared_output": False, "depth": 5, "rank_accuracy": None}


class RecurrentSettings(BaseModel):
    """The shape of a recurrent drafter; the defaults are those of Apple's training script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = Field(2, ge=0, le=8, description="residual blocks")
    rnn: bool = Field(default=True, description="the recurrent net; without it the state is the sum of the embeddings")
    exit_dim: int | None = Field(None, ge=1, description="width of the blocks; twice the hidden size unless given")
    shared_output: bool = Field(default=False, description="use the target's output matrix in place of an own one")
    depth: int = Field(5, ge=1, le=16, description="tokens that a training place looks ahead")


class RecurrentDrafter(Drafter):
    """Names of weights are those of Apple's checkpoints."""

    hidden = POST_NORM
    Settings = RecurrentSettings

    def __init__(self, settings: RecurrentSettings, hidden_size: int, rows: int) -> None:
        super().__init__()
        self.settings, self.hidden_size, self.rows, self.depth = settings, hidden_size, rows, settings.depth
        self.exit_dim = settings.exit_dim or 2 * hidden_size
        if self.exit_dim != 2 * hidden_size:
            self.input_proj = nn.Linear(2 * hidden_size, self.exit_dim)
        parts: list[nn.Module] = [ResidualBlock(self.exit_dim) for _ in range(settings.layers)]
        if not settings.shared_output:
            parts.append(nn.Linear(self.exit_dim, rows, bias=False))
        elif self.exit_dim != hidden_size:
            parts.append(nn.Linear(self.exit_dim, hidden_size, bias=False))
        self.lm_head = nn.Sequential(*parts)
        if settings.rnn:
            self.rnn_u = nn.Linear(hidden_size, hidden_size)
            self.rnn_w = nn.Linear(hidden_size, hidden_size, bias=False)

    @classmethod
    def new(cls, settings: BaseModel, target: CachedModel) -> Self:
        """A drafter that says at every step what the target's own head says after h: where learning best begins.

        Raises:
            ConfigError: The target's embeddings are not as wide as its hidden state.
        """
        assert isinstance(settings, RecurrentSettings)
        output = target.output_matrix
        _check_embedding(target)
        made = cls(settings, output.shape[1], output.shape[0])
        made._begin_as(output.detach().float().cpu())
        return made.to(target.device)

    @torch.no_grad()
    def _begin_as(self, output: Tensor) -> None:
        size = self.hidden_size
        if self.exit_dim != 2 * size:
            nn.init.eye_(self.input_proj.weight)  # h as far as it fits, and nothing of s
            self.input_proj.weight[:, size:] = 0
            nn.init.zeros_(self.input_proj.bias)
        if len(self.lm_head) > self.settings.layers:
            last = torch.as_tensor(self.lm_head[-1].weight)
            start = torch.eye(size) if self.settings.shared_output else output
            last.zero_()
            width = min(size, self.exit_dim)
            last[:, :width] = start[:, :width]

    @classmethod
    def load(cls, folder: Path, target: CachedModel) -> Self:
        """A drafter that Apple's code, or ``specbench train``, has written."""
        config, weights = _read(folder)
        made = cls._shaped(folder, config)
        _check_embedding(target)
        _check(folder, "hidden_size", made.hidden_size, target.output_matrix.shape[1], target.name)
        if not made.settings.shared_output and not target.vocab_size <= made.rows <= target.output_matrix.shape[0]:
            _check(folder, "vocab_size", made.rows, target.output_matrix.shape[0], target.name)
        expected, given = made.state_dict(), weights
        if missing := sorted(expected.keys() - given.keys()):
            raise ConfigError(f"{folder}: config.json asks for the weight {missing[0]}, and the file has none")
        if more := sorted(given.keys() - expected.keys()):
            flag = " (config.json says rnn: false)" if more[0].startswith("rnn_") else ""
            raise ConfigError(f"{folder}: the file has a weight {more[0]} that config.json knows nothing of{flag}")
        for name, weight in expected.items():
            if weight.shape != given[name].shape:
                raise ConfigError(
                    f"{folder}: {name} is of shape {tuple(given[name].shape)}, and config.json makes it "
                    f"{tuple(weight.shape)}"
                )
        made.load_state_dict(given, assign=True)
        accuracy = config.get("rank_accuracy")
        made.rank_accuracy = tuple(map(tuple, accuracy)) if accuracy else None
        return made.to(device=target.device, dtype=target.dtype)

    @classmethod
    def _shaped(cls, folder: Path, config: dict[str, Any]) -> Self:
        wanted = ("hidden_size", "vocab_size", "exit_dim", "num_draft_layers", "rnn")
        if missing := [key for key in wanted if key not in config]:
            raise ConfigError(f"{folder}: config.json has no {missing[0]}, so this is no recurrent drafter")
        known = {**_OPTIONAL, **config}
        settings = RecurrentSettings.model_validate(
            {
                "layers": known["num_draft_layers"],
                "rnn": known["rnn"],
                "exit_dim": known["exit_dim"],
                "shared_output": known["shared_output"],
                "depth": known["depth"],
            }
        )
        with torch.device("meta"):
            return cls(settings, known["hidden_size"], known["vocab_size"])

    def save(self, folder: Path, target_name: str) -> None:
        """Write Apple's files, with keys of our own where Apple's format has none."""
        config = {
            "model_type": _MODEL_TYPE,
            "vocab_size": self.rows,
            "hidden_size": self.hidden_size,
            "exit_dim": self.exit_dim,
            "num_draft_layers": self.settings.layers,
            "rnn": self.settings.rnn,
            "base_model_name_or_path": target_name,
            "shared_output": self.settings.shared_output,
            "depth": self.depth,
            "rank_accuracy": self.rank_accuracy,
        }
        write_checkpoint(folder, WEIGHTS, self.state_dict(), config)

    def forward(self, batch: TrainingBatch) -> Losses:
        """The sum of the cross-entropies of all depths, each counting the same (Apple's training code)."""
        context = batch.hidden[POST_NORM]
        state = self.start(batch.tokens[:, 0], context.dtype)
        features = [self.features(context, state)]
        for depth in range(1, self.depth):
            state = self.advance(state, batch.tokens[:, depth])
            features.append(self.features(context, state))
        weights = [1.0] * self.depth
        return losses_by_depth(features, lambda feature, _: self.output(feature), batch, weights, self.target.head)

    def start(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The state after a first token, as if from zero, (...) -> (..., H)."""
        embedded = self.target.embed(tokens).to(dtype)
        return nn.functional.silu(self.rnn_w(embedded) + self.rnn_u.bias) if self.settings.rnn else embedded

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The state after one more token, (..., H) and (...) -> (..., H)."""
        embedded = self.target.embed(tokens).to(state.dtype)
        return nn.functional.silu(self.rnn_w(embedded) + self.rnn_u(state)) if self.settings.rnn else embedded + state

    def features(self, context: Tensor, state: Tensor) -> Tensor:
        """What the output matrix is applied to, (..., H) twice -> (..., E), or (..., H) where the matrix is shared."""
        both = torch.cat([context, state], dim=-1)
        if self.exit_dim != 2 * self.hidden_size:
            both = self.input_proj(both)
        own_output = not self.settings.shared_output
        for layer in islice(self.lm_head, len(self.lm_head) - own_output):
            both = layer(both)
        return both

    def output(self, features: Tensor) -> Tensor:
        """Logits, (..., rows of the vocabulary)."""
        return (
            self.target.head(features) if self.settings.shared_output else torch.as_tensor(self.lm_head[-1](features))
        )

    def logits(self, context: Tensor, state: Tensor) -> Tensor:
        """What comes next, (..., H) twice -> (..., rows of the vocabulary)."""
        return self.output(self.features(context, state))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / "config.json").exists():
        raise ConfigError(f"{folder}: no config.json, so no recurrent drafter")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if (folder / WEIGHTS).exists():
        return config, load_file(folder / WEIGHTS)
    if (folder / _PICKLED).exists():
        return config, torch.load(folder / _PICKLED, weights_only=True, map_location="cpu")
    raise ConfigError(f"{folder}: neither {WEIGHTS} nor {_PICKLED} in it")


def _check(folder: Path, what: str, given: int, wanted: int, target: str) -> None:
    if given != wanted:
        raise ConfigError(f"{folder}: a drafter of {what} {given}, and that of {target} is {wanted}")


def _check_embedding(target: CachedModel) -> None:
    hidden_size = target.output_matrix.shape[1]
    embedded = target.embed(torch.zeros(1, dtype=torch.int64, device=target.device)).shape[-1]
    if embedded != hidden_size:
        raise ConfigError(
            f"{target.name}: its embeddings have {embedded} numbers and its hidden state {hidden_size}; a recurrent "
            "drafter adds the two up"
        )
