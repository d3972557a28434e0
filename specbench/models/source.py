"""A model reference as its files: what they are, their hashes and the tokenizer, all without loading a weight."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from specbench.config import RANDOM_PREFIX, RandomModel
from specbench.errors import (
    ConfigError,
    ModelRefusedError,
    UnknownNameError,
    UnsupportedError,
    did_you_mean,
    first_line,
)
from specbench.models.shapes import ModelShape, shape_of
from specbench.models.zoo import ZOO, family, tokenizer_folder

Kind = Literal["family", "folder", "hub", "random"]

# What describes a model, and what it weighs; nothing else of a repository is fetched.
_DESCRIPTION = ["*.json", "*.model", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt"]
_SAFE_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_PICKLED_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]

_HASHED_WHOLE_BYTES = 2**30
_HASHED_END_BYTES = 2**20


class Source:
    """Where one model comes from. Everything here is read from small files, and only once.

    Attributes:
        name: How the user named it.
        kind: Where it comes from.
        folder: Its files; None for random weights.
        shape: Its shape, for random weights only.
        seed: Seed of random weights.
        revision: The hub's commit; None elsewhere.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        folder: Path | None = None,
        shape: ModelShape | None = None,
        seed: int = 0,
        zoo: Path = ZOO,
    ) -> None:
        self.name, self.kind, self.folder, self.shape, self.seed = name, kind, folder, shape, seed
        self.revision = folder.name if kind == "hub" and folder is not None else None
        self._zoo = zoo

    @cached_property
    def config(self) -> Any:
        """The model's configuration.

        Raises:
            ConfigError: The folder holds none that ``transformers`` knows.
        """
        if self.shape is not None:
            return self.shape.config()
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.name}: no model that transformers can read: {first_line(error)}") from error

    @cached_property
    def own_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that belongs to the weights; None for random weights, whose ids mean nothing.

        Raises:
            ConfigError: The model comes without a tokenizer.
        """
        return None if self.folder is None else _load_tokenizer(self.folder, self.name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What turns prompts into ids: its own tokenizer, or the family's where the weights are random.

        Raises:
            UnsupportedError: The weights are random and the embedded family is missing.
        """
        if self.own_tokenizer is not None:
            return self.own_tokenizer
        folder = tokenizer_folder(self._zoo)
        if folder is None:
            raise UnsupportedError(
                f"{self.name}: random weights take their prompts through the embedded family's tokenizer, and "
                f"{self._zoo} holds no model"
            )
        return _load_tokenizer(folder, folder.name)

    @cached_property
    def vocab_size(self) -> int:
        """Tokens of the model's map: rows beyond it are padding."""
        rows = int(self.config.get_text_config().vocab_size)
        return rows if self.own_tokenizer is None else min(rows, 1 + max(self.own_tokenizer.get_vocab().values()))

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, sorted; empty for random weights, whose text ends nowhere."""
        if self.folder is None:
            return ()
        found = set(_ids(self.config.get_text_config().eos_token_id)) | set(_ids(self.tokenizer.eos_token_id))
        generation = self.folder / "generation_config.json"
        if generation.exists():
            found |= set(_ids(json.loads(generation.read_text("utf-8")).get("eos_token_id")))
        return tuple(sorted(found))

    @cached_property
    def max_positions(self) -> int | None:
        """The longest sequence that the model was made for, in tokens; None where it does not say."""
        config = self.config.get_text_config()
        value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(value) if value else None

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model without its weights: parameter counts and the attention backend can be asked of it.

        Raises:
            ModelRefusedError: ``transformers`` has no causal LM of that family.
        """
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        except ValueError as error:
            raise ModelRefusedError(f"{self.name}: no causal language model: {first_line(error)}") from error

    @cached_property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    @cached_property
    def weights_sha(self) -> str:
        """Sixteen hex digits of the weights: their bytes; for the hub its commit; for random weights shape and seed.

        Of more than 1 GiB only the names, the sizes and the ends of the files are hashed.
        """
        if self.kind == "hub":
            return _digest([f"{self.name}@{self.revision}".encode()])
        if self.folder is None:
            assert self.shape is not None, "what has no folder has a shape"
            return _digest([f"{self.shape.identity} seed {self.seed}".encode()])
        files = [path for path in sorted(self.folder.iterdir()) if path.suffix in {".safetensors", ".bin"}]
        return digest_of_weights(files)

    @cached_property
    def tokenizer_sha(self) -> str:
        """Sixteen hex digits of the tokenizer that makes the prompts' ids."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return _digest([text.encode()])

    @cached_property
    def template_sha(self) -> str | None:
        """Sixteen hex digits of the chat template; None where there is none."""
        template = self.tokenizer.chat_template
        return None if template is None else _digest([json.dumps(template, sort_keys=True).encode()])

    def weights_folder(self) -> Path:
        """The folder with the weights in it; a hub model is fetched now.

        Raises:
            UnsupportedError: The hub cannot be reached.
        """
        assert self.folder is not None, "random weights have no folder"
        if self.kind == "hub":
            safe = fetch(self.name, [*_DESCRIPTION, *_SAFE_WEIGHTS])
            return safe if any(safe.glob("*.safetensors")) else fetch(self.name, [*_DESCRIPTION, *_PICKLED_WEIGHTS])
        return self.folder


def locate(reference: str | RandomModel, zoo: Path = ZOO) -> Source:
    """Find a model: an embedded one, a folder, a hub id, or a shape with random weights. No weight is read.

    Args:
        reference: As in an experiment file; ``random:SHAPE`` is short for a shape with random weights.
        zoo: Where the embedded family lies.

    Raises:
        UnknownNameError: A bare name that is neither in the family nor a folder.
        ConfigError: A folder that is missing or holds no model.
        UnsupportedError: A hub id that is not in the local cache, and the hub cannot be reached.
    """
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # its advice is for those who train or call generate() by hand
    if isinstance(reference, RandomModel):
        shape = shape_of(reference.shape)
        return Source(reference.shape, "random", shape=shape, seed=reference.seed, zoo=zoo)
    if reference.startswith(RANDOM_PREFIX):
        return Source(reference, "random", shape=shape_of(reference.removeprefix(RANDOM_PREFIX)), zoo=zoo)
    if reference in family(zoo):
        return Source(reference, "family", folder=zoo / reference, zoo=zoo)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ConfigError(f"{reference}: the folder holds no config.json, so no model")
        return Source(reference, "folder", folder=folder, zoo=zoo)
    if reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        return Source(reference, "hub", folder=fetch(reference, _DESCRIPTION), zoo=zoo)
    if "/" in reference:
        raise ConfigError(f"{reference}: no such folder")
    hint = did_you_mean(reference, family(zoo)) or "The embedded family is missing."
    raise UnknownNameError(f"unknown model {reference!r}. {hint} A hub id reads owner/name.")


def check_same_token_map(target: Source, draft: Source) -> None:
    """Refuse a draft whose ids mean other tokens than the target's; rows that are padding on one side may differ.

    Random weights have no map: there, only the number of rows counts.

    Raises:
        ConfigError: With a token that differs, or the number of rows that the draft lacks.
    """
    ours, theirs = target.own_tokenizer, draft.own_tokenizer
    if ours is not None and theirs is not None and (difference := _difference(ours.get_vocab(), theirs.get_vocab())):
        raise ConfigError(f"draft {draft.name} has another token map than target {target.name}: {difference}")
    rows = int(draft.config.get_text_config().vocab_size)
    if rows < target.vocab_size:
        raise ConfigError(
            f"draft {draft.name} has another token map than target {target.name}: it knows {rows} ids, the target uses "
            f"{target.vocab_size}"
        )


def _difference(target: dict[str, int], draft: dict[str, int]) -> str | None:
    """The first id that means two things, in words."""
    ours = {index: token for token, index in target.items()}
    theirs = {index: token for token, index in draft.items()}
    for index in sorted(ours.keys() & theirs.keys()):
        if ours[index] != theirs[index]:
            return f"id {index} is {ours[index]!r} in the target and {theirs[index]!r} in the draft"
    for token in target.keys() & draft.keys():
        if target[token] != draft[token]:
            return f"token {token!r} is id {target[token]} in the target and {draft[token]} in the draft"
    return None


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{name}: no tokenizer that transformers can read: {first_line(error)}") from error


def fetch(hub_id: str, patterns: list[str]) -> Path:
    """The local copy of a hub repository, fetched as far as it is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, etag_timeout=5))
    except HFValidationError as error:
        raise ConfigError(f"{hub_id}: neither a folder nor a hub id of the form owner/name") from error
    except GatedRepoError as error:
        raise UnsupportedError(f"{hub_id}: the hub wants its licence accepted and a login (hf auth login)") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{hub_id}: neither a folder here nor a model on the hub") from error
    except (OSError, HfHubHTTPError) as error:
        raise UnsupportedError(
            f"{hub_id}: not in the local cache, and the hub cannot be reached. Give a folder, fetch it where there is "
            "a network, or use --rehearse"
        ) from error


def digest_of_weights(files: list[Path]) -> str:
    """Sixteen hex digits of files of weights; of more than 1 GiB only their names, sizes and ends count."""
    return _digest(_weight_bytes(files))


def digest_of_text(text: str) -> str:
    """Sixteen hex digits of a text."""
    return _digest([text.encode()])


def _weight_bytes(files: list[Path]) -> Iterator[bytes]:
    whole = sum(path.stat().st_size for path in files) <= _HASHED_WHOLE_BYTES
    for path in files:
        size = path.stat().st_size
        yield f"{path.name} {size}".encode()
        with path.open("rb") as file:
            if whole:
                while chunk := file.read(_HASHED_END_BYTES):
                    yield chunk
            else:
                yield file.read(_HASHED_END_BYTES)
                file.seek(max(0, size - _HASHED_END_BYTES))
                yield file.read(_HASHED_END_BYTES)


def _digest(chunks: Iterator[bytes] | list[bytes]) -> str:
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()[:16]


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
