"""specbench.cli: exit codes and messages"""

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

import specbench
from specbench import cli
from specbench.bench.runner import RunSummary
from specbench.errors import ContractError, NotLosslessError, ResultsError

GOOD = "name: x\ntargets: [pico]\nprompts: {source: stdlib, count: 8}\nmethods: [{prompt_lookup: {gamma: [4, 8]}}]\n"
ROOT = Path(specbench.__file__).parent.parent


def specbench_command(*args: str) -> SimpleNamespace:
    result = CliRunner().invoke(cli.app, list(args), catch_exceptions=False)
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write an experiment; its name as the command line gives it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = GOOD) -> str:
        Path("e.yaml").write_text(text, "utf-8")
        return "e.yaml"

    return write


@pytest.fixture
def runner(monkeypatch):
    """A stand-in for the runner, which notes its calls and returns or raises what it is told."""
    calls: list[tuple[str, object, dict]] = []
    module = ModuleType("specbench.bench.runner")
    fake = SimpleNamespace(
        calls=calls,
        summary=RunSummary(Path("results/x"), finished=4, failed=0, unsupported=0, skipped=0),
        error=None,
    )

    def run(plan, **arguments):
        calls.append(("run", plan, arguments))
        if fake.error:
            raise fake.error
        return fake.summary

    module.run = run
    module.dry_run = lambda plan, **arguments: calls.append(("dry_run", plan, arguments))
    import specbench.bench

    monkeypatch.setitem(sys.modules, "specbench.bench.runner", module)
    monkeypatch.setattr(specbench.bench, "runner", module, raising=False)
    return fake


def test_check_counts_cells_and_trials(file):
    assert specbench_command("check", file()) == SimpleNamespace(code=0, out="ok: 1 cell, 4 trials\n", err="")


