"""specbench.models.draft_list"""

import pytest

from specbench.errors import ConfigError
from specbench.models.draft_list import is_draft_list, read_draft_list

GOOD = """
target: pico
out: drafts
drafts:
  - {name: wide, shape: 1x448x7x544}
  - {name: deep, shape: 8x192x3x320}
"""


def read(folder, text):
    file = folder / "shapes.yaml"
    file.write_text(text)
    return read_draft_list(file)


def test_it_says_the_target_the_folder_and_every_draft(tmp_path):
    found = read(tmp_path, GOOD)
    assert (found.target, found.out) == ("pico", "drafts")
    assert [(draft.name, draft.shape) for draft in found.drafts] == [("wide", "1x448x7x544"), ("deep", "8x192x3x320")]


def test_a_file_is_told_from_the_name_of_a_model():
    assert is_draft_list("results/design/shapes.yaml")
    assert not is_draft_list("pico-wide")
    assert not is_draft_list("org/model-1.5")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("8x192x3x320", "8x200x3x320", ":6: drafts.1.shape: 3 heads do not divide a width of 200, got '8x200x3x320'."),
        ("8x192x3x320", "8 layers", ":6: drafts.1.shape: not LAYERSxHIDDENxHEADSxFEED_FORWARD"),
        ("name: deep", "name: wide", ":6: drafts.1.name: the name is given twice, first by drafts.0, got 'wide'."),
        ("name: deep", "name: ../up", ":6: drafts.1.name: a name is of letters, digits, dots"),
        ("name: deep, ", "", ":6: drafts.1.name: required, but missing."),
        ("target: pico", "", ": target: required, but missing."),
        ("out: drafts", "outt: drafts", ":3: outt: unknown key, got 'drafts'. Did you mean 'out'?"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, old, new, line):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
