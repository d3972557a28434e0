"""Tiny random models of several families in which a fault shows, and what ``transformers`` itself writes with them.

Random weights of default size repeat one token and hide errors: with most of them a position off by one changes no
greedy id. So every model here is untied, its matrices are scaled up, and its vectors (biases, norms) are noisy.
"""

from collections.abc import Callable
from functools import cache

import torch
import transformers
from torch import nn

VOCAB = 83
POSITIONS = 160
WINDOW = 7  # the windowed families look back so far; prompts and outputs are longer


def _llama_like(name: str, **extra: object) -> transformers.PreTrainedModel:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = getattr(transformers, f"{name}Config")(**{**sizes, **extra})
    return getattr(transformers, f"{name}ForCausalLM")(config)


def _gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


def _gpt_neox() -> transformers.PreTrainedModel:
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPTNeoXForCausalLM(config)


def _opt() -> transformers.PreTrainedModel:
    config = transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=32,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return transformers.OPTForCausalLM(config)


# A seed each, chosen so that every prompt below is continued with at least six different tokens of 24.
_BUILDERS: dict[str, tuple[int, Callable[[], transformers.PreTrainedModel]]] = {
    "llama": (12, lambda: _llama_like("Llama")),
    "qwen2": (38, lambda: _llama_like("Qwen2")),
    "qwen3": (17, lambda: _llama_like("Qwen3", head_dim=8)),
    "mistral": (0, lambda: _llama_like("Mistral", sliding_window=WINDOW, head_dim=8)),
    "gemma2": (5, lambda: _llama_like("Gemma2", sliding_window=WINDOW, head_dim=8)),
    "phi3": (1, lambda: _llama_like("Phi3")),
    "gpt2": (5, _gpt2),
    "gpt_neox": (33, _gpt_neox),
    "opt": (58, _opt),
    "mixtral": (1, lambda: _llama_like("Mixtral", num_local_experts=4, num_experts_per_tok=2, head_dim=8)),
}
FAMILIES = tuple(_BUILDERS)

# Rows of unequal length: one token, and more than the window, among them.
PROMPTS: tuple[tuple[int, ...], ...] = (
    (13, 66, 18, 28, 11),
    (81, 73),
    (18, 30, 48, 17, 20, 17, 26, 62, 41),
    (17,),
    (74, 55, 28, 42, 12, 64, 19, 10, 10, 20, 61, 31),
    (54, 73, 30),
    (21, 20, 63, 65, 79, 82, 15),
    (81, 16, 44, 9),
)


def scaled(module: nn.Module, seed: int, matrix_std: float = 0.16, vector_std: float = 0.1) -> nn.Module:
    """Weights that do not depend on how this version of transformers initialises them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(module.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(matrix_std * noise)
            else:
                weight.add_(vector_std * noise)
    return module.eval()


@cache
def target(family: str) -> nn.Module:
    """The model of a family, the same object for all tests."""
    seed, build = _BUILDERS[family]
    return scaled(build(), seed)


@cache
def perturbed(family: str, amount: float = 0.15) -> nn.Module:
    """A draft that agrees with the target for a while: its weights, and noise of a fraction of their size."""
    _, build = _BUILDERS[family]
    module = build()
    module.load_state_dict(target(family).state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in sorted(module.named_parameters()):
            if weight.ndim >= 2:
                weight.add_(amount * weight.std() * torch.randn(weight.shape, generator=generator))
    return module.eval()


@cache
def stranger() -> nn.Module:
    """A draft of another family and other weights: it agrees by accident only."""
    return scaled(_llama_like("Llama", num_hidden_layers=1), seed=77)


@cache
def with_ties(family: str) -> transformers.PreTrainedModel:
    """Each row of the output head stands twice, so the two best tokens are always equal to the last bit."""
    seed, build = _BUILDERS[family]
    module = build()
    scaled(module, seed)
    with torch.no_grad():
        head = module.get_output_embeddings().weight
        head[1::2] = head[: VOCAB - 1 : 2]
    return module


@cache
def small_vocabulary(vocab: int = 5, seed: int = 0, matrix_std: float = 0.5) -> nn.Module:
    """One layer over a handful of tokens, so that the law of a few tokens can be written down whole."""
    module = _llama_like(
        "Llama",
        vocab_size=vocab,
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return scaled(module, seed, matrix_std)


@cache
def greedy_continuation(
    family: str, prompt: tuple[int, ...], max_new_tokens: int, eos_ids: tuple[int, ...] = (), min_new_tokens: int = 0
) -> list[int]:
    """What ``transformers`` itself writes after a prompt, alone in its batch: the oracle of every greedy test."""
    return hf_greedy(target(family), prompt, max_new_tokens, eos_ids, min_new_tokens)


def hf_greedy(
    module: transformers.PreTrainedModel,
    prompt: tuple[int, ...],
    max_new_tokens: int,
    eos_ids: tuple[int, ...] = (),
    min_new_tokens: int = 0,
) -> list[int]:
    """The greedy text of any model, by ``generate`` of ``transformers``."""
    ids = torch.tensor([prompt])
    text = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens or None,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=0,
    )
    return text[0, len(prompt) :].tolist()


@cache
def eos_for(family: str) -> tuple[int, int]:
    """Two tokens that end the eight rows in as many different places as any two do."""
    texts = [greedy_continuation(family, prompt, 16) for prompt in PROMPTS]
    seen = sorted({token for text in texts for token in text})
    ends = {token: [text.index(token) if token in text else 16 for text in texts] for token in seen}

    def variety(pair: tuple[int, int]) -> tuple[int, int]:
        places = [min(a, b) for a, b in zip(ends[pair[0]], ends[pair[1]], strict=True)]
        return len({place for place in places if 0 < place < 15}), sum(places)

    return max(((a, b) for a in seen for b in seen if a < b), key=variety)


@torch.no_grad()
def plain_logits(module: nn.Module, tokens: list[int]) -> torch.Tensor:
    """Logits after every token of one sequence, without any cache, (tokens, V)."""
    return module(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
