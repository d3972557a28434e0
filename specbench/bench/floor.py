"""A core step against its floor: the target's forward of that shape, and what the draft cannot do without, timed alone.

    python -m specbench.bench.floor --dtype bfloat16 --out floor.json
    python -m specbench.bench.floor --method redrafter --set width=8

Both are timed in one process, turn by turn over the same prompts, so that the machine's mood falls on both alike. The
floor is a plain ``transformers`` forward over its own growing cache, without tree, rule, slab or loop. To it come a
draft model's forwards, plain as well; or, of a method with weights of its own, the matrix products of one draft alone.
Target and draft alternate, as in a step: weights that fit into a cache would else be read from there, time and again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import DynamicCache

from specbench import registry
from specbench.analysis.intervals import Interval, Totals, jackknife_interval, ratio
from specbench.bench import machine
from specbench.bench.prompts import load_prompts
from specbench.bench.timing import HeadlineWatch, Timeline, no_garbage_collection, seconds_of, timeline
from specbench.config import MachineSettings, PromptSettings
from specbench.decode.loop import Requests, generate
from specbench.decode.method import Method, RowView, TokenTree
from specbench.decode.step import Decoding
from specbench.decode.trace import BatchTrace
from specbench.models.loader import LoadedModel, ModelPool, Supplier, placement
from specbench.models.zoo import ZOO

USUAL: Mapping[str, Mapping[str, Any]] = {
    "autoregressive": {},
    "draft_model": {"draft": "pico-small", "gamma": 4},
    "medusa": {"heads": "pico-medusa", "tree": {"nodes": 8}},
    "redrafter": {"drafter": "pico-redrafter", "width": 4, "length": 4},
}
"""What is timed where nothing else is asked for: methods, and their options on the embedded target."""


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        target: The target.
        method: The method.
        options: Its options.
        batch_size: Rows.
        prompt_tokens: Tokens of every prompt.
        max_new_tokens: Tokens of every row.
        units: Batches of prompts; the interval rests on them.
    """

    target: str
    method: str
    options: Mapping[str, Any]
    batch_size: int
    prompt_tokens: int = 128
    max_new_tokens: int = 64
    units: int = 8


@dataclass(frozen=True)
class Floor:
    """Width of a step in draft nodes on average, milliseconds of it and of its floor, their ratio with its interval."""

    setting: Setting
    nodes: float
    step_ms: float
    floor_ms: float
    target_ms: float
    draft_ms: float
    ratio: float
    interval: Interval | None


def measure(setting: Setting, pool: ModelPool) -> Floor:
    """Time core steps and the forwards that they cannot do without, turn by turn."""
    target = pool.get(setting.target)
    subject = _Subject(setting, target, pool)
    clock = timeline(target.model.device)
    batches = equal_batches(setting, target)
    decoding = Decoding(max_new_tokens=setting.max_new_tokens)
    rows: list[tuple[float, int, float, float, float]] = []
    nodes = 0.0
    for index, requests in enumerate([batches[0], *batches]):  # the first one twice: it warms up
        # What comes first finds other caches: take turns.
        if index % 2:
            forwards = subject.floor(requests, round(nodes), clock)
            core = subject.step(requests, decoding, clock)
        else:
            core = subject.step(requests, decoding, clock)
            nodes = nodes or core[2]
            forwards = subject.floor(requests, round(nodes), clock)
        rows.append((*core, *forwards))
    return _floor(setting, rows[1:])


