"""specbench.report.limits"""

import pytest

from specbench.records.schema import blank_row
from specbench.records.store import Store
from specbench.report import plots
from specbench.report.cautions import warnings
from specbench.report.findings import answers
from specbench.report.metrics import frames, load
from specbench.report.tables import COLUMNS, markdown, terminal
from tests.unit.report.synthetic import AUTOREGRESSIVE, TARGET_S, TWIN, Arm, Plan, write_results

OUTSIDE = Arm("transformers-generate", "transformers-generate")
DRAFTING = Arm("drafting", alpha=0.6, gamma=4, draft_s=0.001, verify_s=0.0115)

# 60 MB at 10 GB/s are 6 ms of the 10 that a forward takes; four drafts of 8 MB at 40 GB/s are 0.8 ms of 4.
COUNTED = {
    "run_id": "run-1", "batch_size": 1, "steps": 10, "layers": 4,
    "verify_weight_bytes": 60e6, "verify_operations_per_token": 30e6, "kv_bytes_per_token": 1e3,
    "kv_operations_per_token": 1e3, "kv_windowed_share": 0.0, "draft_weight_bytes": 0.0, "draft_operations": 0.0,
    "draft_forwards": 0.0, "draft_kv_bytes_per_token": 0.0, "draft_launches": 1.0, "verify_launches": 200.0,
    "accept_launches": 20.0, "update_launches": 0.0, "verify_ceiling": "target",
}  # fmt: skip
A_DRAFT = {"draft_weight_bytes": 32e6, "draft_operations": 16e6, "draft_forwards": 4.0, "draft_launches": 500.0}
CEILING = {
    "device": "cpu Example 3000", "dtype": "bfloat16", "threads": 1, "torch": "2", "matrices": 9,
    "working_set_bytes": 60_000_000, "product_rows": [1, 8], "products_s": [0.006, 0.008],
    "read_bytes_per_s": 10e9, "copy_bytes_per_s": 15e9, "operations_per_s": 1e12, "launch_s": 2e-6,
    "measured_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


def with_limits(folder, *arms, counted=COUNTED, drafted=A_DRAFT, **plan):
    """A folder drawn from the known model, with limits beside it."""
    settings = {"batch_sizes": (1,), "prompts": 4, "repeats": 1, "max_new_tokens": 12, "noise": 0.0} | plan
    write_results(folder, Plan((AUTOREGRESSIVE, TWIN, *arms), **settings))
    store = Store(folder)
    for name, pace in (("target", 10e9), ("draft", 40e9)):
        store.write_part(
            "ceilings", name, [blank_row("ceilings") | CEILING | {"ceiling_id": name, "read_bytes_per_s": pace}]
        )
    for cell in store.read("requests")["cell"].unique():
        for arm in (AUTOREGRESSIVE, *arms):
            row = blank_row("limits") | counted | {"cell": cell, "arm": arm.name}
            row |= drafted | {"draft_ceiling": "draft"} if arm.gamma and drafted else {}
            if arm is not OUTSIDE:
                store.write_part("limits", f"{cell} {arm.name}", [row])
    results = load(folder)
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
