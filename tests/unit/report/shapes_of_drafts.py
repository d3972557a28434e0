"""A run of known latencies and acceptance, and forward times of shapes that are set against it."""

from dataclasses import replace

import pandas as pd

from specbench.records.schema import blank_row
from specbench.report.metrics import load
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

HOST_S = 0.0008
"""Accept, update and host of a step of the model."""
CONTEXT = 160
TABLE_S = {"pico": 0.005, "small": 0.0003}
"""One token: the machine is twice as fast as it was in the run, where they took 10 ms, and 0.8 ms as part of a step."""


def arm(draft, alpha, gamma, draft_s):
    return Arm(
        f"draft_model draft={draft} gamma={gamma}", alpha=alpha, gamma=gamma, draft_s=draft_s,
        verify_s=0.010 + 0.0002 * gamma,
    )  # fmt: skip


LOOKUP = Arm("lookup", "prompt_lookup", alpha=0.2, gamma=4, draft_s=0.00002, verify_s=0.011)
DRAFTS = (*(arm("small", 0.7, gamma, 0.0008) for gamma in (1, 2, 4)), arm("large", 0.8, 2, 0.0025))
PLAN = Plan(arms=(AUTOREGRESSIVE, TWIN, *DRAFTS), batch_sizes=(1, 4), prompts=24, repeats=1)


def drawn_results(place, plan=PLAN):
    found = load(write_results(place / "grid" / "Example", plan))
    return replace(found, requests=found.requests.assign(draft=found.requests["arm"].str.extract(r"draft=(\w+)")[0]))


def latency(model, seconds, tokens=1, layers=2, parameters=1000, status="ok", **changes):
    hidden = changes.pop("hidden", 64)
    measured = {"forward_s": seconds}
    if seconds is not None:
        measured |= {"forward_low_s": 0.9 * seconds, "forward_high_s": 1.2 * seconds}
    return blank_row("latencies") | {
        "run_id": "1", "model": model, "mode": "eager", "query_tokens": tokens, "batch_size": 1,
        "context_tokens": CONTEXT, "layers": layers, "hidden": hidden, "heads": 1, "feed_forward": 160,
        "parameters": parameters, "weight_bytes": 4 * parameters, "device": "cpu Example 3000", "dtype": "bfloat16",
        "threads": 1, "attention": "sdpa", "burst": 4, "status": status, "reason": None, **measured, **changes,
    }  # fmt: skip


def rows_of(*shapes):
    """The target for 1 to 9 tokens at twice the run's pace, the known draft, and shapes."""
    target = [latency("pico", 0.005 + 0.0001 * more, 1 + more) for more in range(9)]
    return pd.DataFrame([*target, latency("small", TABLE_S["small"]), *shapes])


SHAPES = (
    latency("1x64x1x160,vocab=9,tied=true", 0.0001, layers=1),
    latency("2x64x1x160,vocab=9,tied=true", 0.0002),
    latency("2x96x1x160,vocab=9,tied=true", 0.0004, hidden=96),
    latency("4x64x1x160,vocab=9,tied=true", 0.009, layers=4),
)
