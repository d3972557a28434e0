"""specbench.report.publish"""

import pandas as pd
import pytest
from rich.console import Console

from specbench.errors import ResultsError
from specbench.records.store import Store
from specbench.report.build import build_report
from specbench.report.publish import main, publish
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

ARMS = (AUTOREGRESSIVE, TWIN, Arm("fast", alpha=0.8))
MACHINE = "example-3000"


def write_run(suite, experiment, machine=MACHINE, **run):
    """Four blocks, and a page that stands for their report."""
    folder = suite / experiment / machine
    write_results(folder, Plan(arms=ARMS, batch_sizes=(1,), prompts=4, repeats=1, run=run))
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    for name in ("report.html", "tables/summary.csv", "figures/speedup.svg", "figures/speedup.png"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def suite(tmp_path):
    write_run(tmp_path / "suite", "gpu_a")
    for name in ("overhead.json", "kernels.json"):
        (tmp_path / "suite" / name).write_text("{}")
    return tmp_path / "suite"


def refusal(suite, *parts):
    with pytest.raises(ResultsError) as caught:
        publish(suite, suite.parent / "published", parts)
    assert not (suite.parent / "published").exists()
    return str(caught.value).splitlines()


def test_a_run_is_published_under_its_device_and_day(suite, tmp_path):
    write_run(suite, "gpu_b", started_at="2025-06-02T00:10:00+00:00")  # it ran past midnight
    target = publish(suite, tmp_path / "published", ["gpu_a", "gpu_b"])
    assert target == tmp_path / "published" / "example-3000-2025-06-02"
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {
        "overhead.json",
        "kernels.json",
        *(
            f"{name}/{MACHINE}/{file}"
            for name in ("gpu_a", "gpu_b")
            for file in ("requests.parquet", "steps.parquet", "runs.parquet", "tables/summary.csv",
                         "figures/speedup.svg")
        ),
    }  # fmt: skip


def test_what_was_published_reads_as_before_and_its_report_can_be_drawn_again(suite, tmp_path):
    target = publish(suite, tmp_path / "published")
    before, after = Store(suite / "gpu_a" / MACHINE), Store(target / "gpu_a" / MACHINE)
    for table in ("requests", "steps", "runs"):
        pd.testing.assert_frame_equal(after.read(table), before.read(table))
    [report] = build_report(target, Console(quiet=True))
    assert report.path == target / "gpu_a" / MACHINE / "report.html"


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        pytest.param({"git_dirty": True}, "the code had changes that were not committed", id="changed code"),
        pytest.param({"git_sha": None, "git_dirty": None}, "nothing tells from which commit it is", id="no commit"),
        pytest.param(
            {"notes": '{"planned_blocks": 7}'}, "blocks are missing: 3; the same command goes on with them", id="cut"
        ),
    ],
)
def test_a_run_that_nobody_can_vouch_for_is_refused_with_the_reason(tmp_path, run, fault):
    write_run(tmp_path / "suite", "gpu_a", **run)
    assert refusal(tmp_path / "suite") == [f"gpu_a: {fault}"]


def test_a_rehearsal_is_none_of_it(tmp_path):
    write_run(tmp_path / "suite", "gpu_a-rehearsal")
    assert refusal(tmp_path / "suite", "gpu_a") == [
        "gpu_a: nothing is there of it",
        "gpu_a-rehearsal: is a rehearsal",
    ]


def test_two_machines_and_two_commits_are_no_one_run(suite):
    write_run(suite, "gpu_b", machine="other-9", git_sha="fedcba9876543210")
    assert refusal(suite) == [
        "machine differs: example-3000, other-9",
        "git_sha differs: 0123456789abcdef, fedcba9876543210",
    ]


def test_a_part_that_left_nothing_and_one_without_a_report_are_named(suite):
    (suite / "gpu_a" / MACHINE / "report.html").unlink()
    assert refusal(suite, "gpu_a", "gpu_b") == [
        "gpu_b: nothing is there of it",
        "gpu_a: has no report; specbench report draws it",
    ]


def test_what_is_published_stays(suite, tmp_path):
    target = publish(suite, tmp_path / "published")
    with pytest.raises(ResultsError, match=f"{target}: is there already"):
        publish(suite, tmp_path / "published")


def test_the_command_says_where_and_how_much_or_why_not(suite, tmp_path, capsys):
    main([str(suite), "--to", str(tmp_path / "published")])
    assert capsys.readouterr().out == f"{tmp_path / 'published' / 'example-3000-2025-06-01'}: 0.1 MB\n"
    with pytest.raises(SystemExit, match=r"^error: .*: no run in it$"):
        main([str(tmp_path / "nowhere"), "--to", str(tmp_path / "published")])
