"""Short ways to run a method over a batch of prompts."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from methods.autoregressive import Autoregressive
from methods.draft_model import DraftModel, DraftModelOptions
from methods.prompt_lookup import PromptLookup, PromptLookupOptions
from specbench.decode.loop import Decoding, Requests, generate
from specbench.decode.method import LoadContext, Method, Options
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, Watch

from . import models


def decode(
    target: CachedModel,
    method: Method,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 24,
    *,
    keys: Sequence[int] | None = None,
    watch: Watch | None = None,
    **decoding: object,
) -> BatchTrace:
    requests = Requests([list(prompt) for prompt in prompts], list(keys if keys is not None else range(len(prompts))))
    return generate(target, method, requests, Decoding(max_new_tokens, **decoding), watch)


def ids(trace: BatchTrace) -> list[list[int]]:
    return [row.output_ids for row in trace.rows]


def loaded(method: Method, target: CachedModel, drafts: Mapping[str, nn.Module] | None = None) -> Method:
    """The method with its weights in hand; every draft model gets a cache of its own."""
    method.load(LoadContext(target, lambda name: CachedModel((drafts or {})[name], name)))
    return method


def drafts_of(family: str) -> dict[str, nn.Module]:
    """Three drafts for a target: accepted whole, accepted in part, and refused."""
    return {"same": models.target(family), "near": models.perturbed(family), "far": models.stranger()}


def autoregressive() -> Method:
    return Autoregressive(Options())


def draft_model(target: CachedModel, drafts: Mapping[str, nn.Module], **options: object) -> Method:
    return loaded(DraftModel(DraftModelOptions(**options)), target, drafts)


def prompt_lookup(**options: object) -> Method:
    return PromptLookup(PromptLookupOptions(**options))


def family(name: str) -> CachedModel:
    return CachedModel(models.target(name), name)


def as_tensor(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([list(row) for row in rows])
