"""specbench.report.curves: how trainings went."""

import pandas as pd
import pytest
from rich.console import Console

from specbench.errors import ResultsError
from specbench.report import plots
from specbench.report.build import build_report
from specbench.report.curves import _by_depth, trainings


@pytest.fixture
def work(tmp_path):
    for name, losses in (("big", [5.0, None, 4.0]), ("small", [5.5, None, 5.0])):
        (tmp_path / name).mkdir()
        accuracies = [None if loss is None else 1 / loss for loss in losses]
        pd.DataFrame(
            {"tokens_seen": [1e6, 2e6, 3e6], "held_out_loss": losses, "held_out_accuracy": accuracies}
        ).to_parquet(tmp_path / name / "metrics.parquet")
    return tmp_path


def test_the_curves_of_a_folder_of_trainings_are_drawn_into_it(work):
    assert build_report(work, Console(quiet=True)) == []
    svg = (work / "learning_curves.svg").read_text()
    assert (work / "learning_curves.png").stat().st_size > 5_000
    for text in ("big", "small", "held-out loss (nats per token)", "tokens seen (million)"):
        assert f"<!-- {text} -->" in svg or f">{text}<" in svg


def test_what_looks_ahead_shows_how_often_each_depth_is_right(work):
    (work / "heads").mkdir()
    shares = {f"held_out_top{rank}_{depth}": [0.1 * depth, None, 0.1 * rank] for rank in (1, 5) for depth in (1, 2)}
    columns = {"tokens_seen": [1e6, 2e6, 3e6], "held_out_loss": [5.0, None, 4.0], "held_out_accuracy": [0.1, None, 0.2]}
    pd.DataFrame({**columns, **shares}).to_parquet(work / "heads" / "metrics.parquet")
    with plots.themed("light"):
        (axes,) = [axes for axes in _by_depth({"heads": trainings(work)["heads"]}).axes if axes.axison]
    lines = [(line.get_linestyle(), line.get_ydata().tolist()) for line in axes.lines]
    assert lines == [("-", [10, 10]), ("--", [10, 50]), ("-", [20, 10]), ("--", [20, 50])]
    assert build_report(work, Console(quiet=True)) == []
    assert (work / "accuracy_by_depth.png").stat().st_size > 5_000


def test_models_that_look_one_token_ahead_have_no_such_figure(work):
    build_report(work, Console(quiet=True))
    assert not (work / "accuracy_by_depth.png").exists()


def test_a_broken_curve_is_named(work):
    (work / "big" / "metrics.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match=r"big/metrics.parquet: not a table of a training"):
        trainings(work)
