"""specbench.bench.kernels; on a CPU, where operations stand for kernels."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from specbench.bench import kernels
from specbench.bench.floor import Setting
from specbench.bench.kernels import (
    KernelWatch,
    Seen,
    Timed,
    Work,
    _compared,
    busy_s,
    in_words,
    main,
    shortened,
    summed_s,
    work_among,
)
from specbench.bench.timing import HostTimeline
from support import decoding

MS = 10**6  # nanoseconds
SETTING = Setting("pico", "draft_model", {}, batch_size=1)


@pytest.fixture
def operations(monkeypatch):
    """The profiler watches the CPU, and operations count as work."""
    monkeypatch.setattr(kernels, "_PROFILED", ProfilerActivity.CPU)
    monkeypatch.setattr(kernels, "_WORK", {"cpu_op"})
    monkeypatch.setattr(kernels, "unseen", lambda device: None)
    monkeypatch.setenv("TEARDOWN_CUPTI", "0")  # and as it was, behind the test


def pieces(*spans_ms):
    return [Work("kernel", begin * MS, end * MS) for begin, end in spans_ms]


@pytest.mark.parametrize(
    ("spans_ms", "summed_ms", "busy_ms"),
    [
        pytest.param([(3, 5), (0, 2)], 4, 4, id="one after the other, told in any order"),
        pytest.param([(0, 2), (2, 5)], 5, 5, id="without a gap"),
        pytest.param([(0, 4), (3, 6), (10, 11)], 8, 7, id="in part side by side"),
        pytest.param([(0, 9), (1, 2), (3, 4), (8, 10)], 13, 10, id="one beside several"),
        pytest.param([(0, 3), (0, 3)], 6, 3, id="twice the same"),
        pytest.param([], 0, 0, id="nothing"),
    ],
)
def test_time_side_by_side_is_summed_for_each_and_busy_once(spans_ms, summed_ms, busy_ms):
    work = pieces(*spans_ms)
    assert (summed_s(work) * 1e3, busy_s(work) * 1e3) == pytest.approx((summed_ms, busy_ms))


def test_busy_is_what_torch_itself_says_of_its_outermost_operations(operations):
    """Operations nest, as work on two streams overlaps; torch tells which are inside of which, in microseconds."""
    left, right = torch.randn(2, 256, 256)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(20):
            torch.softmax(left.matmul(right), dim=-1).sum()
    work = work_among(profiler.profiler.kineto_results.events())
    outermost_us = sum(event.cpu_time_total for event in profiler.events() if event.cpu_parent is None)
    assert busy_s(work) * 1e6 == pytest.approx(outermost_us, rel=1e-3)
    assert summed_s(work) > busy_s(work)


def test_of_a_trace_of_the_cpu_nothing_is_work_of_a_gpu():
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("a range"):
        torch.randn(8, 8).matmul(torch.randn(8, 8))
    events = profiler.profiler.kineto_results.events()
    assert {"user_annotation", "cpu_op"} <= {event.activity_type() for event in events}
    assert work_among(events) == []


class Event:
    """One of a GPU's, as the profiler gives it."""

    def __init__(self, kind):
        self._kind = kind

    def name(self):
        return f"a {self._kind}"

    def activity_type(self):
        return self._kind

    def start_ns(self):
        return 5 * MS

    def end_ns(self):
        return 7 * MS


def test_of_all_kinds_of_events_that_torch_knows_kernels_copies_and_fills_are_work():
    header = Path(torch.__file__).parent / "include" / "kineto" / "ActivityType.h"
    kinds = re.findall(r'\{"(\w+)", ActivityType::\w+\}', header.read_text("utf-8"))
    assert {"gpu_user_annotation", "cuda_runtime", "cuda_sync", "overhead"} <= set(kinds)
    found = work_among(map(Event, kinds))
    assert [piece.name for piece in found] == ["a gpu_memcpy", "a gpu_memset", "a kernel"]
    assert summed_s(found) == pytest.approx(6e-3)


def test_every_step_is_seen_and_nothing_of_the_prefill(operations):
    """A forward looks its tokens up once, and so does the prefill."""
    watch = KernelWatch(HostTimeline())
    trace = decoding.decode(
        decoding.family("llama"), decoding.autoregressive(), [[5, 3, 9], [4, 4, 7, 1]], max_new_tokens=6, watch=watch
    )
    names = Counter(piece.name for piece in watch.work)
    assert trace.steps == watch.launched == names["aten::embedding"] == 5
    assert not torch.autograd.profiler._is_profiler_enabled


