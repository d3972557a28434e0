"""Plans for tests of chats and answers, on the tiny family, and what ``transformers`` itself answers."""

import json

from specbench.document import Document, override
from specbench.grid import read_plan
from specbench.registry import options_class
from specbench.testing.models import hf_greedy
from tests.unit.models import tiny

DRAFT = {"draft_model": {"draft": "pico-wide", "gamma": 3}}


def plan(source, *overrides, method=DRAFT, **decode):
    """A plan of one setting on the CPU."""
    values = {
        "name": "talk",
        "targets": ["pico"],
        "prompts": {"source": str(source)},
        "decode": {"max_new_tokens": 12, **decode},
        "methods": [method],
        "machine": {"device": "cpu", "dtype": "float32"},
    }
    document = Document("test", json.loads(json.dumps(values)))
    for assignment in overrides:
        override(document, assignment)
    return read_plan(document, options_class)[1]


def ids_of(text):
    return list(tiny.tokenizer()(text)["input_ids"])


def greedy(ids, max_new_tokens=12):
    """What ``generate`` of transformers writes, the token that ends it left out."""
    eos = tiny.tokenizer().eos_token_id
    written = hf_greedy(tiny.model(seed=1), tuple(ids), max_new_tokens, (eos,))
    return [token for token in written if token != eos]


def text_of(ids):
    return tiny.tokenizer().decode(ids, skip_special_tokens=True)
