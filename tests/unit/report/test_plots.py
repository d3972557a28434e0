"""specbench.report.plots"""

import colorsys
import dataclasses
import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from specbench.analysis.closed_forms import expected_tokens
from specbench.records.store import Store
from specbench.report import plots
from specbench.report.metrics import frames, load
from tests.unit.report.a_study import forward
from tests.unit.report.limits_of_arms import write_limits
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

# What a full lack of one cone does to linear RGB: Vienot, Brettel & Mollon (1999).
DEUTERANOPIA = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
PROTANOPIA = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])


def test_an_arm_has_its_colour_whatever_the_order_and_the_autoregressive_ones_are_grey():
    arms = ["b", "a", "autoregressive", "c", "autoregressive-twin"]
    look = plots.look(arms)
    assert look.colours == plots.look(arms[::-1], "dark").colours
    assert look.colours["a"] == "#0072B2"
    assert look.colours["autoregressive"] == "#7f7f7f"
    assert len(set(look.colours.values())) == 5


def test_twelve_arms_differ_in_colour_or_marker_and_so_do_twice_as_many():
    for count in (12, 24):
        look = plots.look([f"arm {index:02}" for index in range(count)])
        assert len({(look.colours[arm], look.markers[arm]) for arm in look.colours if arm.startswith("arm")}) == count


def test_arms_of_one_sweep_are_shades_of_one_hue_from_dark_to_light():
    series = {f"draft gamma={gamma}": "draft" for gamma in (16, 2, 4)} | {"other": "other"}
    look = plots.look([*series], series=series)
    shades = [colorsys.rgb_to_hls(*to_rgb(look.colours[f"draft gamma={gamma}"])) for gamma in (2, 4, 16)]
    assert [shade[0] for shade in shades] == pytest.approx([shades[0][0]] * 3, abs=0.02)
    assert [shade[1] for shade in shades] == sorted(shade[1] for shade in shades)
    assert abs(colorsys.rgb_to_hls(*to_rgb(look.colours["other"]))[0] - shades[0][0]) > 0.1


