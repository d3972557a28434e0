"""Tiny random models in folders, with a tokenizer: what tests of the bench run on instead of trained weights."""

from functools import cache
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench.models.corpus import held_out_modules
from specbench.train.data import train_tokenizer

CONTEXT = 256


@cache
def tokenizer(vocab: int = 320) -> PreTrainedTokenizerFast:
    texts = [module.text for module in held_out_modules().modules[:4]]
    return train_tokenizer(texts, vocab, CONTEXT)


def model(seed: int = 0, *, hidden: int = 32, layers: int = 2, vocab: int = 320) -> LlamaForCausalLM:
    """Untied, and with weights scaled up: a model of default initialisation repeats one token and hides faults."""
    torch.manual_seed(seed)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer(vocab).eos_token_id,
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return made.eval()


def save(folder: Path, seed: int = 0, *, hidden: int = 32, layers: int = 2, vocab: int = 320) -> Path:
    """A folder as ``transformers`` writes it: configuration, safetensors, tokenizer."""
    model(seed, hidden=hidden, layers=layers, vocab=vocab).save_pretrained(folder)
    tokenizer(vocab).save_pretrained(folder)
    return folder


def zoo(folder: Path) -> Path:
    """A family of two: a target, and a draft that is the same model, so that some of its tokens are accepted."""
    save(folder / "pico", seed=1)
    save(folder / "pico-wide", seed=1)
    return folder
