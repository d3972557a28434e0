"""specbench.models.designs"""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from specbench.errors import ConfigError
from specbench.models.designs import DEPTHS, Build, equal_parameter_shapes, shape_text, shapes_up_to
from specbench.models.shapes import SHAPES, shape_of

PICO = Build(vocab=4096, context=1024)
LLAMA = Build(head_dim=128, context=4096, tied=False)


def counted(shape):
    """As transformers builds it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config())
    return sum(parameter.numel() for parameter in model.parameters())


def test_shapes_of_every_depth_have_the_same_parameters_within_the_tolerance():
    found = equal_parameter_shapes(3_400_000, DEPTHS, PICO, per_depth=3)
    assert {shape.layers for shape in found} == {1, 2, 3, 4, 6, 8, 12, 16, 24}
    for shape in found:
        assert counted(shape) == pytest.approx(3_400_000, rel=0.05)


def test_a_narrower_tolerance_is_kept_as_well():
    found = equal_parameter_shapes(3_400_000, DEPTHS, PICO, per_depth=3, tolerance=0.005)
    assert 0 < len(found) < len(equal_parameter_shapes(3_400_000, DEPTHS, PICO, per_depth=3))
    assert max(abs(counted(shape) / 3_400_000 - 1) for shape in found) <= 0.005


@pytest.mark.parametrize("name", ["sheared-llama-1.3b", "noft-wide-1.3b", "wide-sheared-llama-543m", "llama-7b"])
def test_of_a_published_size_depth_and_width_the_published_feed_forward_follows(name):
    shape = SHAPES[name]
    (found,) = equal_parameter_shapes(shape.parameters, [shape.layers], LLAMA, widths=[shape.hidden])
    assert (found.hidden, found.heads, found.feed_forward) == (shape.hidden, shape.heads, shape.feed_forward)


def test_the_papers_size_is_as_wide_as_the_papers_draft_at_its_depth():
    shallow, deep = equal_parameter_shapes(SHAPES["noft-wide-1.3b"].parameters, [5, 24], LLAMA)
    assert (shallow.layers, shallow.hidden) == (5, 4096)
    assert (deep.layers, deep.hidden) == (24, 2048)


def test_of_one_shape_a_depth_the_feed_forward_is_nearest_to_eight_thirds_of_the_width():
    every = equal_parameter_shapes(3_400_000, [4], PICO, per_depth=99)
    (one,) = equal_parameter_shapes(3_400_000, [4], PICO)
    assert {shape.hidden for shape in every} == {192, 256}
    assert (one.hidden, one.feed_forward) == (256, 416)  # 1.6 times, and the other 4.5 times


def test_more_shapes_of_a_depth_are_spread_from_the_narrowest_to_the_widest():
    every = [shape.hidden for shape in equal_parameter_shapes(1_300_000_000, [5], LLAMA, per_depth=99)]
    three = [shape.hidden for shape in equal_parameter_shapes(1_300_000_000, [5], LLAMA, per_depth=3)]
    assert every == sorted(every)
    assert len(every) > 5
    assert (three[0], three[-1]) == (every[0], every[-1])
    assert three[1] in every[1:-1]


def test_a_depth_that_nothing_fits_is_left_out():
    assert {shape.layers for shape in equal_parameter_shapes(1_000_000, [1, 64], PICO)} == {1}


def test_the_text_of_a_shape_is_read_as_that_shape():
    for shape in equal_parameter_shapes(3_400_000, DEPTHS, PICO) + equal_parameter_shapes(10**9, [2, 8], LLAMA):
        assert shape_of(shape_text(shape)) == shape
    first, *_ = equal_parameter_shapes(3_400_000, [2], PICO)
    assert shape_text(first, PICO) == "2x320x5x672"


def test_shapes_of_every_size_stay_below_the_limit_and_widen_by_a_third():
    found = shapes_up_to(9_000_000, [1, 2, 4], PICO)
    assert max(map(counted, found)) <= 9_000_000
    for layers in (1, 2, 4):
        widths = [shape.hidden for shape in found if shape.layers == layers]
        assert widths[0] == 64
        assert all(4 * narrow <= 3 * wide for narrow, wide in pairwise(widths))
        wider = next(width for width in range(64, 9999, 64) if 3 * width >= 4 * widths[-1])
        assert PICO.proportioned(layers, wider, 8 / 3).parameters > 9_000_000


def test_named_widths_are_all_taken():
    assert [shape.hidden for shape in shapes_up_to(9_000_000, [1], PICO, widths=[320, 256])] == [256, 320]


@pytest.mark.parametrize(
    ("search", "line"),
    [
        (
            lambda: equal_parameter_shapes(5, [1, 2], PICO),
            "no shape of 1 or 2 layers with heads 64 wide has 5 parameters within 5 %; the nearest, 1x64x1x64, has "
            "291,008",
        ),
        (lambda: equal_parameter_shapes(3_400_000, [1], PICO, widths=[100]), "heads that are 64 wide do not divide a"),
        (
            lambda: shapes_up_to(5, [2], PICO),
            "no shape has at most 5 parameters; the smallest, 2x64x1x160, has",
        ),
        (lambda: Build(head_dim=65), "a head is 65 wide, and rotary positions need an even width"),
        (lambda: Build(proportions=(3, 2)), "the feed-forward width is 3 to 2 times the width: no number lies there"),
    ],
)
def test_what_cannot_be_is_one_line(search, line):
    with pytest.raises(ConfigError, match="^" + line.replace("(", r"\(")):
        search()
