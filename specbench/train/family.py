"""Builds the embedded family: tokenizer, target, drafts, and a card for each that says how to build it again."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench.errors import TrainingError
from specbench.models.corpus import held_out_modules, library_root, training_modules
from specbench.train.data import encode, train_tokenizer
from specbench.train.loop import Point, train, write_json
from specbench.train.recipes import CONTEXT, RECIPES, VOCAB_SIZE, Recipe, Shape

TOKENIZER = "pico-tokenizer"


def build(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model of the family, float32; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _tokenizer(work: Path) -> PreTrainedTokenizerFast:
    folder = work / TOKENIZER
    if not (folder / "tokenizer.json").exists():
        texts = (module.text for module in training_modules())
        train_tokenizer(texts, VOCAB_SIZE, CONTEXT).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train_member(
    name: str, out: Path, work: Path, *, dtype: torch.dtype, report: Callable[[Recipe, Point], None]
) -> Path:
    """Train one model of the family and write it, with its tokenizer and card, to ``out / name``.

    Args:
        name: A key of ``RECIPES``.
        out: The folder that holds the family's finished models; a teacher is read from here.
        work: Checkpoints and metrics of running trainings.
        dtype: Precision of the passes.
        report: Called with every point of the learning curve.

    Raises:
        TrainingError: The recipe is unknown, or its teacher has not been trained yet.
    """
    if name not in RECIPES:
        raise TrainingError(f"unknown recipe {name!r}. Known: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    tokenizer = _tokenizer(work)
    modules = training_modules()
    ids = encode(tokenizer, (module.text for module in modules))
    held_out = encode(tokenizer, (module.text for module in held_out_modules().modules))
    model = build(recipe.shape, tokenizer, recipe.schedule.seed)
    points = train(
        model,
        recipe,
        ids,
        held_out,
        work / name,
        teacher=_teacher(recipe, out),
        dtype=dtype,
        report=lambda point: report(recipe, point),
    )
    folder = out / name
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "card.json", _card(recipe, model, points, len(modules), len(ids), folder))
    return folder


def _teacher(recipe: Recipe, out: Path) -> LlamaForCausalLM | None:
    if recipe.teacher is None:
        return None
    folder = out / recipe.teacher
    if not (folder / "config.json").exists():
        raise TrainingError(f"{recipe.name} is distilled from {recipe.teacher}, which is not in {out}: train it first")
    teacher = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return teacher.requires_grad_(requires_grad=False)


def _card(
    recipe: Recipe, model: LlamaForCausalLM, points: list[Point], modules: int, tokens: int, folder: Path
) -> dict[str, object]:
    return {
        "name": recipe.name,
        "role": recipe.role,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": asdict(recipe),
        "data": {
            "what": "the Python standard library without its tests; specbench.models.corpus lists the held-out modules",
            "python": platform.python_version(),
            "modules": modules,
            "training_tokens": tokens,
            "folder_name": library_root().name,
        },
        "tokens_seen": points[-1].tokens_seen,
        "held_out_loss": points[-1].held_out_loss,
        "held_out_accuracy": points[-1].held_out_accuracy,
        "learning_curve": [
            [point.step + 1, round(point.held_out_loss, 4), round(point.held_out_accuracy or 0.0, 4)]
            for point in points
            if point.held_out_loss is not None
        ],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "weights_sha256": sha256_of(folder / "model.safetensors"),
        "licence": "Apache-2.0 (weights); the text it learned from is under the PSF licence",
        "rebuild": f"specbench train {recipe.name}",
    }
