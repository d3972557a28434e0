"""specbench.grid"""

from dataclasses import replace
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from specbench.config import RandomModel, interpret
from specbench.document import Faults, parse
from specbench.errors import ConfigError, ContractError, UnknownNameError
from specbench.grid import Arm, Plan, config_hash, expand, read_plan, trial_id
from specbench.registry import options_class as real_options


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tree(Options):
    branching: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)


class Never(Options):
    kind: Literal["never"] = "never"


class Unsure(Options):
    kind: Literal["unsure"]
    threshold: float = Field(0.4, ge=0, le=1)


class Drafter(Options):
    draft: str = Field(json_schema_extra={"model": True})
    gamma: int = Field(4, ge=1)
    widths: tuple[int, ...] = ()
    tree: Tree | None = None
    stop: Annotated[Never | Unsure, Field(discriminator="kind")] = Never()

    @model_validator(mode="after")
    def _agree(self):
        if self.tree and self.gamma == 99:
            raise ValueError("a tree and gamma 99 do not go together")
        return self


class Heads(Options):
    heads: str | None = Field(None, json_schema_extra={"model": "pico-heads"})


class Greedy(Options):
    label: str = "taken"


TABLE = {"autoregressive": Options, "drafter": Drafter, "heads": Heads, "greedy": Greedy}


def options_class(name: str) -> type[BaseModel]:
    if name not in TABLE:
        raise UnknownNameError(f"unknown method {name!r}. Did you mean 'drafter'?")
    return TABLE[name]


def plan(methods: str = "[]", *, decode: str = "{}", targets: str = "[pico]", rest: str = "") -> Plan:
    text = f"name: x\ntargets: {targets}\nprompts: {{source: stdlib}}\ndecode: {decode}\nmethods: {methods}\n{rest}"
    return read_plan(parse(text, "e.yaml"), options_class)[1]


def arms(methods: str) -> list[Arm]:
    """The arms beside the two autoregressive ones."""
    return list(plan(methods).cells[0].arms[2:])


