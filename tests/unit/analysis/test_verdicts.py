"""specbench.analysis.verdicts"""

import pandas as pd
import pytest

from specbench.analysis.verdicts import ArmCheck, first_divergence, outcome, stored_checks

TEXT = [5, 6, 7, 8]


def row(arm, prompt, ids=TEXT, **changes):
    made = {
        "cell": "pico, stdlib, T=0, batch 1 #1f", "arm": arm, "pass": "headline", "process": 0, "block": 0, "repeat": 0,
        "prompt_id": prompt, "output_ids": ids, "output_tokens": None if ids is None else len(ids), "steps": 2,
        "status": "ok", "reason": None, "verdict": "equal", "divergence_gap": None, "simulated_acceptance": False,
        "lossless": True, "temperature": 0.0, "rule": "greedy", "target": "pico",
    }  # fmt: skip
    return {**made, **changes}


def check(*rows):
    references = [row("autoregressive", prompt, verdict=None) for prompt in ("a", "b")]
    (found,) = stored_checks(pd.DataFrame([*references, *rows]))
    return found


def test_rows_with_the_references_ids_are_equal():
    found = check(row("m", "a"), row("m", "b"))
    assert (found.cell, found.arm, found.kind) == ("pico, stdlib, T=0, batch 1", "m", "ids")
    assert (found.requests, found.equal, found.compared, found.faults) == (2, 2, 2, ())
    assert found.tokens_per_step == pytest.approx(3 / 2)


def test_near_ties_and_wrong_texts_are_counted_with_their_place_and_gap():
    found = check(
        row("m", "a", [5, 6, 9, 8], verdict="near-tie", divergence_gap=0.1),
        row("m", "b", [5, 0, 0, 0], verdict="WRONG", divergence_gap=3.0),
    )
    assert (found.equal, found.near_tie, found.wrong) == (0, 1, 1)
    assert [(entry.prompt_id, entry.position, entry.gap) for entry in found.divergences] == [
        ("b", 1, 3.0),
        ("a", 2, 0.1),
    ]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([row("m", "a")], "1 of 2 rows are missing"),
        ([row("m", "a"), row("m", "b", [])], "b (headline, repeat 0): the text is empty"),
        ([row("m", "a"), row("m", "a"), row("m", "b")], "1 rows stand twice"),
        ([row("m", "a"), row("m", "b"), row("m", "c")], "1 rows have no autoregressive row to be compared with"),
        (
            [row("m", "a"), row("m", "b", [5, 6, 7])],
            "b (headline, repeat 0): its ids are other than those of autoregressive decoding, its verdict equal",
        ),
        (
            [row("m", "a"), row("m", "b", verdict="WRONG")],
            "b (headline, repeat 0): its ids are the same as those of autoregressive decoding, its verdict WRONG",
        ),
        (
            [row("m", "a"), row("m", "b", [9, 9, 9, 9], verdict=None)],
            "b (headline, repeat 0): its ids are other than those of autoregressive decoding, its verdict none",
        ),
    ],
    ids=["missing", "empty", "doubled", "extra", "cut and called equal", "equal and called wrong", "never judged"],
)
def test_what_cannot_be_compared_is_a_fault_and_never_equal(rows, fault):
    found = check(*rows)
    assert found.faults == (fault,)
    assert found.equal <= 2
    assert outcome([found]).faulty == 1


def test_an_empty_reference_equals_nothing():
    rows = [row("autoregressive", "a", [], verdict=None), row("m", "a", [])]
    (found,) = stored_checks(pd.DataFrame(rows))
    assert (found.equal, found.faults) == (0, ("a (headline, repeat 0): autoregressive decoding has no text there",))


def test_a_failed_row_is_no_missing_row():
    found = check(row("m", "a"), row("m", "b", None, status="oom", reason="out of memory", verdict=None, steps=None))
    assert (found.failure, found.faults, found.equal) == (("oom", "out of memory"), (), 1)
    assert outcome([found]).failed == 1


def test_an_arm_without_a_phase_pass_lacks_nothing_and_one_with_it_is_held_to_it():
    references = [row("autoregressive", "a", **{"pass": which, "verdict": None}) for which in ("headline", "phase")]
    outside, core = row("outside", "a"), [row("core", "a"), row("core", "a", [5, 9], **{"pass": "phase"})]
    checks = {found.arm: found for found in stored_checks(pd.DataFrame([*references, outside, *core]))}
    assert checks["outside"].faults == ()
    assert "phase" in checks["core"].faults[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"simulated_acceptance": True, "lossless": False}, "simulated acceptance"),
        ({"lossless": False, "rule": "typical"}, "lossy: the rule typical"),
        ({"temperature": 0.8, "rule": "rejection"}, "only its distribution is promised"),
    ],
)
def test_where_no_ids_are_promised_nothing_is_compared_and_the_reason_said(changes, words):
    found = check(row("m", "a", **changes), row("m", "b", **changes))
    assert (found.kind, found.compared) == ("none", 0)
    assert words in found.note


def test_under_match_ids_are_compared_at_any_temperature():
    assert check(*(row("m", prompt, temperature=0.8, rule="match") for prompt in "ab")).equal == 2


def test_the_outcome_counts_wrong_failed_faulty_and_contract():
    found = outcome(
        [
            ArmCheck("c", "a", "t", "ids", wrong=2, equal=1),
            ArmCheck("c", "b", "t", "none", failure=("unsupported", "no")),
            ArmCheck("c", "c", "t", "none", failure=("error", "ContractError: no tree")),
        ]
    )
    assert (found.wrong, found.compared, found.failed, found.broke_contract) == (2, 3, 1, True)


@pytest.mark.parametrize(("ours", "theirs", "at"), [([1, 2], [1, 3], 1), ([1, 2], [1], 1), ([], [4], 0)])
def test_the_first_divergence(ours, theirs, at):
    assert first_divergence(ours, theirs) == at
