"""specbench.models.ranks: real processes over gloo"""

import json

from specbench.models import ranks
from support.processes import run_together

TWO = """
import json, os, torch
from specbench.models import ranks
rank = int(os.environ["RANK"])
ranks.join("cpu")
ranks.join("cpu")
values = torch.full((3,), float(rank))
ranks.share([values])
print(json.dumps({
    "leads": ranks.leads(), "world": ranks.world(), "agreed": ranks.agreed({"rank": rank}),
    "told": ranks.told(rank), "shared": values.tolist(),
}))
ranks.leave()
"""


def test_two_processes_agree_on_what_the_first_holds_to_be_true(tmp_path):
    first, second = (json.loads(text) for text in run_together(TWO, tmp_path))
    assert (first.pop("leads"), second.pop("leads")) == (True, False)
    assert first == second == {"world": 2, "agreed": {"rank": 0}, "told": [0, 1], "shared": [0.0] * 3}


def test_one_process_alone_leads_and_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # a scheduler may set it for a job of one process
    assert ranks.leads()
    assert ranks.agreed("x") == "x"
    assert ranks.told("x") == ["x"]