def faults(methods: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(methods)
    return [line.removeprefix("e.yaml:5: ") for line in str(caught.value).splitlines()]


def test_every_cell_holds_the_autoregressive_arm_twice_even_when_nobody_asked():
    [cell] = plan().cells
    assert [(arm.method, arm.name, arm.twin) for arm in cell.arms] == [
        ("autoregressive", "autoregressive", False),
        ("autoregressive", "autoregressive-twin", True),
    ]


def test_asking_for_autoregressive_changes_its_label_and_adds_no_arm():
    found = plan("[{drafter: {draft: a}}, {autoregressive: {label: baseline}}]").cells[0].arms
    assert [(arm.name, arm.label) for arm in found] == [
        ("autoregressive", "baseline"), ("autoregressive-twin", "baseline"), ("drafter", "drafter"),
    ]  # fmt: skip


def test_cells_run_through_targets_machine_prompts_and_decode_in_this_order():
    found = plan(decode="{batch_size: [1, 4]}", targets="[a, b]", rest="machine: {dtype: [float32, bfloat16]}")
    assert [(c.index, c.target.name, c.machine.dtype, c.decode.batch_size) for c in found.cells] == [
        (0, "a", "float32", 1), (1, "a", "float32", 4), (2, "a", "bfloat16", 1), (3, "a", "bfloat16", 4),
        (4, "b", "float32", 1), (5, "b", "float32", 4), (6, "b", "bfloat16", 1), (7, "b", "bfloat16", 4),
    ]  # fmt: skip
    assert len(list(found.trials)) == 16


def test_a_target_s_own_methods_run_on_that_target_only():
    found = plan("[{drafter: {draft: a}}]", targets="[{model: t, methods: [{heads: {heads: h}}]}, u]")
    assert [[arm.method for arm in cell.arms[2:]] for cell in found.cells] == [["heads", "drafter"], ["drafter"]]


def test_axes_of_options_and_of_the_draft_latency_are_crossed():
    found = arms("[{drafter: {draft: a, gamma: [2, 4], draft_latency_ms: [null, 5]}}]")
    assert [(arm.options["gamma"], arm.draft_latency_ms) for arm in found] == [(2, None), (2, 5.0), (4, None), (4, 5.0)]


def test_zip_pairs_options_and_takes_the_draft_latency_as_well():
    found = arms("[{drafter: {zip: {draft: [a, b], gamma: [2, 4], draft_latency_ms: [1.0, null]}}}]")
    assert [(arm.options["draft"], arm.options["gamma"], arm.draft_latency_ms) for arm in found] == [
        ("a", 2, 1.0), ("b", 4, None),
    ]  # fmt: skip


def test_an_option_that_is_a_list_by_nature_needs_grid_for_an_axis():
    one = arms("[{drafter: {draft: a, tree: {branching: [4, 2]}, widths: [1, 2]}}]")
    two = arms("[{drafter: {draft: a, tree: {branching: {grid: [[4, 2], [2]]}}}}]")
    assert [(arm.options["tree"], arm.options["widths"]) for arm in one] == [({"branching": [4, 2]}, [1, 2])]
    assert [arm.options["tree"] for arm in two] == [{"branching": [4, 2]}, {"branching": [2]}]


def test_an_axis_may_stand_inside_a_mapping_of_options():
    found = arms("[{drafter: {draft: a, stop: {kind: unsure, threshold: [0.3, 0.5]}}}]")
    assert [arm.options["stop"]["threshold"] for arm in found] == [0.3, 0.5]


def test_options_carry_every_default_and_build_the_method_s_class():
    [arm] = arms("[{drafter: {draft: a, widths: [1, 2]}}]")
    assert arm.options == {"draft": "a", "gamma": 4, "widths": [1, 2], "tree": None, "stop": {"kind": "never"}}
    assert arm.build(Drafter) == Drafter(draft="a", widths=(1, 2))


def test_two_targets_of_one_name_need_a_label(tmp_path):
    text = "name: a\ntargets: [/one/final, {targets}]\nprompts: {source: stdlib}\nmethods: [heads]\n"
    with pytest.raises(ConfigError, match=r":2: targets.1: another target has that name; .* got 'final'\.$"):
        read_plan(parse(text.replace("{targets}", "/two/final"), "experiment.yaml"), options_class)
    _, plan = read_plan(
        parse(text.replace("{targets}", "{model: /two/final, label: other}"), "experiment.yaml"), options_class
    )
    assert [cell.target.name for cell in plan.cells] == ["final", "other"]


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        ("[{drafter: {draft: a}}]", ["drafter"]),
        ("[{drafter: {draft: a, gamma: [2, 4]}}]", ["drafter gamma=2", "drafter gamma=4"]),
        (
            "[{drafter: {draft: a}}, {drafter: {draft: b, gamma: 8}}]",
            ["drafter draft=a gamma=4", "drafter draft=b gamma=8"],
        ),
        (
            "[{drafter: {draft: a, draft_latency_ms: [null, 2.5]}}]",
            ["drafter latency=measured", "drafter latency=2.5ms"],
        ),
        (
            "[{drafter: {draft: a, tree: {branching: {grid: [[4, 2], [3]]}}}}]",
            ["drafter tree.branching=4x2", "drafter tree.branching=3"],
        ),
        ("[{drafter: {draft: a, label: mine}}, {drafter: {draft: b}}]", ["mine", "drafter"]),
        ("[{drafter: {draft: a, label: mine, gamma: [2, 4]}}]", ["mine gamma=2", "mine gamma=4"]),
        ("[{drafter: {draft: a, label: heads}}, {heads: {heads: h}}]", ["heads draft=a gamma=4 widths=none tree=null "
         "stop.kind=never", "heads heads=h"]),
        ("[{drafter: {draft: a, label: autoregressive-twin}}]", ["autoregressive-twin #2"]),
        ("[{drafter: {draft: [/my/one, ./two, owner/three]}}]",
         ["drafter draft=one", "drafter draft=two", "drafter draft=owner/three"]),
        ("[{drafter: {draft: [/first/final, /second/final]}}]",
         ["drafter draft=/first/final", "drafter draft=/second/final"]),
    ],
)  # fmt: skip
def test_an_arm_is_named_by_its_label_and_the_options_in_which_it_differs(methods, names):
    assert [arm.name for arm in arms(methods)] == names


