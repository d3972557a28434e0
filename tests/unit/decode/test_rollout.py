"""specbench.decode.rollout: drafts from every place at once, against plain forwards and against transformers."""

from dataclasses import replace

import pytest
import torch

from specbench.decode import rollout
from specbench.decode.loop import sampler_for
from specbench.decode.rollout import Text, roll_out, walk
from specbench.decode.sampling import Stream, first_largest
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from support import decoding, models

TEXTS = [list(models.PROMPTS[4]), list(models.PROMPTS[2]), list(models.PROMPTS[6])]
FIRST, COUNT = (5, 2, 3), 7  # the places of the later rows reach to or beyond the end of their texts


def ragged() -> Text:
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in TEXTS], batch_first=True)
    return Text(tokens, torch.tensor(FIRST), COUNT)


def places():
    """Every place that lies in its row's text: (row, number among the places, the text up to it)."""
    for row, text in enumerate(TEXTS):
        for number in range(COUNT):
            if FIRST[row] + number < len(text):
                yield row, number, text[: FIRST[row] + number + 1]


@pytest.mark.parametrize("nodes_at_once", [4, 12, 1024], ids=["one place at a time", "three", "all places at once"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_draft_from_a_place_is_what_the_model_would_write_there(family, nodes_at_once, monkeypatch):
    """Longer than the window of the windowed families, so that a branch has to forget what a text would."""
    monkeypatch.setattr(rollout, "_NODES_AT_ONCE", nodes_at_once)
    found = roll_out(decoding.family(family), ragged(), 4, lambda logits, _: (first_largest(logits),))[0]
    assert found.shape == (3, COUNT, 4)
    checked = [
        found[row, number].tolist() == models.greedy_continuation(family, tuple(text), 4)
        for row, number, text in places()
    ]
    assert len(checked) == 7 + 7 + 4
    assert all(checked)


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 caps its logits behind the output head
def test_confidence_and_entropy_are_those_of_plain_forwards_before_temperature(family):
    target = decoding.family(family)
    how = Decoding(8, temperature=0.5, top_k=3)
    sampler = sampler_for(target, [4, 5, 6], list(FIRST), how)

    def choose(logits, positions):
        tokens = sampler.propose(logits, positions, sampled=True)
        return tokens, sampler.confidence(logits, tokens), sampler.entropy(logits)

    tokens, confidence, entropy = roll_out(target, ragged(), 3, choose)
    for row, number, text in places():
        path = tokens[row, number].tolist()
        for ahead, token in enumerate(path):
            probs = models.plain_logits(models.target(family), [*text, *path[:ahead]])[-1].double().softmax(-1)
            assert float(confidence[row, number, ahead]) == pytest.approx(float(probs[token]), rel=2e-4)
            expected = float(-(probs * probs.log()).sum())
            assert float(entropy[row, number, ahead]) == pytest.approx(expected, rel=2e-4)


def test_a_sampled_draft_takes_the_noise_of_its_positions():
    """The third token of a draft shares its noise with the first token of the draft two places on."""
    target = decoding.family("llama")
    sampler = sampler_for(target, [4, 5, 6], list(FIRST), Decoding(8, temperature=0.8))
    seen = []

    def choose(logits, positions):
        seen.append(positions)
        return (sampler.propose(logits, positions, sampled=True),)

    tokens = roll_out(target, ragged(), 3, choose)[0]
    assert [positions[:, 0].tolist() for positions in seen] == [[6, 3, 4], [7, 4, 5], [8, 5, 6]]
    for row, number, text in places():
        path: list[int] = []
        for ahead in range(3):
            logits = models.plain_logits(models.target("llama"), [*text, *path])[-1]
            alone = logits[None, None].expand(3, 1, -1)
            position = torch.full((3, 1), len(text) + ahead)
            path.append(int(sampler.draw(alone, position, Stream.DRAFT)[row, 0]))
        assert tokens[row, number].tolist() == path


def test_a_walk_reads_the_text_itself_whatever_hung_behind_earlier_places():
    """Branches are scratch: they must not show in what is said of later places."""
    model = decoding.family("llama")
    text = ragged()
    walked = []
    for places_ in walk(model, text, at_once=2, branch=3):
        walked.append(places_.logits)
        rollout._branches(model, places_, 3, lambda logits, _: (first_largest(logits),))
    logits = torch.cat(walked, dim=1)
    for row, number, own in places():
        plain = models.plain_logits(models.target("llama"), own)[-1]
        assert torch.allclose(logits[row, number], plain, atol=2e-4)


def test_no_more_places_are_taken_at_once_than_their_logits_have_room():
    text = Text(torch.zeros(8, 4000, dtype=torch.int64), torch.zeros(8, dtype=torch.int64), 4000)
    assert text.places_at_once(4096, branch=8) == 1024 // 8
    assert text.places_at_once(128_000) == 2**24 // (8 * 128_000)
    assert text.places_at_once(2**24) == 1
    assert replace(text, count=3).places_at_once(4096) == 3


def test_the_slab_of_a_long_text_holds_the_branches_of_a_few_places_only(monkeypatch):
    monkeypatch.setattr(rollout, "_NODES_AT_ONCE", 8)
    model = CachedModel(models.target("llama"), "llama")
    text = Text(torch.tensor([list(models.PROMPTS[4]) * 2]), torch.tensor([0]), 24)
    roll_out(model, text, 4, lambda logits, _: (first_largest(logits),))
    assert model.cache.slots <= 24 + 8 + 2
