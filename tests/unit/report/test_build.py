"""specbench.report.build, specbench.report.page and specbench.report.words"""

import re

import pytest
from rich.console import Console

from specbench.errors import ResultsError
from specbench.records.store import Store
from specbench.report import plots
from specbench.report.build import build_report
from tests.unit.report.a_study import forward, write_study
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results


@pytest.fixture(scope="module")
def built(odd_folder):
    """The report of the odd folder, asked for by the folder above, and what the terminal showed."""
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        pages = build_report(odd_folder.parent, console)
    return pages, capture.get()


ODD_FIGURES = (
    "speedup", "batch_size", "tokens_against_efficiency", "alpha_against_latency", "step_time", "acceptance",
    "accepted_lengths", "changes", "predicted",
)  # fmt: skip
"""What the odd folder has data for: no sweep of gamma or latency, one temperature, one category and length."""


def test_a_report_lies_beside_its_data(built, odd_folder):
    assert [report.path for report in built[0]] == [odd_folder / "report.html"]
    figures = {path.name for path in (odd_folder / "figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in ODD_FIGURES for kind in ("png", "svg")}
    assert {path.name for path in (odd_folder / "tables").iterdir()} == {
        "summary.md", "details.md", "summary.csv", "step_time.csv", "acceptance.csv", "batches.csv", "along.csv",
        "costs.csv", "accepted_lengths.csv", "loops.csv", "forecasts.csv", "changes.csv",
    }  # fmt: skip


def test_the_page_needs_nothing_from_elsewhere(built):
    text = built[0][0].path.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset)="([^"]{0,30})', text)
    assert len(sources) == len(ODD_FIGURES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(link[0] == "#" or link == "data:," for link in re.findall(r'href="([^"]*)"', text))
    assert "@import" not in text
    assert "url(" not in text


def test_a_study_without_a_run_has_a_page_of_what_it_has(tmp_path):
    folder = write_study(tmp_path / "shapes" / "machine", run=False)
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        [report] = build_report(tmp_path, console)
    text = report.path.read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"forward_depth", "forward_width"}
    assert "forwards of 9 models" in text
    assert 'id="models"' in text
    assert 'id="numbers"' not in text
    assert "speed-up" not in capture.get()
    assert not (folder / "tables" / "summary.csv").exists()


def test_what_could_not_be_made_is_told_before_the_numbers(tmp_path):
    folder = write_study(tmp_path / "x" / "machine", run=False)
    row = {"kind": "trace", "subject": "pico with far", "status": "oom", "reason": "no room", "ended_at": "2025"}
    Store(folder).write_part("studies", "one", [row])
    slow = forward("16x64", 16, 64, 9, 0.0, 1, 64) | {
        "forward_s": None, "forward_low_s": None, "forward_high_s": None, "rounds": 0, "status": "oom",
        "reason": "it needs 9 GB",
    }  # fmt: skip
    Store(folder).write_part("latencies", "two", [slow])
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        build_report(folder, console)
    assert "! There is no trace of pico with far (oom): no room." in capture.get()
    assert "! 1 forward could not be timed (16x64); the first, since it needs 9 GB." in capture.get()


def test_a_study_shows_the_shapes_and_what_it_teaches(study_folder):
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        [report] = build_report(study_folder, console)
    text = report.path.read_text(encoding="utf-8")
    assert "What makes a draft good here?" in text
    assert "one more layer adds" in capture.get()
    assert {path.name for path in (study_folder / "tables").iterdir()} >= {
        "drafts.csv", "best_drafts.csv", "depths.csv", "latency_axis.csv", "forecasts.csv", "changes.csv",
        "composed.csv", "models.csv", "forwards.csv", "forward_slopes.csv", "skill.csv", "correlations.csv",
    }  # fmt: skip


def test_a_figure_that_the_data_no_longer_has_is_taken_away(tmp_path, monkeypatch):
    kept = {name: plots.FIGURES[name] for name in ("speedup", "batch_size")}
    monkeypatch.setattr(plots, "FIGURES", kept)
    arms = (AUTOREGRESSIVE, TWIN, Arm("fast", alpha=0.8, gamma=4))
    folder = write_results(tmp_path, Plan(arms, (1, 2), prompts=2, repeats=1, max_new_tokens=8))
    build_report(folder, Console(quiet=True))
    assert (folder / "figures" / "batch_size.png").exists()
    for part in (folder / "requests.parquet").glob("b2*"):
        part.unlink()
    build_report(folder, Console(quiet=True))
    assert not (folder / "figures" / "batch_size.png").exists()
    assert (folder / "figures" / "speedup.png").exists()


def test_figures_are_the_same_whether_one_process_draws_them_or_several(tmp_path, monkeypatch):
    arms = (AUTOREGRESSIVE, TWIN, Arm("fast", alpha=0.8, gamma=4))
    drawn = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        plan = Plan(arms, (1,), prompts=2, repeats=1, max_new_tokens=8)
        folder = write_results(tmp_path / str(len(cores)) / "same", plan)
        build_report(folder, Console(quiet=True))
        drawn.append({path.name: path.read_bytes() for path in (folder / "figures").iterdir()})
    assert len(drawn[0]) > 4
    assert drawn[0] == drawn[1]


def test_the_page_ends_with_where_it_comes_from(built):
    text = built[0][0].path.read_text(encoding="utf-8")
    assert "0123456789abcdef" in text
    assert "specbench run experiments/quickstart.yaml" in text
    assert "name: quickstart" in text


def test_wrong_text_comes_first_and_is_never_called_fastest(tmp_path):
    arms = (AUTOREGRESSIVE, TWIN, Arm("bad", alpha=0.9, gamma=4, verdict="WRONG"))
    folder = write_results(tmp_path / "x" / "y", Plan(arms, (1,), prompts=2, repeats=1, max_new_tokens=8))
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        build_report(folder, console)
    assert "! WRONG TEXT: bad (batch 1, T = 0) changed the target's text in 2 requests." in capture.get()
    assert "No lossless method finished a batch here" in capture.get()


def test_several_runs_each_get_their_page(tmp_path):
    plan = Plan((AUTOREGRESSIVE,), (1,), prompts=1, repeats=1, max_new_tokens=4)
    folders = [write_results(tmp_path / name / "machine", plan) for name in ("one", "two")]
    console = Console(quiet=True)
    paths = [report.path for report in build_report(tmp_path, console)]
    assert paths == [folder / "report.html" for folder in folders]


def test_a_folder_that_holds_no_run_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ResultsError, match=r"no run in it\. `specbench run"):
        build_report(tmp_path, Console(quiet=True))
    with pytest.raises(ResultsError, match="no such folder"):
        build_report(tmp_path / "absent", Console(quiet=True))
