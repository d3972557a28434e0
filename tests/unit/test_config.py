"""specbench.config, and specbench.axes below it"""

import subprocess
import sys
from pathlib import Path

import pytest

from specbench.config import (
    PUBLISHED,
    DecodeSettings,
    LatencySection,
    MachineSettings,
    MeasureSettings,
    PromptSettings,
    RandomModel,
    ScoreSection,
    Settings,
    SyntheticAcceptance,
    SyntheticRule,
    TargetSpec,
    TraceSection,
    TypicalAcceptance,
    load,
    open_documents,
)
from specbench.errors import ConfigError

HEAD = "name: x\ntargets: [pico]\nprompts: {source: stdlib}\n"


@pytest.fixture
def experiment(tmp_path: Path):
    """Write a file and load it."""

    def write_and_load(text: str, *overrides: str):
        path = tmp_path / "e.yaml"
        path.write_text(text, "utf-8")
        return load(path, overrides)

    return write_and_load


@pytest.fixture
def faults(experiment):
    """The lines of the error that a file gives, without its folder."""

    def lines(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            experiment(text, *overrides)
        return [line[line.find("e.yaml") :] if "e.yaml" in line else line for line in str(caught.value).splitlines()]

    return lines


def test_the_smallest_experiment_has_the_documented_defaults(experiment):
    found = experiment(HEAD)
    assert found.name == "x"
    assert [entry.spec for entry in found.targets] == [TargetSpec(model="pico")]
    assert found.prompts == (PromptSettings(source="stdlib", count=16, max_prompt_tokens=None),)
    assert found.decode == (DecodeSettings(max_new_tokens=128, temperature=0.0, rule="auto", batch_size=1),)
    assert found.machine == (MachineSettings(device="auto", dtype="auto", threads=1, attention="auto"),)
    assert found.measure == MeasureSettings(repeats=3, warmup=2, processes=1, phase_blocks=4)
    assert found.methods == ()


def test_settings_cannot_be_changed(experiment):
    with pytest.raises(ValueError, match="frozen"):
        experiment(HEAD).decode[0].seed = 1


def test_every_option_is_described():
    def undescribed(model: type[Settings]) -> list[str]:
        return [f"{model.__name__}.{name}" for name, info in model.model_fields.items() if not info.description]

    models = [DecodeSettings, MachineSettings, MeasureSettings, PromptSettings, RandomModel, SyntheticAcceptance,
              TypicalAcceptance]  # fmt: skip
    assert [name for model in [*models, TargetSpec] for name in undescribed(model)] == []


def test_lists_are_axes_and_the_last_one_changes_fastest(experiment):
    found = experiment(HEAD + "decode: {temperature: [0.0, 0.8], batch_size: [1, 4]}\n").decode
    assert [(d.temperature, d.batch_size) for d in found] == [(0.0, 1), (0.0, 4), (0.8, 1), (0.8, 4)]


def test_zip_pairs_axes_and_crosses_them_with_the_others(experiment):
    found = experiment(
        HEAD + "decode: {zip: {temperature: [0.0, 0.8], max_new_tokens: [8, 16]}, seed: [1, 2]}\n"
    ).decode
    assert [(d.temperature, d.max_new_tokens, d.seed) for d in found] == [
        (0.0, 8, 1), (0.0, 8, 2), (0.8, 16, 1), (0.8, 16, 2),
    ]  # fmt: skip


def test_two_zips_in_one_section_are_crossed(experiment):
    found = experiment(HEAD + "decode: {zip: [{seed: [1, 2]}, {top_k: [3, 4], batch_size: [5, 6]}]}\n").decode
    assert [(d.seed, d.top_k, d.batch_size) for d in found] == [(1, 3, 5), (1, 4, 6), (2, 3, 5), (2, 4, 6)]


def test_prompts_and_machine_have_axes_too(experiment):
    found = experiment(
        "name: x\ntargets: [pico]\nprompts: {source: [stdlib, mt_bench]}\nmachine: {dtype: [float32, bfloat16]}\n"
    )
    assert [p.source for p in found.prompts] == ["stdlib", "mt_bench"]
    assert [m.dtype for m in found.machine] == ["float32", "bfloat16"]


def test_every_way_to_compile_is_a_value_of_one_axis(experiment):
    found = experiment(HEAD + "machine: {compile: [false, pieces, true]}\n")
    assert [machine.compile for machine in found.machine] == [False, "pieces", True]


def test_the_rates_of_a_synthetic_rule_are_a_list_and_grid_makes_an_axis_of_them(experiment):
    found = experiment(HEAD + "decode: {rule: {synthetic: {rates: {grid: [[0.9, 0.8], [0.5]]}}}}\n").decode
    assert [d.rule for d in found] == [
        SyntheticRule(synthetic=SyntheticAcceptance(rates=(0.9, 0.8))),
        SyntheticRule(synthetic=SyntheticAcceptance(rates=(0.5,))),
    ]


def test_rules_by_name_and_by_mapping_stand_on_one_axis(experiment):
    found = experiment(
        HEAD + "decode: {rule: [match, {synthetic: {mean_length: [2.5, 3]}}, {synthetic: {trace: [1, 0]}}]}"
    )
    assert [d.rule_name for d in found.decode] == ["match", "synthetic", "synthetic", "synthetic"]


def test_lossy_rules_stand_on_an_axis_and_typical_is_short_for_its_defaults(experiment):
    found = experiment(
        HEAD + "decode: {temperature: 0.8, rule: [auto, redrafter_paper, typical, {typical: {delta: [0.1, 0.5]}}]}"
    )
    assert [d.rule_name for d in found.decode] == ["rejection", "redrafter_paper", "typical", "typical", "typical"]
    assert [d.rule.typical for d in found.decode[2:]] == [
        TypicalAcceptance(epsilon=0.09, delta=0.3),
        TypicalAcceptance(epsilon=0.09, delta=0.1),
        TypicalAcceptance(epsilon=0.09, delta=0.5),
    ]


@pytest.mark.parametrize(
    ("temperature", "rule", "name"),
    [(0.0, "auto", "greedy"), (0.8, "auto", "rejection"), (0.8, "match", "match"), (0.0, "rejection", "rejection")],
)
def test_auto_is_greedy_at_temperature_zero_and_rejection_above(temperature, rule, name):
    assert DecodeSettings(temperature=temperature, rule=rule).rule_name == name


def test_the_keywords_of_a_chat_template_are_taken_as_they_are(experiment):
    found = experiment(HEAD + "decode: {chat_template_kwargs: {tools: [a, b], thinking: false}}\n").decode
    assert [d.chat_template_kwargs for d in found] == [{"tools": ["a", "b"], "thinking": False}]


@pytest.mark.parametrize(
    ("model", "name"),
    [("pico", "pico"), ("owner/model", "owner/model"), ("/home/me/model", "model"), ("~/model/", "model"), (".", ".")],
)
def test_a_target_is_called_by_its_name_and_a_folder_by_its_last_part(model, name):
    assert TargetSpec(model=model).name == name


def test_a_target_may_be_a_shape_with_random_weights_and_bring_its_own_methods(experiment):
    text = (
        "name: x\nprompts: {source: stdlib}\ntargets:\n"
        "  - {model: {shape: vicuna-7b-v1.3, weights: random}, label: big, methods: [{medusa: {heads: h}}]}\n"
        "  - {model: {shape: vicuna-7b-v1.3}}\n"
    )
    first, second = experiment(text).targets
    assert first.spec.model == RandomModel(shape="vicuna-7b-v1.3", weights="random", seed=0)
    assert (first.spec.name, second.spec.name) == ("big", "vicuna-7b-v1.3")
    assert [(entry.method, entry.options) for entry in first.methods] == [("medusa", {"heads": "h"})]


def test_a_number_with_an_exponent_is_a_number(experiment):
    assert experiment(HEAD + "decode: {temperature: 1e-3}\n").decode[0].temperature == 0.001


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("decod: {}", "e.yaml:4: decod: unknown key, got {}. Did you mean 'decode'?"),
        ("decode: {batch_sise: 8}", "e.yaml:4: decode.batch_sise: unknown key, got 8. Did you mean 'batch_size'?"),
        ("decode: {batch_size: '8'}", "e.yaml:4: decode.batch_size: should be a valid integer, got '8'."),
        ("decode: {batch_size: true}", "e.yaml:4: decode.batch_size: should be a valid integer, got true."),
        ("decode: {batch_size: 1.5}", "e.yaml:4: decode.batch_size: should be a valid integer, got 1.5."),
        ("decode: {ignore_eos: yes}", "e.yaml:4: decode.ignore_eos: should be a valid boolean, got 'yes'."),
        ("decode: {temperature: -1}", "e.yaml:4: decode.temperature: should be greater than or equal to 0, got -1."),
        ("decode: {temperature: .nan}", "e.yaml:4: decode.temperature: should be a finite number, got nan."),
        (
            "decode:\n  temperature:\n    - 0\n    - -1\n",
            "e.yaml:7: decode.temperature.1: should be greater than or equal to 0, got -1.",
        ),
        ("decode: {top_p: 0}", "e.yaml:4: decode.top_p: should be greater than 0, got 0."),
        (
            "decode: {rule: gready}",
            "e.yaml:4: decode.rule: should be 'auto', 'greedy', 'match', 'rejection', 'typical' or 'redrafter_paper', "
            "got 'gready'. Did you mean 'greedy'?",
        ),
        (
            "decode: {rule: {synthetic: {rate: [1]}}}",
            "e.yaml:4: decode.rule.synthetic.rate: unknown key, got [1]. Did you mean 'rates'?",
        ),
        (
            "decode: {rule: typica}",
            "e.yaml:4: decode.rule: should be 'auto', 'greedy', 'match', 'rejection', 'typical' or 'redrafter_paper', "
            "got 'typica'. Did you mean 'typical'?",
        ),
        (
            "decode: {rule: {typical: {epsilon: 1.5}}}",
            "e.yaml:4: decode.rule.typical.epsilon: should be less than 1, got 1.5.",
        ),
        (
            "decode: {rule: {typical: {detla: 0.5}}}",
            "e.yaml:4: decode.rule.typical.detla: unknown key, got 0.5. Did you mean 'delta'?",
        ),
        (
            "decode: {rule: [typical, {typical: {epsilon: 0.09}}]}",
            "e.yaml:4: decode: the axes give the same settings twice.",
        ),
        (
            "decode: {rule: {synthetic: {rates: [0.5, 1.5]}}}",
            "e.yaml:4: decode.rule.synthetic.rates.1: should be less than or equal to 1, got 1.5.",
        ),
        (
            "decode: {rule: {synthetic: {rates: [0.5], mean_length: 2}}}",
            "e.yaml:4: decode.rule.synthetic: synthetic takes exactly one of rates, mean_length and trace.",
        ),
        (
            "decode: {rule: greedy, temperature: 0.8}",
            "e.yaml:4: decode: rule greedy needs temperature 0, got 0.8; rule auto fits both.",
        ),
        (
            "decode: {min_new_tokens: 9, max_new_tokens: 8}",
            "e.yaml:4: decode: min_new_tokens 9 is more than max_new_tokens 8.",
        ),
        ("decode: {turns: 0}", "e.yaml:4: decode.turns: should be greater than or equal to 1, got 0."),
        ("decode: [1]", "e.yaml:4: decode: should be a mapping of options, got [1]."),
        ("decode: {seed: []}", "e.yaml:4: decode.seed: an axis needs a list of at least one value, got []."),
        ("decode: {seed: [1, 2, 1]}", "e.yaml:4: decode.seed.2: the axis has this value twice, got 1."),
        ("decode: {temperature: [0, 0.0]}", "e.yaml:4: decode: the axes give the same settings twice."),
        (
            "decode: {zip: {seed: [1, 2], top_k: [3]}}",
            'e.yaml:4: decode.zip: zip pairs lists of equal length, got {"seed": 2, "top_k": 1}.',
        ),
        (
            "decode: {zip: {seed: 1}}",
            "e.yaml:4: decode.zip.seed: zip takes lists of at least one value, got 1.",
        ),
        (
            "decode: {seed: 1, zip: {seed: [2]}}",
            "e.yaml:4: decode.zip.seed: the option is given twice: outside of zip, or in another zip.",
        ),
        (
            "decode: {zip: {seed: [0, 1], top_k: [2, -1]}}",
            "e.yaml:4: decode.zip.top_k.1: should be greater than or equal to 0, got -1.",
        ),
        ("measure: {repeats: 0}", "e.yaml:4: measure.repeats: should be greater than or equal to 1, got 0."),
        ("measure: {repeats: [1, 2]}", "e.yaml:4: measure.repeats: should be a valid integer, got [1, 2]."),
        (
            "measure: {processes: 0}",
            "e.yaml:4: measure.processes: should be greater than or equal to 1, got 0.",
        ),
        ("machine: {threads: 0}", "e.yaml:4: machine.threads: should be greater than or equal to 1, got 0."),
        (
            "machine: {device: cudda}",
            "e.yaml:4: machine.device: should be auto, cpu, cuda or cuda:N, got 'cudda'. Did you mean 'cuda'?",
        ),
        (
            "machine: {compile: peices}",
            "e.yaml:4: machine.compile: should be true, false or pieces, got 'peices'. Did you mean 'pieces'?",
        ),
        (
            "machine: {compile: 1}",
            "e.yaml:4: machine.compile: should be true, false or pieces, got 1. Known: true, false, pieces.",
        ),
        (
            "machine: {dtype: float64}",
            "e.yaml:4: machine.dtype: should be 'auto', 'float32', 'bfloat16' or 'float16', got 'float64'. "
            "Did you mean 'float16'?",
        ),
        ("methods: draft_model", "e.yaml:4: methods: should be a list of methods, each a name or {name: {options}}, "
                                 "got 'draft_model'."),
        ("methods: [3]", "e.yaml:4: methods.0: a method is a name or {name: {options}}, got 3."),
        ("methods: [{m: 4}]", "e.yaml:4: methods.0.m: the options of a method are a mapping, got 4."),
        (
            "methods:\n  - draft_model:\n    gamma: 4\n",
            "e.yaml:5: methods.0: an entry names one method, and its options stand indented below it, "
            'got {"draft_model": null, "gamma": 4}.',
        ),
    ],
)  # fmt: skip
def test_a_fault_gives_one_line_with_its_place(faults, text, line):
    assert faults(HEAD + text) == [line]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "targets: [pico]\nprompts: {source: stdlib}\n",
            ["e.yaml:1: name: required, but missing."],
        ),
        ("name: x\n", ["e.yaml:1: targets: required, but missing.", "e.yaml:1: prompts: required, but missing."]),
        (
            "name: x y\ntargets: [pico]\nprompts: {source: stdlib}\n",
            ["e.yaml:1: name: a name is made of letters, digits and . _ - only, got 'x y'."],
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {count: 2}\n",
            ["e.yaml:3: prompts.source: required, but missing."],
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {source: stdlb}\n",
            ["e.yaml:3: prompts.source: unknown prompt source, got 'stdlb'. Did you mean 'stdlib'?"],
        ),
        (
            "name: x\ntargets: [pico]\nprompts: {source: zzz}\n",
            [
                "e.yaml:3: prompts.source: unknown prompt source, got 'zzz'. Known: stdlib, mt_bench, spec_bench, "
                "alpaca, alpaca_eval, sharegpt, humaneval, gsm8k, hellaswag, mmlu."
            ],
        ),
        (
            "name: x\ntargets: []\nprompts: {source: stdlib}\n",
            ["e.yaml:2: targets: should be a list of at least one model, got []."],
        ),
        (
            "name: x\nprompts: {source: stdlib}\ntargets: [pico, 3, {modell: a}, pico]\n",
            [
                "e.yaml:3: targets.1: a target is a name or a mapping with the key model, got 3.",
                "e.yaml:3: targets.2.model: required, but missing.",
                "e.yaml:3: targets.2.modell: unknown key, got 'a'. Did you mean 'model'?",
                "e.yaml:3: targets.3: the target is given twice, got 'pico'.",
            ],
        ),
        (
            "name: x\nprompts: {source: stdlib}\ntargets: [{model: {shape: a, weights: hub}}]\n",
            ["e.yaml:3: targets.0.model.weights: should be 'random', got 'hub'. Known: random."],
        ),
    ],
)
def test_a_fault_in_the_head_of_a_file_is_named(faults, text, lines):
    assert faults(text) == lines


