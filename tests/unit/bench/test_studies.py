"""specbench.bench.studies: what a run measures beside its trials"""

import io
import json

import pytest
from rich.console import Console

from specbench.bench import runner, studies
from specbench.bench.cells import ready
from specbench.bench.studies import contexts
from specbench.errors import ConfigError
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, plan_of, run
from tests.unit.models import tiny

DRAFTS = "- draft_model: {draft: [pico-wide, pico-deep], gamma: [1, 3], latency_mode: composed}"
STUDIED = (
    ONE_CELL.replace("  - draft_model: {draft: pico-wide, gamma: 2}\n", "").replace("  - prompt_lookup: {gamma: 3}", "")
    + "traces: {gamma: 4, group: 2}\nlatencies: {rounds: 1, burst: 1}\nscores: {count: 1, length: 64}\n"
).replace("methods:\n", f"methods:\n  {DRAFTS}\n")
ALONE = "name: alone\nlatencies: {models: [pico, {shape: 1x32x2x64}], rounds: 1, burst: 1}\nmachine: {device: cpu}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a family of three, and one short text to score models on."""
    zoo = tiny.zoo(tmp_path / "zoo")
    tiny.save(zoo / "pico-deep", seed=2)
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n" * 20)
    monkeypatch.setattr(studies, "read_score_data", _reader(studies.read_score_data, str(text)))
    return tmp_path


def _reader(read, text):
    return lambda name, **options: read(text if name == "stdlib" else name, **options)


def table(summary, name):
    return Store(summary.folder).read(name)


