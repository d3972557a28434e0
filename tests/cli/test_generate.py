"""specbench generate: options, exit codes, a chat through a pipe, and answers that survive a kill"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import specbench
from specbench import registry
from specbench.cli import app, generation
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError
from tests.unit.bench import talk
from tests.unit.models import tiny

ROOT = Path(specbench.__file__).parent.parent
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "numpy", "yaml", "pyarrow"}  # Typer itself asks for pydantic


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "target", seed=1)
    tiny.save(folder / "draft", seed=1, layers=1)
    tiny.save(folder / "foreign", seed=1, vocab=300)
    target = CachedModel(tiny.model(seed=1), "target")
    for method in ("medusa", "redrafter"):
        kind = registry.load(method).trains
        kind.new(kind.Settings(), target).save(folder / method, "target")
    return folder


@pytest.fixture
def generate(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, typed=""):
        command = ["generate", "--target", models / "target", "--device", "cpu", "--max-new-tokens", "12", *arguments]
        return CliRunner().invoke(app, list(map(str, command)), input=typed)

    return run


def greedy(text):
    return talk.text_of(talk.greedy(talk.ids_of(text)))


def shown(text):
    """As a terminal shows it: control characters as pictures."""
    from specbench.bench.text_stream import printable

    return printable(text.rstrip("\ufffd"))


# --- a chat


@pytest.mark.parametrize(
    "method",
    [
        (),
        ("--method", "prompt_lookup", "--gamma", "4", "--set", "max_ngram=2"),
        ("--method", "draft_model", "--draft", "DRAFT", "--set", "stop.kind=heuristic"),
    ],
)
def test_a_chat_through_a_pipe_answers_line_by_line_and_keeps_the_history(generate, models, method):
    found = generate(*(str(models / "draft") if word == "DRAFT" else word for word in method),
                     typed="def f(x):\nclass A:\n/reset\nclass A:\n")  # fmt: skip
    assert found.exit_code == 0, found.output
    first = greedy("def f(x):")
    ids = [*talk.ids_of("def f(x):"), *talk.greedy(talk.ids_of("def f(x):")), *talk.ids_of("\nclass A:")]
    second = talk.text_of(talk.greedy(ids))
    seen, places = found.stdout, []
    for text in (first, second, "forgotten", greedy("class A:")):
        assert shown(text) in seen
        places.append(seen.index(shown(text), places[-1] + 1 if places else 0))
    assert places == sorted(places)
    assert len(re.findall(r"\d+ tokens in \d+ steps, [\d.]+ tokens per step", seen)) == 3
    assert "\x1b" not in seen
    assert "> " not in seen.split(shown(first))[0]  # nobody is prompted


def test_exit_leaves_what_follows_unread(generate):
    found = generate(typed="/exit\nimport os\n")
    assert (found.exit_code, found.stdout) == (0, "")


def test_the_other_options_reach_the_decoder(generate):
    def sampled(seed, *more):
        chance = ("--temperature", "0.9", "--top-k", "5", "--top-p", "0.95", "--rule", "match", "--seed", seed)
        return generate(*chance, *more, typed="x\n").stdout.rpartition("\n12 tokens")[0]

    first = sampled(1, "--dtype", "float32", "--threads", "1")
    assert first
    assert first == sampled(1, "--method", "prompt_lookup")
    assert first != sampled(2)
    assert shown(greedy("x")) in generate("--greedy", typed="x\n").stdout


def test_a_template_stands_around_what_is_typed(generate):
    assert shown(greedy("# sort:\n")) in generate("--template", "# {prompt}:\n", typed="sort\n").stdout


# --- answers


@pytest.fixture
def questions(tmp_path):
    rows = [{"question_id": 81 + i, "category": "c", "turns": [f"def f{i}(x):\n", "y\n"]} for i in range(6)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "q.jsonl"


def test_a_set_of_prompts_is_answered_and_summed_up(generate, questions):
    arguments = ("--prompts", questions, "--batch-size", "4", "--out", "a.jsonl", "--model-id", "mine",
                 "--method", "prompt_lookup", "--max-num-prompts", "3", "--turns", "1")  # fmt: skip
    found = generate(*arguments)
    assert found.exit_code == 0, found.output
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        asked = f"def f{line['question_id'] - 81}(x):\n"
        assert line["choices"][0]["turns"] == [greedy(asked)]
        assert line["model_id"] == "mine"
    assert re.search(r"requests +tokens +tok/step +accepted +tok/s +batch tok/s", found.stdout)
    assert "a.jsonl: 3 questions answered" in found.stdout
    again = generate(*arguments)
    assert (again.exit_code, again.stdout) == (0, "a.jsonl: 3 questions answered, 3 of them before\n")


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        ("redrafter", ["--drafter", "WEIGHTS", "--beam-width", "3", "--beam-length", "4"], {"width": 3, "length": 4}),
        ("redrafter", ["--heads", "WEIGHTS", "--set", "top_k=7"], {"top_k": 7}),
        ("medusa", ["--heads", "WEIGHTS", "--gamma", "2", "--set", "tree=chain"], {"gamma": 2, "tree": "chain"}),
        ("medusa", ["--drafter", "WEIGHTS", "--set", "tree.branching=[2, 2]"], {"tree": {"branching": [2, 2]}}),
    ],
)
def test_trained_weights_and_beams_go_to_the_options_of_the_method(
    generate, questions, models, method, arguments, options
):
    weights = str(models / method)
    given = [weights if word == "WEIGHTS" else word for word in arguments]
    found = generate("--method", method, *given, "--prompts", questions, "--max-num-prompts", "1", "--turns", "1",
                     "--out", "a.jsonl")  # fmt: skip
    assert found.exit_code == 0, found.output
    [line] = map(json.loads, Path("a.jsonl").read_text().splitlines())
    used = line["generate_params"]["options"]
    assert weights in used.values()
    assert {name: used[name] for name in options} == options
    assert line["choices"][0]["turns"] == [greedy(f"def f{line['question_id'] - 81}(x):\n")]


def test_for_the_embedded_target_the_family_fills_in_what_a_method_must_be_given():
    def options(method, **given):
        [_, _, arm] = generation._plan({"target": "pico", "method": method, **given}).cells[0].arms
        return arm.options

    assert options("draft_model")["draft"] == "pico-wide"
    assert options("draft_model", draft="pico-deep")["draft"] == "pico-deep"
    assert options("redrafter", beam_width=2)["drafter"] == "pico-redrafter"
    assert options("medusa")["heads"] == "pico-medusa"
    with pytest.raises(ConfigError, match=r"methods\.0\.draft_model\.draft: required, but missing"):
        generation._plan({"target": "another", "method": "draft_model"})


def test_other_answers_in_the_file_are_refused(generate, questions):
    assert generate("--prompts", questions, "--max-num-prompts", "1", "--out", "a.jsonl").exit_code == 0
    found = generate("--prompts", questions, "--out", "a.jsonl", "--seed", "7")
    assert found.exit_code == 2
    assert found.stderr == (
        "error: a.jsonl:1: decode.seed was 0 for this answer, and now it is 7; name another file with --out\n"
    )


@pytest.mark.slow
def test_answers_survive_a_kill(models, questions, tmp_path):
    """A process is killed while it works; what it had finished is there, and the next one asks the rest."""
    command = [sys.executable, "-m", "specbench", "generate", "--target", str(models / "target"), "--device", "cpu",
               "--max-new-tokens", "60", "--prompts", questions, "--out", "a.jsonl", "--turns", "1"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    file = tmp_path / "a.jsonl"
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 1 <= len(kept) < 6
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"6 questions answered, {len(kept)} of them before" in done.stdout
    lines = file.read_bytes().splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    assert sorted(json.loads(line)["question_id"] for line in lines) == list(range(81, 87))


# --- wrong inputs


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "prompt_lokup"], 2, "unknown method 'prompt_lokup'. Did you mean 'prompt_lookup'?"),
        (["--beam-width", "4"], 2, "--beam-width: the method autoregressive has no option width; it has none"),
        (["--method", "prompt_lookup", "--beam-length", "4"], 2,
         "--beam-length: the method prompt_lookup has no option length; it has max_ngram, min_ngram, gamma"),
        (["--method", "prompt_lookup", "--heads", "x"], 2,
         "--drafter: the method prompt_lookup has no option drafter; it has max_ngram"),
        (["--method", "prompt_lookup", "--draft", "x"], 2, "--draft: the method prompt_lookup has no option draft"),
        (["--method", "prompt_lookup", "--set", "gama=4"], 2,
         "command line: methods.0.prompt_lookup.gama: unknown key, got 4. Did you mean 'gamma'?"),
        (["--set", "gamma"], 2, "--set gamma: write it as KEY=VALUE, like gamma=4"),
        (["--set", "decode.tempature=1"], 2, "--set decode.tempature: unknown key, got 1. Did you mean 'temperature'?"),
        (["--method", "prompt_lookup", "--set", "gamma=[2, 3]"], 2, "one setting at a time"),
        (["--method", "draft_model", "--draft", "MODELS/foreign"], 2, "has another token map than target"),
        (["--method", "transformers-generate"], 1, "transformers-generate decodes by itself"),
        (["--target", "pico-sized"], 2, "unknown model 'pico-sized'"),
        (["--greedy", "--temperature", "0.5"], 2, "--greedy: is temperature 0, and --temperature is 0.5; give one"),
        (["--temperature", "0.5", "--rule", "greedy"], 2, "rule greedy needs temperature 0, got 0.5"),
        (["--rule", "greedily"], 2, "decode.rule"),
        (["--batch-size", "4"], 2, "--batch-size: goes with --prompts; without them generate is a chat"),
        (["--out", "x"], 2, "--out: goes with --prompts"),
        (["--turns", "2"], 2, "--turns: goes with --prompts"),
        (["--prompts", "nothing/here.jsonl"], 2, "nothing/here.jsonl: No such file or directory"),
        (["--prompts", "mt_bensh"], 2, "unknown prompt source, got 'mt_bensh'. Did you mean 'mt_bench'?"),
        (["--device", "tpu"], 2, "machine.device: should be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--top-p", "1.5"], 2, "decode.top_p"),
        (["--template", "none"], 2, "must hold {prompt} once"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_clear_line_and_nothing_is_written(
    generate, models, tmp_path, arguments, code, words
):
    found = generate(*(word.replace("MODELS", str(models)) for word in arguments), typed="x\n")
    assert found.exit_code == code
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert words in found.stderr
    assert found.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_through_a_pipe_a_prompt_without_room_ends_the_session(generate):
    found = generate(typed="x = 1 " * 400 + "\nimport os\n")
    assert found.exit_code == 2
    assert "fill the 256 positions" in found.stderr
    assert found.stdout == ""


def test_every_option_says_what_it_does():
    command = typer.main.get_command(app).commands["generate"]
    assert all(option.help for option in command.params)
    names = {name for option in command.params for name in option.opts}
    assert names >= {
        "--target", "--method", "--set", "--option", "--draft", "--gamma", "--drafter", "--heads", "--beam-width",
        "--beam-length", "--prompts", "--max-num-prompts", "--max-prompt-tokens", "--max-new-tokens", "--batch-size",
        "--greedy", "--temperature", "--top-k", "--top-p", "--rule", "--seed", "--dtype", "--device", "--threads",
        "--turns", "--out", "--model-id", "--template",
    }  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom specbench.cli import app\n"
        "try: app(['generate', '--help'])\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.splitlines()[-1] == "[]"
