"""specbench.bench.text_stream"""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from specbench.bench.text_stream import TextStream, printable
from tests.unit.models import tiny

TEXT = "def café(): return '🙂🙂', \"né\"  # 中文\n\n\tß = 1"


def spaced_tokenizer():
    """One whose tokens carry their space in front, which is dropped from the first of a text, as in Llama 2."""
    words = ["▁def", "▁f", "▁return", "(", ")", ":", "<unk>"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def pieces(tokenizer, ids, sizes):
    stream, found, start = TextStream(tokenizer), [], 0
    for size in sizes:
        found.append(stream.push(ids[start : start + size]))
        start += size
    return found


def test_a_character_that_is_split_over_tokens_is_shown_once_it_is_whole():
    tokenizer = tiny.tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    alone = [tokenizer.decode([token]) for token in ids]
    assert sum("\ufffd" in text for text in alone) > 8  # else nothing is split
    found = pieces(tokenizer, ids, [1] * len(ids))
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize("seed", range(20))
def test_the_pieces_make_the_text_however_many_tokens_a_step_has(seed):
    tokenizer, draw = tiny.tokenizer(), random.Random(seed)
    ids = tokenizer(TEXT * 2)["input_ids"]
    sizes = []
    while sum(sizes) < len(ids):
        sizes.append(draw.randint(1, 6))
    assert "".join(pieces(tokenizer, ids, sizes)) == TEXT * 2


def test_what_stands_before_a_split_character_is_not_held_back():
    tokenizer = tiny.tokenizer()
    [*first, last] = tokenizer("ab🙂")["input_ids"]
    stream = TextStream(tokenizer)
    assert stream.push(first) == "ab"
    assert stream.push([last]) == "🙂"


def test_tokens_that_share_a_space_with_their_neighbour_keep_it():
    tokenizer = spaced_tokenizer()
    ids = [0, 1, 3, 4, 5, 2, 1]
    assert tokenizer.decode(ids) == "def f(): return f"
    assert pieces(tokenizer, ids, [1] * len(ids)) == ["def", " f", "(", ")", ":", " return", " f"]


def test_an_end_that_never_becomes_a_character_is_not_shown():
    tokenizer = tiny.tokenizer()
    [*first, _] = tokenizer("ab🙂")["input_ids"]
    assert "".join(pieces(tokenizer, first, [1] * len(first))) == "ab"


def test_a_byte_that_is_no_text_does_not_hold_up_what_follows():
    tokenizer = tiny.tokenizer()
    [broken, *_] = tokenizer("🙂")["input_ids"]
    assert pieces(tokenizer, [broken, *tokenizer("ab")["input_ids"]], [1, 9]) == ["", "\ufffdab"]


def test_the_token_that_ends_a_text_is_not_shown():
    tokenizer = tiny.tokenizer()
    assert pieces(tokenizer, [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id], [9]) == ["ab"]


def test_control_characters_cannot_reach_the_terminal():
    assert printable("a\x1b[2Jb\tc\nd\x00\x7f\x9b\r") == "a␛[2Jb\tc\nd␀␦␦␍"