def test_check_takes_overrides(file):
    found = specbench_command("check", file(), "--set", "decode.batch_size=[1, 2]", "--set", "decode.seed=3")
    assert (found.code, found.out) == (0, "ok: 2 cells, 8 trials\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "decod: {}\n", "error: e.yaml:5: decod: unknown key, got {}. Did you mean 'decode'?"),
        (
            "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nmethods: [prompt_lokup]\n",
            "error: e.yaml:4: methods.0: unknown method 'prompt_lokup'. Did you mean 'prompt_lookup'? "
            "Known: autoregressive, draft_model, prompt_lookup, medusa, redrafter, transformers-generate, "
            "transformers-assisted, "
            "transformers-prompt-lookup.",
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {source: stdlb}\n",
            "error: e.yaml:3: prompts.source: unknown prompt source, got 'stdlb'. Did you mean 'stdlib'?",
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nmethods:\n  - draft_model: {draft: a, gama: 4}\n",
            "error: e.yaml:5: methods.0.draft_model.gama: unknown key, got 4. Did you mean 'gamma'?",
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nmethods: [{prompt_lookup: {gamma: four}}]\n",
            "error: e.yaml:4: methods.0.prompt_lookup.gamma: should be a valid integer, got 'four'.",
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nmethods: [{prompt_lookup: {gamma: 0}}]\n",
            "error: e.yaml:4: methods.0.prompt_lookup.gamma: should be greater than or equal to 1, got 0.",
        ),
        (GOOD + "name: y\n", "error: e.yaml:5: name: the key is given twice, first on line 1."),
        ("", "error: e.yaml: the file is empty. An experiment needs name, targets and prompts."),
        ("- pico\n", 'error: e.yaml:1: an experiment is a mapping of keys, got ["pico"].'),
        (
            "name: !!python/object/apply:os.getcwd []\n",
            "error: e.yaml:1: name: the tag !!python/object/apply:os.getcwd would build an object; "
            "only plain values are allowed.",
        ),
    ],
    ids=[
        "unknown key", "unknown method", "unknown prompt source", "unknown option", "wrong type", "out of range",
        "repeated key", "empty file", "no mapping", "an object",
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_input_is_one_clear_line_and_exit_code_2_and_runs_nothing(file, runner, command, text, line):
    assert specbench_command(command, file(text)) == SimpleNamespace(code=2, out="", err=line + "\n")
    assert runner.calls == []
    assert sorted(path.name for path in Path().iterdir()) == ["e.yaml"]


def test_a_missing_file_is_one_clear_line(file):
    file()
    assert specbench_command("run", "ee.yaml") == SimpleNamespace(
        code=2, out="", err="error: ee.yaml: no such file. Did you mean 'e.yaml'?\n"
    )


def test_every_fault_is_a_line_of_its_own(file):
    found = specbench_command("check", file(GOOD + "measure: {repeats: 0}\nmachine: {threads: 0}\n"))
    assert found.err.splitlines() == [
        "error: e.yaml:5: measure.repeats: should be greater than or equal to 1, got 0.",
        "error: e.yaml:6: machine.threads: should be greater than or equal to 1, got 0.",
    ]


def test_a_wrong_override_names_the_option_of_the_command_line(file):
    found = specbench_command("run", file(), "--set", "decode.batch_sise=8")
    assert (found.code, found.err) == (
        2, "error: --set decode.batch_sise: unknown key, got 8. Did you mean 'batch_size'?\n",
    )  # fmt: skip


def test_run_hands_the_plan_and_its_circumstances_to_the_runner(file, runner):
    found = specbench_command("run", file(), "--limit", "2", "--results", "out", "--set", "decode.seed=7")
    assert (found.code, found.err) == (0, "")
    [(name, plan, arguments)] = runner.calls
    assert (name, plan.experiment_name, plan.cells[0].decode.seed) == ("run", "x", 7)
    assert (arguments["results"], arguments["limit"], arguments["rehearse"]) == (Path("out"), 2, False)
    assert "seed: 7" in arguments["experiment_yaml"]
    assert arguments["argv"][0] == "specbench"


def test_a_dry_run_runs_nothing(file, runner):
    assert specbench_command("run", file(), "--dry-run").code == 0
    assert [name for name, _, _ in runner.calls] == ["dry_run"]


def test_a_rehearsal_hands_over_the_small_plan(file, runner):
    assert specbench_command("run", file(), "--rehearse").code == 0
    [(_, plan, arguments)] = runner.calls
    assert (plan.experiment_name, plan.cells[0].prompts.count, arguments["rehearse"]) == ("x-rehearsal", 4, True)


@pytest.mark.parametrize(
    ("finished", "failed", "unsupported", "skipped", "code"),
    [(4, 0, 0, 0, 0), (0, 0, 0, 4, 0), (3, 0, 1, 0, 0), (3, 1, 0, 0, 5), (0, 4, 0, 0, 5), (0, 0, 4, 0, 2)],
    ids=["all finished", "all there already", "one unsupported", "one failed", "all failed", "none can run"],
)
def test_the_exit_code_tells_how_a_run_ended(file, runner, finished, failed, unsupported, skipped, code):
    runner.summary = RunSummary(Path("results/x"), finished, failed, unsupported, skipped)
    assert specbench_command("run", file()).code == code


@pytest.mark.parametrize(
    ("how", "code"), [({"wrong": 1}, 4), ({"broke_contract": True}, 3), ({"broke_contract": True, "wrong": 1}, 3)]
)
def test_a_wrong_text_and_a_broken_contract_outrank_failed_trials(file, runner, how, code):
    runner.summary = RunSummary(Path("results/x"), finished=2, failed=2, unsupported=0, skipped=0, **how)
    assert specbench_command("run", file()).code == code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ContractError("method 'm' returned no tree"), 3, "error: method 'm' returned no tree\n"),
        (NotLosslessError("row 3 differs"), 4, "error: row 3 differs\n"),
        (ResultsError("schema version 9"), 1, "error: schema version 9\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a.tmp"),
            1,
            "error: out/a.tmp: No space left on device\n",
        ),
        (OSError("a broken part"), 1, "error: a broken part\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command goes on where this one stopped\n"),
    ],
    ids=["contract", "not lossless", "results", "disk full", "other OSError", "Ctrl-C"],
)
def test_an_error_becomes_one_line_and_its_exit_code(file, runner, error, code, line):
    runner.error = error
    assert specbench_command("run", file()) == SimpleNamespace(code=code, out="", err=line)


def test_a_report_of_a_folder_that_is_not_there_is_one_line(tmp_path):
    found = specbench_command("report", str(tmp_path / "none"))
    assert (found.code, found.err) == (1, f"error: {tmp_path}/none: no such folder of results\n")


def test_a_precision_that_cannot_train_is_one_line():
    found = specbench_command("train", "target", "pico", "--dtype", "float8")
    assert (found.code, found.err) == (2, "error: --dtype: unknown precision 'float8'. Did you mean 'float32'?\n")


