"""specbench report --readme"""

import pytest
from typer.testing import CliRunner

from specbench.cli import app
from specbench.report import plots
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

ARMS = (AUTOREGRESSIVE, TWIN, Arm("whole", alpha=0.8, gamma=3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One run, of which only the figure of the README is drawn."""
    monkeypatch.setattr(plots, "FIGURES", {"speedup": plots.FIGURES["speedup"]})
    plan = Plan(ARMS, (1,), prompts=1, repeats=1, max_new_tokens=4)
    write_results(tmp_path / "results" / "quickstart" / "machine", plan)
    return tmp_path


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_readme_is_filled_and_what_was_written_is_named(folder):
    readme = folder / "README.md"
    places = (f"<!-- report: {part} -->\n<!-- /report: {part} -->" for part in ("figure", "table"))
    readme.write_text("\n".join(places), encoding="utf-8")
    found = report(folder / "results", "--readme", readme)
    assert found.exit_code == 0, found.output
    assert "| `whole` | " in readme.read_text(encoding="utf-8")
    assert f"wrote {readme}" in found.output.replace("\n", "")


def test_a_readme_without_a_place_is_one_clear_line(folder):
    readme = folder / "README.md"
    readme.write_text("nothing", encoding="utf-8")
    found = report(folder / "results", "--readme", readme)
    assert found.exit_code == 1
    assert "README.md: needs one place for the figure, between <!-- report: figure -->" in found.stderr
    assert "Traceback" not in found.output


def test_several_runs_cannot_fill_one_readme(folder):
    plan = Plan(ARMS, (1,), prompts=1, repeats=1, max_new_tokens=4)
    write_results(folder / "results" / "other" / "machine", plan)
    found = report(folder / "results", "--readme", folder / "README.md")
    assert found.exit_code == 1
    assert "holds 2 runs; give the folder of the one" in found.stderr