def test_all_faults_come_at_once_in_the_order_of_the_file(faults):
    text = HEAD + "decode: {seed: -1, batch_sise: 1}\nmachine: {threads: 0}\nmeasure: {repeats: 0}\n"
    assert faults(text) == [
        "e.yaml:4: decode.seed: should be greater than or equal to 0, got -1.",
        "e.yaml:4: decode.batch_sise: unknown key, got 1. Did you mean 'batch_size'?",
        "e.yaml:5: machine.threads: should be greater than or equal to 1, got 0.",
        "e.yaml:6: measure.repeats: should be greater than or equal to 1, got 0.",
    ]


def test_a_grid_that_is_too_large_is_refused_before_it_is_built(faults):
    seeds = ", ".join(map(str, range(200)))
    assert faults(HEAD + f"decode: {{seed: [{seeds}], top_k: [{seeds}]}}\n") == [
        "e.yaml:4: decode: the grid has 40000 points; 10000 is the limit."
    ]


def test_an_override_wins_over_the_file_and_is_part_of_the_resolved_yaml(experiment):
    found = experiment(HEAD + "decode: {batch_size: 1}\n", "decode.batch_size=[2, 8]", "machine.threads=2")
    assert [d.batch_size for d in found.decode] == [2, 8]
    assert found.machine[0].threads == 2
    assert "batch_size:\n  - 2\n  - 8\n" in found.yaml


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("decode.batch_size=0", "--set decode.batch_size: should be greater than or equal to 1, got 0."),
        ("decode.batch_sise=8", "--set decode.batch_sise: unknown key, got 8. Did you mean 'batch_size'?"),
        (
            "decod.batch_size=8",
            "--set decod.batch_size: decod: unknown key, got {\"batch_size\": 8}. Did you mean 'decode'?",
        ),
        ("targets.3=pico", "--set targets.3: the list has the entries 0 to 0, got '3'."),
        ("name.x=1", "--set name.x: 'x' leads into a value that has no keys, got 'x'."),
    ],
)
def test_a_wrong_override_is_reported_as_the_override_that_it_is(faults, override, line):
    assert faults(HEAD, override) == [line]