def files(folder):
    """Every part of a run but its own row, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet") if path.parent.suffix == ".parquet"}


def test_tables_of_all_studies_lie_beside_the_trials(folder):
    summary = run(folder, STUDIED)
    assert set(table(summary, "requests")["arm"]) == {"autoregressive", "autoregressive-twin"}
    traced = table(summary, "traces")
    assert traced.groupby(["target", "draft"]).size().to_dict() == {("pico", "pico-deep"): 5, ("pico", "pico-wide"): 5}
    assert set(traced["gamma_max"]) == {4}
    assert set(table(summary, "scores")["model"]) == {"pico", "pico-wide", "pico-deep"}
    timed = table(summary, "latencies")
    assert set(timed["query_tokens"]) == {1, 2, 4}
    assert set(timed["batch_size"]) == {2}
    chosen = table(summary, "choosing")
    assert chosen.groupby(["kind", "query_tokens"])["model"].nunique().to_dict() == {
        ("accept", 1): 3, ("accept", 2): 3, ("accept", 4): 3, ("draw", 1): 3,
    }  # fmt: skip
    assert summary.studies.words == "2 traces, 18 forward times, 12 choice times, 3 scores"


def test_what_is_there_is_not_made_again(folder):
    first = run(folder, STUDIED)
    before = files(first.folder)
    assert run(folder, STUDIED).studies.words == first.studies.words
    assert files(first.folder) == before


def test_the_notes_of_a_run_say_which_arms_are_to_be_composed(folder):
    (notes,) = table(run(folder, STUDIED), "runs")["notes"].dropna()
    (arms,) = json.loads(notes)["composed"].values()
    assert [(arm["draft"], arm["options"]["gamma"]) for arm in arms] == [
        ("pico-wide", 1), ("pico-wide", 3), ("pico-deep", 1), ("pico-deep", 3),
    ]  # fmt: skip


def test_contexts_are_those_that_the_texts_reach(folder):
    plan = plan_of(folder, STUDIED)
    cells = ready(plan, folder / "zoo")
    lengths = [len(prompt.ids) for prompt in cells[0].prompts.prompts]
    assert contexts(plan.latencies, cells) == (min(lengths), max(lengths) + 10)
    assert contexts(plan.latencies, []) == (128,)
    given = plan.latencies.model_copy(update={"context_tokens": (7,)})
    assert contexts(given, cells) == (7,)


def test_a_draft_that_cannot_be_traced_is_a_row_and_the_others_are_made(folder, monkeypatch):
    from specbench.bench import traces

    def rows(target, draft, *rest):
        if draft.name == "pico-deep":
            raise RuntimeError("CUDA error: out of memory")
        return whole(target, draft, *rest)

    whole = traces._rows
    monkeypatch.setattr(traces, "_rows", rows)
    summary = run(folder, STUDIED)
    (row,) = table(summary, "studies").to_dict("records")
    assert (row["kind"], row["status"], row["reason"]) == ("trace", "oom", "CUDA error: out of memory")
    assert row["subject"].startswith("pico with pico-deep")
    assert set(table(summary, "traces")["draft"]) == {"pico-wide"}
    assert (summary.studies.made["trace"], summary.studies.failed) == (1, 1)

    monkeypatch.setattr(traces, "_rows", whole)
    again = run(folder, STUDIED)
    assert set(table(again, "traces")["draft"]) == {"pico-wide", "pico-deep"}
    assert table(again, "studies")["status"].tolist() == ["ok"]
    assert again.studies.failed == 0


def test_a_text_that_depends_on_its_drafts_cannot_be_traced(folder):
    text = STUDIED.replace("temperature: 0.0", "temperature: 0.8, rule: typical").replace(
        ", latency_mode: composed", ""
    )
    summary = run(folder, text)
    rows = table(summary, "studies")
    assert set(rows["status"]) == {"unsupported"}
    assert rows["reason"].str.contains("under the rule typical a text depends on its drafts").all()
    assert not (summary.folder / "traces.parquet").exists()
    assert summary.studies.words == "18 forward times, 3 scores"


def test_a_model_that_cannot_be_scored_is_a_row_and_the_others_are_made(folder):
    summary = run(folder, STUDIED.replace("count: 1, length: 64", "count: 1, length: 64, models: ['random:1x32x2x64']"))
    assert summary.studies.made["score"] == 3  # random weights are not even asked
    summary = run(folder, STUDIED.replace("length: 64", "length: 4096"))
    rows = table(summary, "studies")
    assert set(rows["kind"]) == {"score"}
    assert len(rows) == 3
    assert rows["reason"].str.contains("has 256 positions").all()


def test_a_limit_traces_the_first_groups_only(folder):
    summary = run(folder, STUDIED, limit=3)
    traced = table(summary, "traces")
    assert set(traced["prompt"]) == {0, 1, 2, 3}
    assert set(traced["prompts"]) == {5}
    assert set(table(run(folder, STUDIED), "traces")["prompt"]) == {0, 1, 2, 3, 4}


def test_a_file_may_ask_for_forward_times_alone(folder):
    summary = run(folder, ALONE)
    assert (summary.finished, summary.studies.words) == (0, "2 forward times")
    assert set(table(summary, "latencies")["context_tokens"]) == {128}
    assert "name: alone" in "".join(table(summary, "runs")["experiment"])
    assert set(table(summary, "runs")["status"]) == {"done"}
    assert not (summary.folder / "requests.parquet").exists()


def test_a_point_that_cannot_run_is_counted_and_told(folder):
    output = io.StringIO()
    text = ALONE.replace("rounds: 1", "rounds: 1, context_tokens: [16, 500]").replace(", {shape: 1x32x2x64}", "")
    summary = run(folder, text, console=Console(file=output, width=200))
    assert (summary.studies.words, summary.studies.unsupported) == ("1 forward time", 1)
    assert (
        "latency of pico: 1 of its points: unsupported: a context of 500 and 1 more exceed its 256" in output.getvalue()
    )


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("latencies: {models: [pico-wied]}", "unknown model 'pico-wied'"),
        ("latencies: {models: [{shape: 2x30x4x64}]}", "shape 2x30x4x64"),
        ("scores: {models: [pico], data: nothing.jsonl}", "scores.data"),
    ],
    ids=["a model", "a shape", "a data set"],
)
def test_what_is_missing_is_said_before_anything_runs(folder, section, line):
    with pytest.raises(ConfigError, match=line):
        run(folder, f"name: x\ntargets: [pico]\n{section}\n")
    assert not (folder / "results").exists()


def test_a_study_that_was_killed_is_closed_by_the_next_run(folder):
    summary = run(folder, ALONE)
    store = Store(summary.folder)
    (row,) = [row for row in store.read("runs").to_dict("records") if "name: alone" in row["experiment"]]
    store.write_run({**row, "notes": None, "git_sha": None, "git_dirty": None, "status": "running"})
    run(folder, ALONE)
    assert set(store.read("runs")["status"]) <= {"done", "interrupted"}


def test_the_folder_of_studies_is_that_of_the_run(folder):
    assert runner._folder(plan_of(folder, ALONE), folder).parent == folder / "alone"
