"""Prompts: read from a source, turned into token ids once, and named by a hash.

Every prompt has an id that is unique within its source and a key made from it; chance depends on the key, so a prompt
keeps its text wherever it stands in a run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from specbench.bench.stdlib_prompts import stdlib_texts
from specbench.config import PROMPT_SOURCES, PromptSettings
from specbench.errors import ConfigError, UnknownNameError, UnsupportedError, did_you_mean
from specbench.models.source import Source

STDLIB_MAX_TOKENS = 256
"""What a stdlib prompt is cut to where the experiment names no limit: a module has no natural beginning."""

_stdlib = lru_cache(maxsize=4)(stdlib_texts)  # every cell of a plan asks for the same

_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED"


@dataclass(frozen=True)
class Text:
    """A prompt before it is tokenised."""

    id: str
    text: str
    category: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt as the target reads it; ``key`` is a stable number below 2**31, made from the id."""

    id: str
    key: int
    category: str | None
    ids: list[int]
    text: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a cell.

    Attributes:
        prompts: In the order of their source.
        sha: Sixteen hex digits of their ids.
        dataset: The source's name.
        skipped: What the source should hold and does not, each with the reason.
    """

    prompts: list[Prompt]
    sha: str
    dataset: str
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HubSource:
    """A hub data set that has a name of its own.

    Attributes:
        path: Its hub id.
        split: The split that prompts come from.
        config: Its configuration, where it has several.
        category: The column that holds a category.
    """

    path: str
    split: str
    config: str | None = None
    category: str | None = None


_HUB: dict[str, HubSource] = {
    "mt_bench": HubSource("HuggingFaceH4/mt_bench_prompts", "train", category="category"),
    "alpaca": HubSource("tatsu-lab/alpaca", "train"),
    "sharegpt": HubSource("Aeala/ShareGPT_Vicuna_unfiltered", "train"),
    "humaneval": HubSource("openai/openai_humaneval", "test"),
    "gsm8k": HubSource("openai/gsm8k", "test", config="main"),
    "hellaswag": HubSource("Rowan/hellaswag", "validation"),
    "mmlu": HubSource("cais/mmlu", "test", config="all", category="subject"),
}

_ELSEWHERE = {
    "spec_bench": "question.jsonl of github.com/hemingkx/Spec-Bench (data/spec_bench)",
}


def load_prompts(
    settings: PromptSettings,
    source: Source,
    *,
    max_new_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PromptSet:
    """The prompts of a cell, as its target reads them.

    Args:
        settings: Which prompts.
        source: The target, for its tokenizer, template and context.
        max_new_tokens: Room that must be left in the context.
        chat_template_kwargs: Handed to the chat template.

    Raises:
        ConfigError: A missing or unreadable file, too few prompts, a prompt that does not fit.
        UnsupportedError: A hub data set that cannot be reached.
    """
    texts, skipped = _texts(settings)
    if settings.category is not None:
        texts = (text for text in texts if text.category == settings.category)
    taken = list(islice(texts, settings.count))
    if len(taken) < settings.count:
        of = "" if settings.category is None else f" of category {settings.category!r}"
        raise ConfigError(
            f"prompts.count is {settings.count}, but {settings.source} has {len(taken)} prompts{of}; none is used twice"
        )
    encoder = _Encoder(settings, source, chat_template_kwargs or {})
    prompts = [encoder.prompt(text) for text in taken]
    _check_fit(prompts, source, max_new_tokens)
    return PromptSet(prompts, prompts_sha(prompts), Path(settings.source).stem, skipped)


def prompts_sha(prompts: list[Prompt]) -> str:
    """Sixteen hex digits of the ids of all prompts, in order."""
    return hashlib.sha256(json.dumps([prompt.ids for prompt in prompts]).encode()).hexdigest()[:16]


def key_of(prompt_id: str) -> int:
    """A stable number below 2**31."""
    return int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:4], "big") & 0x7FFFFFFF


def warm_up_ids(ids: list[int]) -> list[int]:
    """A prompt that is as long as a measured one and none of them: its tokens in reverse order, the first one kept."""
    return [ids[0], *reversed(ids[1:])]


class _Encoder:
    """Texts to ids, all in the same way."""

    def __init__(self, settings: PromptSettings, source: Source, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = source.tokenizer
        self._settings = settings
        self._template_kwargs = template_kwargs
        default = STDLIB_MAX_TOKENS if settings.source == "stdlib" else None
        self._most = settings.max_prompt_tokens or default
        if settings.chat_template and self._tokenizer.chat_template is None:
            raise ConfigError(
                f"prompts.chat_template is true, but the tokenizer of {source.name} has no chat template; "
                "prompts.template can give one"
            )
        if settings.chat_template and settings.template is not None:
            raise ConfigError("prompts.chat_template and prompts.template are two ways to say one thing; give one")

    def prompt(self, text: Text) -> Prompt:
        ids = self._cut(self._encode(text.text))
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ConfigError(f"prompt {text.id}: it begins with two begin-of-text tokens; take one out")
        if not ids:
            raise ConfigError(f"prompt {text.id}: it has no tokens")
        return Prompt(text.id, key_of(text.id), text.category, ids, text.text)

    def _encode(self, text: str) -> list[int]:
        if self._settings.template is not None:
            text = self._settings.template.replace("{prompt}", text)
        if not self._settings.chat_template:
            return list(self._tokenizer(text, verbose=False)["input_ids"])
        # The template writes its own begin-of-text token, so that the text is tokenised without another one.
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, **self._template_kwargs
        )
        return list(self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])

    def _cut(self, ids: list[int]) -> list[int]:
        if self._most is None or len(ids) <= self._most:
            return ids
        if self._settings.truncate == "right":
            return ids[: self._most]
        begins = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
        rest = self._most - len(begins)
        return begins + ids[len(ids) - rest :]


def _check_fit(prompts: list[Prompt], source: Source, max_new_tokens: int) -> None:
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    room = source.max_positions
    if room is not None and len(longest.ids) + max_new_tokens > room:
        raise ConfigError(
            f"prompt {longest.id}: {len(longest.ids)} tokens and {max_new_tokens} new ones exceed the {room} positions "
            f"of {source.name}; set prompts.max_prompt_tokens to at most {max(0, room - max_new_tokens)}"
        )


def _texts(settings: PromptSettings) -> tuple[Iterator[Text], dict[str, str]]:
    """The texts of a source in its order, and what is missing from it."""
    name = settings.source
    if name == "stdlib":
        most = settings.max_prompt_tokens or STDLIB_MAX_TOKENS
        found = _stdlib(most)
        return (Text(f"{name}/{prompt.name}", prompt.text, prompt.module) for prompt in found.prompts), found.skipped
    path = Path(name)
    if path.suffix == ".jsonl":
        return _jsonl(path, settings.field), {}
    if path.suffix == ".txt":
        return _lines(path), {}
    if name in _HUB:
        return _hub(name, _HUB[name], settings), {}
    if name in _ELSEWHERE:
        raise UnsupportedError(f"prompts {name}: give the path of a local copy instead: {_ELSEWHERE[name]}")
    if name.count("/") == 1 and not path.exists():
        return _hub(name, HubSource(name, settings.split or "train"), settings), {}
    if "/" in name:
        raise ConfigError(f"prompts.source: {name}: no such .jsonl or .txt file")
    raise UnknownNameError(f"unknown prompt source {name!r}. {did_you_mean(name, PROMPT_SOURCES)}")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"prompts.source: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts.source: {path}: not UTF-8 text") from error


def _lines(path: Path) -> Iterator[Text]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            yield Text(f"{path.stem}:{number}", line)


def _jsonl(path: Path, column: str | None) -> Iterator[Text]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: should be a JSON object with a prompt or turns")
        name = next((str(row[key]) for key in ("id", "question_id", "task_id", "prompt_id") if key in row), None)
        category = row.get("category")
        identity = f"{path.stem}:{number}" if name is None else f"{path.stem}/{name}"
        yield Text(identity, text_of(row, column, where), None if category is None else str(category))


def text_of(row: Mapping[str, Any], column: str | None, where: str) -> str:
    """The first thing that a row asks, in any of the shapes in which prompt sets are published.

    Args:
        row: A row of a file or data set.
        column: The column to take; None for the usual ones.
        where: Names the row in an error.

    Raises:
        ConfigError: No column holds text, or the data set is a placeholder.
    """
    if column is not None and column not in row:
        raise ConfigError(f"{where}: no field {column!r}. {did_you_mean(column, list(row))}")
    value = row[column] if column is not None else _usual(row)
    while isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("content", value.get("value"))
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: no text in it; it needs a prompt, turns, or the field that prompts.field names")
    if _PLACEHOLDER in value:
        raise ConfigError(f"{where}: the data set holds a placeholder where its prompts belong; prepare it first")
    return value


def _usual(row: Mapping[str, Any]) -> Any:
    if isinstance(row.get("instruction"), str):
        return "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    if "choices" in row and "question" in row:
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGH", row["choices"], strict=False))
        return f"{row['question']}\n{choices}\nAnswer:"
    for key in ("prompt", "turns", "conversations", "messages", "question", "ctx", "text"):
        if row.get(key):
            return row[key]
    return None


def _hub(name: str, source: HubSource, settings: PromptSettings) -> Iterator[Text]:
    rows = _hub_rows(name, source, settings.split or source.split)
    category = source.category or "category"
    for number, row in enumerate(rows):
        kind = row.get(category)
        text = text_of(row, settings.field, f"{name} row {number}")
        yield Text(f"{name}:{number}", text, None if kind is None else str(kind))


def _hub_rows(name: str, source: HubSource, split: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a hub data set; raised here is what a user can mend."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        # Asked first, because it gives up at once where ``datasets`` tries for half a minute.
        hf_hub_download(source.path, "README.md", repo_type="dataset", etag_timeout=5)
    except RepositoryNotFoundError as error:
        raise ConfigError(f"prompts {name}: the hub has no data set {source.path}") from error
    except (OSError, HfHubHTTPError) as error:
        raise UnsupportedError(
            f"prompts {name}: the hub data set {source.path} is not in the local cache, and the hub cannot be reached. "
            "Give a .jsonl file, or use source: stdlib"
        ) from error
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UnsupportedError(f"prompts {name}: hub data sets need: pip install datasets") from error
    try:
        return iter(load_dataset(source.path, source.config, split=split))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"prompts {name}: {source.path} cannot be read: {reason}") from error