def test_a_missing_file_is_one_line_with_the_nearest_name(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(HEAD)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "quickstrat.yaml")
    assert str(caught.value) == f"{tmp_path}/quickstrat.yaml: no such file. Did you mean 'quickstart.yaml'?"


def test_a_folder_and_a_binary_file_are_refused_in_one_line(tmp_path):
    (tmp_path / "e.yaml").write_bytes(b"\xff\xfe\x00")
    for path, words in [
        (tmp_path, "cannot be read: Is a directory."),
        (tmp_path / "e.yaml", "not a text file in UTF-8"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load(path)


def test_reading_an_experiment_imports_no_torch():
    code = "import sys, specbench.config, specbench.grid, specbench.registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_prompt_template_needs_one_place_for_the_prompt(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: a\ntargets: [pico]\nprompts: {source: a.txt, count: 1, template: 'USER: {promt}'}\n"
        "methods: [autoregressive]\n"
    )
    with pytest.raises(ConfigError, match=r"a.yaml:3: prompts.template: must hold \{prompt\} once"):
        load(file)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("ids: [a, b], count: 3", "prompts: count is 3, and ids names 2 prompts; leave count out"),
        ("ids: [a, a]", "prompts.ids: a is given twice, got"),
        ("ids: [a], categories: [b]", "prompts: ids and categories are two ways to choose prompts; give one"),
        ("format: gsm8", "prompts.format: unknown format, got 'gsm8'. Did you mean 'gsm8k'?"),
        ("format: gsm8k, field: x", "prompts: format and field are two ways to say one thing; give one"),
        ("chat_template: true, template: '{prompt}'", "prompts: chat_template and template are two ways to say one"),
        ("next_template: 'USER:'", "prompts.next_template: must hold {prompt} once"),
    ],
)
def test_prompts_that_contradict_themselves_are_refused(tmp_path, options, fault):
    file = tmp_path / "a.yaml"
    file.write_text(f"name: a\ntargets: [pico]\nprompts: {{source: a.jsonl, {options}}}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert fault in str(caught.value)


def test_prompts_that_are_named_are_as_many_as_their_names_and_no_axis(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: a\ntargets: [pico]\nprompts: {source: stdlib, ids: [x, y]}\n")
    assert [prompts.number for prompts in load(file).prompts] == [2]


CLAIM = "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nclaim: "


@pytest.mark.parametrize(
    "claim",
    [
        "{says: it is fast}",
        "{says: a beats b, source: a paper, faster: {draft: a}, than: {draft: b}}",
        "{says: it is fast, published: {lookup: 1.5}}",
    ],
)
def test_a_claim_names_two_kinds_of_arms_or_published_values(experiment, claim):
    assert "claim:" in experiment(CLAIM + claim).yaml


@pytest.mark.parametrize(
    "claim",
    [
        "{says: a beats nothing, faster: {draft: a}}",
        "{says: a beats itself, faster: {draft: a}, than: {draft: a}}",
        "{source: a paper}",
        "{says: it is fast, fastr: {}}",
    ],
)
def test_a_claim_that_compares_nothing_is_refused_with_its_line(experiment, claim):
    with pytest.raises(ConfigError, match=r"e\.yaml:4: claim"):
        experiment(CLAIM + claim)


BESIDE = "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nbeside: "


@pytest.mark.parametrize("names", ["redrafter-table-3", "[redrafter-table-1, redrafter-figure-6]"])
def test_an_experiment_may_set_itself_beside_published_numbers(experiment, names):
    assert f"beside:{' ' if names[0] != '[' else ''}" in experiment(BESIDE + names).yaml


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (
            "redrafter-table-5",
            r"e\.yaml:4: beside: unknown published numbers, got '.*-5'\. Did you mean 'redrafter-table-\d'",
        ),
        (
            "[redrafter-table-1, redrafter-figure6]",
            r"e\.yaml:4: beside\.1: unknown published numbers, got '.*6'\. Did you mean 'redrafter-figure-6'",
        ),
        ("{redrafter-table-1: yes}", r"e\.yaml:4: beside: should be a list"),
    ],
)
def test_published_numbers_that_nobody_knows_are_refused_with_a_suggestion(experiment, names, line):
    with pytest.raises(ConfigError, match=line):
        experiment(BESIDE + names)


