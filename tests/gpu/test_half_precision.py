"""Half precision on trained models: texts differ from autoregressive's at near ties alone, and seldom."""

import pytest

from specbench import registry
from specbench.bench.lossless import compare
from specbench.bench.prompts import load_prompts
from specbench.bench.steps import ReadyStep
from specbench.config import MachineSettings, PromptSettings
from specbench.decode.loop import Requests, generate, sampler_for
from specbench.decode.step import Decoding
from specbench.models.loader import ModelPool, Supplier, placement
from support import gpu

pytestmark = pytest.mark.gpu

TOKENS, ROWS = 64, 16
METHODS = [
    ("draft_model", {"draft": "pico-small", "gamma": 4}),
    ("medusa", {"heads": "pico-medusa"}),
    ("redrafter", {"drafter": "pico-redrafter"}),
    ("prompt_lookup", {"gamma": 8}),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def bench(request):
    """The embedded target, prompts, and the texts of autoregressive decoding."""
    machine = MachineSettings(device=str(gpu.DEVICE), dtype=request.param)
    pool = ModelPool(placement(machine))
    target = pool.get("pico")
    settings = PromptSettings(source="stdlib", count=ROWS, max_prompt_tokens=96)
    found = load_prompts(settings, target.source, max_new_tokens=TOKENS).prompts
    requests = Requests([prompt.ids for prompt in found], [prompt.key for prompt in found])
    return machine, pool, target, requests, texts(machine, pool, target, requests, "autoregressive", {})


def texts(machine, pool, target, requests, name, options):
    """What a method writes, from graphs."""
    kind = registry.load(name)
    method, supplier = kind(kind.Options(**options)), Supplier(pool, target)
    method.load(supplier.context)
    ready = ReadyStep(target.model, method, Decoding(TOKENS), machine, draft_is_paced=False, drafts=supplier.drafts)

    def run():
        return generate(target.model, method, requests, ready.step.decoding, step=ready.step)

    ready.prepare(run)
    found = [row.output_ids for row in run().rows]
    assert ready.notes().get("pieces_as_they_are", {}) == {}
    return found


@pytest.mark.parametrize("compiles", [False, "pieces"], ids=["as it is", "compiled pieces"])
@pytest.mark.parametrize(("name", "options"), METHODS, ids=[name for name, _ in METHODS])
def test_a_text_is_that_of_autoregressive_or_differs_at_a_near_tie(bench, name, options, compiles, record_property):
    machine, pool, target, requests, references = bench
    machine = machine.model_copy(update={"compile": compiles})
    found = texts(machine, pool, target, requests, name, options)
    words = []
    for prompt, key, reference, text in zip(requests.prompts, requests.keys, references, found, strict=True):
        sampler = sampler_for(target.model, [key], [len(prompt)], Decoding(TOKENS))
        words.append(compare(target.model, prompt, reference, text, sampler).word)
    record_property("near ties of rows", f"{words.count('near-tie')} of {ROWS} in {machine.dtype}")
    assert "WRONG" not in words
    # About one row of 128 tokens in eight has one in bfloat16, and hardly any in float32.
    assert words.count("near-tie") <= (ROWS // 2 if machine.dtype == "bfloat16" else 1)
