"""Training text: where it comes from, as one long row of token ids, and the batches cut from it."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specbench.errors import TrainingError
from specbench.models.corpus import held_out_modules, library_root, training_modules

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and others that are never trained on.

    Attributes:
        what: Where they come from, for the card.
        training: Documents to learn from.
        held_out: Documents to measure on.
    """

    what: str
    training: list[str]
    held_out: list[str]


def standard_library() -> Corpus:
    """Python's own standard library without its tests; ``models.corpus`` lists the held-out modules."""
    return Corpus(
        f"the standard library of {library_root().name} without its tests; specbench/models/corpus.py lists the "
        "held-out modules",
        [module.text for module in training_modules()],
        [module.text for module in held_out_modules().modules],
    )


def text_files(paths: Sequence[Path]) -> Corpus:
    """Text files, folders of them, and ``.jsonl`` files whose lines have a ``text``.

    Documents stand in the order of their hashes, so that neither a file's name nor its place decides what is held
    out: the last of them, a twentieth of all characters.

    Raises:
        TrainingError: There is no such file, a line has no ``text``, or there are fewer than two documents.
    """
    documents = [text for path in paths for file in _files(path) for text in _texts(file) if text.strip()]
    if len(documents) < 2:
        names = ", ".join(map(str, paths))
        raise TrainingError(f"{names}: {len(documents)} documents; one to learn from and one to hold out are the least")
    documents.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    wanted = HELD_OUT_SHARE * sum(map(len, documents))
    held_out = [documents.pop()]
    while sum(map(len, held_out)) < wanted and len(documents) > 1:
        held_out.append(documents.pop())
    return Corpus(", ".join(path.name for path in paths), documents, held_out)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not path.is_file():
        raise TrainingError(f"{path}: no such file or folder")
    return [path]


def _texts(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{file}: not a text in UTF-8") from error
    if file.suffix != ".jsonl":
        return [text]
    texts = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            texts.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{file}:{number}: not an object with a text") from error
    return texts


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any byte sequence round-trips, and no unknown token is needed.

    Args:
        texts: The training documents.
        vocab_size: Number of tokens, the 256 bytes and the end-of-text token included.
        context: The longest sequence that the models are made for, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> np.ndarray:
    """Join documents into one row of ids, each closed by the end-of-text token."""
    rows = []
    for text in texts:
        rows.append(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        rows.append([tokenizer.eos_token_id])
    return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])


@dataclass(frozen=True)
class Windows:
    """Random windows of a row of ids; the batch of a step depends on the seed and the step and on nothing else."""

    ids: np.ndarray
    length: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> Tensor:
        """The ids of one training step, (batch, length + 1): inputs and, one to the right, their labels."""
        generator = np.random.default_rng((self.seed, step))
        starts = generator.integers(0, len(self.ids) - self.length - 1, size=self.batch_size)
        rows = [self.ids[start : start + self.length + 1] for start in starts]
        return torch.from_numpy(np.stack(rows)).long()


def consecutive(ids: np.ndarray, length: int, most: int) -> Tensor:
    """The first ``most`` windows of a row of ids, one after the other, (windows, length + 1): for the held-out loss."""
    count = min(most, (len(ids) - 1) // length)
    rows = [ids[index * length : index * length + length + 1] for index in range(count)]
    return torch.from_numpy(np.stack(rows)).long()
