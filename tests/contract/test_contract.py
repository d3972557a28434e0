"""What every registered method owes: the suite that ``specbench.testing`` ships, and a little more."""

import pytest

from methods.draft_model import DraftModel
from specbench.decode.method import LoadContext
from specbench.decode.target import CachedModel
from specbench.testing.cases import FAMILY, cases_of
from specbench.testing.test_contract import *  # noqa: F403
from support import decoding, models


@pytest.mark.parametrize("draft_case", cases_of(DraftModel), ids=str)
def test_a_draft_before_begin_fails(draft_case):
    target = decoding.family(FAMILY)
    method = draft_case.method(target)
    method.begin = lambda view, prefill: None
    with pytest.raises((AssertionError, AttributeError)):
        decoding.decode(target, method, models.PROMPTS[:2], 8)


def test_a_context_hands_out_what_load_needs():
    target = decoding.family(FAMILY)
    asked = []
    method = DraftModel(DraftModel.Options(draft="some-name"))
    method.load(LoadContext(target, lambda name: asked.append(name) or CachedModel(models.stranger(), name)))
    assert asked == ["some-name"]
