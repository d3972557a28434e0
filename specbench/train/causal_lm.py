"""Trains a causal language model, a target or a draft, by a recipe: the embedded family, or one of your own."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from specbench.errors import TrainingError
from specbench.models.loader import Placement, implementation_of, load_module
from specbench.models.source import Source, check_same_token_map
from specbench.train.data import Corpus, Windows, encode, train_tokenizer
from specbench.train.files import write_json
from specbench.train.language import train_language_model
from specbench.train.loop import Point
from specbench.train.pruning import check_prunable, prune
from specbench.train.recipes import CONTEXT, RECIPES, VOCAB_SIZE, Recipe, Schedule, Shape
from specbench.train.teacher import Teacher

WEIGHTS = "model.safetensors"
CALIBRATION_BATCHES = 8
"""Batches of the training text that pruning judges importance by."""
LICENCE = "Apache-2.0 (weights); the text it learned from is under its own licence"


@dataclass(frozen=True)
class Workshop:
    """Where and how models are trained.

    Attributes:
        out: The folder of finished models.
        work: Checkpoints, curves, tokenizers and teachers' beliefs of running trainings.
        device: Where the passes run.
        dtype: Precision of the passes; weights and optimizer state are float32.
    """

    out: Path
    work: Path
    device: torch.device
    dtype: torch.dtype


def train_target(recipe: Recipe, corpus: Corpus, shop: Workshop, report: Callable[[Point], None]) -> Path:
    """Train a target and its tokenizer, both from scratch, and write them to ``shop.out / recipe.name``."""
    tokenizer = _tokenizer(shop.work / f"{recipe.name}-tokenizer", corpus)

    def begin(_: np.ndarray) -> Beginning:
        return Beginning(build(recipe.shape, tokenizer, len(tokenizer), recipe.schedule.seed))

    return _train(recipe, corpus, tokenizer, begin, shop, report)


def train_draft(
    recipe: Recipe,
    target: Source,
    corpus: Corpus,
    shop: Workshop,
    report: Callable[[Point], None],
    *,
    pruned_from: Source | None = None,
) -> Path:
    """Train a draft for ``target``, with the target's token map, and write it to ``shop.out / recipe.name``.

    Cycles with a teacher weight distil from the target; where there is none, it lends its tokenizer alone.

    Args:
        recipe: Shape and schedule.
        target: Whose draft it is to be.
        corpus: What it learns from.
        shop: Where.
        report: Called with every point of the learning curve.
        pruned_from: The model whose weights it begins with, pruned to the recipe's shape; None for random weights.

    Raises:
        TrainingError: The target has no tokenizer or no weights, or the other model cannot be pruned to that shape.
        ConfigError: The model that is pruned has another token map than the target.
    """
    tokenizer = target.own_tokenizer
    if tokenizer is None:
        raise TrainingError(f"{target.name}: random weights have no token map and teach nothing")
    if pruned_from is not None:
        check_same_token_map(target, pruned_from)
        check_prunable(pruned_from.config, recipe.shape, recipe.layers_by)

    def begin(ids: np.ndarray) -> Beginning:
        if pruned_from is not None:
            return _pruned(pruned_from, recipe, shop, ids)
        rows = int(target.config.get_text_config().vocab_size)
        return Beginning(build(recipe.shape, tokenizer, rows, recipe.schedule.seed))

    return _train(recipe, corpus, tokenizer, begin, shop, report, teacher=target)


@dataclass(frozen=True)
class Beginning:
    """A model before its training.

    Attributes:
        model: It, in float32.
        facts: What its card says of where the weights are from; None for random ones.
        mark: Tells checkpoints of trainings that began otherwise apart.
    """

    model: PreTrainedModel
    facts: dict[str, object] | None = None
    mark: str = ""


def _pruned(source: Source, recipe: Recipe, shop: Workshop, ids: np.ndarray) -> Beginning:
    schedule = recipe.schedule
    whole = load_module(source, Placement(shop.device, torch.float32, None), implementation_of(source, None))
    windows = Windows(ids, schedule.length, schedule.batch_size, schedule.seed)
    text = (windows.batch(step)[:, :-1] for step in range(CALIBRATION_BATCHES))
    found = prune(whole, recipe.shape, text, recipe.layers_by)
    facts = {
        "name": source.name,
        "weights_sha": source.weights_sha,
        "layers": list(found.kept.layers),
        "layers_by": recipe.layers_by,
        "calibration_tokens": CALIBRATION_BATCHES * schedule.batch_size * schedule.length,
    }
    return Beginning(found.model, facts, f"-of-{source.weights_sha}-{recipe.layers_by}")


def build(shape: Shape, tokenizer: PreTrainedTokenizerBase, rows: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model of Llama shape, float32; the same seed gives the same weights.

    Args:
        shape: Its layers.
        tokenizer: Names the tokens that end and pad a text.
        rows: Rows of the embedding, at least as many as the tokenizer has tokens.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def versions() -> dict[str, str]:
    """What a card says that it was trained with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _train(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    begin: Callable[[np.ndarray], Beginning],
    shop: Workshop,
    report: Callable[[Point], None],
    *,
    teacher: Source | None = None,
) -> Path:
    ids, held_out = encode(tokenizer, corpus.training), encode(tokenizer, corpus.held_out)
    beginning = begin(ids)
    model = beginning.model.to(shop.device).train()
    points = train_language_model(
        model,
        recipe,
        ids,
        held_out,
        shop.work / f"{recipe.name}{beginning.mark}",
        teacher=_teacher(recipe, teacher, shop, ids) if teacher is not None else None,
        dtype=shop.dtype,
        report=report,
    )
    folder = shop.out / recipe.name
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "card.json", _card(recipe, beginning, points, corpus, len(ids), teacher, folder))
    return folder