def test_the_readme_of_the_experiments_names_all_published_numbers():
    text = Path("experiments/README.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in PUBLISHED)


# --- studies


def test_studies_have_the_documented_defaults(experiment):
    found = experiment(HEAD + "methods: [prompt_lookup]\ntraces:\nlatencies:\nscores:\n")
    assert found.traces == TraceSection(gamma=8, group=8)
    assert found.latencies == LatencySection(
        query_tokens=None,
        batch_sizes=None,
        context_tokens=None,
        models=(),
        modes=None,
        rounds=20,
        burst=4,
        seed=0,
    )
    assert found.scores == ScoreSection(data=("stdlib",), count=None, length=512, batch_size=16, models=())


def test_lists_of_a_study_are_no_axes(experiment):
    section = "{query_tokens: [1, 2], batch_sizes: [1, 4], models: [pico, {shape: opt-125m}], modes: [eager, compiled]}"
    found = experiment(HEAD + f"latencies: {section}").latencies
    assert (found.query_tokens, found.batch_sizes, found.modes) == ((1, 2), (1, 4), ("eager", "compiled"))
    assert found.models == ("pico", RandomModel(shape="opt-125m"))
    assert found.points == 8


def test_one_data_set_needs_no_list(experiment):
    assert experiment(HEAD + "scores: {data: mmlu}").scores.data == ("mmlu",)
    assert experiment(HEAD + "scores: {data: [mmlu, stdlib]}").scores.data == ("mmlu", "stdlib")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("latencies: {models: [a]}", []),
        ("scores: {models: [a]}", []),
        ("latencies: {}", ["targets"]),
        ("latencies: {models: [a]}\nscores: {}", ["targets"]),
        ("traces: {}", ["targets", "prompts"]),
        ("targets: [a]\nscores: {}", []),
        ("targets: [a]\nscores: {}\nmethods: [prompt_lookup]", ["prompts"]),
        ("targets: [{model: a, methods: [prompt_lookup]}]\nscores: {}", ["prompts"]),
    ],
)
def test_a_file_needs_what_its_sections_do(experiment, faults, text, missing):
    text = f"name: x\n{text}\n"
    if missing:
        assert faults(text) == [f"e.yaml:1: {name}: required, but missing." for name in missing]
    else:
        assert experiment(text).prompts == ()