@pytest.mark.parametrize(
    ("methods", "lines"),
    [
        ("[draftr]", ["methods.0: unknown method 'draftr'. Did you mean 'drafter'?"]),
        ("[{draftr: {x: 1}}]", ["methods.0.draftr: unknown method 'draftr'. Did you mean 'drafter'?"]),
        ("[drafter]", ["methods.0.draft: required, but missing."]),
        (
            "[{drafter: {draft: a, gama: 3}}]",
            ["methods.0.drafter.gama: unknown key, got 3. Did you mean 'gamma'?"],
        ),
        (
            "[{drafter: {draft: a, gamma: [2, 0]}}]",
            ["methods.0.drafter.gamma.1: should be greater than or equal to 1, got 0."],
        ),
        ("[{drafter: {draft: a, gamma: '4'}}]", ["methods.0.drafter.gamma: should be a valid integer, got '4'."]),
        (
            "[{drafter: {draft: a, draft_latency_ms: [null, -1]}}]",
            ["methods.0.drafter.draft_latency_ms.1: should be greater than 0, got -1."],
        ),
        (
            "[{drafter: {draft: a, tree: {branching: {grid: [[2], [2, x]]}}}}]",
            ["methods.0.drafter.tree.branching.grid.1.1: should be a valid integer, got 'x'."],
        ),
        (
            "[{drafter: {draft: a, stop: {kind: unsure, treshold: 1}}}]",
            ["methods.0.drafter.stop.treshold: unknown key, got 1. Did you mean 'threshold'?"],
        ),
        (
            "[{drafter: {draft: a, gamma: 99, tree: {branching: [2]}}}]",
            ["methods.0.drafter: a tree and gamma 99 do not go together."],
        ),
        (
            "[{drafter: {zip: {draft: [a, b], gamma: [1, 2, 3]}}}]",
            ['methods.0.drafter.zip: zip pairs lists of equal length, got {"draft": 2, "gamma": 3}.'],
        ),
        (
            "[{drafter: {draft: a}}, {drafter: {draft: a, gamma: 4, label: same}}]",
            ["methods.1.drafter: an arm with the same options stands at methods.0.drafter."],
        ),
        (
            "[autoregressive, autoregressive]",
            ["methods.1: autoregressive is given twice; its second arm is made without asking."],
        ),
        (
            "[{autoregressive: {draft_latency_ms: 5}}]",
            ["methods.0.autoregressive.draft_latency_ms: autoregressive drafts nothing that could take time."],
        ),
        (
            "[{drafter: {draft: 3}}, {heads: {head: h}}]",
            [
                "methods.0.drafter.draft: should be a valid string, got 3.",
                "methods.1.heads.head: unknown key, got 'h'. Did you mean 'heads'?",
            ],
        ),
    ],
)
def test_faults_in_methods_are_reported_with_their_place(methods, lines):
    assert faults(methods) == lines


def test_faults_of_sections_and_of_methods_come_together():
    text = "name: x\ntargets: [pico]\nprompts: {source: stdlb}\nmethods:\n  - {drafter: {draft: a, gama: 1}}\n"
    with pytest.raises(ConfigError) as caught:
        read_plan(parse(text, "e.yaml"), options_class)
    assert str(caught.value).splitlines() == [
        "e.yaml:3: prompts.source: unknown prompt source, got 'stdlb'. Did you mean 'stdlib'?",
        "e.yaml:5: methods.0.drafter.gama: unknown key, got 1. Did you mean 'gamma'?",
    ]


def test_expand_gives_the_plan_that_read_plan_gives():
    document = parse(
        "name: x\ntargets: [pico]\nprompts: {source: stdlib}\nmethods: [{drafter: {draft: a}}]\n", "e.yaml"
    )
    experiment, expected = read_plan(document, options_class)
    assert expand(interpret(document, Faults(document)), options_class) == expected
    assert experiment.name == "x"


def test_a_method_whose_option_takes_a_common_name_breaks_the_contract():
    with pytest.raises(ContractError, match="method 'greedy' has an option 'label'"):
        plan("[greedy]")


def the_trial(methods: str = "[{drafter: {draft: a}}]", arm: int = 2, **sections: str) -> str:
    cell = plan(methods, **sections).cells[0]
    return config_hash(cell.arms[arm], cell)


def test_the_hash_of_a_configuration_never_changes_by_accident():
    assert the_trial(arm=0) == "ffc8b955cf3d50ae"


