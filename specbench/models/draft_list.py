"""A file of drafts to be trained: what ``specbench design`` writes and ``specbench train draft`` takes."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from specbench.axes import located, validate
from specbench.config import Settings
from specbench.document import Faults, dotted, read
from specbench.errors import ConfigError
from specbench.models.shapes import shape_from

SUFFIXES = (".yaml", ".yml")
"""What such a file is called."""


class WantedDraft(Settings):
    """One draft."""

    name: str = Field(min_length=1, description="Of the trained model and its folder.")
    shape: str = Field(description="Layers, hidden size, heads and feed-forward size: 2x320x5x640.")

    @field_validator("name")
    @classmethod
    def _fits_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("a name is of letters, digits, dots, dashes and underscores")
        return name

    @field_validator("shape")
    @classmethod
    def _can_exist(cls, shape: str) -> str:
        try:
            shape_from(shape)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return shape


class DraftList(Settings):
    """Drafts for one target."""

    target: str = Field(min_length=1, description="Whose drafts they are to be.")
    out: str | None = Field(default=None, min_length=1, description="Folder of the trained models; the zoo if absent.")
    drafts: tuple[WantedDraft, ...] = Field(min_length=1, description="The drafts.")


def is_draft_list(name: str) -> bool:
    """Whether that is the name of such a file, and none of a model."""
    return Path(name).suffix in SUFFIXES


def read_draft_list(path: Path) -> DraftList:
    """Read a file of drafts.

    Raises:
        ConfigError: It is no such file; one line a fault, with its line in the file.
    """
    document = read(path)
    faults = Faults(document)
    found = validate(located(document.values, ()), DraftList, faults)
    names: dict[str, int] = {}
    for index, draft in enumerate(found.drafts if found else ()):
        if draft.name in names:
            first = dotted(("drafts", names[draft.name]))
            faults.add(("drafts", index, "name"), f"the name is given twice, first by {first}", got=draft.name)
        names.setdefault(draft.name, index)
    faults.raise_any()
    assert found is not None  # without faults there are values
    return found