def test_faults_of_studies_are_named(faults):
    text = HEAD + (
        "traces: {gamma: [1, 2]}\nlatencies: {query_tokens: [], batch_sizes: [0], mode: eager}\nscores: [stdlib]\n"
    )
    assert faults(text) == [
        "e.yaml:4: traces.gamma: should be a valid integer, got [1, 2].",
        "e.yaml:5: latencies.query_tokens: should have at least one entry, got [].",
        "e.yaml:5: latencies.batch_sizes.0: should be greater than or equal to 1, got 0.",
        "e.yaml:5: latencies.mode: unknown key, got 'eager'. Did you mean 'modes'?",
        'e.yaml:6: scores: should be a mapping of options, got ["stdlib"].',
    ]


# --- lists of experiments


@pytest.fixture
def listed(tmp_path):
    """Write files and open the one that lists the others; what it holds by name."""

    def write_and_open(files: dict[str, str], *overrides: str):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, "utf-8")
        return {found.values["name"]: found.values for found in open_documents(tmp_path / "all.yaml", overrides)}

    return write_and_open


A = "name: a\ntargets: [pico]\nprompts: {source: stdlib}\nmethods: [{prompt_lookup: {gamma: 4}}]\n"
B = "name: b\nlatencies: {models: [pico]}\n"
LISTED = {"all.yaml": "experiments: [sub/a.yaml, b.yaml]\n", "sub/a.yaml": A, "b.yaml": B}


