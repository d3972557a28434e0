"""Short ways to run a method over a batch of prompts, outside the bench."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from specbench import registry
from specbench.decode.loop import Requests, generate
from specbench.decode.method import LoadContext, Method, Options
from specbench.decode.step import Decoding, Step
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, Watch
from specbench.errors import ConfigError

from . import models
from .drafters import drafters_of


def decode(
    target: CachedModel,
    method: Method,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 24,
    *,
    keys: Sequence[int] | None = None,
    watch: Watch | None = None,
    step: Step | None = None,
    **decoding: Any,
) -> BatchTrace:
    """One batch; the keys of its prompts are their numbers unless given, ``decoding`` goes to ``Decoding``."""
    requests = Requests([list(prompt) for prompt in prompts], list(keys if keys is not None else range(len(prompts))))
    how = step.decoding if step else Decoding(max_new_tokens, **decoding)
    return generate(target, method, requests, how, watch, step=step)


def ids(trace: BatchTrace) -> list[list[int]]:
    """The texts of a batch."""
    return [row.output_ids for row in trace.rows]


def loaded(method: Method, target: CachedModel, drafts: Mapping[str, nn.Module] | None = None) -> Method:
    """The method with its weights in hand; every draft model gets a cache of its own.

    Raises:
        ConfigError: The method asks for a draft that is not there.
    """
    known = drafts or {}

    def draft_model(name: str) -> CachedModel:
        if name not in known:
            raise ConfigError(f"method {method.name} asks for the draft {name!r}; here are {', '.join(known)}")
        return CachedModel(known[name], name)

    method.load(LoadContext(target, draft_model, drafters_of(target)))
    return method


def drafts_of(family: str) -> dict[str, nn.Module]:
    """Three drafts for a target: accepted whole, accepted in part, and refused."""
    return {"same": models.target(family), "near": models.perturbed(family), "far": models.stranger()}


def autoregressive() -> Method:
    """The baseline."""
    return registry.load("autoregressive")(Options())


def family(name: str) -> CachedModel:
    """A tiny target of a family, with a cache of its own."""
    return CachedModel(models.target(name), name)