@pytest.mark.parametrize(
    "other",
    [
        {"methods": "[{drafter: {draft: a, label: mine}}]"},
        {"methods": "[{heads: {}}, {drafter: {draft: a}}]", "arm": 3},
        {"methods": "[{drafter: {draft: a, gamma: 4}}]"},
        {"targets": "[{model: pico, label: mine}]"},
        {"rest": "machine: {device: cpu, threads: 2}"},
        {"rest": "measure: {repeats: 5}"},
        {"decode": "{temperature: 0}"},
    ],
    ids=str,
)
def test_what_cannot_change_a_result_leaves_the_hash(other):
    assert the_trial(**other) == the_trial()


@pytest.mark.parametrize(
    "other",
    [
        {"methods": "[{drafter: {draft: b}}]"},
        {"methods": "[{drafter: {draft: a, gamma: 5}}]"},
        {"methods": "[{drafter: {draft: a, draft_latency_ms: 5}}]"},
        {"targets": "[other]"},
        {"targets": "[{model: {shape: pico}}]"},
        {"decode": "{temperature: 0.1}"},
        {"decode": "{batch_size: 2}"},
        {"decode": "{rule: match}"},
        {"rest": "machine: {dtype: float32}"},
        {"rest": "machine: {attention: eager}"},
    ],
    ids=str,
)
def test_what_can_change_a_result_changes_the_hash(other):
    assert the_trial(**other) != the_trial()


def test_the_twins_have_hashes_of_their_own():
    assert the_trial(arm=0) != the_trial(arm=1)


def test_a_trial_is_named_by_its_configuration_and_by_what_it_ran_with():
    cell = plan().cells[0]
    facts = {"weights_sha": "w", "tokenizer_sha": "t", "prompts_sha": "p", "measurement_version": 1}
    changed = [{"weights_sha": "x"}, {"tokenizer_sha": "x"}, {"prompts_sha": "x"}, {"measurement_version": 2}]
    ids = {trial_id(cell, cell.arms[0], **{**facts, **change}) for change in [{}, *changed]}
    assert len(ids) == 5
    assert all(len(name) == 16 for name in ids)


def test_a_plan_cannot_be_changed_but_can_be_copied():
    cell = plan().cells[0]
    with pytest.raises(AttributeError):
        cell.index = 3
    assert replace(cell, index=3).index == 3


# --- arms that do not run, and studies

CHAINS = "{draft: d, gamma: [2, 4], latency_mode: composed}"
ALL = "traces: {gamma: 8}\nlatencies: {}\nscores: {}\n"


def real_plan(methods: str, *, decode: str = "{}", rest: str = ALL, targets: str = "[pico]") -> Plan:
    """With the methods of the repository."""
    text = f"name: x\ntargets: {targets}\nprompts: {{source: stdlib}}\ndecode: {decode}\nmethods: {methods}\n{rest}"
    return read_plan(parse(text, "e.yaml"), real_options)[1]


def test_composed_arms_stand_beside_those_that_run_and_share_no_name_with_them():
    (cell,) = real_plan("[{draft_model: {draft: d, gamma: 2, latency_mode: [measured, composed]}}]").cells
    assert [arm.name for arm in cell.arms[2:]] == ["draft_model latency=measured"]
    assert [arm.name for arm in cell.composed] == ["draft_model latency=composed"]


def test_a_composed_arm_changes_no_trial():
    alone = real_plan("[{draft_model: {draft: d, gamma: 2}}]").cells[0]
    beside = real_plan(f"[{{draft_model: {{draft: d, gamma: 2}}}}, {{draft_model: {CHAINS}}}]").cells[0]
    assert [config_hash(arm, alone) for arm in alone.arms] == [config_hash(arm, beside) for arm in beside.arms]


def test_a_composed_arm_may_have_any_draft_latency():
    options = "{draft: d, gamma: 2, latency_mode: composed, draft_latency_ms: [null, 0.5]}"
    (cell,) = real_plan(f"[{{draft_model: {options}}}]").cells
    assert [arm.name for arm in cell.composed] == [
        "draft_model latency=composed", "draft_model latency=composed 0.5ms",
    ]  # fmt: skip


