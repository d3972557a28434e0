"""specbench.records.schema"""

import pytest

from specbench.records.schema import REQUESTS, blank_row, row_faults

NAMES = (
    "run_id trial_id method label arm options target draft dtype device threads attention captured_phases "
    "batch_size batch_id row block repeat order_in_block pass process dataset category prompt_id "
    "prompt_tokens output_ids output_tokens finish_reason overshoot_tokens steps drafted_tokens "
    "accepted_tokens accepted_per_step drafted_depth_per_step drafted_nodes_per_step prefill_s ttft_s "
    "decode_s row_done_s temperature rule lossless seed max_new_tokens latency_mode draft_latency_ms "
    "simulated_acceptance repeat_ngram_share target_sha prompts_sha status reason verdict "
    "first_divergence divergence_gap "
)


def test_the_names_that_others_rely_on_stand_in_their_order():
    names = NAMES.split()
    assert [column.name for column in REQUESTS if column.name in names] == names


def test_a_blank_row_has_every_column_and_no_value():
    assert set(blank_row("runs").values()) == {None}
    assert "measurement_version" in blank_row("runs")


def test_a_row_that_fits_has_no_fault(request_row):
    assert row_faults("requests", request_row()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param({"tempreature": 0.0}, "unknown column 'tempreature'", id="a column that nobody knows"),
        pytest.param({"target": None}, "column 'target' may not be null", id="a null where none may be"),
        pytest.param({"status": "failed"}, "column 'status' must be one of ok, oom", id="an unknown status"),
        pytest.param({"pass": "third"}, "column 'pass' must be one of headline, phase", id="an unknown pass"),
        pytest.param({"status": "oom"}, "column 'output_tokens' must be null", id="a number in a failed row"),
        pytest.param({"output_tokens": 6}, "column 'output_tokens' is 6, but its steps emitted 5", id="a lost token"),
        pytest.param({"steps": 3}, "column 'accepted_per_step' has 2 entries for 3 steps", id="a lost step"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(request_row, change, fault):
    assert fault in "; ".join(row_faults("requests", request_row() | change))


def test_a_missing_column_is_named(request_row):
    row = request_row()
    del row["verdict"]
    assert row_faults("requests", row) == ["missing column 'verdict'"]


def test_tokens_cut_at_the_end_are_part_of_the_identity(request_row):
    # The prefill's token, steps of 2 + 1 and 1 + 1 tokens, and the last of them cut: 1 + 3 + 2 - 1.
    row = request_row(accepted_per_step=[2, 1], overshoot_tokens=1, output_tokens=5, accepted_tokens=3)
    assert row_faults("requests", row) == []


def test_a_baseline_that_cannot_tell_its_steps_may_leave_them_null(request_row):
    unknown = dict.fromkeys(("steps", "accepted_per_step", "drafted_depth_per_step", "drafted_nodes_per_step"))
    assert row_faults("requests", request_row(**unknown)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param({"status": "slow"}, "column 'status' must be one of ok, oom", id="an unknown status"),
        pytest.param({"status": "oom"}, "column 'forward_s' is 0.1 where status is 'oom'", id="a time that failed"),
        pytest.param({"forward_s": None}, "column 'forward_s' is None where status is 'ok'", id="no time"),
    ],
)
def test_a_latency_stands_in_rows_that_were_measured_and_in_no_others(change, fault):
    row = dict.fromkeys(blank_row("latencies"), 0) | {"status": "ok", "forward_s": 0.1}
    assert row_faults("latencies", row) == []
    (found,) = row_faults("latencies", row | change)
    assert found.startswith(fault)


@pytest.mark.parametrize(("status", "faults"), [("oom", 0), ("failed", 1)])
def test_a_study_has_one_of_the_known_statuses(status, faults):
    row = blank_row("studies") | {"kind": "trace", "subject": "a", "status": status, "ended_at": "now"}
    assert len(row_faults("studies", row)) == faults