def test_the_files_of_a_list_lie_beside_it(listed):
    assert list(listed(LISTED)) == ["a", "b"]


def test_a_file_that_is_no_list_is_one_experiment(listed):
    assert list(listed({"all.yaml": A})) == ["a"]


def test_an_override_of_a_list_goes_to_those_that_have_its_key(listed):
    found = listed(
        LISTED, "measure.repeats=2", "latencies.rounds=6", "methods.0.prompt_lookup.gamma=2", "targets=[pico-deep]"
    )
    assert [values["measure"] for values in found.values()] == [{"repeats": 2}] * 2
    assert found["b"]["latencies"] == {"models": ["pico"], "rounds": 6}
    assert "latencies" not in found["a"]
    assert found["a"]["methods"] == [{"prompt_lookup": {"gamma": 2}}]
    assert (found["a"]["targets"], "targets" in found["b"]) == (["pico-deep"], False)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"all.yaml": "experiments: []"}, "all.yaml:1: experiments: should be a list of at least one file, got []."),
        ({"all.yaml": "experiments: [a.yml]"}, "a.yml: no such file."),
        ({**LISTED, "b.yaml": A}, "all.yaml:1: experiments.1: another experiment of the list has the same name"),
        ({**LISTED, "b.yaml": "experiments: [x]"}, "b.yaml:1: experiments: this file lists experiments; give one of"),
        ({**LISTED, "all.yaml": "experiments: [b.yaml]\nmeasure: {}"}, "all.yaml:2: measure: unknown key, got {}."),
    ],
    ids=["empty", "missing", "twice", "nested", "other keys"],
)
def test_a_fault_of_a_list_is_one_line(listed, files, line):
    with pytest.raises(ConfigError) as caught:
        listed(files)
    (found,) = str(caught.value).splitlines()
    assert line in found


def test_an_override_that_no_experiment_of_a_list_has_is_refused(listed):
    with pytest.raises(ConfigError, match=r"--set scores\.count=3: none of the experiments has that key"):
        listed(LISTED, "scores.count=3")


@pytest.mark.parametrize(
    ("machine", "device", "words"),
    [
        ({}, "cpu", "eager"),
        ({"compile": True}, "cpu", "compiled"),
        ({}, "cuda", "graphs"),
        ({"compile": True}, "cuda", "graphs, compiled"),
        ({"compile": "pieces"}, "cpu", "compiled pieces"),
        ({"compile": "pieces"}, "cuda", "graphs, compiled pieces"),
        ({"graphs": False}, "cuda", "eager"),
        pytest.param({"parallel": "device_map"}, "cuda", "eager", id="one graph is of one device"),
    ],
)
def test_how_phases_run_is_told_in_the_words_of_the_column(machine, device, words):
    assert MachineSettings(**machine).execution(device) == words
