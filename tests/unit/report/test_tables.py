"""specbench.report.tables"""

import pytest
from rich.console import Console

from specbench.report import tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, tables.MISSING),
        (float("nan"), tables.MISSING),
        (0.0, "0.00"),
        (14.0, "14.0"),
        (0.01234, "0.0123"),
        (12345.6, "12,346"),
    ],
)
def test_a_number_keeps_three_digits_and_an_absent_one_is_no_zero(value, text):
    assert tables.significant(value) == text


def test_the_terminal_shows_a_failed_arm_by_its_status(odd_frames):
    console = Console(width=160, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as capture:
        for table in tables.terminal(odd_frames.summary, 160):
            console.print(table)
    lines = [line for line in capture.get().splitlines() if "crashed" in line]
    assert "oom 18" in lines[1]
    assert lines[1].count(tables.MISSING) == 7


def test_what_a_terminal_has_no_room_for_is_left_out_and_names_stay_whole(odd_frames):
    named = odd_frames.summary.replace({"arm": {"crashed": "transformers-prompt-lookup"}})
    headings = {}
    for width in (200, 120, 100, 80):
        console = Console(width=width, force_terminal=False)
        with console.capture() as capture:
            for table in tables.terminal(named, width):
                console.print(table)
        assert max(map(len, capture.get().splitlines())) <= width
        assert "transformers-prompt-lookup " in capture.get()
        headings[width] = [column.header for column in table.columns]
    assert {"arm", "speed-up", "95 % interval", "tok/s", "text"} <= set(headings[80]) < set(headings[200])
    assert "TTFT ms" in headings[200]


def test_the_terminal_shows_names_with_brackets_as_they_are(odd_frames):
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(tables.terminal(odd_frames.summary.head(1).assign(arm="lookup[red]", title="[b]"))[0])
    assert "lookup[red]" in capture.get()
    assert "[b]" in capture.get()


def test_markdown_has_a_table_for_each_cell_with_as_many_fields_in_each_line(odd_frames):
    text = tables.markdown(odd_frames.summary)
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### batch 1, T = 0",
        "### batch 2, T = 0",
    ]
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {11}


def test_the_text_column_says_what_is_known_of_the_text(odd_frames):
    texts = {row["arm"]: tables.output_text(row) for row in odd_frames.summary.to_dict("records")[:8]}
    assert texts == {
        "simulated": "simulated",
        "lossy": "lossy",
        "fast": "equal 18 of 18",
        "tied": "near-tie 18",
        "crashed": "equal 18 of 18",
        "same": "equal 18 of 18",
        "autoregressive": "reference",
        "autoregressive-twin": "equal 18 of 18",
    }


def test_csv_leaves_what_was_not_measured_empty(odd_frames):
    lines = tables.csv(odd_frames.summary[["arm", "failed", "speedup_core"]]).splitlines()
    assert "crashed,18," in lines


def test_html_escapes_what_users_may_write(odd_frames):
    summary = odd_frames.summary.head(1).assign(arm="<script>")
    assert "<script>" not in tables.as_html(summary)
    assert "&lt;script&gt;" in tables.as_html(summary)


def test_any_frame_makes_a_sortable_table_whose_headings_can_be_reached_by_key(odd_frames):
    text = tables.plain_html(odd_frames.lengths)
    assert text.count("<button>") == len(odd_frames.lengths.columns)
    assert text.count("<tr") == len(odd_frames.lengths) + 1
    assert 'data-key="fast"' in text


def test_an_arm_has_its_mark_in_every_table(odd_frames):
    marks = {"fast": "<i>mark</i>"}
    for text in (tables.as_html(odd_frames.summary, marks=marks), tables.plain_html(odd_frames.costs, marks)):
        assert "<i>mark</i>fast" in text
        assert "<i>mark</i>lossy" not in text
