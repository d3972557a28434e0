"""specbench.report.beams and specbench.report.rules, their figures, and what is drawn beside published numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from specbench.report import plots, published
from specbench.report.metrics import frames, load, series
from tests.unit.report.beams_of_a_drafter import MEDUSA, SHARED, beam, plan
from tests.unit.report.synthetic import Arm, write_results

TITLE = "batch 1, T = 0"


def built(folder, *args, **settings):
    return frames(load(write_results(folder, plan(*args, **settings))))


def drawn(name, found):
    with plots.themed("light"):
        return plots.FIGURES[name].draw(found, plots.look_of(found), "")


def points(axes, *, hollow=None):
    """Every line of a panel that has a marker: its x and y; only those whose marks are hollow, or filled."""
    found = []
    for line in axes.lines:
        is_hollow = line.get_markerfacecolor() in {"none", plots.look([]).paper}
        if line.get_marker() not in {None, "None", "_", "|"} and hollow in {None, is_hollow}:
            found.append((np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float), line))
    return found


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- the frames


def test_what_shared_prefixes_save_is_counted_as_by_hand(beam_frames):
    found = beam_frames.beams[beam_frames.beams["title"] == TITLE].set_index(["width", "length"])
    assert set(found.index) == set(SHARED)
    row = found.loc[(4, 5)]
    # Four beams of four drafted tokens, of which ten are left; with the roots 20 tokens, of which eleven are left.
    assert (row["beam_nodes"], row["nodes_per_step"]) == (16, 10)
    assert row["saved"] == pytest.approx(1 - 10 / 16)
    assert row["tokens_saved"] == pytest.approx(1 - 11 / 20)
    assert row["tokens_saved_p01"] == row["tokens_saved_p99"] == pytest.approx(0.45)
    assert found.loc[(1, 5), ["saved", "tokens_saved"]].tolist() == [0, 0]


def test_percentiles_of_what_is_saved_are_taken_over_steps(tmp_path):
    results = load(write_results(tmp_path, plan([beam(4, 5)], batch_sizes=(1,))))
    own = (results.requests["arm"] == "redrafter width=4 length=5").to_numpy()
    for index in np.flatnonzero(own):
        steps = len(results.requests["drafted_nodes_per_step"].iloc[index])
        results.requests["drafted_nodes_per_step"].iloc[index][:] = [16 if step % 2 else 6 for step in range(steps)]
    row = frames(results).beams.iloc[0]
    assert row["tokens_saved_p01"] == pytest.approx(1 - 17 / 20)
    assert row["tokens_saved_p99"] == pytest.approx(1 - 7 / 20)


@pytest.mark.parametrize(
    ("settings", "beam_nodes"),
    [({"top_k": 2, "width": 16, "length": 4}, 8 * 3), ({"top_k": 50}, 16), ({"nodes": 9}, None)],
    ids=["too few tokens for so many beams", "enough tokens", "no whole beams"],
)
def test_beams_are_as_many_as_the_search_ends_with(tmp_path, settings, beam_nodes):
    found = built(tmp_path, [beam(4, 5, settings=settings)], batch_sizes=(1,)).beams
    if beam_nodes is None:
        assert found["beam_nodes"].isna().all()
        assert found["tokens_saved"].isna().all()
    else:
        assert found["beam_nodes"].tolist() == [beam_nodes]


def test_a_static_tree_and_a_method_without_beams_are_no_beam_search(tmp_path, beam_frames):
    assert "medusa" not in set(beam_frames.beams["arm"])
    assert built(tmp_path, [beam(4, 5, settings={"branching": [2, 2]})], batch_sizes=(1,)).beams.empty


def test_width_and_length_are_axes_whose_lines_differ_in_nothing_else(beam_frames):
    width = beam_frames.along[(beam_frames.along["axis"] == "width") & (beam_frames.along["title"] == TITLE)]
    assert set(width["series"]) == {"redrafter length=3", "redrafter length=5"}
    assert sorted(width.loc[width["series"] == "redrafter length=5", "x"]) == [1, 2, 4]
    length = beam_frames.along[(beam_frames.along["axis"] == "length") & (beam_frames.along["title"] == TITLE)]
    assert set(length["series"]) == {f"redrafter width={width}" for width in (1, 2, 4)}


@pytest.mark.parametrize(
    "arm",
    [
        "r gamma=2", "r width=4 length=5", "r nodes=8", "r branching=2x1", "r tree.nodes=8", "r tree=chain latency=5ms",
    ],
)  # fmt: skip
def test_arms_that_differ_in_the_shape_of_their_draft_share_a_hue(arm):
    assert series(arm) == "r"


def test_what_a_lossy_rule_accepts_too_much_is_the_ratio_of_tokens_per_step_with_its_interval(rule_frames):
    found = rule_frames.rules.set_index(["temperature", "rule"]).sort_index()
    assert len(found) == 4
    for temperature in (0.8, 1.0):
        exact, lossy = (found.loc[(temperature, rule)] for rule in ("rejection", "redrafter_paper"))
        assert pd.isna(exact["inflation"])
        ratio = lossy["block_efficiency"] / exact["block_efficiency"]
        assert lossy["inflation"] == pytest.approx(ratio - 1)
        assert lossy["inflation"] > 0.05
        assert lossy["low"] < lossy["inflation"] < lossy["high"]
        assert not lossy["lossless"]


def test_an_arm_under_one_rule_is_no_row_of_the_rules(beam_frames):
    assert beam_frames.rules.empty


# --- the figures


def test_the_prefix_tree_shows_nodes_with_and_without_it_and_the_published_range(beam_frames):
    figure = drawn("prefix_tree", beam_frames)
    nodes, _, saved, _ = figure.axes
    solid = [(x.tolist(), y.tolist()) for x, y, _ in points(nodes)]
    assert ([1, 2, 4], [4, 6, 10]) in solid
    assert ([1, 2, 4], [2, 3, 6]) in solid
    dashed = [line.get_ydata().tolist() for line in nodes.lines if line.get_marker() == "None"]
    assert [4, 8, 16] in dashed
    five = [y for _, y, _ in points(saved) if y[1] == pytest.approx(100 * (1 - 7 / 10))]
    assert [y[-1] for y in five] == pytest.approx([100 * (1 - 11 / 20)])
    box = saved.patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == pytest.approx((5, 30, 65, 30))
    assert any("figure 6: Vicuna 7B, hardware not stated" in text for text in legend(figure))


def test_the_table_of_beam_shapes_has_a_field_for_each_width_and_length_with_its_speed_up(beam_frames):
    figure = drawn("beam_shape", beam_frames)
    texts = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    rows = beam_frames.beams[beam_frames.beams["title"] == TITLE].set_index(["width", "length"])
    best = rows.loc[(4, 5)]
    assert len(figure.axes[0].patches) == len(SHARED)
    assert texts[f"{best['speedup']:.2f}\N{MULTIPLICATION SIGN}"] == (2, 1 - 0.14)
    assert texts[f"{best['block_efficiency']:.2f} tok/step"] == (2, 1 + 0.26)


def test_shapes_of_trees_lie_above_one_another_at_equal_nodes(tmp_path):
    arms = [
        *(beam(16, 5, label="dynamic", settings={"nodes": n}, name=f"dynamic nodes={n}") for n in (4, 8)),
        *(beam(1, n + 1, label="chain", name=f"chain length={n + 1}") for n in (4, 8)),
    ]
    arms = [dataclasses.replace(arm, nodes=nodes) for arm, nodes in zip(arms, (4, 8, 4, 8), strict=True)]
    found = built(tmp_path, arms, batch_sizes=(1,))
    figure = drawn("verified_nodes", found)
    tokens = {(float(x[0]), round(float(y[0]), 6)) for x, y, _ in points(figure.axes[1]) if len(x) == 1}
    rows = found.summary[found.summary["method"] == "redrafter"]
    assert tokens == {(float(row.nodes_per_step), round(row.block_efficiency, 6)) for row in rows.itertuples()}
    assert {x for x, _ in tokens} == {4.0, 8.0}
    assert sorted(legend(figure)) == ["chain", "dynamic"]
    joined = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(joined) == 2


def test_chains_alone_have_no_figure_of_tree_shapes(tmp_path):
    arms = [Arm(f"draft_model draft={name} gamma=2", alpha=0.8, gamma=2) for name in "ab"]
    assert drawn("verified_nodes", built(tmp_path, arms, batch_sizes=(1,))) is None


def test_a_lossy_rule_is_hollow_beside_the_exact_one_and_named_lossy(rule_frames):
    figure = drawn("rules", rule_frames)
    tokens, inflation, _ = figure.axes
    found = rule_frames.rules.sort_values("temperature")
    for rule, is_hollow in (("rejection", False), ("redrafter_paper", True)):
        [(x, y, _)] = points(tokens, hollow=is_hollow)
        assert x.tolist() == [0.8, 1.0]
        assert y.tolist() == found.loc[found["rule"] == rule, "block_efficiency"].tolist()
    [(_, y, _)] = points(inflation)
    assert y.tolist() == (100 * found["inflation"].dropna()).tolist()
    assert "hollow: redrafter_paper (lossy)" in legend(figure)


def test_one_rule_alone_has_no_figure_of_rules(beam_frames):
    assert drawn("rules", beam_frames) is None


# --- published numbers


def test_the_paper_s_methods_stand_below_the_arms_hollow_in_their_colour(beam_frames):
    figure = drawn("published", beam_frames)
    speedups, tokens = figure.axes[:2]
    names = [label.get_text().replace("\n", " ") for label in speedups.get_yticklabels()]
    place = names.index("redrafter, MT-bench, paper")
    assert [x.item() for x, y, _ in points(speedups) if y.item() == place] == [2.80, 2.80, 2.61]
    assert [x.item() for x, y, _ in points(tokens) if y.item() == place] == [4.20, 4.21, 3.87]
    look = plots.look_of(beam_frames)
    colours = {to_hex(line.get_color()) for _, y, line in points(speedups) if y == names.index("medusa, Alpaca, paper")}
    assert colours == {look.colours["medusa"].lower()}
    eagle = {to_hex(line.get_color()) for _, y, line in points(speedups) if y == names.index("eagle, Alpaca, paper")}
    assert eagle == {look.quiet}
    row = beam_frames.summary[(beam_frames.summary["title"] == TITLE) & (beam_frames.summary["arm"] == "medusa")].iloc[
        0
    ]
    measured = [x.item() for x, y, _ in points(speedups) if y == names.index("medusa")]
    assert measured == [row["speedup_core"]]
    assert "hollow: Cheng et al. (2024), table 1: Vicuna on NVIDIA H100" in legend(figure)


@pytest.fixture(scope="module")
def widths(tmp_path_factory):
    """One line of three widths, as the grids of the repository have it."""
    arms = [beam(width, 5, name=f"redrafter width={width}") for width in (1, 2, 4)]
    return built(tmp_path_factory.mktemp("widths"), [*arms, MEDUSA])


def test_table_3_stands_over_the_batch_size_in_the_colour_of_its_width_and_no_other_width(widths):
    figure = drawn("batch_size", widths)
    request, batch = figure.axes[:2]
    table = published.frame(("redrafter-table-3",))
    look = plots.look_of(widths)
    for axes, times in ((request, False), (batch, True)):
        found = points(axes, hollow=True)
        assert len(found) == 3
        for width in (1, 2, 4):
            own = table[table["width"] == width]
            wanted = (own["tokens_per_s"] * (own["batch_size"] if times else 1)).astype(float).tolist()
            [line] = [line for _, y, line in found if y.tolist() == wanted]
            assert to_hex(line.get_color()) == look.colours[f"redrafter width={width}"].lower()
        assert axes.get_yscale() == "log"
    assert figure.axes[2].get_yscale() == "linear"
    assert any(name == "autoregressive" for name in legend(figure))
    assert "hollow: Cheng et al. (2024), table 3: Vicuna 7B on NVIDIA H100" in legend(figure)


def test_table_4_takes_the_colours_of_the_arms_that_carry_its_labels(tmp_path):
    labels = ("distilled", "not distilled")
    arms = [
        beam(width, 5, label=label, drafter=label, name=f"{label} width={width}")
        for label in labels
        for width in (1, 4)
    ]
    found = built(tmp_path, arms, batch_sizes=(1,))
    speedups, tokens = drawn("width", found).axes
    colours = plots.look_of(found).colours
    wanted = {
        "distilled": ([1.54, 1.60, 1.72, 1.92, 2.18], [2.35, 2.50, 2.73, 3.09, 3.58]),
        "not distilled": ([1.47, 1.52, 1.54, 1.80, 1.99], [2.21, 2.31, 2.48, 2.87, 3.30]),
    }
    for label, values in wanted.items():
        for axes, ys in zip((speedups, tokens), values, strict=True):
            [(x, _, line)] = [one for one in points(axes, hollow=True) if one[1].tolist() == ys]
            assert x.tolist() == [1, 2, 4, 16, 64]
            assert to_hex(line.get_color()) == colours[f"{label} width=4"].lower()


def test_published_lines_of_one_counterpart_share_its_colour_and_have_markers_and_names_of_their_own(widths):
    figure = drawn("width", widths)
    lines = [line for _, _, line in points(figure.axes[0], hollow=True)]
    assert {to_hex(line.get_color()) for line in lines} == {plots.look_of(widths).colours["redrafter width=2"].lower()}
    assert len({line.get_marker() for line in lines}) == 2
    assert {"distilled (published)", "not distilled (published)"} < set(legend(figure))


def test_a_published_line_that_two_series_could_be_meant_by_has_no_arm_s_colour(beam_frames):
    figure = drawn("width", beam_frames)
    found = {to_hex(line.get_color()) for _, _, line in points(figure.axes[0], hollow=True)}
    assert found == {plots.look_of(beam_frames).quiet}
    assert "not distilled (published)" in legend(figure)


def test_what_an_experiment_does_not_name_is_not_drawn(widths):
    alone = dataclasses.replace(widths, published=widths.published.head(0))
    assert drawn("published", alone) is None
    figure = drawn("batch_size", alone)
    assert points(figure.axes[0], hollow=True) == []
    assert figure.axes[0].get_yscale() == "linear"
    assert not any("hollow" in name for name in legend(figure))


def test_numbers_of_a_method_that_was_not_measured_are_no_lines(tmp_path):
    found = built(tmp_path, [Arm("draft_model draft=a gamma=2", alpha=0.8, gamma=2)])
    assert points(drawn("batch_size", found).axes[0], hollow=True) == []
