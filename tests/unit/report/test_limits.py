"""specbench.report.limits"""

from dataclasses import replace

import pytest

from specbench.report import plots
from specbench.report.cautions import warnings
from specbench.report.findings import answers
from specbench.report.metrics import frames, load
from specbench.report.tables import COLUMNS, markdown, terminal
from tests.unit.report.limits_of_arms import A_DRAFT, COUNTED, write_limits
from tests.unit.report.synthetic import AUTOREGRESSIVE, TARGET_S, TWIN, Arm, Plan, write_results

OUTSIDE = Arm("transformers-generate", "transformers-generate")
DRAFTING = Arm("drafting", alpha=0.6, gamma=4, draft_s=0.001, verify_s=0.0115)


def with_limits(folder, *arms, counted=COUNTED, drafted=A_DRAFT, **plan):
    """A folder drawn from the known model, with limits beside it, and what is shown of it."""
    settings = {"batch_sizes": (1,), "prompts": 4, "repeats": 1, "max_new_tokens": 12, "noise": 0.0} | plan
    write_results(folder, Plan((AUTOREGRESSIVE, TWIN, *arms), **settings))
    on_the_core = [arm for arm in (AUTOREGRESSIVE, *arms) if arm is not OUTSIDE]
    results = load(write_limits(folder, *on_the_core, counted=counted, drafted=drafted))
    return results, frames(results)


def test_a_step_is_set_against_the_time_that_its_bytes_take(tmp_path):
    _, found = with_limits(tmp_path, DRAFTING)
    arms = found.summary.set_index("arm")
    # 128 tokens of the prompt and half of what comes after them, at 1 kB each.
    for arm, tokens in (("autoregressive", 128 + 5.5), ("drafting", 128 + 5.5)):
        assert arms.loc[arm, "verify_limit_ms"] == pytest.approx((60e6 + 1e3 * tokens) / 10e9 * 1e3)
    assert arms.loc["drafting", "draft_limit_ms"] == pytest.approx(0.8)
    for _, row in arms.iterrows():
        assert row["step_limit_ms"] == pytest.approx(row["draft_limit_ms"] + row["verify_limit_ms"])
        assert row["step_of_limit"] == pytest.approx(row["step_limit_ms"] / (1000 * row["step_s"]))
        assert row["verify_of_limit"] == pytest.approx(row["verify_limit_ms"] / row["verify_ms"])
    assert arms.loc["autoregressive", "verify_of_limit"] == pytest.approx(0.006 / TARGET_S, rel=0.1)


def test_who_drafts_nothing_has_the_limit_of_the_cores_own_autoregressive_arm(tmp_path):
    _, found = with_limits(tmp_path, OUTSIDE, DRAFTING)
    limits = found.summary.set_index("arm")["step_limit_ms"]
    assert limits["autoregressive-twin"] == limits["transformers-generate"] == limits["autoregressive"]
    assert limits["drafting"] > limits["autoregressive"]


def test_rows_that_have_ended_move_nothing(tmp_path):
    uneven = Arm("uneven", "prompt_lookup", alpha=0.95, gamma=8, drafted_chance=0.15)
    _, found = with_limits(tmp_path, uneven, batch_sizes=(4,), max_new_tokens=48, drafted=None)
    row = found.summary.set_index("arm").loc["uneven"]
    # Keys of 128 tokens and more for as many rows as still decoded, fewer than four.
    rows = (row["verify_limit_ms"] * 1e-3 * 10e9 - 60e6) / (1e3 * (128 + 23.5))
    assert 1 < rows < 3.99


def test_below_two_fifths_of_the_limit_the_likely_cause_is_told_and_above_it_none(tmp_path):
    slow = COUNTED | {"verify_weight_bytes": 20e6}
    results, found = with_limits(tmp_path / "below", counted=slow)
    assert set(found.summary["limit_cause"]) == {"between the matrices"}
    told = [sentence for sentence in warnings(results, found) if "of what this machine allows" in sentence]
    assert len(told) == 1
    assert told[0].startswith("Below 40 % of what this machine allows, likely between the matrices: autoregressive")
    results, found = with_limits(tmp_path / "above")
    assert found.summary["limit_cause"].isna().all()
    assert not any("of what this machine allows" in sentence for sentence in warnings(results, found))


