"""specbench.bench.floor"""

import json

import pytest

from methods.redrafter import ReDrafter, ReDrafterOptions
from specbench.bench.floor import Setting, Timed, _Alternating, _floor, _Subject, command, main, opened, widths
from specbench.decode.loop import Requests
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, RowTrace
from support import decoding, models


def test_the_ratio_is_step_time_over_the_sum_of_the_forwards():
    setting = Setting("t", "draft_model", {"gamma": 4}, batch_size=1)
    batch = Timed(step_s=1.2, target_s=0.6, draft_s=0.4, steps=10, nodes=4.0)
    found = _floor(setting, [batch, Timed(2.4, 1.2, 0.8, 20, 4.0), batch, batch])
    assert (found.step_ms, found.floor_ms) == pytest.approx((120.0, 100.0))
    assert (found.target_ms, found.draft_ms, found.ratio) == pytest.approx((60.0, 40.0, 1.2))
    assert found.interval.units == 4


def test_it_prints_a_line_and_writes_json(family, tmp_path, capsys):
    said = f"--zoo {family} --method draft_model --set draft=pico-wide --set gamma=2 --units 4 --batch-size 1"
    main([*said.split(), "--out", str(tmp_path / "f.json")])
    assert "draft_model, batch 1, 2.0 nodes: a step takes" in capsys.readouterr().out
    (floor,) = json.loads((tmp_path / "f.json").read_text())["floors"]
    assert floor["ratio"] > 0
    assert floor["interval"]["units"] == 4


def test_where_nothing_is_asked_for_the_usual_methods_are_timed_at_both_batch_sizes(family):
    _, settings = opened(command("floor", "").parse_args(["--zoo", str(family)]))
    assert [(setting.method, setting.batch_size) for setting in settings] == [
        (method, size) for method in ("autoregressive", "draft_model", "medusa", "redrafter") for size in (1, 8)
    ]
    assert settings[4].options == {"heads": "pico-medusa", "tree": {"nodes": 8}}


def test_what_a_draft_cannot_do_without_are_the_layers_that_it_calls():
    """A recurrent drafter of two blocks, three beams of four tokens: every layer, with the rows that it has."""
    target = CachedModel(models.target("llama"), "llama")
    subject = _Subject.__new__(_Subject)
    subject._target, subject._decoding = target, Decoding(max_new_tokens=6)
    subject._method = decoding.loaded(ReDrafter(ReDrafterOptions(drafter="far", width=3, length=4)), target)
    subject._loose = [drafter := subject._method._drafter]
    calls = subject._layers_of_a_draft(Requests([[1, 2, 3]], [0]))
    embedding, (first, second, output) = target.module.get_input_embeddings(), drafter.lm_head

    def a_round(beams, *past):
        said = [(first, (1, beams, 64)), (second, (1, beams, 64)), (output, (1, beams, 64))]
        return [(embedding, (1, beams)), (drafter.rnn_w, (1, beams, 32)), *past, *said]

    # Nothing comes before the root, and the state behind it is the same for all beams.
    second_round, third_round = (a_round(3, (drafter.rnn_u, (1, beams, 32))) for beams in (1, 3))
    assert [(call.layer, tuple(call.given.shape)) for call in calls] == [*a_round(1), *second_round, *third_round]
    assert subject._method.draft.__self__ is subject._method


def test_a_ragged_batch_is_as_wide_as_its_widest_row():
    """Steps of 5, 4 and 6 nodes: the second row ends after two, and what it would have drafted is not verified."""
    rows = [RowTrace(drafted_nodes_per_step=[5, 2, 6]), RowTrace(drafted_nodes_per_step=[3, 4])]
    assert widths(BatchTrace(rows)) == [5, 4, 6]


class Ticking:
    """A clock that stands still but for what is done."""

    def __init__(self):
        self.now_s = 0.0

    def mark(self):
        return self.now_s

    def wall(self):
        """Nothing is waited for."""

    def seconds(self, start, end):
        return end - start


class Part:
    def __init__(self, clock, takes_s):
        self.clock, self.takes_s = clock, takes_s

    def run(self):
        self.clock.now_s += self.takes_s

    def reset(self):
        self.clock.now_s += 100  # nobody's time


def test_steps_and_their_parts_alternate_and_what_is_one_too_many_counts_for_neither():
    clock = Ticking()
    watch = _Alternating(clock, [Part(clock, 3.0), Part(clock, 5.0)])
    watch.prefilled()
    for step_s in (1.0, 2.0, 50.0):
        clock.now_s += step_s
        watch.step()
    watch.finish(2)
    assert (watch.steps_s, watch.parts_s) == (3.0, [6.0, 10.0])
