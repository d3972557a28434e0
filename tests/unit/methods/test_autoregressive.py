"""methods.autoregressive: the baseline proposes nothing."""

from support import decoding, models


def test_every_step_yields_one_token_and_drafts_none():
    trace = decoding.decode(decoding.family("llama"), decoding.autoregressive(), models.PROMPTS[:3], 9)
    for row in trace.rows:
        assert row.accepted_per_step == row.drafted_depth_per_step == row.drafted_nodes_per_step == [0] * 8
        assert row.emitted_per_step == [1] * 8


def test_its_caps_are_empty():
    caps = decoding.autoregressive().caps()
    assert (caps.max_nodes, caps.max_depth) == (0, 0)
