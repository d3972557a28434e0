"""A study of drafts drawn from a known model: a run with its traces, forward times and scores beside it.

Six drafts are accepted the more often the better they score. Forward times grow by the layer alone, so that of the four
drafts of equal size the shallowest is fastest, although it is accepted least.
"""

import json
from dataclasses import dataclass

import numpy as np

from specbench.records.schema import blank_row
from specbench.records.store import Store
from tests.unit.report.synthetic import AUTOREGRESSIVE, TARGET_S, TWIN, Arm, Plan, write_results

GAMMAS = (1, 2, 4)
DEEPEST_TRACE = 6
"""More draft tokens than any arm was run with: the rest is composed."""

PLAN = {"batch_sizes": (1,), "prompts": 8, "repeats": 1, "max_new_tokens": 32}
DEVICE, DTYPE = "cpu Example 3000", "bfloat16"
LAYER_MS, CONSTANT_MS = 0.25, 0.5


@dataclass(frozen=True)
class Draft:
    """What a draft weighs, how often it is accepted, and what it scores."""

    name: str
    layers: int
    hidden: int
    parameters: int
    alpha: float
    perplexity: float

    @property
    def forward_s(self):
        """Depth is all that counts."""
        return (CONSTANT_MS + LAYER_MS * self.layers) / 1000


DRAFTS = (
    Draft("small", 1, 192, 1_200_000, 0.50, 40.0),
    Draft("flat", 1, 448, 3_400_000, 0.56, 35.0),
    Draft("wide", 2, 320, 3_400_000, 0.60, 31.0),
    Draft("tall", 4, 256, 3_400_000, 0.70, 23.0),
    Draft("deep", 8, 160, 3_300_000, 0.68, 24.0),
    Draft("large", 4, 320, 6_400_000, 0.74, 22.0),
)
SHAPES = tuple(Draft(f"2x{hidden}", 2, hidden, 8 * hidden**2, 0.0, 0.0) for hidden in (128, 512))


def verify_s(query):
    """The target's forward."""
    return TARGET_S + 0.0001 * (query - 1)


def arms(drafts=DRAFTS, gammas=GAMMAS):
    """Every draft at every gamma, and the wide one at latencies of which one is below its own."""
    yield from (arm(draft, gamma) for draft in drafts for gamma in gammas)
    yield from (arm(DRAFTS[2], 4, latency_ms=latency_ms) for latency_ms in (2.0, 5.0))
    yield arm(DRAFTS[2], 4, latency_ms=0.2, status="unsupported")


def arm(draft, gamma, latency_ms=None, **changed):
    """One arm as the grid names it."""
    named = f"draft_model draft={draft.name} gamma={gamma}"
    settings = {"draft": draft.name, "gamma": gamma, "proposal": "auto", "tree": None, "stop": {"kind": "fixed"}}
    return Arm(
        named if latency_ms is None else f"{named} latency={latency_ms:g}ms", alpha=draft.alpha, gamma=gamma,
        draft_s=latency_ms / 1000 if latency_ms else draft.forward_s, verify_s=verify_s(gamma + 1), settings=settings,
        latency_ms=latency_ms, draft=draft.name, fails_from_batch=1, **changed,
    )  # fmt: skip


def write_study(folder, *, run=True, drafts=DRAFTS, **plan):
    """Write everything into one folder; without a run where it is not wanted."""
    settings = PLAN | plan
    if run:
        write_results(folder, Plan(arms=(AUTOREGRESSIVE, TWIN, *arms(drafts)), **settings))
        write_traces(folder, drafts, settings["prompts"], settings["max_new_tokens"])
    store = Store(folder)
    for row in latencies(drafts):
        store.write_part("latencies", row["point_id"], [row])
    for draft in drafts:
        store.write_part("scores", draft.name, list(scores(draft)))
    return folder


