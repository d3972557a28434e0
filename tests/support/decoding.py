"""Short ways to run a method over a batch of prompts: those of the contract suite, and two built-in methods."""

from collections.abc import Mapping

from torch import nn

from methods.draft_model import DraftModel, DraftModelOptions
from methods.prompt_lookup import PromptLookup, PromptLookupOptions
from specbench.decode.method import Method
from specbench.decode.target import CachedModel
from specbench.testing.decoding import autoregressive, decode, drafts_of, family, ids, loaded

__all__ = ["autoregressive", "decode", "draft_model", "drafts_of", "family", "ids", "loaded", "prompt_lookup"]


def draft_model(target: CachedModel, drafts: Mapping[str, nn.Module], **options: object) -> Method:
    return loaded(DraftModel(DraftModelOptions(**options)), target, drafts)


def prompt_lookup(**options: object) -> Method:
    return PromptLookup(PromptLookupOptions(**options))
