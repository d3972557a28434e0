"""specbench.models.source"""

import shutil

import huggingface_hub
import pytest

from specbench.config import RandomModel
from specbench.errors import ConfigError, UnknownNameError, UnsupportedError
from specbench.models.source import check_same_token_map, locate
from specbench.models.zoo import family as family_names
from tests.unit.models import tiny


def test_a_name_of_the_family_comes_before_everything_else(family):
    source = locate("pico", family)
    assert (source.kind, source.folder) == ("family", family / "pico")
    assert family_names(family) == ["pico", "pico-wide"]


def test_a_folder_is_a_model(family, tmp_path):
    source = locate(str(family / "pico"), tmp_path)
    assert (source.kind, source.vocab_size, source.max_positions) == ("folder", 320, tiny.CONTEXT)
    assert source.eos_ids == (tiny.tokenizer().eos_token_id,)


def test_a_name_that_nobody_knows_is_answered_with_the_nearest(family):
    with pytest.raises(UnknownNameError, match=r"unknown model 'picco'\. Did you mean 'pico'\?"):
        locate("picco", family)


def test_a_missing_family_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match="The embedded family is missing"):
        locate("pico", tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        locate(str(tmp_path), tmp_path)


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        locate(str(tmp_path / "a" / "b"), tmp_path)


@pytest.mark.parametrize(
    ("fault", "expected", "message"),
    [
        (OSError("Name or service not known"), UnsupportedError, "a/b: not in the local cache, and the hub cannot be"),
        (huggingface_hub.errors.LocalEntryNotFoundError("no net"), UnsupportedError, "a/b: not in the local cache"),
        (huggingface_hub.errors.HFValidationError("bad id"), ConfigError, "a/b: neither a folder nor a hub id"),
    ],
)
def test_a_hub_id_out_of_reach_is_one_line_that_names_it(tmp_path, monkeypatch, fault, expected, message):
    def unreachable(*args, **options):
        raise fault

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(expected, match=message) as error:
        locate("a/b", tmp_path)
    assert "\n" not in str(error.value)


def test_a_shape_with_random_weights_needs_no_file(family):
    source = locate(RandomModel(shape="llama-68m", seed=3), family)
    assert source.parameters == 68_030_208
    assert (source.own_tokenizer, source.eos_ids, source.vocab_size) == (None, (), 32000)
    assert source.tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_a_shape_can_be_named_in_one_word(family):
    assert locate("random:llama-68m", family).weights_sha == locate(RandomModel(shape="llama-68m"), family).weights_sha


def test_an_unknown_shape_is_answered_with_the_nearest(family):
    with pytest.raises(UnknownNameError, match=r"unknown model shape 'llama-86m'\. Did you mean 'llama-68m'\?"):
        locate("random:llama-86m", family)


def test_random_weights_without_the_family_have_no_way_to_read_a_prompt(tmp_path):
    with pytest.raises(UnsupportedError, match="holds no model"):
        _ = locate("random:llama-68m", tmp_path).tokenizer


def test_a_hash_follows_the_weights_and_nothing_else(family, tmp_path):
    before = locate("pico", family).weights_sha
    copy = shutil.copytree(family / "pico", tmp_path / "copy")
    assert locate(str(copy), family).weights_sha == before
    (copy / "README.md").write_text("a card")
    assert locate(str(copy), family).weights_sha == before
    tiny.save(copy, seed=9)
    assert locate(str(copy), family).weights_sha != before


def test_of_large_files_the_ends_are_hashed(family, monkeypatch):
    whole = locate("pico", family).weights_sha
    monkeypatch.setattr("specbench.models.source._HASHED_WHOLE_BYTES", 10)
    monkeypatch.setattr("specbench.models.source._HASHED_END_BYTES", 100)
    assert locate("pico", family).weights_sha != whole
    assert locate("pico", family).weights_sha == locate("pico", family).weights_sha


def test_a_draft_of_the_same_map_is_accepted(family):
    check_same_token_map(locate("pico", family), locate("pico-wide", family))


def test_a_draft_whose_ids_mean_other_tokens_is_refused_with_one_of_them(family):
    draft = locate("pico-wide", family)
    token = tiny.tokenizer().convert_ids_to_tokens(300)
    draft.__dict__["own_tokenizer"] = _Vocabulary({**tiny.tokenizer().get_vocab(), "zzz": 300}, token)
    with pytest.raises(ConfigError, match=r"another token map than target pico: id 300 is .* and 'zzz' in the"):
        check_same_token_map(locate("pico", family), draft)


class _Vocabulary:
    def __init__(self, vocabulary, without):
        self._vocabulary = {token: index for token, index in vocabulary.items() if token != without}

    def get_vocab(self):
        return self._vocabulary


def test_a_draft_with_padding_rows_is_accepted_and_one_with_too_few_is_not(family, tmp_path):
    target = locate("pico", family)
    check_same_token_map(target, locate("random:llama-68m", family))
    small = tiny.save(tmp_path / "small", vocab=300)
    draft = locate(str(small), family)
    draft.__dict__["own_tokenizer"] = None
    with pytest.raises(ConfigError, match="it knows 300 ids, the target uses 320"):
        check_same_token_map(target, draft)
