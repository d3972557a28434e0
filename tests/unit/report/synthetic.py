"""Results drawn from a known model: arms of known acceptance and step time, unlike prompts, a drifting clock.

What the report says of such results can be checked against what they were made from.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from specbench.records.schema import blank_row
from specbench.records.store import Store

TARGET_S = 0.010
"""Seconds of one target forward in the model."""


@dataclass(frozen=True)
class Arm:
    """One arm of the model: every draft token is accepted with chance ``alpha``, given its predecessors."""

    name: str
    method: str = "draft_model"
    alpha: float = 0.0
    gamma: int = 0
    draft_s: float = 0.0
    verify_s: float = TARGET_S
    drafted_chance: float = 1.0
    status: str = "ok"
    fails_from_batch: int = 1
    lossless: bool = True
    simulated: bool = False
    latency_ms: float | None = None
    verdict: str | None = "equal"
    label: str | None = None
    settings: dict[str, object] | None = None
    nodes: int | None = None
    draft: str | None = None

    @property
    def options(self) -> dict[str, object]:
        """Gamma, the draft that the name tells apart, and what else it says; a latency is no option."""
        if self.settings is not None:
            return self.settings
        words = self.name.split()
        named = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("latency="))
        return {"draft": " ".join(word for word in words if "=" not in word)} | named | {"gamma": self.gamma}


AUTOREGRESSIVE = Arm("autoregressive", "autoregressive", verdict=None)
TWIN = Arm("autoregressive-twin", "autoregressive")
QUICKSTART = (
    AUTOREGRESSIVE,
    TWIN,
    Arm("transformers-generate", "transformers-generate", verify_s=1.06 * TARGET_S),
    Arm("draft_model draft=pico-wide gamma=2", alpha=0.75, gamma=2, draft_s=0.0012, verify_s=0.0108),
    Arm("draft_model draft=pico-wide gamma=4", alpha=0.75, gamma=4, draft_s=0.0012, verify_s=0.0115),
    Arm("draft_model draft=pico-deep gamma=4", alpha=0.78, gamma=4, draft_s=0.0031, verify_s=0.0115),
    Arm(
        "draft_model draft=pico-wide gamma=4 draft_latency_ms=5",
        alpha=0.75,
        gamma=4,
        draft_s=0.005,
        verify_s=0.0115,
        latency_ms=5.0,
    ),
    Arm("lookup", "prompt_lookup", alpha=0.55, gamma=8, drafted_chance=0.3, draft_s=0.00002, verify_s=0.0113),
)


@dataclass(frozen=True)
class Plan:
    """What to draw: the grid, its repeats, and how noisy the machine is."""

    arms: tuple[Arm, ...] = QUICKSTART
    batch_sizes: tuple[int, ...] = (1, 4)
    temperatures: tuple[float, ...] = (0.0,)
    prompts: int = 8
    repeats: int = 3
    max_new_tokens: int = 64
    noise: float = 0.01
    seed: int = 0
    loops: float = 0.3
    categories: tuple[str, ...] = ()
    prompt_tokens: tuple[int, ...] = (128,)
    run: dict[str, object] = field(default_factory=dict)


def write_results(folder: Path, plan: Plan = Plan()) -> Path:
    """Write a run folder with every block of the plan; returns it."""
    rng = np.random.default_rng(plan.seed)
    store = Store(folder)
    store.write_run(run_row(plan))
    for batch_size in plan.batch_sizes:
        for temperature in plan.temperatures:
            for repeat in range(plan.repeats):
                for block in range(-(-plan.prompts // batch_size)):
                    requests, steps = draw_block(plan, (batch_size, temperature, repeat, block), rng)
                    store.write_block(f"b{batch_size} t{temperature} {block} {repeat}", requests, steps)
    return folder


def write_rules(folder: Path, plans: dict[str, Plan]) -> Path:
    """Write a run folder with the cells of several plans, which differ in their rule; returns it."""
    merged = Store(folder / "run" / "machine")
    for rule, plan in plans.items():
        drawn = Store(write_results(folder / rule, plan))
        requests, steps = (drawn.read(name).astype(object) for name in ("requests", "steps"))
        requests["rule"] = rule
        for table in (requests, steps):
            table["cell"] += f" {rule}"
            table["batch_id"] += f" {rule}"
            table["trial_id"] += " " + table["cell"]
        rows = (table.where(pd.notna(table), None).to_dict("records") for table in (requests, steps))
        merged.write_block(rule, *rows)
        merged.write_run(run_row(plan))
    return folder / "run" / "machine"


def draw_block(plan: Plan, place: tuple[int, float, int, int], rng: np.random.Generator):
    """Rows of one block: every arm on the same prompts, both passes."""
    requests, steps = [], []
    drift = 1 + 0.02 * rng.standard_normal()
    order = rng.permutation(len(plan.arms))
    for pass_ in ("headline", "phase"):
        for position, index in enumerate(order):
            arm = plan.arms[index]
            batch = _Batch(plan, arm, place, pass_, drift)
            new_requests, new_steps = batch.draw(int(position), rng)
            requests += new_requests
            steps += new_steps
    return requests, steps


class _Batch:
    def __init__(self, plan, arm, place, pass_, drift):
        self.plan, self.arm, self.pass_, self.drift = plan, arm, pass_, drift
        self.batch_size, self.temperature, self.repeat, self.block = place
        self.batch_id = f"{arm.name}/b{self.batch_size}/t{self.temperature}/{self.block}/{self.repeat}/{pass_}"
        self.prompts = range(self.block * self.batch_size, min((self.block + 1) * self.batch_size, plan.prompts))

    def draw(self, position, rng):
        failed = self.arm.status != "ok" and self.batch_size >= self.arm.fails_from_batch
        if failed:
            return [self.row(slot, position, {}) for slot in range(len(self.prompts))], []
        # The text of a prompt, and so its acceptance, is the same in every repeat and pass.
        texts = [self.accept(prompt) for prompt in self.prompts]
        count = max(len(text["accepted_per_step"]) for text in texts)
        jitter = 1 + self.plan.noise * rng.standard_normal(count)
        slow = (
            self.drift
            * (1 + self.plan.noise / 2 * rng.standard_normal())
            * jitter
            * (1.01 if self.pass_ == "phase" else 1.0)
            * self.batch_size**0.15
        )
        phases = {
            "draft_s": self.arm.gamma * self.arm.draft_s * slow,
            "verify_s": self.arm.verify_s * slow,
            "accept_s": 0.0003 * slow,
            "update_s": 0.0001 * slow,
            "host_s": 0.0004 * slow,
        }
        step_s = sum(phases.values())
        ends = np.cumsum(step_s)
        prefill_s = 0.03 * self.drift * self.batch_size**0.7
        rows = []
        for slot, text in enumerate(texts):
            times = {"prefill_s": prefill_s, "ttft_s": prefill_s, "decode_s": float(ends[-1])}
            rows.append(self.row(slot, position, {**text, **times, "row_done_s": float(ends[text["steps"] - 1])}))
        steps = self.steps(phases, step_s, texts) if self.pass_ == "phase" else []
        return rows, steps

    def accept(self, prompt):
        rng = np.random.default_rng([self.plan.seed, prompt, int(10 * self.temperature), self.arm.gamma])
        alpha = np.clip(self.arm.alpha + 0.08 * rng.standard_normal() - 0.1 * self.temperature, 0.0, 0.98)
        accepted, depth, tokens = [], [], 1
        while tokens < self.plan.max_new_tokens:
            drafted = self.arm.gamma if rng.random() < self.arm.drafted_chance else 0
            kept = int(np.cumprod(rng.random(drafted) < alpha).sum()) if drafted else 0
            accepted.append(kept)
            depth.append(drafted)
            tokens += kept + 1
        return {
            "output_ids": list(range(self.plan.max_new_tokens)),
            "output_tokens": self.plan.max_new_tokens,
            "finish_reason": "length",
            "overshoot_tokens": tokens - self.plan.max_new_tokens,
            "steps": len(accepted),
            "drafted_tokens": sum(depth),
            "accepted_tokens": sum(accepted),
            "accepted_per_step": accepted,
            "drafted_depth_per_step": depth,
            "drafted_nodes_per_step": depth if self.arm.nodes is None else [self.arm.nodes] * len(depth),
            "repeat_ngram_share": self.plan.loops,
            "verdict": self.arm.verdict,
        }

    def row(self, slot, position, measured):
        arm, categories, lengths = self.arm, self.plan.categories, self.plan.prompt_tokens
        row = blank_row("requests") | {
            "run_id": "run-1",
            "trial_id": f"trial {arm.name}",
            "cell": f"b{self.batch_size} t{self.temperature}",
            "method": arm.method,
            "label": arm.label or arm.name,
            "arm": arm.name,
            "options": json.dumps(arm.options),
            "target": "pico",
            "draft": arm.draft,
            "dtype": "bfloat16",
            "device": "cpu Example 3000",
            "threads": 1,
            "attention": "sdpa",
            "captured_phases": "",
            "batch_size": self.batch_size,
            "batch_id": self.batch_id,
            "row": slot,
            "block": self.block,
            "repeat": self.repeat,
            "order_in_block": position,
            "pass": self.pass_,
            "process": 0,
            "dataset": "stdlib",
            "prompt_id": f"prompt-{self.prompts[slot]}",
            "category": categories[self.prompts[slot] % len(categories)] if categories else None,
            "prompt_tokens": lengths[self.prompts[slot] % len(lengths)],
            "temperature": self.temperature,
            "rule": "greedy" if self.temperature == 0 else "rejection",
            "lossless": arm.lossless,
            "seed": 0,
            "max_new_tokens": self.plan.max_new_tokens,
            "latency_mode": "measured" if arm.latency_ms is None else "injected",
            "draft_latency_ms": arm.latency_ms,
            "simulated_acceptance": arm.simulated,
            "target_sha": "f00d",
            "prompts_sha": "beef",
            "status": "ok" if measured else arm.status,
            "reason": None if measured else "out of memory: tried to allocate 2.0 GiB",
        }
        return row | measured

    def steps(self, phases, step_s, texts):
        rows = []
        for step in range(len(step_s)):
            active = [text for text in texts if text["steps"] > step]
            rows.append(
                {name: float(values[step]) for name, values in phases.items()}
                | {
                    "run_id": "run-1",
                    "trial_id": f"trial {self.arm.name}",
                    "batch_id": self.batch_id,
                    "cell": f"b{self.batch_size} t{self.temperature}",
                    "arm": self.arm.name,
                    "method": self.arm.method,
                    "step": step,
                    "step_s": float(step_s[step]),
                    "launch_s": float(step_s[step] - phases["host_s"][step]),
                    "syncs": 1 if self.arm.method == "prompt_lookup" else 0,
                    "nodes": sum(text["drafted_nodes_per_step"][step] for text in active),
                    "rows_active": len(active),
                    "emitted_tokens": sum(text["accepted_per_step"][step] + 1 for text in active),
                }
            )
        return rows


def run_row(plan: Plan):
    """The row of the run that all drawn rows belong to."""
    machine = {"cpu": "Example 3000", "cores": 2, "memory_bytes": 16 * 2**30, "gpu": None}
    return {
        "run_id": "run-1",
        "started_at": "2025-06-01T12:00:00+00:00",
        "git_sha": "0123456789abcdef",
        "git_dirty": False,
        "argv": json.dumps(["specbench", "run", "experiments/quickstart.yaml"]),
        "experiment": "name: quickstart\ntargets:\n- model: pico\n",
        "versions": json.dumps({"python": "3.11.2"}),
        "machine": json.dumps(machine),
        "threads": 1,
        "device": "cpu Example 3000",
        "seed": 0,
        "schema_version": 1,
        "measurement_version": 1,
        "notes": json.dumps({}),
        "status": "done",
    } | plan.run
