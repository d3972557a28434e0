"""Small runs on tiny models that the tests of this folder look at from different sides."""

import json

import pytest

from methods.draft_model import DraftModel
from specbench import registry
from specbench.bench.runner import RunSummary
from specbench.models.source import locate
from specbench.records.store import Store
from tests.unit.analysis.conftest import rows  # noqa: F401
from tests.unit.bench.bench_plans import run
from tests.unit.bench.conftest import family, folder, rough_ceilings  # noqa: F401

PROMPTS = ["def area(width, height):\n", "import os\n", "class A:\n    pass\n", "x = 1\n", "import os\n"]
PLAN = """
name: lab
targets: [{model: pico}]
prompts: {source: PROMPTS, count: 5}
decode: {max_new_tokens: 12, batch_size: 2}
methods:
  - draft_model: {draft: pico-wide, gamma: 3, label: small draft}
  - prompt_lookup: {gamma: 4}
measure: {repeats: 2, warmup: 1}
machine: {device: cpu}
"""


def plan(folder) -> str:  # noqa: F811
    """Five prompts in batches of two, the same one twice; the names of things are the tests' own."""
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text, "category": str(i)}) for i, text in enumerate(PROMPTS)))
    return PLAN.replace("PROMPTS", str(file))


def requests(summary: RunSummary):
    return Store(summary.folder).read("requests")


def with_method(name, kind):
    """The registry with another class under one name."""
    return lambda asked: kind if asked == name else registry.load(asked)


class FailsLater(DraftModel):
    """Out of memory in the second block and the third, after warm-up, a count of its work and the first went well."""

    def begin(self, view, prefill):
        self.batches = getattr(self, "batches", 0) + 1
        if self.batches > 3:
            raise MemoryError
        super().begin(view, prefill)


@pytest.fixture(scope="session")
def place(tmp_path_factory, family):  # noqa: F811
    """A folder with a tiny family and the prompts."""
    place = tmp_path_factory.mktemp("lab")
    (place / "zoo").symlink_to(family)
    return place


@pytest.fixture(scope="session")
def summary(place):
    """A run that went well."""
    return run(place, plan(place))


@pytest.fixture(scope="session")
def finished(summary):
    """Its requests."""
    return requests(summary)


@pytest.fixture(scope="session")
def headline(finished):
    """Those of its headline pass."""
    return finished[finished["pass"] == "headline"]


@pytest.fixture(scope="session")
def half_failed(place):
    """Requests of a run in which one arm fails from the second block on."""
    text = plan(place).replace("repeats: 2", "repeats: 1")
    kind = with_method("draft_model", FailsLater)
    table = requests(run(place, text, results=place / "half", method_class=kind))
    return table[table["pass"] == "headline"]


@pytest.fixture(scope="session")
def target(family):  # noqa: F811
    """The tiny target's files."""
    return locate("pico", family)
