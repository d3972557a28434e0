"""specbench.report.plots"""

import dataclasses

import pytest

from specbench.report import plots


def test_an_arm_has_its_colour_whatever_the_order_and_the_autoregressive_ones_are_grey():
    arms = ["b", "a", "autoregressive", "c", "autoregressive-twin"]
    look = plots.look(arms)
    assert look.colours == plots.look(arms[::-1], "dark").colours
    assert look.colours["a"] == "#0072B2"
    assert look.colours["autoregressive"] == "#7f7f7f"
    assert len(set(look.colours.values())) == 5


def test_ten_arms_have_ten_colours_and_beyond_that_markers_tell_them_apart():
    look = plots.look([f"arm {index:02}" for index in range(24)])
    pairs = {(look.colours[arm], look.markers[arm]) for arm in look.colours if arm.startswith("arm")}
    assert len({look.colours[f"arm {index:02}"] for index in range(10)}) == 10
    assert len(pairs) == 24


@pytest.mark.parametrize("theme", plots.THEMES)
@pytest.mark.parametrize("name", plots.FIGURES)
def test_each_figure_draws_and_no_text_runs_out_of_it(odd_frames, name, theme):
    arms = list(odd_frames.summary["arm"].unique())
    with plots.themed(theme):
        figure = plots.FIGURES[name](odd_frames, plots.look(arms, theme))
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert (box.x0, box.y0) >= (-0.02, -0.02)
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_figure_without_data_says_so_instead_of_failing(odd_frames, name):
    empty = {field.name: getattr(odd_frames, field.name).head(0) for field in dataclasses.fields(odd_frames)}
    with plots.themed("light"):
        figure = plots.FIGURES[name](type(odd_frames)(**empty), plots.look([]))
    assert figure.texts[0].get_text().endswith(".")


def test_a_failed_arm_is_named_in_its_panel_and_has_no_mark_at_zero(odd_frames):
    with plots.themed("light"):
        figure = plots.speedup(odd_frames, plots.look(list(odd_frames.summary["arm"].unique())))
    second = figure.axes[1]
    assert "oom 18" in [text.get_text() for text in second.texts]
    assert second.get_xlim()[0] > 0.3
