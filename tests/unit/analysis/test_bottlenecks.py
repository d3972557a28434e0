"""specbench.analysis.bottlenecks"""

from dataclasses import replace

import pytest

from specbench.analysis.bottlenecks import Step, likely_cause

# A step of 10 ms on a GPU, of which its verification could take 3: 1,400 operations of 5 us each.
LAUNCHED = Step(
    phase_ms={"draft": 0.1, "verify": 9.5, "accept": 0.2, "update": 0.1, "host": 0.1},
    limit_ms={"draft": 0.0, "verify": 3.0},
    launches={"draft": 10, "verify": 1400, "accept": 20, "update": 10},
    launch_ms=0.005,
    captured_launch_ms=0.002,
    enqueued_ms=None,
    captured=frozenset(),
    compiled=frozenset(),
    is_cpu=False,
    dtype="bfloat16",
    attention="sdpa",
    threads=1,
    cores=8,
    wait_share=0.0,
    products_ms=3.3,
    read_over_copy=0.9,
    kv_share=0.02,
    nodes=0.0,
    single_gap_ms=None,
)
# The same step with operations too few to explain it.
HEAVY = replace(LAUNCHED, launches=dict.fromkeys(LAUNCHED.launches, 50))
ON_A_CPU = replace(HEAVY, is_cpu=True, dtype="float32", captured_launch_ms=None)


def phases(**own):
    return {"draft": 0.1, "verify": 3.1, "accept": 0.1, "update": 0.1, "host": 0.1} | own


@pytest.mark.parametrize(
    ("step", "name", "words"),
    [
        pytest.param(LAUNCHED, "launch-bound", "its verify phase asks for 1,400 operations, and the 6.5 ms", id="many"),
        pytest.param(
            replace(LAUNCHED, captured=frozenset({"verify"}), launches=LAUNCHED.launches | {"verify": 2000}),
            "launch-bound", "a launch in a graph costs; `compile` makes them fewer", id="many in a graph",
        ),
        pytest.param(
            replace(HEAVY, enqueued_ms=9.0), "launch-bound", "CUDA graphs, `compile` or a larger batch", id="enqueued"
        ),
        pytest.param(
            replace(LAUNCHED, compiled=frozenset({LAUNCHED.widest})), "between the matrices", "9.5 ms",
            id="compiled ones were not counted",
        ),
        pytest.param(replace(ON_A_CPU, enqueued_ms=9.0), "between the matrices", "9.5 ms", id="a CPU always enqueues"),
        pytest.param(
            replace(LAUNCHED, is_cpu=True, wait_share=0.3), "threads", "for 30 % of the time the process waited",
            id="waiting for a core explains everything else",
        ),
        pytest.param(replace(ON_A_CPU, threads=16), "threads", "16 threads share 8 cores", id="too many threads"),
        pytest.param(replace(HEAVY, threads=16), "between the matrices", "verify", id="a GPU needs no threads"),
        pytest.param(
            replace(HEAVY, phase_ms=phases(host=6.5)), "host", "between the phases takes 66 % of the step", id="host"
        ),
        pytest.param(
            replace(ON_A_CPU, dtype="bfloat16", read_over_copy=0.1), "dtype", "bfloat16 is slow on this device: its "
            "matrix kernels read weights at 10 % of a copy's pace", id="slow kernels of a type",
        ),
        pytest.param(
            replace(HEAVY, products_ms=8.0), "matrix kernels", "take 8 ms, where", id="slow kernels of this many rows"
        ),
        pytest.param(
            replace(HEAVY, nodes=63.0, single_gap_ms=1.0), "mask", "63.0 draft nodes add 5.5 ms above the limit",
            id="what a single token has not",
        ),
        pytest.param(
            replace(HEAVY, nodes=63.0, single_gap_ms=6.0), "between the matrices", "sdpa", id="what a single token has"
        ),
        pytest.param(replace(HEAVY, kv_share=0.6), "mask", "keys and values are 60 % of the bytes", id="long context"),
        pytest.param(
            replace(HEAVY, phase_ms=phases(accept=6.5)), "bookkeeping", "the accept phase, which moves", id="accept"
        ),
        pytest.param(HEAVY, "between the matrices", "of which the limit explains 3", id="nothing else"),
    ],
)  # fmt: skip
def test_the_first_cause_that_the_numbers_bear_out_is_named(step, name, words):
    cause = likely_cause(step)
    assert cause.name == name
    assert words in cause.words
