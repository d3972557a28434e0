"""specbench.decode.cache: what the slab holds is what a fresh prefill of the same text would have put there."""

import pytest
import torch

from specbench.decode.cache import KVShape, SlabCache
from specbench.decode.method import Method
from specbench.decode.target import Nodes
from support import decoding, models

T, F = True, False


def _slab(batch: int = 2, slots: int = 12) -> SlabCache:
    cache = SlabCache(KVShape(2, 1, 1), batch, slots, torch.float32, torch.device("cpu"))
    cache.slab.add_(torch.arange(slots)[:, None, None])
    cache.slab[:, :, 1] += 100
    return cache


def _row(cache: SlabCache, row: int) -> list[int]:
    assert torch.equal(cache.slab[0, 0], cache.slab[1, 1])
    return cache.slab[0, 0, row, :, 0, 0].int().tolist()


def test_only_the_accepted_path_moves_and_it_lands_right_behind_the_committed_tokens():
    cache = _slab()
    cache.compact(torch.tensor([[0, 2, 5], [0, 1, 3]]), torch.tensor([3, 3]), torch.tensor([4, 2]))
    assert _row(cache, 0)[:11] == [0, 1, 2, 3, 4, 6, 9, 7, 8, 9, 10]
    assert _row(cache, 1)[:11] == [100, 101, 102, 103, 105, 105, 106, 107, 108, 109, 110]


def test_a_node_that_overlaps_the_place_of_another_is_read_before_it_is_written():
    cache = _slab()
    cache.compact(torch.tensor([[0, 2, 3, 4]] * 2), torch.tensor([4, 0]), torch.tensor([3, 3]))
    assert _row(cache, 0)[:11] == [0, 1, 2, 3, 5, 6, 7, 7, 8, 9, 10]


def test_rows_that_were_done_keep_their_slots():
    cache = _slab()
    cache.compact(torch.tensor([[0, 3, 5], [0, 3, 5]]), torch.tensor([0, 1]), torch.tensor([4, 4]))
    assert _row(cache, 0)[:11] == list(range(11))
    assert _row(cache, 1)[:11] == list(range(100, 111))


def _committed_state(method: Method, name: str, max_new_tokens: int, **options: object):
    """Run a batch and return the target, and for every row its committed tokens."""
    target = decoding.family(name)
    trace = decoding.decode(target, method(target), models.PROMPTS[:5], max_new_tokens, **options)
    # The last token's KV is not in the cache: it is the root.
    texts = [[*prompt, *row.output_ids[:-1]] for prompt, row in zip(models.PROMPTS, trace.rows, strict=False)]
    return target, texts


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"draft": "near", "gamma": 5}, id="chain"),
        pytest.param({"draft": "same", "tree": {"branching": [3, 2, 2]}}, id="tree"),
        pytest.param({"draft": "near", "tree": {"branching": [2, 2, 1, 1]}}, id="tree accepted in part"),
    ],
)
def test_after_a_batch_the_slab_equals_a_fresh_prefill_of_the_texts(name: str, options: dict[str, object]):
    drafts = decoding.drafts_of(name)
    target, texts = _committed_state(
        lambda target: decoding.draft_model(target, drafts, **options), name, 20, eos_ids=models.eos_for(name)
    )
    used = target.cache.slab.clone()
    fresh = decoding.family(name)
    lengths = torch.tensor([len(text) for text in texts])
    longest = int(lengths.max())
    fresh.allocate(len(texts), longest + 1)
    fresh.prefill(torch.tensor([text + [0] * (longest - len(text)) for text in texts]), lengths)
    for row, text in enumerate(texts):
        torch.testing.assert_close(
            used[:, :, row, : len(text)], fresh.cache.slab[:, :, row, : len(text)], atol=2e-5, rtol=1e-4
        )


def test_the_drafts_own_slab_equals_a_fresh_prefill_but_for_what_it_has_not_read_yet():
    for options in ({"gamma": 4}, {"tree": {"branching": [2, 2, 1]}}):
        target = decoding.family("llama")
        method = decoding.draft_model(target, decoding.drafts_of("llama"), draft="near", **options)
        trace = decoding.decode(target, method, models.PROMPTS[:5], 24)
        texts = [[*prompt, *row.output_ids[:-2]] for prompt, row in zip(models.PROMPTS, trace.rows, strict=False)]
        slab = method.model.cache.slab
        for row, text in enumerate(texts):
            fresh = method.model.sharing_weights()
            fresh.allocate(1, len(text) + 1)
            fresh.prefill(torch.tensor([text]), torch.tensor([len(text)]))
            torch.testing.assert_close(
                slab[:, :, row, : len(text)], fresh.cache.slab[:, :, 0, : len(text)], atol=2e-5, rtol=1e-4
            )


def test_a_slab_that_fits_is_used_again_and_a_larger_batch_gets_a_new_one():
    model = decoding.family("llama")
    model.allocate(3, 40)
    first = model.cache
    model.allocate(3, 30)
    assert model.cache is first
    model.allocate(4, 30)
    assert model.cache is not first
    assert model.cache.batch == 4


def test_what_an_earlier_batch_left_in_the_slab_is_never_read():
    model = decoding.family("mistral")
    clean = decoding.ids(decoding.decode(model, decoding.autoregressive(), models.PROMPTS, 24))
    model.cache.slab.normal_(std=50)
    assert decoding.ids(decoding.decode(model, decoding.autoregressive(), models.PROMPTS, 24)) == clean


def test_forwards_within_and_without_inference_mode_take_turns_on_one_slab():
    """What the loop leaves behind serves whoever measures a forward alone."""
    model = decoding.family("llama")
    model.allocate(1, 20)
    one, lengths = torch.tensor([[3]]), torch.tensor([2])
    with torch.inference_mode():
        model.prefill(torch.tensor([[1, 2]]), lengths)
        inside = model.forward(Nodes(one, lengths), 2).logits
    assert torch.equal(model.forward(Nodes(one, lengths), 2).logits, inside)


def test_nothing_ever_reads_the_trash_slot():
    """Poison it after every write: the texts stay, in every method that drafts ahead."""
    target = decoding.family("gemma2")
    for options in ({"gamma": 6, "stop": {"kind": "heuristic"}}, {"tree": {"branching": [2, 2, 1]}}):
        method = decoding.draft_model(target, decoding.drafts_of("gemma2"), draft="near", **options)
        clean = decoding.ids(decoding.decode(target, method, models.PROMPTS, 24))
        update = method.update

        def poison(view, result, update=update, method=method):
            target.cache.slab[:, :, :, target.cache.trash] = 1e4
            method.model.cache.slab[:, :, :, method.model.cache.trash] = 1e4
            update(view, result)

        method.update = poison
        assert decoding.ids(decoding.decode(target, method, models.PROMPTS, 24)) == clean
