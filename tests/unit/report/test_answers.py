"""specbench.report.answers"""

import io

import pandas as pd
from rich.console import Console

from specbench.report.answers import so_far, table

# Two batches: one of two requests, of which the second is done after half the time, and one of a single token.
ROWS = pd.DataFrame(
    [
        {"batch_id": "1", "block": 1, "output_tokens": 21, "steps": 10, "drafted_tokens": 40, "accepted_tokens": 10,
         "row_done_s": 2.0, "decode_s": 2.0, "prefill_s": 0.5, "ttft_s": 0.4, "repeat_ngram_share": 0.5},
        {"batch_id": "1", "block": 1, "output_tokens": 11, "steps": 5, "drafted_tokens": 20, "accepted_tokens": 5,
         "row_done_s": 1.0, "decode_s": 2.0, "prefill_s": 0.5, "ttft_s": 0.4, "repeat_ngram_share": 0.1},
        {"batch_id": "2", "block": 2, "output_tokens": 1, "steps": 0, "drafted_tokens": 0, "accepted_tokens": 0,
         "row_done_s": 0.0, "decode_s": 0.0, "prefill_s": 0.5, "ttft_s": 0.2, "repeat_ngram_share": 0.0},
    ]
).assign(status="ok", process=0, repeat=0, batch_size=2, prefill_tokens=1)  # fmt: skip


def cells(rows):
    console = Console(file=io.StringIO(), width=120)
    console.print(table("who", rows))
    lines = [line.split("  ") for line in console.file.getvalue().splitlines() if line.strip(" ─")]
    headings, values = ([cell.strip() for cell in line if cell.strip()] for line in lines[-2:])
    return dict(zip(headings, values, strict=True))


def test_every_figure_is_the_one_of_the_house():
    assert cells(ROWS) == {
        "requests": "3",
        "tokens": "33",
        "tok/step": "2.00",  # (20 + 10) / 15: the prefill's tokens are no step's
        "accepted": "25 %",
        "tok/s": "10.0",  # 30 tokens in the requests' own 3 s
        "batch tok/s": "15.0",  # 30 tokens in the batches' 2 s
        "e2e tok/s": "11.0",  # 33 tokens in 2 s and twice 0.5 s
        "TTFT ms": "300",
        "repeats": "20 %",
    }


def test_what_has_no_meaning_is_a_dash_and_not_zero():
    found = cells(ROWS.iloc[2:])
    assert [found[name] for name in ("tok/step", "accepted", "tok/s", "batch tok/s")] == ["\N{EN DASH}"] * 4


def test_progress_tells_two_figures_once_there_are_any():
    assert so_far(ROWS) == "2.00 tok/step, 15.0 batch tok/s"
    assert so_far(pd.DataFrame([])) == ""
