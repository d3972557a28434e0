"""A core step against its floor: the target's forward of that shape and the draft's forwards, timed alone.

    python -m specbench.bench.floor --out floor.json

Both are timed in one process, turn by turn over the same prompts, so that the machine's mood falls on both alike. The
floor is a plain ``transformers`` forward over its own growing cache, without tree, rule, slab or loop.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from specbench import registry
from specbench.analysis.intervals import Interval, Totals, jackknife_interval, ratio
from specbench.bench import machine
from specbench.bench.prompts import load_prompts
from specbench.bench.timing import HeadlineWatch, Timeline, no_garbage_collection, seconds_of, timeline
from specbench.config import MachineSettings, PromptSettings
from specbench.decode.loop import Decoding, Requests, generate
from specbench.decode.method import LoadContext, Method
from specbench.decode.target import CachedModel
from specbench.models.loader import LoadedModel, ModelPool, placement
from specbench.models.zoo import ZOO


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        target: The target.
        draft: The draft model.
        gamma: Draft tokens of a step.
        batch_size: Rows.
        prompt_tokens: Tokens of every prompt.
        max_new_tokens: Tokens of every row.
        units: Batches of prompts; the interval rests on them.
    """

    target: str
    draft: str
    gamma: int
    batch_size: int
    prompt_tokens: int = 128
    max_new_tokens: int = 64
    units: int = 8


@dataclass(frozen=True)
class Floor:
    """Milliseconds of a step and of its floor, and their ratio with its interval."""

    setting: Setting
    step_ms: float
    floor_ms: float
    target_ms: float
    draft_ms: float
    ratio: float
    interval: Interval | None


def measure(setting: Setting, pool: ModelPool) -> Floor:
    """Time core steps and the forwards that they cannot do without, turn by turn."""
    target = pool.get(setting.target)
    method = _draft_method(setting, target, pool)
    draft = pool.get(setting.draft).model
    clock = timeline(target.model.device)
    batches = _batches(setting, target)
    decoding = Decoding(max_new_tokens=setting.max_new_tokens)
    rows: list[tuple[float, int, float, float]] = []
    for index, requests in enumerate([batches[0], *batches]):  # the first one twice: it warms up
        # What comes first finds other caches: take turns.
        if index % 2:
            forwards = _forwards(setting, requests, target.model, draft, clock)
            core = _core_step(target.model, method, requests, decoding, clock)
        else:
            core = _core_step(target.model, method, requests, decoding, clock)
            forwards = _forwards(setting, requests, target.model, draft, clock)
        rows.append((*core, *forwards))
    return _floor(setting, rows[1:])


def _floor(setting: Setting, rows: list[tuple[float, int, float, float]]) -> Floor:
    seconds, steps, target_s, draft_s = (np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True))
    core = Totals(seconds, steps)
    # Each batch's floor weighs as many steps as the batch took.
    floor = Totals((target_s + draft_s) * steps, steps)
    return Floor(
        setting=setting,
        step_ms=float(seconds.sum() / steps.sum()) * 1e3,
        floor_ms=float(floor.seconds.sum() / steps.sum()) * 1e3,
        target_ms=float((target_s * steps).sum() / steps.sum()) * 1e3,
        draft_ms=float((draft_s * steps).sum() / steps.sum()) * 1e3,
        ratio=ratio(core, floor),
        interval=jackknife_interval(core, floor),
    )


def _draft_method(setting: Setting, target: LoadedModel, pool: ModelPool) -> Method:
    kind = registry.load("draft_model")
    method: Method = kind(kind.Options(draft=setting.draft, gamma=setting.gamma))
    method.load(LoadContext(target.model, lambda name: pool.draft(name, target)))
    return method


