"""specbench.rehearsal"""

from specbench.config import RandomModel
from specbench.document import parse
from specbench.grid import DRAFTS, Plan, read_plan
from specbench.models.shapes import shape_of
from specbench.registry import options_class
from specbench.rehearsal import rehearsal


def rehearsed(methods: str = "[]", *, decode: str = "{}", targets: str = "[pico]", rest: str = "") -> Plan:
    text = f"name: x\ntargets: {targets}\nprompts: {{source: mt_bench}}\ndecode: {decode}\nmethods: {methods}\n{rest}"
    return rehearsal(read_plan(parse(text, "e.yaml"), options_class)[1])


def test_it_is_the_same_grid_on_the_embedded_family():
    found = rehearsed(
        "[{draft_model: {draft: [hub/a, hub/b], gamma: [2, 4], draft_latency_ms: 5}}, {medusa: {heads: hub/h}}]",
        decode="{max_new_tokens: 512, min_new_tokens: 64, batch_size: [1, 8, 32], chat_template_kwargs: {a: 1}}",
        targets="[hub/large, hub/larger]",
        rest="machine: {device: cuda, dtype: float16}",
    )
    assert found.experiment_name == "x-rehearsal"
    assert [(c.index, c.target.name, c.decode.batch_size) for c in found.cells] == [(0, "pico", 1), (1, "pico", 4)]
    assert [(arm.name, arm.draft_latency_ms) for arm in found.cells[0].arms[2:]] == [
        ("draft_model draft=pico-wide gamma=2", 5.0), ("draft_model draft=pico-wide gamma=4", 5.0),
        ("draft_model draft=pico-deep gamma=2", 5.0), ("draft_model draft=pico-deep gamma=4", 5.0),
        ("medusa", None),
    ]  # fmt: skip
    first = found.cells[0]
    assert first.arms[6].options["heads"] == "pico-medusa"
    assert (first.prompts.source, first.prompts.count, first.prompts.max_prompt_tokens) == ("stdlib", 4, 128)
    assert (first.decode.max_new_tokens, first.decode.min_new_tokens, first.decode.chat_template_kwargs) == (32, 32, {})
    assert (first.machine.device, first.machine.dtype) == ("cpu", "auto")
    assert (found.measure.repeats, found.measure.warmup) == (1, 1)


def test_with_and_without_graphs_is_one_cell_where_there_are_none():
    cells = rehearsed(rest="machine: {graphs: [false, true], compile: [false, true]}").cells
    assert [(cell.machine.graphs, cell.machine.compile) for cell in cells] == [(True, False), (True, True)]


def test_random_weights_of_a_method_s_own_become_those_of_the_family():
    arms = rehearsed("[{medusa: {heads: 'random:heads=1'}}, {redrafter: {drafter: random}}]").cells[0].arms
    assert [arm.drafters for arm in arms[2:]] == [["pico-medusa"], ["pico-redrafter"]]


def test_embedded_drafts_stay_as_they_are():
    found = rehearsed("[{draft_model: {draft: [pico-tall, pico-wide]}}]").cells[0].arms
    assert [arm.options["draft"] for arm in found[2:]] == ["pico-tall", "pico-wide"]


def test_arms_that_become_equal_are_kept_once():
    found = rehearsed("[{draft_model: {draft: [a, b, c, d, e, f, g]}}]").cells[0].arms
    assert [arm.name for arm in found[2:]] == [f"draft_model draft={name}" for name in DRAFTS]


def test_composed_arms_stay_composed():
    methods = "[{draft_model: {draft: [a, b], latency_mode: composed}}]"
    (cell,) = rehearsed(methods, rest="traces: {}\nlatencies: {}\n").cells
    assert [arm.name for arm in cell.arms] == ["autoregressive", "autoregressive-twin"]
    assert [arm.options["draft"] for arm in cell.composed] == ["pico-wide", "pico-deep"]


def test_a_study_keeps_the_ends_of_its_axes_and_few_rounds():
    section = "{query_tokens: [1, 2, 5, 9], batch_sizes: [1, 8, 64], context_tokens: [512, 4096], rounds: 50, burst: 8}"
    found = rehearsed("[{draft_model: {draft: a}}]", decode="{batch_size: [1, 64]}", rest=f"latencies: {section}")
    assert found.latencies.query_tokens == (1, 9)
    assert found.latencies.batch_sizes == (1, 4)
    assert found.latencies.context_tokens is None  # what the short texts of a rehearsal reach
    assert (found.latencies.rounds, found.latencies.burst) == (6, 1)
    assert found.latencies.models == ("pico", "pico-wide")


def test_shapes_become_small_ones_of_which_three_trade_depth_for_width():
    shapes = ", ".join(f"{{shape: {name}}}" for name in ("opt-125m", "opt-350m", "opt-1.3b", "opt-125m"))
    found = rehearsed(rest=f"latencies: {{models: [{shapes}, 'random:opt-6.7b', hub/m, pico-flat]}}").latencies.models
    small = [shape_of(model.shape) for model in found if isinstance(model, RandomModel)]
    assert [shape.layers for shape in small] == [1, 4, 16, 2]
    sizes = [shape.parameters for shape in small[:3]]
    assert max(sizes) < 1.05 * min(sizes)
    assert [model for model in found if isinstance(model, str)] == ["pico", "pico-wide", "pico-flat"]


def test_scores_are_of_a_few_embedded_models_on_a_little_text():
    scores = rehearsed(rest="scores: {data: [hellaswag, mmlu], count: 1000, length: 2048, models: [hub/m]}").scores
    assert (scores.data, scores.count, scores.length) == (("stdlib",), 4, 128)
    assert scores.models == ("pico", "pico-wide")