def _tokenizer(folder: Path, corpus: Corpus) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(corpus.training, VOCAB_SIZE, CONTEXT).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def beliefs_folder(teacher: Source, ids: np.ndarray, schedule: Schedule, work: Path) -> Path:
    """Where a teacher's beliefs about the batches of a text, and its own text behind their beginnings, are kept."""
    text_sha = hashlib.sha256(ids.tobytes()).hexdigest()
    batches = f"{text_sha[:12]}-{schedule.batch_size}x{schedule.length}-{schedule.seed}"
    return work / "beliefs" / f"{teacher.weights_sha}-{batches}"


def _teacher(recipe: Recipe, source: Source, shop: Workshop, ids: np.ndarray) -> Teacher | None:
    if not recipe.has_teacher:
        return None
    model = AutoModelForCausalLM.from_pretrained(source.weights_folder(), dtype=torch.float32).to(shop.device)
    return Teacher(model, beliefs_folder(source, ids, recipe.schedule, shop.work))


def _card(
    recipe: Recipe,
    beginning: Beginning,
    points: list[Point],
    corpus: Corpus,
    tokens: int,
    teacher: Source | None,
    folder: Path,
) -> dict[str, object]:
    return {
        "name": recipe.name,
        "role": recipe.role,
        "parameters": sum(parameter.numel() for parameter in beginning.model.parameters()),
        "begins_with": recipe.begins_with,
        "learns_from": recipe.learns_from,
        "pruned_from": beginning.facts,
        "recipe": asdict(recipe),
        "data": {"what": corpus.what, "documents": len(corpus.training), "tokens": tokens},
        "teacher": None if teacher is None else {"name": teacher.name, "weights_sha": teacher.weights_sha},
        "tokens_seen": points[-1].tokens_seen,
        "held_out_loss": points[-1].held_out_loss,
        "held_out_accuracy": points[-1].held_out_accuracy,
        "learning_curve": [
            [point.step + 1, round(point.held_out_loss, 4), round(point.held_out_accuracy or 0.0, 4)]
            for point in points
            if point.held_out_loss is not None
        ],
        "versions": versions(),
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "licence": LICENCE,
        "rebuild": _command(recipe, teacher),
    }


def _command(recipe: Recipe, teacher: Source | None) -> str:
    """What trains the model again; shape and beginning are named where the family's recipe does not say them."""
    words = ["specbench train", recipe.role, recipe.name]
    if recipe.name not in RECIPES:
        shape = recipe.shape
        words += [f"--shape {shape.layers}x{shape.hidden}x{shape.heads}x{shape.feed_forward}"]
        words += [] if teacher is None else [f"--target {teacher.name}"]
    if recipe.pruned_from is not None:
        words += [f"--prune {recipe.pruned_from}", f"--layers-by {recipe.layers_by}"]
    if teacher is not None and not recipe.has_teacher:
        words += ["--text-only"]
    return " ".join(words)
