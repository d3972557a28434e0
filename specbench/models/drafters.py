"""Weights of a method's own, heads and the like: where their files are. What is in them, the method knows.

Where there are no files, ``random`` stands for weights that nobody has trained, of the shape that fits the target;
``random:heads=3,layers=2`` for those of other settings, which are the ones that training takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from specbench.decode.drafter import Drafter
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError, UnknownNameError, did_you_mean
from specbench.models.source import digest_of_text, digest_of_weights, fetch
from specbench.models.zoo import ZOO

D = TypeVar("D", bound=Drafter)

_RANDOM = "random"
_FOLDER = "drafters"
_WEIGHTS = (".safetensors", ".pt", ".bin")
_PATTERNS = ["*.json", *(f"*{suffix}" for suffix in _WEIGHTS)]


@dataclass(frozen=True)
class DrafterFiles:
    """A folder of trained weights, under the name that the user gave it."""

    name: str
    folder: Path

    @cached_property
    def weights(self) -> list[Path]:
        """The files that hold weights, by name."""
        return sorted(path for path in self.folder.iterdir() if path.suffix in _WEIGHTS)

    @cached_property
    def weights_sha(self) -> str:
        """Sixteen hex digits of the weights."""
        return digest_of_weights(self.weights)

    @cached_property
    def weight_bytes(self) -> int:
        """What the files occupy."""
        return sum(path.stat().st_size for path in self.weights)

    def load(self, kind: type[D], target: CachedModel) -> D:
        """What the files hold.

        Raises:
            ConfigError: They hold another kind, or weights for another target.
        """
        return kind.load(self.folder, target)


@dataclass(frozen=True)
class RandomDrafter:
    """Random weights, under the name that the user gave them; their settings are as the name has them."""

    name: str
    settings: Mapping[str, str]

    @property
    def weights_sha(self) -> str:
        """Sixteen hex digits of the name: with method and target, it decides the weights."""
        return digest_of_text(self.name)

    def load(self, kind: type[D], target: CachedModel) -> D:
        """Weights of that kind, made now.

        Raises:
            ConfigError: The kind has no such setting, or not such a value of it.
        """
        try:
            settings = kind.Settings.model_validate(self.settings)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise ConfigError(
                f"{self.name}: {place}: {fault['msg']}. Known: {', '.join(kind.Settings.model_fields)}."
            ) from error
        return kind.random(settings, target)


def embedded_drafters(zoo: Path = ZOO) -> list[str]:
    """Names of the embedded drafters that are there, sorted."""
    return sorted(path.parent.name for path in zoo.glob(f"{_FOLDER}/*/config.json"))


def embedded_folder(name: str, zoo: Path = ZOO) -> Path:
    """Where the embedded drafter of that name lies, or would lie."""
    return zoo / _FOLDER / name


def locate_drafter(reference: str, zoo: Path = ZOO) -> DrafterFiles | RandomDrafter:
    """Find a method's own weights: embedded ones, a folder, or a hub id; or ``random`` ones.

    Raises:
        UnknownNameError: A bare name that is neither embedded nor a folder.
        ConfigError: A folder that is missing or holds no weights, or settings that are none.
        UnsupportedError: A hub id that is not in the local cache, and the hub cannot be reached.
    """
    kind, colon, settings = reference.partition(":")
    if kind == _RANDOM:
        return RandomDrafter(reference, _settings(reference, settings) if colon else {})
    known = embedded_drafters(zoo)
    if reference in known:
        return DrafterFiles(reference, embedded_folder(reference, zoo))
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        if reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
            return DrafterFiles(reference, fetch(reference, _PATTERNS))
        if "/" in reference:
            raise ConfigError(f"{reference}: no such folder")
        hint = did_you_mean(reference, known) or "The embedded family has none."
        raise UnknownNameError(f"unknown drafter {reference!r}. {hint} A hub id reads owner/name.")
    found = DrafterFiles(reference, folder)
    if not found.weights:
        raise ConfigError(f"{reference}: the folder holds no weights ({', '.join(_WEIGHTS)})")
    return found


def _settings(reference: str, text: str) -> dict[str, str]:
    """``key=value,...`` as a mapping."""
    pairs = [entry.partition("=") for entry in text.split(",")]
    if not all(key.strip() and equals and value.strip() for key, equals, value in pairs):
        raise ConfigError(f"{reference}: random weights read random, or random:key=value,key=value")
    return {key.strip(): value.strip() for key, _, value in pairs}
