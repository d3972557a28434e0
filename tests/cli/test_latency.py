"""specbench latency, and specbench list shapes"""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from specbench import cli
from specbench.bench import machine
from specbench.records.store import Store

SHAPES = ("--shape", "1x32x2x64,vocab=100,context=64", "--shape", "2x32x2x64,vocab=100,context=64")


@pytest.fixture
def latency(tmp_path):
    def run(*args: str) -> SimpleNamespace:
        arguments = ["latency", *args, "--rounds", "6", "--device", "cpu", "--out", str(tmp_path)]
        result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run


def test_it_prints_a_line_a_model_and_keeps_the_table(latency, tmp_path):
    found = latency(*SHAPES, "--query", "1", "--query", "3", "--context", "16")
    assert found.code == 0
    assert found.err == ""
    assert sum("eager" in line for line in found.out.splitlines()) == 2
    assert "1 token " in found.out
    assert "3 tokens" in found.out
    shape = next(line for line in found.out.splitlines() if line.strip().startswith("1x32x2x64"))
    # Parameters: 2 x 100 x 32 of words, 10,240 of a layer's matrices, and three norms of 32.
    assert shape.split()[1:] == ["1", "32", "2", "64", "16,736", "0.1"]
    rows = Store(tmp_path).read("latencies")
    assert sorted(zip(rows["layers"], rows["query_tokens"], strict=True)) == [(1, 1), (1, 3), (2, 1), (2, 3)]


def test_json_has_every_column_and_a_null_where_there_is_no_time(latency):
    found = latency(*SHAPES[:2], "--context", "16", "--context", "64", "--json")
    measured, refused = json.loads(found.out)
    assert found.code == 0
    assert measured["forward_s"] > 0
    assert (refused["forward_s"], refused["status"]) == (None, "unsupported")


def test_ways_of_choosing_tokens_are_timed_where_temperatures_are_named(latency, tmp_path):
    found = latency(*SHAPES[:2], "--query", "3", "--context", "16", "--temperature", "0", "--temperature", "0.8",
                    "--top-k", "5", "--rule", "match")  # fmt: skip
    assert found.code == 0
    assert "T = 0.8, match," in found.out
    assert "accept 3" in found.out
    rows = Store(tmp_path).read("choosing")
    assert set(zip(rows["temperature"], rows["rule"], rows["proposal"], rows["top_k"].fillna(0), strict=True)) == {
        (0.0, "greedy", "argmax", 0), (0.8, "match", "sample", 5),
    }  # fmt: skip
    assert sorted(zip(rows["kind"], rows["query_tokens"], strict=True)) == [
        ("accept", 1), ("accept", 1), ("accept", 3), ("accept", 3), ("draw", 1), ("draw", 1),
    ]  # fmt: skip


def test_what_does_not_fit_is_told_below_the_table_and_in_the_exit_code(latency, monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: 2e6)
    found = latency(*SHAPES[:2], "--context", "16", "--batch-size", "1", "--batch-size", "500")
    assert found.code == 5
    assert "1x32x2x64,vocab=100,context=64: 1 point oom: it needs 0.0" in found.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "name a model or give a --shape"),
        (("--shape", "2x65x2x128"), "shape 2x65x2x128: 2 heads do not divide a width of 65"),
        (("--shape", "opt-125n"), "unknown model shape 'opt-125n'. Did you mean 'opt-125m'?"),
        (("--shape", "opt-125m", "--query", "0"), "query_tokens: must be at least 1, got 0"),
        (("--shape", "opt-125m", "--dtype", "int4"), "--dtype: "),
        (("nobody",), "unknown model 'nobody'."),
        (("--shape", "opt-125m", "--temperature", "0.8", "--rule", "mach"), "--rule: unknown rule 'mach'. Did you mea"),
        (("--shape", "opt-125m", "--temperature", "0.8", "--top-p", "0"), "--top-p: must be above 0 and at most 1, go"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(latency, args, words):
    found = latency(*args)
    assert found.code == 2
    assert found.err.startswith(f"error: {words}")
    assert len(found.err.splitlines()) == 1


def test_graphs_without_a_gpu_are_one_line(latency):
    found = latency(*SHAPES, "--graphs")
    assert (found.code, found.out) == (1, "")
    assert found.err == "error: --graphs: CUDA graphs are captured on a GPU, and cpu is none\n"


def test_the_list_of_shapes_says_what_each_really_weighs():
    out = CliRunner().invoke(cli.app, ["list", "shapes"], catch_exceptions=False).stdout
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "24 x 1024, 16 heads, feed-forward 4096, 331,196,416 parameters, 1.32 GB in float32" in lines["opt-350m"]
    assert "64 heads (8 of keys and values)" in lines["llama-2-70b"]
    assert "1,274,064,896 parameters" in lines["wide-sheared-llama-796m"]
