"""specbench.bench.designs"""

import pytest

from specbench.bench.designs import Search, candidates, measure_shapes
from specbench.bench.latencies import Study
from specbench.config import MachineSettings
from specbench.errors import ConfigError
from specbench.models.designs import shape_text
from specbench.models.shapes import shape_of
from specbench.models.source import locate
from tests.unit.models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    tiny.save(place / "target", seed=1, layers=3)
    return place


@pytest.fixture(scope="module")
def target(folder):
    return locate(str(folder / "target"))


def found(search, target):
    return [shape_text(shape) for shape in candidates(search, target)]


def test_candidates_have_the_vocabulary_the_heads_and_the_positions_of_the_target(target):
    (shape,) = candidates(Search(parameters=20_000, depths=(1,), per_depth=1), target)
    assert (shape.vocab, shape.context, shape.tied) == (320, tiny.CONTEXT, True)
    assert shape.width_of_head == 16
    assert shape.parameters == pytest.approx(20_000, rel=0.05)


def test_depths_reach_as_far_as_the_targets(target):
    shapes = candidates(Search(any_size=True), target)
    assert {shape.layers for shape in shapes} == {1, 2, 3}
    assert max(shape.parameters for shape in shapes) <= target.parameters / 2


def test_a_shape_that_is_named_gets_the_targets_vocabulary(target):
    assert found(Search(shapes=("1x32x2x64",)), target) == ["1x32x2x64,vocab=320,context=256,tied=true"]


def test_a_shape_that_is_named_and_found_is_there_once(target):
    search = Search(parameters=20_000, depths=(1,))
    named = found(search, target)[0].partition(",")[0]
    assert found(Search(parameters=20_000, depths=(1,), shapes=(named,)), target) == found(search, target)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Search(depths=(1, 0)), "depths must be at least 1, got 0"),
        (lambda: Search(widths=(0,)), "widths must be at least 1, got 0"),
        (lambda: Search(shapes=("2x65x2x128",)), "shape 2x65x2x128: 2 heads do not divide a width of 65"),
        (lambda: Search(shapes=("opt-125m",)), "shape opt-125m: a training builds drafts of Llama's kind"),
        (lambda: Search(shapes=("1x32x2x64,kv_heads=1",)), "a training builds drafts of Llama's kind"),
        (lambda: Search(parameters=20_000, widths=(40,)), "heads that are 16 wide do not divide a width of 40"),
    ],
)
def test_what_cannot_be_is_one_line(target, make, line):
    with pytest.raises(ConfigError, match=line):
        candidates(make(), target)


def test_every_shape_is_measured_once_and_the_target_for_every_verification(target, folder, tmp_path):
    study = Study(("whatever",), context_tokens=(8,), rounds=1, burst=1, machine=MachineSettings(device="cpu"))
    shapes = [shape_of("1x32x2x64,vocab=320"), shape_of("2x32x2x64,vocab=320")]
    rows = measure_shapes(shapes, str(folder / "target"), study, tmp_path, largest_gamma=2)
    assert set(rows["status"]) == {"ok"}
    points = rows.groupby("model")["query_tokens"].apply(sorted).to_dict()
    assert points == {
        str(folder / "target"): [1, 2, 3],
        "1x32x2x64,vocab=320": [1],
        "2x32x2x64,vocab=320": [1],
    }