def test_the_hues_stay_apart_for_people_with_colour_blindness():
    look = plots.look([f"arm {index}" for index in range(7)])
    for confuse in (DEUTERANOPIA, PROTANOPIA):
        seen = [np.clip(confuse @ np.array(to_rgb(look.colours[f"arm {index}"])), 0, 1) for index in range(7)]
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert nearest > 0.1


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Every axis at once, with twelve arms beside the A/A pair."""
    sweep = [
        Arm(f"draft_model draft=pico-{draft} gamma={gamma} latency=measured", alpha=0.7, gamma=gamma, draft_s=cost)
        for draft, cost in (("wide", 0.001), ("deep", 0.003))
        for gamma in (1, 2, 4, 8)
    ]
    others = [
        Arm("draft_model draft=pico-wide gamma=4 latency=5ms", alpha=0.7, gamma=4, draft_s=0.005, latency_ms=5.0),
        Arm("prompt_lookup", "prompt_lookup", alpha=0.5, gamma=8, drafted_chance=0.4),
        Arm("transformers-generate", "transformers-generate", verify_s=0.011),
        Arm("broken", alpha=0.5, gamma=2, status="oom"),
    ]
    plan = Plan(
        (AUTOREGRESSIVE, TWIN, *sweep, *others), (1, 4), (0.0, 0.8), prompts=8, repeats=1, max_new_tokens=24,
        categories=("summarization", "translation_back"), prompt_tokens=(100, 300),
    )  # fmt: skip
    folder = write_results(tmp_path_factory.mktemp("twelve"), plan)
    return frames(load(write_limits(folder, AUTOREGRESSIVE, *sweep, *others)))


def drawn(name, found):
    with plots.themed("light"):
        return plots.FIGURES[name].draw(found, plots.look_of(found), "target pico; float32 on a CPU.")


@pytest.fixture(scope="module")
def width_frames(tmp_path_factory):
    """Forwards of 1 to 64 tokens at batch 1 to 64: 4 ms up to 180 tokens in all, and in proportion beyond."""
    folder = tmp_path_factory.mktemp("widths") / "run" / "machine"
    rows = [
        forward("7B", 32, 4096, 6_738_000_000, launch_s + 0.004 * max(1, batch * query / 180), query, 128, mode)
        | {"batch_size": batch, "point_id": f"{batch} {query} {mode}"}
        for mode, launch_s in (("graphs", 0.0), ("eager", 0.005))
        for batch, query in itertools.product((1, 4, 16, 64), (1, 5, 8, 16, 64))
    ]
    Store(folder).write_part("latencies", "7B", rows)
    return frames(load(folder))


def test_forwards_over_tokens_are_one_line_a_batch_size_over_the_tokens_of_all_rows(width_frames):
    figure = drawn("forward_tokens", width_frames)
    assert [panel.get_title("left") for panel in figure.axes] == ["7B, graphs", "7B, eager"]
    lines = [container.lines[0].get_xydata() for container in figure.axes[0].containers]
    assert [list(line[:, 0]) for line in lines] == [[batch * q for q in (1, 5, 8, 16, 64)] for batch in (1, 4, 16, 64)]
    assert list(lines[3][:, 1]) == pytest.approx([4, 4 * 320 / 180, 4 * 512 / 180, 4 * 1024 / 180, 4 * 4096 / 180])


def test_forwards_at_one_batch_size_are_left_to_their_table(width_frames):
    one = width_frames.forwards[width_frames.forwards["batch_size"] == 1]
    assert drawn("forward_tokens", dataclasses.replace(width_frames, forwards=one)) is None


@pytest.fixture(scope="module")
def figures(twelve, beam_frames, rule_frames, study_frames, width_frames):
    """Every figure, drawn once: of the twelve arms, or of beams or a study where they have no such axis."""
    sources = (twelve, beam_frames, rule_frames, study_frames, width_frames)
    return {name: next(filter(None, (drawn(name, source) for source in sources))) for name in plots.FIGURES}


def unseen(figure):
    """Labels of ticks that lie beyond the limits of their axis, which nobody sees."""
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("name", plots.FIGURES)
def test_each_figure_draws_twelve_arms_and_no_text_runs_out_or_overlaps(figures, name):
    check_texts(figures[name])


@pytest.mark.parametrize("name", ["batch_size", "width", "speedup"])
def test_no_text_of_a_figure_with_published_numbers_runs_out_or_overlaps(beam_frames, name):
    check_texts(drawn(name, beam_frames))


def check_texts(figure):
    """No text leaves the figure, and none lies on another."""
    with plots.themed("light"):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        hidden = set(unseen(figure))
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        texts = [text for text in texts if text not in hidden]
        boxes = [(text.get_text(), text.get_window_extent().shrunk(0.9, 0.8)) for text in texts]
    width, height = figure.get_size_inches()
    assert (box.x0, box.y0) >= (-0.02, -0.02)
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02
    inside = [(text, box) for text, box in boxes if box.width > 0 and figure.bbox.overlaps(box)]
    clashes = [(a, b) for (a, one), (b, two) in itertools.combinations(inside, 2) if a != b and one.overlaps(two)]
    assert clashes == []


@pytest.mark.parametrize("name", plots.FIGURES)
def test_each_figure_says_what_it_shows_on_what_and_from_which_rows(figures, name):
    drawing, texts = plots.FIGURES[name], [text.get_text() for text in figures[name].texts]
    joined = " ".join(texts).replace("\n", " ")
    assert drawing.title in joined
    assert f"float32 on a CPU. Rows: {drawing.rows}." in joined
    assert name == "category" or any(panel.get_xlabel() for panel in figures[name].axes)


@pytest.mark.parametrize(
    "name", ["batch_size", "category", "context_length", "gamma", "width", "length", "temperature"]
)
def test_a_figure_over_an_axis_needs_two_values_of_it(twelve, figures, name):
    empty = dataclasses.replace(twelve, along=twelve.along.head(0))
    assert figures[name] is not None
    assert drawn(name, empty) is None


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_figure_without_data_is_not_drawn_and_does_not_fail(odd_frames, name):
    empty = {field.name: getattr(odd_frames, field.name).head(0) for field in dataclasses.fields(odd_frames)}
    assert drawn(name, type(odd_frames)(**empty)) is None


def test_a_failed_arm_is_named_in_its_panel_and_has_no_mark_at_zero(odd_frames):
    figure = drawn("speedup", odd_frames)
    second = figure.axes[1]
    assert "oom 18" in [text.get_text() for text in second.texts]
    assert second.get_xlim()[0] > 0.3


def test_a_measured_arm_lies_on_the_contour_of_its_own_speed_up(twelve):
    row = twelve.costs[(twelve.costs["title"] == "batch 1, T = 0") & (twelve.costs["gamma"] == 4)].iloc[0]
    tokens = expected_tokens(row["alpha"], 4)
    step_ms = 4 * row["draft_ms_per_token"] + row["rest_ms"]
    assert tokens * row["autoregressive_ms"] / step_ms == pytest.approx(row["composed_speedup"], rel=1e-6)
    summary = twelve.summary[(twelve.summary["title"] == row["title"]) & (twelve.summary["arm"] == row["arm"])]
    # At batch size 1 steps over tokens are the whole of decode time.
    assert row["composed_speedup"] == pytest.approx(summary["speedup_core"].iloc[0], rel=1e-6)


@pytest.mark.parametrize(
    "name",
    ["drafts", "draft_depth", "lookahead", "step_by_draft", "skill", "changes", "predicted", "draft_latency", "gamma"],
)
def test_no_text_of_a_study_of_drafts_runs_out_or_overlaps(study_frames, name):
    check_texts(drawn(name, study_frames))


def test_a_draft_looks_the_same_in_every_figure_and_a_composed_point_is_hollow(study_frames):
    colours = {}
    for name in ("drafts", "draft_depth"):
        figure = drawn(name, study_frames)
        panel = figure.axes[0]
        marks = [line for line in panel.lines if line.get_marker() not in {"None", None, ""} and len(line.get_xdata())]
        fills = {line.get_markerfacecolor() for line in marks}
        colours[name] = {line.get_color() for line in marks}
        assert plots.look_of(study_frames).paper in fills  # of what was composed
        assert colours[name] <= fills  # of what was measured
    assert colours["draft_depth"] < colours["drafts"]


def test_a_draft_that_was_never_run_has_a_look_of_its_own(study_frames):
    only = study_frames.drafts[(study_frames.drafts["draft"] != "deep") | study_frames.drafts["arm"].isna()]
    style = plots.look_of(dataclasses.replace(study_frames, drafts=only))
    assert "deep" in style.colours
    assert len({style.colours[arm] for arm in style.colours if arm == "deep" or "gamma=2" in arm}) == 7


def test_a_latency_that_no_run_can_keep_is_crossed_on_the_closed_form(study_frames):
    figure = drawn("draft_latency", study_frames)
    [cross] = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    line = study_frames.latency_axis[study_frames.latency_axis["kind"] == "line"]
    expected = np.interp(0.2, line["draft_latency_ms"].astype(float), line["predicted_tokens_per_s"].astype(float))
    assert cross.get_xdata() == pytest.approx([0.2])
    assert cross.get_ydata() == pytest.approx([expected], rel=0.01)


def test_a_prediction_that_misses_the_band_is_hollow(study_frames):
    ends = dict.fromkeys(("measured_low", "measured_high", "composed_low", "composed_high"), np.nan)
    one = study_frames.composed.iloc[:1].assign(measured_tokens_per_s=100.0, composed_tokens_per_s=130.0, **ends)
    one["error"] = 0.3
    two = one.assign(composed_tokens_per_s=105.0, error=0.05)
    for rows, is_hollow in ((one, True), (two, False)):
        frames = dataclasses.replace(study_frames, composed=rows, forecasts=study_frames.forecasts.head(0))
        figure = drawn("predicted", frames)
        [mark] = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [100.0]]
        assert (mark.get_markerfacecolor() == plots.look_of(frames).paper) is is_hollow
        assert f"{int(not is_hollow)} of 1 within 10 %" in figure.axes[0].texts[0].get_text()


def test_what_a_draft_needs_is_drawn_where_the_closed_form_says(study_frames):
    row = study_frames.changes[study_frames.changes["contender"] == "draft_model draft=deep"].iloc[0]
    tokens, latency = drawn("changes", study_frames).axes[:2]
    for axes, now, needed in (
        (tokens, row["tokens"], row["required_tokens"]), (latency, row["draft_ms"], row["tie_draft_ms"]),
    ):  # fmt: skip
        xs = {round(float(line.get_xdata()[0]), 9) for line in axes.lines}
        assert {round(now, 9), round(needed, 9)} <= xs
    assert f"{100 * (row['required_tokens'] / row['tokens'] - 1):+.0f} %" in [text.get_text() for text in tokens.texts]


def test_a_figure_turns_dark_by_itself_and_an_arm_keeps_its_colour(odd_frames):
    sink = io.BytesIO()
    figure = drawn("speedup", odd_frames)
    figure.savefig(sink, format="svg")
    light, adaptive = sink.getvalue(), plots.adaptive(sink.getvalue())
    ink = plots.look([]).ink.encode()
    assert ink in light
    assert adaptive.count(ink) == 1  # where the variable is defined
    assert b"prefers-color-scheme:dark" in adaptive
    arm = plots.look_of(odd_frames).colours["fast"].lower().encode()
    assert light.count(arm) == adaptive.count(arm) > 0
