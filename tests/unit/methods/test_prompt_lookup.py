"""methods.prompt_lookup: the longest n-gram wins, then the latest, and never the end of the text itself."""

import pytest
from pydantic import ValidationError

from methods.prompt_lookup import PromptLookup, PromptLookupOptions
from support import decoding, models


def _lookup(text: list[int], **options: int) -> list[int]:
    return PromptLookup(PromptLookupOptions(**options)).lookup(text)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        pytest.param([1, 2, 3, 9, 1, 2, 3], {"gamma": 2}, [9, 1], id="what followed the same three words"),
        pytest.param([5, 3, 8, 1, 2, 3, 9, 4, 1, 2, 3], {"gamma": 1}, [9], id="a longer match beats a shorter one"),
        pytest.param([7, 3, 8, 3, 6, 3], {"gamma": 1}, [6], id="of equal matches the latest wins"),
        pytest.param([1, 2, 3, 4], {}, [], id="nothing has occurred before"),
        pytest.param([1], {}, [], id="a text of one token"),
        pytest.param([4, 4], {}, [4], id="a token that repeats itself"),
        pytest.param([4, 4, 4, 4], {"max_ngram": 2}, [4], id="an occurrence may overlap the end of the text"),
        pytest.param([1, 2, 1], {"gamma": 8}, [2, 1], id="the proposal ends where the text ends"),
        pytest.param([1, 2, 3, 9, 7, 3], {"min_ngram": 2}, [], id="a match below min_ngram does not count"),
        pytest.param([2, 3, 9, 5, 2, 3], {"max_ngram": 1, "gamma": 1}, [9], id="max_ngram is a limit, not a demand"),
        pytest.param(
            [1, 2, 3, 8, 2, 3, 7, 1, 2, 3], {"max_ngram": 2, "gamma": 1}, [7], id="within max_ngram the latest wins"
        ),
        pytest.param([*range(20), 0, 1], {"gamma": 5}, [2, 3, 4, 5, 6], id="no more than gamma tokens"),
    ],
)
def test_lookup(text: list[int], options: dict[str, int], expected: list[int]):
    assert _lookup(text, **options) == expected


def test_lookup_equals_a_brute_force_search():
    import random

    chance = random.Random(0)
    for _ in range(500):
        text = [chance.randrange(4) for _ in range(chance.randrange(1, 25))]
        longest, shortest, gamma = 4, chance.randrange(1, 4), chance.randrange(1, 6)
        expected: list[int] = []
        for size in range(longest, shortest - 1, -1):
            places = [i for i in range(len(text) - size) if text[i : i + size] == text[len(text) - size :]]
            if size < len(text) and places:
                expected = text[places[-1] + size :][:gamma]
                break
        assert _lookup(text, max_ngram=longest, min_ngram=shortest, gamma=gamma) == expected


def test_a_repeating_text_is_drafted_and_accepted():
    prompt = models.PROMPTS[0] + tuple(models.greedy_continuation("llama", models.PROMPTS[0], 24))
    target = decoding.family("llama")
    trace = decoding.decode(target, decoding.prompt_lookup(), [prompt, models.PROMPTS[5]], 40)
    assert sum(sum(row.accepted_per_step) for row in trace.rows) >= 5
    assert any(0 < n < 8 for row in trace.rows for n in row.drafted_nodes_per_step)


def test_rows_of_one_batch_draft_chains_of_their_own_length():
    target = decoding.family("llama")
    drafts = []
    method = decoding.prompt_lookup(max_ngram=2, gamma=6)
    draft = method.draft
    method.draft = lambda view: drafts.append(draft(view)) or drafts[-1]
    decoding.decode(target, method, [(1, 2, 3, 1, 2), (5, 6, 7, 8), (9, 9, 9)], 6)
    assert any(len(set(tree.drafted.sum(1).tolist())) > 1 for tree in drafts if tree.drafted.numel())


def test_a_shortest_ngram_above_the_longest_is_refused():
    with pytest.raises(ValidationError, match="min_ngram"):
        PromptLookupOptions(min_ngram=4, max_ngram=3)
