"""Trained weights of a method's own, heads and the like: where their files are. What is in them, the method knows."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from specbench.errors import ConfigError, UnknownNameError, did_you_mean
from specbench.models.source import digest_of_weights, fetch
from specbench.models.zoo import ZOO

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


def embedded_drafters(zoo: Path = ZOO) -> list[str]:
    """Names of the embedded drafters that are there, sorted."""
    return sorted(path.parent.name for path in zoo.glob(f"{_FOLDER}/*/config.json"))


def embedded_folder(name: str, zoo: Path = ZOO) -> Path:
    """Where the embedded drafter of that name lies, or would lie."""
    return zoo / _FOLDER / name


def locate_drafter(reference: str, zoo: Path = ZOO) -> DrafterFiles:
    """Find trained weights: embedded ones, a folder, or a hub id.

    Raises:
        UnknownNameError: A bare name that is neither embedded nor a folder.
        ConfigError: A folder that is missing or holds no weights.
        UnsupportedError: A hub id that is not in the local cache, and the hub cannot be reached.
    """
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