def test_forward_times_are_those_of_all_models_at_what_the_arms_need():
    methods = f"[{{draft_model: {CHAINS}}}, {{draft_model: {{draft: e, gamma: 7}}}}]"
    found = real_plan(methods, decode="{batch_size: [4, 1]}", targets="[pico, t]").latencies
    assert set(found.models) == {"pico", "t", "d", "e"}
    assert found.query_tokens == (1, 2, 3, 5, 8)
    assert found.batch_sizes == (4, 1)


def test_what_a_study_names_is_taken_as_it_stands():
    rest = "traces:\nlatencies: {query_tokens: [1, 9], batch_sizes: [1], models: [pico, m]}\nscores: {models: [n]}\n"
    found = real_plan(f"[{{draft_model: {CHAINS}}}]", rest=rest)
    assert (found.latencies.models, found.latencies.query_tokens) == (("pico", "d", "m"), (1, 9))
    assert found.scores.models == ("pico", "d", "n")


def test_random_weights_are_timed_and_not_scored():
    found = real_plan("[{draft_model: {draft: 'random:1x32x2x64'}}]", targets="[{model: {shape: opt-125m}}]")
    assert len(found.latencies.models) == 2
    assert found.scores.models == ()


def test_cells_that_differ_in_batch_size_alone_share_their_traces():
    found = real_plan(f"[{{draft_model: {CHAINS}}}]", decode="{batch_size: [1, 4], temperature: [0, 0.8]}")
    assert (len(found.cells), len(found.texts), found.traces) == (4, 2, 2)


def test_a_file_without_prompts_has_studies_and_no_cells():
    text = "name: x\nlatencies: {models: [a, {shape: 1x32x2x64}]}\nmachine: {threads: [1, 2]}\n"
    found = read_plan(parse(text, "e.yaml"), real_options)[1]
    assert found.cells == ()
    assert found.latencies.models == ("a", RandomModel(shape="1x32x2x64"))
    assert [machine.threads for machine in found.studies.machines] == [1, 2]


@pytest.mark.parametrize(
    ("methods", "rest", "line"),
    [
        (CHAINS, "latencies: {}", "latency_mode: composed needs the section traces, which says what drafts would be"),
        (
            CHAINS,
            "traces: {}",
            "latency_mode: composed needs the section latencies, which says how long forwards take.",
        ),
        (
            "{draft: d, latency_mode: composed, tree: {branching: [2, 1]}}",
            ALL,
            "latency_mode: only chains of a draft_model can be composed, got 'composed'.",
        ),
        (CHAINS, ALL + "decode: {rule: {synthetic: {mean_length: 2}}}", "decode.rule: under it a text depends on its"),
        (
            CHAINS,
            "traces: {}\nlatencies: {modes: [compiled]}",
            "latencies.modes: composed arms take the times of forwards that run as they would, eager or graphs, got",
        ),
        (
            CHAINS,
            ALL + "machine: {compile: pieces}",
            "machine.compile: composed arms take the times of forwards that run as they would, and none are taken with "
            "compiled pieces, got 'pieces'.",
        ),
        (CHAINS, "traces: {}\nlatencies: {query_tokens: [1, 3]}", "latencies.query_tokens: composed arms need 5,"),
        (CHAINS, "traces: {}\nlatencies: {batch_sizes: [2, 4]}", "latencies.batch_sizes: composed arms need 1,"),
        ("{draft: d, latency_mode: injected}", ALL, "latency_mode: should be 'measured' or 'composed', got 'injected'"),
        ("{draft: d, tree: {branching: [2, 1]}}", "traces: {}", "traces: no arm is a draft_model that drafts chains"),
    ],
    ids=[
        "no traces",
        "no latencies",
        "a tree",
        "synthetic",
        "compiled",
        "pieces",
        "few tokens",
        "few rows",
        "injected",
        "no chain",
    ],
)
def test_what_cannot_be_composed_is_one_line(methods, rest, line):
    text = f"name: x\ntargets: [pico]\nprompts: {{source: stdlib}}\nmethods: [{{draft_model: {methods}}}]\n{rest}\n"
    with pytest.raises(ConfigError) as caught:
        read_plan(parse(text, "e.yaml"), real_options)
    (found,) = str(caught.value).splitlines()
    assert line in found


def test_autoregressive_cannot_be_composed():
    with pytest.raises(ConfigError, match="only chains of a draft_model can be composed"):
        real_plan("[{autoregressive: {latency_mode: composed}}]")
