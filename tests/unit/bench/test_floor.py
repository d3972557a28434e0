"""specbench.bench.floor"""

import json

import pytest

from specbench.bench.floor import Setting, _floor, main


def test_the_ratio_is_step_time_over_the_sum_of_the_forwards():
    setting = Setting("t", "d", gamma=4, batch_size=1)
    found = _floor(setting, [(1.2, 10, 0.06, 0.04), (2.4, 20, 0.06, 0.04), *[(1.2, 10, 0.06, 0.04)] * 2])
    assert (found.step_ms, found.floor_ms) == pytest.approx((120.0, 100.0))
    assert (found.target_ms, found.draft_ms, found.ratio) == pytest.approx((60.0, 40.0, 1.2))
    assert found.interval.units == 4


def test_it_prints_a_line_and_writes_json(family, tmp_path, capsys):
    main(["--zoo", str(family), "--units", "4", "--batch-size", "1", "--gamma", "2", "--out", str(tmp_path / "f.json")])
    assert "batch 1, gamma 2: a step takes" in capsys.readouterr().out
    (floor,) = json.loads((tmp_path / "f.json").read_text())["floors"]
    assert floor["ratio"] > 0
    assert floor["interval"]["units"] == 4
