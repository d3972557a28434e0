"""The embedded family: trained models that come with the package, each a folder of weights, tokenizer and card."""

from pathlib import Path

ZOO = Path(__file__).resolve().parent.parent / "zoo"
"""Where the family lies."""


def family(zoo: Path = ZOO) -> list[str]:
    """Names of the embedded models that are there, sorted."""
    return sorted(path.parent.name for path in zoo.glob("*/config.json"))


def tokenizer_folder(zoo: Path = ZOO) -> Path | None:
    """A folder that holds the family's tokenizer, which all its members share; None where the family is missing."""
    names = family(zoo)
    return zoo / ("pico" if "pico" in names else names[0]) if names else None
