"""specbench.report.build, specbench.report.page and specbench.report.words"""

import re
import time

import pytest
from rich.console import Console

from specbench.errors import ResultsError
from specbench.report.build import build_report
from specbench.report.words import findings, warnings
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results


@pytest.fixture(scope="module")
def built(odd_folder):
    """The report of the odd folder, asked for by the folder above, and what the terminal showed."""
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        pages = build_report(odd_folder.parent, console)
    return pages, capture.get()


def test_a_report_lies_beside_its_data(built, odd_folder):
    assert built[0] == [odd_folder / "report.html"]
    figures = {path.name for path in (odd_folder / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}"
        for name in ("speedup", "tokens_against_efficiency", "step_time", "acceptance")
        for kind in ("png", "svg")
    }
    assert {path.name for path in (odd_folder / "tables").iterdir()} == {
        "summary.md", "details.md", "summary.csv", "step_time.csv", "acceptance.csv", "batches.csv",
    }  # fmt: skip


def test_the_page_needs_nothing_from_elsewhere(built):
    text = built[0][0].read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', text)
    assert len(sources) == 8
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_ends_with_where_it_comes_from(built):
    text = built[0][0].read_text(encoding="utf-8")
    assert "0123456789abcdef" in text
    assert "specbench run experiments/quickstart.yaml" in text
    assert "name: quickstart" in text


def test_the_fastest_arm_is_one_that_keeps_the_targets_text(odd_results, odd_frames):
    (title, sentences), _ = findings(odd_results, odd_frames)
    assert title == "batch 1, T = 0"
    assert sentences[0].startswith("fast is fastest: ")
    assert "9 batches of prompts); the difference is resolved (A/A noise floor" in sentences[0]
    assert sentences[1].startswith("Next is ")
    assert sentences[2] == "The fastest arm's text is the target's own in all 18 requests."
    assert re.match(r"A step of fast takes 1\d\.\d ms for \d\.\d\d tokens: \d+ % draft, ", sentences[3])
    assert any(re.search(r"^lossy shows .* times but it is lossy", sentence) for sentence in sentences[4:])


def test_warnings_name_what_spoils_the_numbers(odd_results, odd_frames, built):
    sentences = warnings(odd_results, odd_frames)
    starts = [
        "The target's own text loops (everywhere): up to 70 % of its 4-grams occurred before.",
        "crashed (batch 2, T = 0): 18 of 18 requests have no numbers (oom): out of memory",
        "A last batch with fewer rows than the batch size is left out of speeds.",
        "These arms have simulated acceptance: their speed is a what-if, their text is not the target's",
        "These arms are lossy: they may change the target's text: lossy.",
    ]
    assert [sentence[: len(start)] for sentence, start in zip(sentences, starts, strict=True)] == starts
    assert "! crashed (batch 2, T = 0): 18 of 18" in built[1]


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
    assert build_report(tmp_path, console) == [folder / "report.html" for folder in folders]


def test_a_folder_that_holds_no_run_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ResultsError, match=r"no run in it\. `specbench run"):
        build_report(tmp_path, Console(quiet=True))
    with pytest.raises(ResultsError, match="no such folder"):
        build_report(tmp_path / "absent", Console(quiet=True))


@pytest.mark.slow
def test_the_report_of_a_quickstart_takes_less_than_20_seconds(tmp_path):
    folder = write_results(tmp_path / "quickstart" / "machine")
    begun = time.perf_counter()
    build_report(folder, Console(quiet=True))
    assert time.perf_counter() - begun < 20
