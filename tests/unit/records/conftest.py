"""Rows that fit the schema, to be spoilt by the tests."""

import pytest

from specbench.records.schema import blank_row


@pytest.fixture
def request_row():
    """A row of two steps: one token from the prefill, then 2 + 1 and 0 + 1."""

    def make(**changes):
        return blank_row("requests") | {
            "run_id": "r", "trial_id": "t", "cell": "c", "method": "draft_model", "label": "d",
            "arm": "d", "options": "{}", "target": "pico", "dtype": "float32", "device": "cpu", "threads": 1,
            "attention": "sdpa", "captured_phases": "", "batch_size": 1, "batch_id": "b", "row": 0,
            "block": 0,
            "repeat": 0, "order_in_block": 0, "pass": "headline", "process": 0, "prompt_id": "p",
            "prompt_tokens": 3, "output_ids": [5, 6, 7, 8, 9], "output_tokens": 5, "finish_reason": "length",
            "overshoot_tokens": 0, "steps": 2, "drafted_tokens": 4, "accepted_tokens": 2,
            "accepted_per_step": [2, 0], "drafted_depth_per_step": [2, 2], "drafted_nodes_per_step": [2, 2],
            "prefill_s": 0.1, "ttft_s": 0.1, "decode_s": 0.4, "row_done_s": 0.4, "temperature": 0.0,
            "rule": "greedy", "lossless": True, "seed": 0, "max_new_tokens": 5, "latency_mode": "measured",
            "simulated_acceptance": False, "repeat_ngram_share": 0.0, "target_sha": "f", "prompts_sha": "b",
            "status": "ok",
        } | changes  # fmt: skip

    return make


@pytest.fixture
def step_row():
    """A row of one step of batch ``b``."""

    def make(**changes):
        return {
            "run_id": "r", "trial_id": "t", "batch_id": "b", "cell": "c", "arm": "d", "method": "draft_model",
            "step": 0, "draft_s": 0.1, "verify_s": 0.1, "accept_s": 0.1, "update_s": 0.1, "host_s": 0.1,
            "step_s": 0.5, "launch_s": 0.4, "syncs": 0, "nodes": 2, "rows_active": 1, "emitted_tokens": 3,
        } | changes  # fmt: skip

    return make


@pytest.fixture
def run_row():
    """A row of one run."""

    def make(**changes):
        return {
            "run_id": "r", "started_at": "2025-01-01T00:00:00+00:00", "git_sha": None, "git_dirty": None,
            "argv": "[]", "experiment": "name: x\n", "versions": "{}", "machine": "{}", "threads": 1,
            "device": "cpu", "seed": 0, "schema_version": 1, "measurement_version": 1, "notes": None,
            "status": "running",
        } | changes  # fmt: skip

    return make