def test_a_step_is_held_against_the_kernels_of_as_many_steps():
    """10 ms a step; the profiler sees one step more, each of 6 ms in one kernel and 2 ms in two that run together."""

    def batch(steps):
        starts = [10 * MS * step for step in range(steps + 1)]
        work = [Work("long", start, start + 6 * MS) for start in starts]
        work += [Work("short", start + 6 * MS, start + 7 * MS) for start in starts for _ in range(2)]
        return Timed(decode_s=0.010 * steps, steps=steps), Seen(work, steps + 1)

    timed, seen = zip(*map(batch, [5, 10, 5, 20]), strict=True)
    found = _compared(SETTING, "graphs", {}, timed, seen)
    assert (found.step_ms, found.kernels_ms, found.busy_ms) == pytest.approx((10, 8, 7))
    assert (found.kernels, found.ratio) == pytest.approx((3, 1.25))
    assert (found.interval.low, found.interval.high, found.interval.units) == pytest.approx((1.25, 1.25, 4))
    assert [(share.name, *map(round, (share.times, share.ms))) for share in found.most] == [
        ("long", 1, 6),
        ("short", 2, 2),
    ]
    assert [share.share for share in found.most] == pytest.approx([0.75, 0.25])


def test_what_ran_otherwise_than_asked_is_said_below_the_setting():
    preparation = {
        "compiled": ["accept"],
        "not_compiled": {"draft": "it looks at the host"},
        "not_captured": {"draft": "it looks at the host"},
        "ran_uncaptured": 2,
    }
    batch = Timed(0.01, 1), Seen(pieces((0, 8)), 1)
    lines = in_words(_compared(SETTING, "graphs, compiled", preparation, [batch[0]], [batch[1]]))
    assert lines[0] == (
        "draft_model, batch 1, graphs, compiled: a step takes 10.000 ms, the GPU works for 8.000 of it; its 1 kernels "
        "sum up to 8.000 ms: 1.250 no interval"
    )
    assert lines[1:4] == [
        "  not compiled: draft: it looks at the host",
        "  not captured: draft: it looks at the host",
        "  2 phases ran uncaptured, on inputs of a form that no graph was made for",
    ]
    assert lines[4:] == ["  100.0 %    8.0000 ms in    1.0  kernel"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nvjet_tst_192x8_64x8_2x1_v_bz_TNT", "nvjet_tst_192x8_64x8_2x1_v_bz_TNT"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD (Device -> Device)"),
        (
            "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, at::native::(anonymous namespace)::"
            "SoftMaxForwardEpilogue>(float*, float const*, int)",
            "cunn_SoftMaxForward<4, float, SoftMaxForwardEpilogue>(float*, float con…",
        ),
    ],
)
def test_a_name_loses_what_tells_no_kernel_from_another(name, words):
    assert shortened(name) == words


def test_it_prints_the_longest_kernels_below_each_setting_and_writes_json(operations, family, tmp_path, capsys):
    out = tmp_path / "kernels.json"
    said = f"--device cpu --zoo {family} --set draft=pico-wide --set gamma=2 --units 4 --out {out}"
    main(said.split())
    line, *longest = capsys.readouterr().out.splitlines()
    assert line.startswith("draft_model, batch 1, eager: a step takes ")
    assert line.endswith(" over 4 batches")
    (found,) = json.loads(out.read_text())["kernels"]
    assert 0 < found["busy_ms"] < found["kernels_ms"]
    assert found["setting"]["options"] == {"draft": "pico-wide", "gamma": 2}
    most = found["most"]
    assert [share["ms"] for share in most] == sorted((share["ms"] for share in most), reverse=True)
    assert [words.split()[-1] for words in longest] == [shortened(share["name"]) for share in most]
    # In a step the draft reads twice, and the target once.
    [products] = [share for share in most if share["name"] == "aten::linear"]
    assert products["times"] == 3 * (2 * 7 + 1)


def test_a_profiler_that_sees_nothing_is_no_step_without_kernels(operations, family, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "_WORK", {"kernel"})
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--zoo", str(family), "--method", "autoregressive", "--units", "1"])
    assert ended.value.code == 1
    assert "error: the profiler has seen no kernels" in capsys.readouterr().err


def test_where_there_is_no_gpu_one_line_says_so_and_no_model_is_loaded(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--zoo", str(tmp_path)])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: kernels are counted on a GPU, and this is a cpu\n"