def _batches(setting: Setting, target: LoadedModel) -> list[Requests]:
    """Batches of prompts of equal length, so that a plain forward without padding has the very same shape."""
    wanted = setting.units * setting.batch_size
    settings = PromptSettings(source="stdlib", count=3 * wanted, max_prompt_tokens=setting.prompt_tokens)
    found = load_prompts(settings, target.source, max_new_tokens=setting.max_new_tokens).prompts
    full = [prompt for prompt in found if len(prompt.ids) == setting.prompt_tokens][:wanted]
    size = setting.batch_size
    groups = [full[start : start + size] for start in range(0, len(full) - size + 1, size)]
    return [Requests([prompt.ids for prompt in group], [prompt.key for prompt in group]) for group in groups]


def _core_step(
    target: CachedModel, method: Method, requests: Requests, decoding: Decoding, clock: Timeline
) -> tuple[float, int]:
    """Decode seconds and steps of one batch."""
    watch = HeadlineWatch(clock)
    with no_garbage_collection():
        trace = generate(target, method, requests, decoding, watch)
    return watch.timing.decode_s, trace.steps


def _forwards(
    setting: Setting, requests: Requests, target: CachedModel, draft: CachedModel, clock: Timeline
) -> tuple[float, float]:
    """Seconds of the target's forward, and of all the draft's forwards of a step.

    A step verifies the root and gamma tokens. The draft first reads two tokens, then one at a time.
    """
    length = setting.prompt_tokens + setting.max_new_tokens // 2
    # As often as the core takes steps, or nearly: both then see the same amount of the machine's mood.
    times = max(8, setting.max_new_tokens // 3)
    target_s = _plain_forwards(target.module, requests, length, [setting.gamma + 1], times, clock)
    draft_s = _plain_forwards(draft.module, requests, length, [2, *[1] * (setting.gamma - 1)], times, clock)
    return target_s, draft_s


@torch.inference_mode()
def _plain_forwards(
    module: nn.Module, requests: Requests, length: int, widths: list[int], times: int, clock: Timeline
) -> float:
    """Mean seconds of a run of forwards of those widths, one after the other, on a cache of ``length`` tokens."""
    device = next(module.parameters()).device
    ids = torch.tensor(requests.prompts, device=device)
    ids = ids.repeat(1, -(-(length + sum(widths)) // ids.shape[1]))
    cache = DynamicCache()
    module(input_ids=ids[:, :length], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def forwards() -> None:
        at = length
        for width in widths:
            module(input_ids=ids[:, at : at + width], past_key_values=cache, use_cache=True)
            at += width

    spent = 0.0
    with no_garbage_collection():
        for _ in range(times):
            spent += seconds_of(forwards, clock)
            cache.crop(-sum(widths))
    return spent / times


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each batch size, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m specbench.bench.floor", description=__doc__)
    parser.add_argument("--target", default="pico")
    parser.add_argument("--draft", default="pico-wide")
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    where = placement(MachineSettings(device=asked.device, dtype=asked.dtype, threads=asked.threads))
    pool = ModelPool(where, asked.zoo)
    floors = []
    for size in asked.batch_size:
        floors.append(measure(Setting(asked.target, asked.draft, asked.gamma, size, units=asked.units), pool))
        print(in_words(floors[-1]))  # noqa: T201  (a command)
    if asked.out is not None:
        found = {
            "machine": machine.describe(),
            "versions": machine.versions(),
            "threads": asked.threads,
            "dtype": where.dtype_name,
            "floors": [asdict(floor) for floor in floors],
        }
        asked.out.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def in_words(floor: Floor) -> str:
    """One line."""
    interval, setting = floor.interval, floor.setting
    spread = f"[{interval.low:.3f}, {interval.high:.3f}] over {interval.units} batches" if interval else "no interval"
    return (
        f"batch {setting.batch_size}, gamma {setting.gamma}: a step takes {floor.step_ms:.2f} ms, its floor "
        f"{floor.floor_ms:.2f} ms (target {floor.target_ms:.2f}, draft {floor.draft_ms:.2f}): "
        f"{floor.ratio:.3f} {spread}"
    )


if __name__ == "__main__":
    main()
