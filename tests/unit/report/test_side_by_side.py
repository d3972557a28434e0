"""specbench.report.side_by_side"""

import io

import pandas as pd
import pytest
from rich.console import Console

from specbench.errors import ResultsError
from specbench.report.side_by_side import DIVERGES, chosen, pane, tables

WORDS = ["def", " f", "(", "x", "):", " return", " y"]


def decode(ids):
    return "".join(WORDS[index] for index in ids)


def row(arm, ids=(0, 1, 2, 3, 4, 5), accepted=(1, 0, 1), **changes):
    made = {
        "cell": "pico, T=0 #1f", "arm": arm, "pass": "headline", "process": 0, "repeat": 0, "prompt_id": "p",
        "prompt_tokens": 12, "output_ids": list(ids), "output_tokens": len(ids), "prefill_tokens": 1,
        "accepted_per_step": list(accepted), "steps": len(accepted), "status": "ok", "reason": None, "verdict": "equal",
    }  # fmt: skip
    return {**made, **changes}


REFERENCE = row("autoregressive", accepted=(0, 0, 0, 0, 0))


def test_the_tokens_of_neighbouring_steps_have_other_shades():
    found = pane(row("m"), REFERENCE["output_ids"], decode, coloured=True)
    text = found.plain
    shades = {text[span.start : span.end]: span.style for span in found.spans}
    assert [shades[part] for part in ("def", " f(", "x", "): return")] == ["cyan", "green", "cyan", "green"]


def test_without_colours_the_text_is_whole_and_unmarked():
    found = pane(row("m"), REFERENCE["output_ids"], decode, coloured=False)
    assert "def f(x): return" in found.plain
    assert DIVERGES not in found.plain
    assert "6 tokens, 3 steps, 1.67 a step; the same text" in found.plain


def test_the_first_divergence_is_marked_even_inside_a_step():
    other = row("m", ids=(0, 1, 2, 3, 4, 6), verdict="WRONG")
    found = pane(other, REFERENCE["output_ids"], decode, coloured=False)
    assert f"def f(x):{DIVERGES} y" in found.plain
    assert "leaves the reference at token 6; WRONG" in found.plain


def test_a_last_step_that_was_cut_shows_only_what_was_kept():
    found = pane(row("m", ids=(0, 1, 2), accepted=(5,)), (0, 1, 2), decode, coloured=False)
    assert found.plain.endswith("def f(")


def test_a_failed_arm_shows_its_reason():
    failed = row("m", ids=(), status="oom", reason="out of memory")
    assert "oom: out of memory" in pane(failed, REFERENCE["output_ids"], decode, coloured=False).plain


def test_two_panes_fit_a_hundred_columns():
    rows = chosen(pd.DataFrame([REFERENCE, row("m"), row("n")]), None, [])
    sink = io.StringIO()
    Console(file=sink, width=100).print(*tables(rows, decode, coloured=False))
    lines = sink.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any("autoregressive" in line and " m " in line for line in lines)


def test_only_the_arms_that_were_asked_for_are_shown_beside_the_reference():
    requests = pd.DataFrame([REFERENCE, row("autoregressive-twin"), row("m"), row("n")])
    assert list(chosen(requests, "p", ["n"])["arm"]) == ["autoregressive", "n"]
    assert list(chosen(requests, None, [])["arm"]) == ["autoregressive", "m", "n"]


@pytest.mark.parametrize(
    ("prompt", "arms", "words"), [("q", [], "no prompt 'q'"), (None, ["k"], "no arm 'k' here. Known")]
)
def test_an_unknown_prompt_or_arm_is_one_clear_line(prompt, arms, words):
    with pytest.raises(ResultsError, match=words):
        chosen(pd.DataFrame([REFERENCE, row("mmmm")]), prompt, arms)
