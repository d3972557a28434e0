"""specbench.report.forwards and its figure: one line for each way to run a forward"""

import pytest

from specbench.bench.latency_points import MODES
from specbench.records.store import Store
from specbench.report import plots
from specbench.report.metrics import frames, load
from specbench.report.plots import forwards
from tests.unit.report.a_study import forward

SLOPES_MS = dict(zip(MODES, (0.5, 0.3, 0.2, 0.1), strict=True))


def test_every_way_to_run_a_forward_is_a_line_with_its_slope_over_depth(tmp_path):
    rows = [
        forward(f"of {layers}", layers, 640 // layers, 3_400_000, (1 + slope_ms * layers) / 1000, 1, 128, mode)
        for layers in (1, 2, 4, 8)
        for mode, slope_ms in SLOPES_MS.items()
    ]
    Store(tmp_path / "run" / "machine").write_part("latencies", "all", rows)
    found = frames(load(tmp_path / "run" / "machine"))
    assert found.forward_slopes.set_index("mode")["slope_ms"].to_dict() == pytest.approx(SLOPES_MS)
    sketch = forwards.depth(found, plots.look([]))
    assert [handle.get_label() for handle in sketch.handles] == list(MODES)
    (axes,) = sketch.figure.axes
    assert len({line.lines[0].get_color() for line in axes.containers}) == 4
    texts = [text.get_text() for text in axes.texts]
    assert [text.partition(":")[0] for text in texts] == sorted(MODES, reverse=True)
