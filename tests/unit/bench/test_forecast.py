"""specbench.bench.forecast"""

import pytest

from specbench.analysis.precision import Noise
from specbench.bench.forecast import USUAL_BETWEEN, Forecast, forecast
from specbench.records.store import Store
from tests.unit.bench.bench_plans import ONE_CELL, plan_of, run

REPEATED = ONE_CELL.replace("count: 5", "count: 8").replace("repeats: 1", "repeats: 2, phase_blocks: 0")


def test_without_results_the_noise_is_the_usual_one_averaged_over_a_batch(folder):
    (cell,) = plan_of(folder, ONE_CELL).cells
    found = forecast(cell, units=8, repeats=3, folder=None)
    assert found.source == "usual noise"
    assert found.noise.between == pytest.approx(USUAL_BETWEEN / 2**0.5)
    assert forecast(cell, units=8, repeats=3, folder=folder / "nothing").source == "usual noise"


def test_earlier_results_of_the_cell_tell_its_noise(folder):
    summary = run(folder, REPEATED)
    (cell,) = plan_of(folder, REPEATED).cells
    found = forecast(cell, units=4, repeats=2, folder=summary.folder)
    assert found.source == "earlier results"
    assert found.noise.within > 0
    (other,) = plan_of(folder, REPEATED.replace("max_new_tokens: 10", "max_new_tokens: 11")).cells
    assert forecast(other, units=4, repeats=2, folder=summary.folder).source == "usual noise"
    assert Store(summary.folder).read("requests")["block"].nunique() == 4


def test_a_plan_with_three_batches_expects_no_interval_and_still_knows_what_it_takes():
    found = Forecast(Noise(0.1, 0.02), "usual noise", units=3, batch_size=4, repeats=2)
    assert found.half_width is None
    assert found.repeats_needed(0.01) is None
    assert found.prompts_needed(0.05) == 4 * Noise(0.1, 0.02).units_needed(0.05, 2)