def write_traces(folder, drafts=DRAFTS, prompts=8, new_tokens=32):
    """What every draft would have proposed at every place of the texts."""
    rng = np.random.default_rng(3)
    for draft in drafts:
        rows = [_traced(draft, prompt, prompts, new_tokens, rng) for prompt in range(prompts)]
        Store(folder).write_part("traces", draft.name, rows)


def _traced(draft, prompt, prompts, new_tokens, rng):
    places = new_tokens - 1
    matches = np.cumprod(rng.random((places, DEEPEST_TRACE)) < draft.alpha, axis=1).sum(axis=1)
    silent = [0.5] * (places * DEEPEST_TRACE)
    return blank_row("traces") | {
        "target": "pico", "target_sha": "f00d", "draft": draft.name, "draft_sha": draft.name, "tokenizer_sha": "70",
        "dataset": "stdlib", "prompts_sha": "beef", "prompts": prompts, "prompt": prompt,
        "prompt_id": f"prompt-{prompt}", "prompt_tokens": 128, "dtype": DTYPE, "device": DEVICE, "temperature": 0.0,
        "rule": "greedy", "proposal": "argmax", "seed": 0, "min_new_tokens": 0, "max_new_tokens": new_tokens,
        "ignore_eos": False, "gamma_max": DEEPEST_TRACE, "output_ids": list(range(new_tokens)),
        "output_tokens": new_tokens, "finish_reason": "length", "matched": matches.tolist(), "confidence": silent,
        "entropy": silent,
    }  # fmt: skip


def latencies(drafts=DRAFTS):
    """Forward times of the target, of every draft, and of two shapes that differ from ``wide`` in their width alone."""
    for query in (1, 2, 3, 4, 5, 6, 7):
        yield from (forward("pico", 10, 384, 19_300_000, verify_s(query), query, context) for context in (64, 256))
    for draft in (*drafts, *SHAPES):
        shape = (draft.name, draft.layers, draft.hidden, draft.parameters)
        for context in (64, 256):
            yield from (forward(*shape, draft.forward_s, query, context) for query in (1, 2))
        yield forward(*shape, draft.forward_s / 2 + 0.0002, 1, 64, "compiled")


def forward(model, layers, hidden, parameters, seconds, query, context, mode="eager"):
    """One row of ``latencies``."""
    return blank_row("latencies") | {
        "run_id": "run-1", "point_id": f"{model} {query} {context} {mode}", "model": model, "weights_sha": model,
        "random_weights": model.startswith("2x"), "layers": layers, "hidden": hidden, "heads": 4, "kv_heads": 4,
        "head_dim": hidden // 4, "feed_forward": 2 * hidden, "vocab": 4096, "parameters": parameters,
        "weight_bytes": 2 * parameters, "query_tokens": query, "batch_size": 1, "context_tokens": context,
        "mode": mode, "forward_s": seconds, "forward_low_s": 0.99 * seconds, "forward_high_s": 1.01 * seconds,
        "rounds": 20, "burst": 4, "dtype": DTYPE, "device": DEVICE, "threads": 1, "attention": "sdpa", "status": "ok",
    }  # fmt: skip


def scores(draft):
    """Perplexity and next-token accuracy of one draft."""
    for metric, value in (("perplexity", draft.perplexity), ("top1", draft.alpha - 0.2)):
        yield blank_row("scores") | {
            "model": draft.name, "weights_sha": draft.name, "tokenizer_sha": "70", "parameters": draft.parameters,
            "data": "stdlib", "data_sha": "da7a", "form": "texts", "metric": metric, "value": value,
            "low": 0.9 * value, "high": 1.1 * value, "standard_error": 0.05 * value, "items": 20, "tokens": 5000,
            "window_tokens": 256, "truncated": 0, "dtype": DTYPE, "device": DEVICE, "attention": "sdpa", "threads": 1,
            "batch_size": 4, "versions": json.dumps({}), "scored_at": "2025-06-01T12:00:00+00:00",
        }  # fmt: skip