def _floor(setting: Setting, rows: list[tuple[float, int, float, float, float]]) -> Floor:
    seconds, steps, nodes, target_s, draft_s = (
        np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    core = Totals(seconds, steps)
    # Each batch's floor weighs as many steps as the batch took.
    floor = Totals((target_s + draft_s) * steps, steps)
    return Floor(
        setting=setting,
        nodes=float(nodes.mean()),
        step_ms=float(seconds.sum() / steps.sum()) * 1e3,
        floor_ms=float(floor.seconds.sum() / steps.sum()) * 1e3,
        target_ms=float((target_s * steps).sum() / steps.sum()) * 1e3,
        draft_ms=float((draft_s * steps).sum() / steps.sum()) * 1e3,
        ratio=ratio(core, floor),
        interval=jackknife_interval(core, floor),
    )


def equal_batches(setting: Setting, target: LoadedModel) -> list[Requests]:
    """Batches of prompts of equal length, so that a plain forward without padding has the very same shape."""
    wanted = setting.units * setting.batch_size
    settings = PromptSettings(source="stdlib", count=3 * wanted, max_prompt_tokens=setting.prompt_tokens)
    found = load_prompts(settings, target.source, max_new_tokens=setting.max_new_tokens).prompts
    full = [prompt for prompt in found if len(prompt.ids) == setting.prompt_tokens][:wanted]
    size = setting.batch_size
    groups = [full[start : start + size] for start in range(0, len(full) - size + 1, size)]
    return [Requests([prompt.ids for prompt in group], [prompt.key for prompt in group]) for group in groups]


def load_method(setting: Setting, supplier: Supplier) -> Method:
    """The method of a setting, with what it asks for."""
    kind = registry.load(setting.method)
    method = kind(kind.Options(**setting.options))
    method.load(supplier.context)
    return method


class _Subject:
    """The method under test, with what it drafts by in sight."""

    def __init__(self, setting: Setting, target: LoadedModel, pool: ModelPool) -> None:
        self._setting, self._target = setting, target.model
        self._products: list[_Product] = []
        supplier = Supplier(pool, target)
        self._method = load_method(setting, supplier)
        self._drafts, self._loose = supplier.drafts, supplier.drafters

    def step(self, requests: Requests, decoding: Decoding, clock: Timeline) -> tuple[float, int, float]:
        """Decode seconds and steps of one batch, and how many draft nodes wide a step was on average."""
        watch = HeadlineWatch(clock)
        with no_garbage_collection():
            trace = generate(self._target, self._method, requests, decoding, watch)
        if self._loose and not self._products:
            self._products = self._products_of_a_draft(requests, decoding)
        return watch.timing.decode_s, trace.steps, mean_width(trace)

    @torch.inference_mode()
    def floor(self, requests: Requests, nodes: int, clock: Timeline) -> tuple[float, float]:
        """Seconds of the target's forward over the root and so many nodes, and of what one draft cannot do without."""
        setting = self._setting
        length = setting.prompt_tokens + setting.max_new_tokens // 2
        parts: list[_Forwards | _Products] = [_Forwards(self._target.module, requests, length, [nodes + 1])]
        # A draft model first reads two tokens, then one at a time.
        parts += [_Forwards(draft.module, requests, length, [2, *[1] * (nodes - 1)]) for draft in self._drafts]
        if self._products:
            parts.append(_Products(self._products))
        # As often as the core takes steps, or nearly: both then see the same amount of the machine's mood.
        times = max(8, setting.max_new_tokens // 3)
        target_s, *drafts_s = _in_turn(parts, times, clock)
        return target_s, sum(drafts_s)

    def _products_of_a_draft(self, requests: Requests, decoding: Decoding) -> list["_Product"]:
        """The matrix products of the last draft of a batch, in order."""
        seen: list[_Product] = []
        draft, is_drafting = self._method.draft, False

        def noting(view: RowView) -> TokenTree:
            nonlocal is_drafting
            seen.clear()
            is_drafting = True
            tree = draft(view)
            is_drafting = False
            return tree

        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if is_drafting:
                seen.append(_Product(module, args[0].shape, args[0].dtype))

        layers = [layer for part in self._loose for layer in part.modules() if isinstance(layer, nn.Linear)]
        handles = [
            layer.register_forward_pre_hook(note) for layer in [*layers, self._target.module.get_output_embeddings()]
        ]
        self._method.draft = noting  # type: ignore[method-assign]
        try:
            generate(self._target, self._method, requests, decoding)
        finally:
            del self._method.draft  # the method's own shows again
            for handle in handles:
                handle.remove()
        return seen


def mean_width(trace: BatchTrace) -> float:
    """Draft nodes of a step on average, as the target ran them: a batch is as wide as its widest row."""
    rows = [row.drafted_nodes_per_step for row in trace.rows]
    return float(np.mean([max(counts) for counts in zip_longest(*rows, fillvalue=0)]))


class _Product(NamedTuple):
    """A layer, and what it was applied to."""

    layer: nn.Module
    shape: torch.Size
    dtype: torch.dtype


class _Products:
    """Some matrix products, one after the other."""

    def __init__(self, products: Sequence[_Product]) -> None:
        device = next(products[0].layer.parameters()).device
        self._work = [(part.layer, torch.randn(part.shape, device=device).to(part.dtype)) for part in products]

    def run(self) -> None:
        for layer, given in self._work:
            layer(given)

    def reset(self) -> None:
        """Nothing grows."""


class _Forwards:
    """Plain forwards of those widths, one after the other, on a cache of ``length`` tokens."""

    def __init__(self, module: nn.Module, requests: Requests, length: int, widths: list[int]) -> None:
        self._module, self._length, self._widths = module, length, widths
        ids = torch.tensor(requests.prompts, device=next(module.parameters()).device)
        self._ids = ids.repeat(1, -(-(length + sum(widths)) // ids.shape[1]))
        self._cache = DynamicCache()
        module(input_ids=self._ids[:, :length], past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def run(self) -> None:
        at = self._length
        for width in self._widths:
            self._module(input_ids=self._ids[:, at : at + width], past_key_values=self._cache, use_cache=True)
            at += width

    def reset(self) -> None:
        self._cache.crop(-sum(self._widths))


@torch.inference_mode()
def _in_turn(parts: Sequence[_Forwards | _Products], times: int, clock: Timeline) -> list[float]:
    """Mean seconds of each part. They alternate as in a step, where each finds what the others left of the caches."""
    spent = [0.0] * len(parts)
    with no_garbage_collection():
        for _ in range(times):
            for index, part in enumerate(parts):
                spent[index] += seconds_of(part.run, clock)
                part.reset()
    return [seconds / times for seconds in spent]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each method and batch size, and write JSON where asked."""
    asked = command("floor", __doc__).parse_args(arguments)
    pool, settings = opened(asked)
    floors = []
    for setting in settings:
        floors.append(measure(setting, pool))
        print(in_words(floors[-1]), flush=True)  # noqa: T201  (a command)
    write(asked, pool, {"floors": [asdict(floor) for floor in floors]})


def command(name: str, description: str | None) -> argparse.ArgumentParser:
    """What every command takes that times a method by itself: ``python -m specbench.bench.NAME``."""
    parser = argparse.ArgumentParser(prog=f"python -m specbench.bench.{name}", description=description)
    parser.add_argument("--target", default="pico")
    parser.add_argument("--method", nargs="+", default=list(USUAL))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of every method")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--out", type=Path)
    return parser


def opened(asked: argparse.Namespace) -> tuple[ModelPool, list[Setting]]:
    """Where models come from, and a setting for each method and batch size."""
    torch.set_num_threads(asked.threads)
    options = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in asked.set)}
    where = placement(MachineSettings(device=asked.device, dtype=asked.dtype, threads=asked.threads))
    settings = [
        Setting(asked.target, method, {**USUAL.get(method, {}), **options}, size, units=asked.units)
        for method, size in product(asked.method, asked.batch_size)
    ]
    return ModelPool(where, asked.zoo), settings


def write(asked: argparse.Namespace, pool: ModelPool, found: Mapping[str, Any]) -> None:
    """What was found as JSON, with the machine that it was found on; nothing where no file was asked for."""
    if asked.out is None:
        return
    about = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "threads": asked.threads,
        "dtype": pool.where.dtype_name,
    }
    asked.out.write_text(json.dumps({**about, **found}, indent=2) + "\n", "utf-8")


def in_words(floor: Floor) -> str:
    """One line."""
    interval, setting = floor.interval, floor.setting
    spread = f"[{interval.low:.3f}, {interval.high:.3f}] over {interval.units} batches" if interval else "no interval"
    return (
        f"{setting.method}, batch {setting.batch_size}, {floor.nodes:.1f} nodes: a step takes {floor.step_ms:.2f} ms, "
        f"its floor {floor.floor_ms:.2f} ms (target {floor.target_ms:.2f}, draft {floor.draft_ms:.2f}): "
        f"{floor.ratio:.3f} {spread}"
    )


if __name__ == "__main__":
    main()
