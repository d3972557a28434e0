"""Training text: where it comes from, as one long row of token ids, and the batches cut from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specbench.errors import TrainingError
from specbench.models.corpus import held_out_modules, library_root, training_modules
from specbench.train.conversations import Conversation, Document, read_documents

END_OF_TEXT = "<|endoftext|>"


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


def texts_of(data: Sequence[str]) -> Corpus:
    """The texts of some sources: files, folders, rows with a ``text``, hub data sets; see ``read_documents``.

    Raises:
        TrainingError: There are conversations among them, or too few texts.
        SpecbenchError: As ``read_documents``.
    """
    documents = read_documents(data)
    training, held_out = ([*map(_text_of, part)] for part in (documents.training, documents.held_out))
    return Corpus(documents.what, training, held_out)


def _text_of(document: Document) -> str:
    if isinstance(document, Conversation):
        raise TrainingError("--data: a language model learns from texts here, and there are conversations among them")
    return document.text


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
