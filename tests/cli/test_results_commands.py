"""specbench compare, show, predict, verify of a folder, list and doctor: exit codes and output"""

import json
import os
from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from specbench.bench import doctor
from specbench.cli import app
from specbench.records.store import Store
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

DRAFT = Arm("draft", alpha=0.75, gamma=4, draft_s=0.001, verify_s=0.011)
PLAN = Plan(arms=(AUTOREGRESSIVE, TWIN, DRAFT), batch_sizes=(1,), repeats=2, max_new_tokens=32)


def specbench(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results") / "quickstart" / "cpu-example", PLAN)


def changed(folder, tmp_path, change):
    """The same rows, changed on their way to another disk."""
    rows = Store(folder).read("requests").astype(object)
    rows = rows.where(pd.notna(rows), None).to_dict("records")
    kept = [row for row in rows if change(row) is not False]
    Store(tmp_path).write_block("all", kept, [])
    return tmp_path


def test_verify_of_a_folder_needs_no_model_and_ends_with_0(folder):
    found = specbench("verify", folder)
    assert found.exit_code == 0
    assert "draft" in found.output


def test_verify_finds_a_folder_below_the_one_that_is_named(folder):
    assert specbench("verify", folder.parent).exit_code == 0


def test_a_wrong_text_ends_verify_with_4_and_show_prints_where(folder, tmp_path):
    def spoil(row):
        if row["arm"] == "draft" and row["prompt_id"] == "prompt-3":
            row.update(
                verdict="WRONG", divergence_gap=2.5, output_ids=[*row["output_ids"][:5], 999, *row["output_ids"][6:]]
            )

    found = specbench("verify", changed(folder, tmp_path, spoil), "--show")
    assert found.exit_code == 4
    assert "error: not lossless: 4 texts are not the target's own" in found.output
    assert "prompt prompt-3: token 6, logit gap 2.5" in found.output


def test_missing_rows_end_verify_with_1(folder, tmp_path):
    other = changed(folder, tmp_path, lambda row: row["arm"] != "draft" or row["prompt_id"] != "prompt-3")
    found = specbench("verify", other)
    assert found.exit_code == 1
    assert "nothing that is missing counts as equal" in found.output
    assert "4 of 32 rows are missing" in " ".join(found.output.split())


def test_failed_rows_end_verify_with_5(tmp_path):
    failing = replace(PLAN, arms=(*PLAN.arms, Arm("crashed", alpha=0.5, gamma=2, status="oom")))
    found = specbench("verify", write_results(tmp_path, failing))
    assert found.exit_code == 5


def test_where_nothing_can_be_compared_verify_ends_with_2(tmp_path):
    sampled = write_results(tmp_path, replace(PLAN, temperatures=(0.8,)))
    found = specbench("verify", sampled)
    assert (found.exit_code, "error: nothing was compared" in found.output) == (2, True)


def test_verify_prints_json(folder):
    found = {arm["arm"]: arm for arm in json.loads(specbench("verify", folder, "--json").stdout)}
    assert (found["draft"]["texts"], found["draft"]["equal"], found["draft"]["faults"]) == (32, 32, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify"], "name an experiment file, a folder of results, or --target and --method"),
        (["verify", "--target", "pico", "--method", "draft_modle"], "unknown method 'draft_modle'. Did you mean"),
        (["verify", "--target", "pico", "--method", "draft_model", "--option", "gama=4", "--draft", "x"],
         "command line: methods.0.draft_model.gama: unknown key, got 4. Did you mean 'gamma'?"),
        (["verify", "--target", "pico", "--method", "prompt_lookup", "--option", "gamma"],
         "--option gamma: write it as KEY=VALUE, like gamma=4"),
        (["verify", "e.yaml", "--gamma", "4"], "--gamma: e.yaml says what to verify; use --set"),
        (["predict"], "give either a results folder, or --alpha"),
        (["predict", "--alpha", "0.8", "--verify-cost", "1.2"], "give --gamma as well"),
        (["predict", "--alpha", "0.8", "--batch-size", "4"], "ask about a run: give its results folder"),
        (["predict", "--alpha", "0.8", "--draft", "a=0.8:1"], "give either a results folder, or --alpha"),
        (["predict", "--draft", "a=0.8:1"], "give those of a target forward as --target-ms"),
        (["predict", "--draft", "a=1.8:1", "--target-ms", "9"], "--draft a=1.8:1: write its acceptance and"),
        (["predict", "--draft", "a=0.8", "--target-ms", "9"], "--draft a=0.8: write its acceptance and"),
        (["predict", "--draft", "a=0.8:1", "--draft", "a=0.7:1", "--target-ms", "9"], "have the same name"),
        (["predict", "--draft", "a=0.8:1", "--target-ms", "9", "--gamma", "4"], "each is taken at its best gamma"),
        (["predict", "--draft", "a=0.8:1", "--target-ms", "9", "--draft-cost", "1"], "--draft-cost and"),
        (["list", "method"], "nothing to list under 'method'. Did you mean 'methods'?"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_clear_line_and_exit_code_2(arguments, words):
    found = specbench(*arguments)
    assert found.exit_code == 2
    assert found.stderr.count("\n") == 1
    assert words in found.stderr


def test_compare_of_a_run_with_itself_fails_nothing(folder):
    found = specbench("compare", folder, folder, "--fail-if-slower", "0.01")
    assert found.exit_code == 0
    assert "excludes run-to-run variation" in found.output


def test_compare_fails_where_an_arm_is_slower(folder, tmp_path):
    def slow(row):
        if row["arm"] == "draft":
            row.update(decode_s=row["decode_s"] * 1.2, row_done_s=row["row_done_s"] * 1.2)

    other = changed(folder, tmp_path, slow)
    assert specbench("compare", folder, other).exit_code == 0
    found = specbench("compare", folder, other, "--fail-if-slower", "0.05")
    assert (found.exit_code, "error: slower by more than 5 %: draft" in found.output) == (1, True)
    data = json.loads(specbench("compare", folder, other, "--json").stdout)
    assert {arm["arm"]: round(arm["ratio"], 3) for arm in data["arms"]}["draft"] == round(1 / 1.2, 3)


def test_compare_of_other_gpus_is_refused_by_the_name_of_the_column(folder, tmp_path):
    other = changed(folder, tmp_path, lambda row: row.update(device="NVIDIA H200"))
    found = specbench("compare", folder, other)
    assert found.exit_code == 1
    assert found.stderr == (
        "error: rows of different 'device' must not be compared: cpu Example 3000 against NVIDIA H200\n"
    )


def test_show_puts_texts_side_by_side(folder):
    found = specbench("show", folder, "--prompt", "prompt-2", "--arm", "draft")
    assert found.exit_code == 0
    assert "prompt-2" in found.output
    assert "autoregressive-twin" not in found.output


def test_show_lists_prompts_and_suggests_the_nearest(folder):
    assert specbench("show", folder, "--prompts").stdout.splitlines()[0].startswith("prompt-")
    found = specbench("show", folder, "--prompt", "promt-1")
    assert (found.exit_code, "Did you mean 'prompt-1'?" in found.stderr) == (1, True)


def test_predict_prints_what_the_paper_says():
    found = specbench("predict", "--alpha", "0.8", "--gamma", "5")
    assert found.exit_code == 0
    assert "3.689 of at most 6" in found.stdout  # Leviathan et al. (2023), table 1: 3.69
    assert "1.626\N{MULTIPLICATION SIGN} those of autoregressive decoding" in found.stdout  # and 1.63


def test_predict_takes_drafts_by_their_numbers():
    arguments = ["predict", "--target-ms", "30", "--draft", "wide=0.8:3", "--draft", "deep=0.9:6"]
    found = specbench(*arguments)
    assert found.exit_code == 0
    said = " ".join(found.stdout.split())
    # Best gammas and speed-ups of the closed form at costs .1 and .2: 6 with 2.47, and 7 with 2.37.
    assert said.startswith("By the numbers given: take wide at gamma 6, predicted to reach 2.47 times the speed of")
    assert "deep 7 2.37" in said
    cell = json.loads(specbench(*arguments, "--json").stdout)
    assert {change["contender"]: change["gamma"] for change in cell["changes"]} == {"wide": 6, "deep": 7}


def test_predict_says_first_which_draft_to_take_and_then_what_another_would_need(folder):
    found = specbench("predict", folder)
    assert found.exit_code == 0
    title, said, *rest = found.stdout.splitlines()
    assert title == "batch 1, T = 0"
    assert said.startswith("Take draft: 1.")
    assert "what would have to change" in " ".join(rest)
    assert "excludes run-to-run variation" in found.stdout


def test_predict_composes_the_arms_of_a_run(folder):
    (cell,) = json.loads(specbench("predict", folder, "--json").stdout)
    (draft,) = (forecast for forecast in cell["forecasts"] if forecast["arm"] == "draft")
    # Of the known model: a step of 4 x 1 + 11 + 0.8 ms against one of 10.8 ms.
    assert draft["step_ms"] == pytest.approx(15.8, rel=0.02)
    # Of 31 tokens a row the last step's may lie beyond the end.
    delivered = draft["predicted_speedup"] * 15.8 / 10.8
    assert 0.93 * draft["tokens"] < delivered < draft["tokens"]
    assert draft["measured_tokens_per_s"] == pytest.approx(draft["predicted_tokens_per_s"], rel=0.05)
    assert draft["gamma"] == 4
    assert cell["sentence"].startswith("Take draft")
    # At gamma 4 a draft forward may take (tokens x 10.8 - 11.8) / 4 ms before nothing is gained, at a smaller one more.
    longest = cell["changes"][0]["pays_draft_ms"]
    assert longest > 0.98 * (delivered * 10.8 - 11.8) / 4
    (slowed,) = json.loads(specbench("predict", folder, "--draft-latency-ms", longest, "--json").stdout)
    assert slowed["changes"][0]["predicted_speedup"] == pytest.approx(1.0)


def test_predict_answers_what_if_a_draft_were_slower(folder):
    (cell,) = json.loads(specbench("predict", folder, "--draft-latency-ms", "draft=20", "--json").stdout)
    assert cell["best"] == "autoregressive"
    assert cell["sentence"].startswith("With 20 ms a forward of draft: do not draft")
    assert all(forecast["measured_tokens_per_s"] is None for forecast in cell["forecasts"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--batch-size", "8"], 1, "batch size 8: measured was 1, and nothing is known beyond"),
        (["--draft-latency-ms", "drat=1"], 2, "no draft of that name was run. Did you mean 'draft'?"),
        (["--draft-latency-ms", "fast"], 2, "write milliseconds, like 1.5 or pico-deep=1.5"),
        (["--draft-latency-ms", "draft=-1"], 2, "write milliseconds, like 1.5 or pico-deep=1.5"),
    ],
)
def test_a_what_if_that_a_run_cannot_answer_is_one_clear_line(folder, arguments, code, words):
    found = specbench("predict", folder, *arguments)
    assert (found.exit_code, found.stderr.count("\n"), words in found.stderr) == (code, 1, True)


def test_predict_refuses_a_run_without_phase_times(folder, tmp_path):
    found = specbench("predict", changed(folder, tmp_path, lambda row: None))
    assert (found.exit_code, "measure.phase_blocks" in found.stderr) == (1, True)


@pytest.mark.parametrize("command", ["verify", "compare", "show", "predict"])
def test_a_folder_without_a_run_is_one_clear_line(command, tmp_path):
    arguments = [tmp_path, tmp_path] if command == "compare" else [tmp_path]
    found = specbench(command, *arguments)
    assert (found.exit_code, found.stderr.count("\n"), "no run in it" in found.stderr) == (1, 1, True)


def test_list_shows_options_with_their_defaults():
    out = specbench("list", "methods").stdout
    assert "draft (required)" in out
    assert "gamma=4" in out
    assert "match" in specbench("list", "rules").stdout


def test_doctor_ends_with_1_only_where_something_prevents_running(monkeypatch):
    findings = [doctor.Finding("ok", "python", "3.11"), doctor.Finding("note", "hub", "no answer", "use a folder")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    found = specbench("doctor")
    assert (found.exit_code, "-> use a folder" in found.stdout) == (0, True)
    findings.append(doctor.Finding("problem", "torch", "not installed"))
    assert specbench("doctor").exit_code == 1
    assert json.loads(specbench("doctor", "--json").stdout)[2]["level"] == "problem"


@pytest.mark.parametrize("command", ["verify", "compare", "show", "predict", "list", "doctor"])
def test_every_help_has_an_example(command):
    found = CliRunner().invoke(app, [command, "--help"], env={**os.environ, "COLUMNS": "100"})
    assert f"specbench {command}" in found.stdout.partition("Example")[2]
