"""specbench.report.readme"""

import json

import pytest
from rich.console import Console

from specbench.errors import ResultsError
from specbench.report.build import build_report
from specbench.report.readme import fill, filled_text
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

PLACES = """\
# A title

<!-- report: figure -->
old
<!-- /report: figure -->

Between.

<!-- report: table -->
<!-- /report: table -->
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    arms = (AUTOREGRESSIVE, TWIN, Arm("whole", alpha=0.8, gamma=3, draft_s=0.001))
    folder = tmp_path_factory.mktemp("results") / "quickstart" / "machine"
    write_results(folder, Plan(arms, (1,), prompts=4, repeats=1, max_new_tokens=16, loops=0.33))
    return build_report(folder, Console(quiet=True))[0]


def test_a_readme_is_filled_from_a_run_and_what_it_shows_is_kept_beside_the_figure(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(PLACES, encoding="utf-8")
    written = fill(readme, report)
    assert [path.name for path in written] == ["quickstart.png", "quickstart.json", "README.md"]
    text = readme.read_text(encoding="utf-8")
    assert "old" not in text
    assert "](experiments/quickstart.png)" in text
    assert (tmp_path / "experiments" / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    row = report.frames.summary.set_index("arm").loc["whole"]
    assert (
        f"| `whole` | {row['speedup_core']:.2f}\N{MULTIPLICATION SIGN} | {row['low']:.2f} to {row['high']:.2f} |"
        in text
    )
    assert "| autoregressive, a second time | " in text
    assert "33 % of the 4-grams" in text
    kept = json.loads((tmp_path / "experiments" / "quickstart.json").read_text(encoding="utf-8"))
    assert filled_text(text, kept) == text
    kept["rows"][0]["speed-up"] = "9.99"
    assert filled_text(text, kept) != text


@pytest.mark.parametrize("text", ["no place at all", PLACES + PLACES, PLACES.replace("<!-- /report: table -->", "")])
def test_a_readme_without_one_place_for_each_is_refused_and_left_as_it_is(report, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match="needs one place for the"):
        fill(readme, report)
    assert readme.read_text(encoding="utf-8") == text
