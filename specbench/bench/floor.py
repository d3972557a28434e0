"""A core step against its floor: the target's forward of that shape, and what the draft cannot do without, timed alone.

    python -m specbench.bench.floor --dtype bfloat16 --out floor.json
    python -m specbench.bench.floor --method redrafter --set width=8

After every step the floor of that step is timed, so that the machine's mood falls on both alike, and each finds its
weights where the other has left them. The floor is a plain ``transformers`` forward over its own growing cache, as wide
as the step's, without tree, rule, slab or loop. To it come a draft model's forwards, plain as well; or the layers that
a draft calls, alone, of a method with weights of its own.
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
from specbench.bench import attention, machine
from specbench.bench.prompts import load_prompts
from specbench.bench.steps import ReadyStep
from specbench.bench.timing import Timeline, no_garbage_collection, timeline
from specbench.config import MachineSettings, PromptSettings
from specbench.decode.loop import Requests, generate
from specbench.decode.method import Method, RowView, TokenTree
from specbench.decode.step import Decoding
from specbench.decode.trace import BatchTrace, NullWatch, Watch
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


class Timed(NamedTuple):
    """One batch, in seconds: its steps, and as many forwards of the target and of what drafts."""

    step_s: float
    target_s: float
    draft_s: float
    steps: int
    nodes: float


def measure(setting: Setting, pool: ModelPool) -> Floor:
    """Time core steps and the forwards that they cannot do without, turn by turn."""
    subject = _Subject(setting, pool)
    batches = equal_batches(setting, pool.get(setting.target))
    widths = [subject.widths(requests) for requests in batches]  # this also warms up
    return _floor(setting, [subject.timed(*batch) for batch in zip(batches, widths, strict=True)])


def _floor(setting: Setting, batches: Sequence[Timed]) -> Floor:
    step_s, target_s, draft_s, steps, nodes = (
        np.asarray(column, dtype=np.float64) for column in zip(*batches, strict=True)
    )
    core, floor = Totals(step_s, steps), Totals(target_s + draft_s, steps)
    step_ms, target_ms, draft_ms = (float(seconds.sum() / steps.sum()) * 1e3 for seconds in (step_s, target_s, draft_s))
    return Floor(
        setting=setting,
        nodes=float(nodes.mean()),
        step_ms=step_ms,
        floor_ms=target_ms + draft_ms,
        target_ms=target_ms,
        draft_ms=draft_ms,
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


class ReadyMethod:
    """The method of a setting, as an arm of a run decodes by it: with phases compiled, or captured.

    Args:
        setting: Which method, on which target.
        pool: Where models come from.
        how: Whether phases are compiled, and whether they are captured.

    Attributes:
        clock: The timeline of the device that the target lives on.
    """

    def __init__(self, setting: Setting, pool: ModelPool, how: MachineSettings) -> None:
        target = pool.get(setting.target)
        self._target, self.clock = target.model, timeline(target.model.device)
        longest = setting.prompt_tokens + setting.max_new_tokens
        attention.settle(self._target, attention.shapes_of(setting.batch_size, longest), self.clock)
        supplier = Supplier(pool, target)
        self._method = load_method(setting, supplier)
        self._decoding = Decoding(max_new_tokens=setting.max_new_tokens)
        self._ready = ReadyStep(
            self._target, self._method, self._decoding, how, draft_is_paced=False, drafts=supplier.drafts
        )

    def prepare(self, requests: Requests) -> None:
        """Compile and capture what can be, on a batch like all others."""
        self._ready.prepare(lambda: self.decode(requests, NullWatch()))

    def decode(self, requests: Requests, watch: Watch) -> BatchTrace:
        """One batch to its end."""
        return generate(self._target, self._method, requests, self._decoding, watch, step=self._ready.step)

    def notes(self) -> dict[str, Any]:
        """What of it was compiled and captured, and what was not."""
        return self._ready.notes()


class _Subject:
    """The method under test, with what it drafts by in sight."""

    def __init__(self, setting: Setting, pool: ModelPool) -> None:
        target = pool.get(setting.target)
        self._setting, self._target = setting, target.model
        self._clock = timeline(target.model.device)
        self._decoding = Decoding(max_new_tokens=setting.max_new_tokens)
        supplier = Supplier(pool, target)
        self._method = load_method(setting, supplier)
        self._drafts, self._loose = supplier.drafts, supplier.drafters
        self._layers: list[_Call] = []

    def widths(self, requests: Requests) -> list[int]:
        """Draft nodes of every step, as the target will run them."""
        if self._loose and not self._layers:
            self._layers = self._layers_of_a_draft(requests)
        return widths(generate(self._target, self._method, requests, self._decoding))

    def timed(self, requests: Requests, nodes: list[int]) -> Timed:
        """Decode a batch whose steps are of those widths, each step followed by its floor."""
        length = self._setting.prompt_tokens + self._setting.max_new_tokens // 2
        target = _Forwards(self._target.module, requests, length, [[count + 1] for count in nodes])
        # A draft model first reads two tokens, then one at a time.
        chains = [[2, *[1] * (count - 1)] for count in nodes]
        drafts: list[_Forwards | _Layers] = [
            _Forwards(draft.module, requests, length, chains) for draft in self._drafts
        ]
        if self._layers:
            drafts.append(_Layers(self._layers))
        watch = _Alternating(self._clock, [*drafts, target])
        with no_garbage_collection():
            trace = generate(self._target, self._method, requests, self._decoding, watch)
        *drafts_s, target_s = watch.parts_s
        return Timed(watch.steps_s, target_s, sum(drafts_s), trace.steps, float(np.mean(nodes)))

    def _layers_of_a_draft(self, requests: Requests) -> list["_Call"]:
        """Layers that the last draft of a batch called, in order; of layers within one another the outermost."""
        seen: list[_Call] = []
        draft, is_drafting, depth = self._method.draft, False, 0

        def noting(view: RowView) -> TokenTree:
            nonlocal is_drafting
            seen.clear()
            is_drafting = True
            tree = draft(view)
            is_drafting = False
            return tree

        def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal depth
            if is_drafting and not depth:
                seen.append(_Call(module, args[0].clone()))
            depth += 1

        def leave(*_: Any) -> None:
            nonlocal depth
            depth -= 1

        lent = self._target.module
        layers = [layer for part in self._loose for layer in part.modules()]
        layers += [lent.get_input_embeddings(), lent.get_output_embeddings()]
        handles = [layer.register_forward_pre_hook(enter) for layer in layers]
        handles += [layer.register_forward_hook(leave) for layer in layers]
        self._method.draft = noting  # type: ignore[method-assign]
        try:
            generate(self._target, self._method, requests, self._decoding)
        finally:
            del self._method.draft  # the method's own shows again
            for handle in handles:
                handle.remove()
        return seen


def widths(trace: BatchTrace) -> list[int]:
    """Draft nodes of every step, as the target ran them: a batch is as wide as its widest row."""
    rows = [row.drafted_nodes_per_step for row in trace.rows]
    return [max(counts) for counts in zip_longest(*rows, fillvalue=0)]


class _Call(NamedTuple):
    """A layer, and what it was applied to."""

    layer: nn.Module
    given: Tensor


class _Layers:
    """Some layers, one after the other."""

    def __init__(self, calls: Sequence[_Call]) -> None:
        self._calls = calls

    def run(self) -> None:
        for layer, given in self._calls:
            layer(given)

    def reset(self) -> None:
        """Nothing grows."""


class _Forwards:
    """Plain forwards on a cache of ``length`` tokens: of those widths one after the other, other ones in every turn."""

    @torch.inference_mode()
    def __init__(self, module: nn.Module, requests: Requests, length: int, turns: list[list[int]]) -> None:
        self._module, self._length, self._turns, self._turn = module, length, turns, 0
        ids = torch.tensor(requests.prompts, device=next(module.parameters()).device)
        self._ids = ids.repeat(1, -(-(length + max(map(sum, turns))) // ids.shape[1]))
        self._cache = DynamicCache()
        module(input_ids=self._ids[:, :length], past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def run(self) -> None:
        at = self._length
        for width in self._turns[self._turn]:
            self._module(input_ids=self._ids[:, at : at + width], past_key_values=self._cache, use_cache=True)
            at += width

    def reset(self) -> None:
        self._cache.crop(-sum(self._turns[self._turn]))
        self._turn = (self._turn + 1) % len(self._turns)  # on a GPU there is one step too many


class _Alternating(NullWatch):
    """Times every step, and after it some parts, each by itself: all of them once for every step.

    Attributes:
        steps_s: Seconds of the steps that count.
        parts_s: Seconds of each part, over as many turns.
    """

    def __init__(self, clock: Timeline, parts: Sequence[_Forwards | _Layers]) -> None:
        self._clock, self._parts = clock, parts
        self._steps: list[tuple[Any, Any]] = []
        self._turns: list[list[tuple[Any, Any]]] = []

    def prefilled(self) -> None:
        """The first step begins."""
        self._began = self._clock.mark()

    def step(self) -> None:
        """A step ends; its parts follow, and behind them the next step begins."""
        self._steps.append((self._began, self._clock.mark()))
        self._turns.append([self._marks_around(part) for part in self._parts])
        self._began = self._clock.mark()

    def finish(self, steps: int) -> None:
        """Add up what was marked."""
        self._clock.wall()
        self.steps_s = sum(self._clock.seconds(*marks) for marks in self._steps[:steps])
        columns = zip(*self._turns[:steps], strict=True)
        self.parts_s = [sum(self._clock.seconds(*marks) for marks in column) for column in columns]

    def _marks_around(self, part: _Forwards | _Layers) -> tuple[Any, Any]:
        begin = self._clock.mark()
        part.run()
        end = self._clock.mark()
        part.reset()
        return begin, end


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
    setting = floor.setting
    return (
        f"{setting.method}, batch {setting.batch_size}, {floor.nodes:.1f} nodes: a step takes {floor.step_ms:.2f} ms, "
        f"its floor {floor.floor_ms:.2f} ms (target {floor.target_ms:.2f}, draft {floor.draft_ms:.2f}): "
        f"{floor.ratio:.3f} {spread(floor.interval)}"
    )


def spread(interval: Interval | None) -> str:
    """The interval of a ratio, behind it."""
    return f"[{interval.low:.3f}, {interval.high:.3f}] over {interval.units} batches" if interval else "no interval"


if __name__ == "__main__":
    main()
