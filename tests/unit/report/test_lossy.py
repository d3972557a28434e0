"""A lossy arm is called lossy wherever a report shows its speed; cells of different rules stand apart."""

from dataclasses import replace

import pytest
from rich.console import Console

from specbench.report import decision_tables, plots, tables
from specbench.report.cautions import warnings
from specbench.report.compare import compare, text_words
from specbench.report.decisions import decisions
from specbench.report.findings import answers
from specbench.report.metrics import frames, load
from specbench.report.words import text_notes
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_rules

DRAFT = "draft gamma=2"
LONGER = "draft gamma=4"
PUBLISHED = f"name: x\nclaim: {{says: it is fast, published: {{{DRAFT}: 2.0}}}}\n"


def results_under(folder, *rules, **plan):
    """Cells that differ in their rule alone; under ``typical`` what drafts is lossy, and autoregressive is not."""
    usual = {"batch_sizes": (1, 2), "temperatures": (0.8,), "prompts": 4, "repeats": 1, "max_new_tokens": 8} | plan
    plans = {}
    for rule in rules or ("typical",):
        is_lossy = rule in {"typical", "redrafter_paper"}
        arms = [
            Arm(name, alpha=0.8, gamma=gamma, draft_s=0.0005, lossless=not is_lossy, verdict=None)
            for name, gamma in ((DRAFT, 2), (LONGER, 4))
        ]
        plans[rule] = Plan((AUTOREGRESSIVE, TWIN, *arms), **usual)
    return write_rules(folder, plans)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return load(results_under(tmp_path_factory.mktemp("lossy")))


@pytest.fixture(scope="module")
def lossy(results):
    return frames(results)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return frames(load(results_under(tmp_path_factory.mktemp("mixed"), "rejection", "typical")))


def shown(table):
    console = Console(width=300)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_an_arm_that_drafts_is_called_lossy_and_autoregressive_decoding_is_not(lossy):
    notes = text_notes(lossy.summary)
    assert notes == {"autoregressive": "", "autoregressive-twin": "", DRAFT: " (lossy)", LONGER: " (lossy)"}


def test_an_arm_that_is_lossy_under_one_of_two_rules_is_not_called_lossy_under_both(mixed):
    assert text_notes(mixed.summary)[DRAFT] == " (lossy in some cells)"


@pytest.mark.parametrize("name", ["speedup", "batch_size", "gamma", "tokens_against_efficiency"])
def test_every_figure_of_speed_says_which_arms_are_lossy(lossy, name):
    with plots.themed("light"):
        figure = plots.FIGURES[name].draw(lossy, plots.look_of(lossy), "")
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    labels += [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    named = [" ".join(label.split()) for label in labels if "draft" in label or "(lossy" in label]
    assert named
    assert all("(lossy)" in label for label in named)
    assert not any("(lossy" in label for label in labels if label.startswith("autoregressive"))


def test_every_table_with_a_speed_up_says_which_arms_are_lossy(results, lossy):
    summary = lossy.summary
    for columns in (tables.COLUMNS, tables.MORE_COLUMNS):
        lines = [line for line in tables.markdown(summary, columns).splitlines() if line.startswith(f"| {DRAFT}")]
        assert len(lines) == 2
        assert all("lossy" in line for line in lines)
    for found in decisions(results):
        assert "(lossy)" in decision_tables.sentence(found)
        table = decision_tables.forecast_table(found)
        assert shown(table).count("(lossy)") == table.row_count >= 2
    lines = lossy.along
    assert set(lines.loc[~lines["lossless"].astype(bool), "arm"]) == {DRAFT, LONGER}


def test_a_comparison_of_two_runs_says_that_a_text_is_lossy(tmp_path):
    before, after = (results_under(tmp_path / name, batch_sizes=(1,), seed=seed) for seed, name in enumerate("ab"))
    words = {change.arm: text_words(change) for change in compare(before, after).changes}
    assert words[DRAFT].endswith("; lossy")
    assert "lossy" not in words["autoregressive"]


def test_the_sentences_rank_no_lossy_arm_and_name_it_beside_a_published_value(results, lossy):
    claiming = replace(results, runs=results.runs.assign(experiment=PUBLISHED))
    text = " ".join(line for answer in answers(claiming, lossy) for line in answer.sentences)
    assert "No lossless method finished a batch here" in text
    assert f"{DRAFT} (lossy): published 2.00, here" in text
    assert any(f"{DRAFT} and {LONGER} are lossy" in line for line in warnings(results, lossy))


def test_cells_that_differ_in_their_rule_have_titles_that_say_so_and_lines_of_their_own(mixed):
    assert list(mixed.summary["title"].unique()) == [
        "batch 1, T = 0.8, rule auto", "batch 1, T = 0.8, rule typical",
        "batch 2, T = 0.8, rule auto", "batch 2, T = 0.8, rule typical",
    ]  # fmt: skip
    lines = mixed.along[(mixed.along["axis"] == "batch_size") & (mixed.along["series"] == DRAFT)]
    assert lines.groupby("panel")["lossless"].unique().map(list).to_dict() == {
        "T = 0.8, rule auto": [True], "T = 0.8, rule typical": [False],
    }  # fmt: skip
    assert (lines.groupby("panel")["x"].nunique() == 2).all()