def test_list_names_methods_models_sources_and_experiments():
    out = specbench_command("list").out
    for word in ("draft_model", "pico-wide", "mt_bench", "quickstart.yaml"):
        assert word in out


def test_version_prints_the_version():
    assert specbench_command("--version") == SimpleNamespace(code=0, out=f"specbench {specbench.__version__}\n", err="")


def test_an_unknown_command_exits_with_2():
    assert specbench_command("runn").code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom specbench.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'pydantic', 'numpy', 'yaml', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.splitlines()[-1] == "[]"


def test_help_answers_in_less_than_three_tenths_of_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "specbench", "--help"], capture_output=True, check=True, cwd=ROOT)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("baselines", "3 cells, 21 trials"),
        ("compiled", "2 cells, 14 trials"),
        ("quickstart", "2 cells, 14 trials"),
        ("draft_depth", "1 cell, 10 trials"),
        ("family", "2 cells, 36 trials"),
        ("redrafter_beams", "1 cell, 27 trials"),
        ("redrafter_figure6", "1 cell, 9 trials"),
        ("redrafter_rnn", "1 cell, 8 trials"),
        ("redrafter_sampling", "8 cells, 40 trials"),
        ("redrafter_table1", "1 cell, 11 trials"),
        ("redrafter_table3", "4 cells, 28 trials"),
        ("redrafter_table4", "1 cell, 12 trials"),
        ("redrafter_trees", "1 cell, 14 trials"),
        ("vicuna_grid", "12 cells, 120 trials"),
    ],
)
def test_every_experiment_of_the_repository_is_right(name, counts):
    assert specbench_command("check", str(ROOT / "experiments" / f"{name}.yaml")).out == f"ok: {counts}\n"


DSD = ("f1_draft_size", "f2_step_breakdown", "f3_lookahead", "f4_skill", "f5_depth", "f6_break_even", "f7_predicted",
       "f8_wide_or_deep", "f9_shrinking", "f10_generality", "t1_shapes")  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "name", "arms"), [("dsd", "dsd", "8 cells, 40 trials"), ("dsd/paper", "dsd_paper", "3 cells, 24 trials")]
)
def test_every_figure_of_decoding_speculative_decoding_is_right(folder, name, arms):
    lines = specbench_command("check", str(ROOT / "experiments" / folder / "all.yaml")).out.splitlines()
    assert [line.partition(": ok: ")[0] for line in lines] == [f"{name}_{figure}" for figure in DSD]
    assert any(line.startswith(f"{name}_f10_generality: ok: {arms}, ") for line in lines)


def test_no_figure_of_decoding_speculative_decoding_is_left_out_of_its_lists():
    folder = ROOT / "experiments" / "dsd"
    for own in (folder, folder / "paper"):
        assert {path.stem for path in own.glob("*.yaml")} == {*DSD, "all"}


def test_the_readme_of_the_figures_names_files_and_figures_that_there_are():
    from specbench.report.plots import FIGURES

    text = (ROOT / "experiments" / "dsd" / "README.md").read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| [FT]\d+ \|", line)]
    assert [row[2].strip(" `").removesuffix(".yaml") for row in rows] == list(DSD)
    drawn = [name for row in rows[:-1] for name in re.findall(r"`(\w+)`", row[4])]
    assert len(drawn) >= len(DSD) - 1
    assert set(drawn) <= {*FIGURES}


GPU = {
    "texts": "2 cells, 14 trials",
    "methods": "1 cell, 8 trials",
    "baselines": "1 cell, 5 trials",
    "executions": "4 cells, 12 trials",
    "verify_widths": "40 forward times",
    "batches": "3 cells, 18 trials",
    "drafts": "2 cells, 12 trials",
    "large": "1 cell, 5 trials",
}


def test_every_part_of_the_suite_for_a_gpu_is_right():
    lines = specbench_command("check", str(ROOT / "experiments" / "gpu" / "all.yaml")).out.splitlines()
    assert lines == [f"gpu_{name}: ok: {counts}" for name, counts in GPU.items()]


def test_no_experiment_of_the_repository_is_left_out_above():
    names = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
    shown = ("beams", "figure6", "rnn", "sampling", "table1", "table3", "table4", "trees")
    papers = [f"redrafter_{name}" for name in shown]
    assert names == ["baselines", "compiled", "draft_depth", "family", "quickstart", *papers, "vicuna_grid"]