def test_operations_of_forwards_with_compiled_pieces_were_not_counted_and_are_no_cause(tmp_path):
    many = {"verify_weight_bytes": 20e6, "verify_launches": 4000.0, "draft_launches": 4000.0}
    for execution, cause in (("eager", "launch-bound"), ("compiled pieces", "between the matrices")):
        results, _ = with_limits(tmp_path / execution, DRAFTING, counted=COUNTED | many)
        requests = results.requests.assign(execution=execution)
        found = frames(replace(results, requests=requests)).summary.set_index("arm")
        assert found.loc["autoregressive", "limit_cause"] == cause


def test_a_draft_that_was_slowed_on_purpose_is_given_no_cause(tmp_path):
    paced = Arm("paced latency=80", alpha=0.6, gamma=4, draft_s=0.08, latency_ms=80.0)
    _, found = with_limits(tmp_path, paced)
    row = found.summary.set_index("arm").loc["paced latency=80"]
    assert row["step_of_limit"] < 0.1
    assert row["limit_cause"] is None


def test_a_step_faster_than_its_limit_says_that_the_limit_is_wrong(tmp_path):
    results, found = with_limits(tmp_path, counted=COUNTED | {"verify_weight_bytes": 200e6})
    assert any(sentence.startswith("Faster than the limit") for sentence in warnings(results, found))


def test_the_page_says_how_near_the_baseline_and_the_best_arm_come(tmp_path):
    results, found = with_limits(tmp_path, DRAFTING, OUTSIDE)
    why = next(answer.sentences for answer in answers(results, found) if answer.question == "Why?")
    told = [sentence for sentence in why if "of what this machine allows" in sentence]
    assert [sentence.split(" reaches ")[0] for sentence in told] == [
        "A step of drafting", "A step of autoregressive",
    ]  # fmt: skip


def test_the_share_is_a_column_of_the_tables_where_it_is_known(tmp_path):
    _, found = with_limits(tmp_path / "known", DRAFTING)
    shown = next(column for column in COLUMNS if column.heading == "of limit")
    row = found.summary.set_index("arm", drop=False).loc["autoregressive"].to_dict()
    assert shown.text(row) == f"{100 * row['step_of_limit']:.0f} %"
    assert "| of limit |" in markdown(found.summary)
    headings = [column.header for column in terminal(found.summary)[0].columns]
    assert "of limit" in headings
    write_results(tmp_path / "unknown", Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=2, repeats=1, max_new_tokens=4))
    (table,) = terminal(frames(load(tmp_path / "unknown")).summary)
    assert "of limit" not in [column.header for column in table.columns]


def test_the_figure_has_a_bar_for_every_arm_with_a_limit_and_none_without(tmp_path):
    _, found = with_limits(tmp_path / "known", DRAFTING, OUTSIDE)
    style = plots.look_of(found)
    with plots.themed("light"):
        figure = plots.FIGURES["limits"].draw(found, style, "footer")
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert set(names) == {"autoregressive", "drafting", "transformers-generate"}
    shares = found.summary.set_index("arm")["step_of_limit"]
    assert [text.get_text() for text in axes.texts] == [f"{100 * shares[name]:.0f} %" for name in names]
    measured, draft, verify = (axes.containers[index] for index in range(3))
    filled = [first.get_width() + second.get_width() for first, second in zip(draft, verify, strict=True)]
    whole = [bar.get_width() for bar in measured]
    assert [part / bar for part, bar in zip(filled, whole, strict=True)] == pytest.approx([shares[n] for n in names])
    write_results(tmp_path / "unknown", Plan((AUTOREGRESSIVE, TWIN), (1,), prompts=2, repeats=1, max_new_tokens=4))
    unknown = frames(load(tmp_path / "unknown"))
    with plots.themed("light"):
        assert plots.FIGURES["limits"].draw(unknown, plots.look_of(unknown), "footer") is None
