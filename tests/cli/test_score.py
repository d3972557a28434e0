"""specbench score"""

import json

import pytest
from typer.testing import CliRunner

from specbench.cli import app
from specbench.models import zoo as zoo_module
from specbench.records.store import Store
from tests.unit.models import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("models") / "mine"))


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(5):
        (folder / f"{n}.py").write_text(f"def f{n}(x):\n    return x + {n}\n")
    return str(folder)


@pytest.fixture
def questions(tmp_path):
    rows = [{"ctx": f"def f{n}(x):", "endings": ["pass", "return x"], "label": n % 2} for n in range(4)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*words):
    return CliRunner().invoke(app, ["score", *words])


def test_a_model_is_scored_on_texts_and_questions_and_the_table_is_kept(model, texts, questions, tmp_path):
    words = (model, "--data", texts, "--data", questions, "--length", "32", "--out", str(tmp_path / "out"))
    shown = run(*words)
    assert shown.exit_code == 0, shown.output
    words_shown = " ".join(shown.output.split())
    assert "5 texts in windows of 32 tokens" in words_shown
    assert "4 questions; guessing gives 50.0 %" in words_shown
    rows = json.loads(run(*words, "--json").stdout)
    assert {row["metric"] for row in rows if row["form"] == "choices"} == {"acc", "acc_norm", "acc_bytes"}
    assert len(Store(tmp_path / "out").read("scores")) == len(rows) == 7


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--device", "gpu"), "error: --device: should be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (("--dtype", "int8"), "error: --dtype: "),
        (("--data", "nothing-here"), "error: --data: neither a file, a folder nor a data set: 'nothing-here'."),
        (("--length", "100000"), "error: --length: "),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_exit_code_2(model, tmp_path, words, fault):
    shown = run(model, "--out", str(tmp_path / "out"), *words)
    assert shown.exit_code == 2
    assert fault in shown.output
    assert len(shown.output.strip().splitlines()) == 1


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(model, tmp_path):
    (tmp_path / "out").write_text("")
    shown = run(model, "--out", str(tmp_path / "out"))
    assert (shown.exit_code, "this is a file; give a folder" in shown.output) == (2, True)


def test_an_unknown_model_is_named_with_the_nearest_one(tmp_path):
    assert "pico" in zoo_module.family()
    shown = run("pcio", "--out", str(tmp_path / "out"))
    assert shown.exit_code == 2
    assert "unknown model 'pcio'. Did you mean 'pico'?" in shown.output
