"""Which methods the suite tries, and with which options."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from torch import nn

from specbench import registry
from specbench.decode.acceptance import Greedy, Rule
from specbench.decode.method import Method
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace
from specbench.errors import ConfigError, ContractError, UnsupportedError

from . import decoding, models

FAMILY = "llama"
# Rows of 5, 2, 9, 1 and 12 tokens.
PROMPTS, TOKENS = models.PROMPTS[:5], 12


@dataclass(frozen=True)
class Case:
    """A method with one set of options."""

    kind: type[Method]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        words = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.options.items())
        return f"{self.kind.name}({words})"

    def parsed(self) -> BaseModel:
        """The options as the method's own class has them."""
        return self.kind.Options.model_validate_json(json.dumps(dict(self.options)))

    def method(self, target: CachedModel, drafts: Mapping[str, nn.Module] | None = None) -> Method:
        """The method, loaded; every time another one."""
        return decoding.loaded(self.kind(self.parsed()), target, drafts or decoding.drafts_of(FAMILY))

    def able(
        self,
        target: CachedModel,
        drafts: Mapping[str, nn.Module] | None = None,
        *,
        rows: int = len(PROMPTS),
        rule: Rule | None = None,
    ) -> Method:
        """The same, for so many rows under a rule; the test is skipped where the method says why it cannot."""
        try:
            method = self.method(target, drafts)
        except UnsupportedError as error:
            pytest.skip(f"{self}: {error}")
        if reason := method.unsupported(rows, (rule or Greedy()).name):
            pytest.skip(f"{self}: {reason}")
        return method

    def run(
        self,
        prompts: Sequence[Sequence[int]] = PROMPTS,
        max_new_tokens: int = TOKENS,
        *,
        target: CachedModel | None = None,
        drafts: Mapping[str, nn.Module] | None = None,
        **how: Any,
    ) -> BatchTrace:
        """Decode a batch with a fresh method."""
        target = target or decoding.family(FAMILY)
        method = self.able(target, drafts, rows=len(prompts), rule=how.get("rule"))
        return decoding.decode(target, method, prompts, max_new_tokens, **how)


def find(name: str) -> type[Method]:
    """A method by its registered name, or by ``module:Class``.

    Raises:
        SpecbenchError: There is no such method, or it is none.
    """
    return registry.load_from(name) if ":" in name else registry.load(name)


def cases_of(kind: type[Method], options: Mapping[str, Any] | None = None) -> list[Case]:
    """A case for each of the method's examples, or one with the options given.

    Raises:
        ConfigError: The method refuses its options.
        ContractError: The method gives no example, or one that its own options refuse.
    """
    if options is None and not kind.examples:
        raise ContractError(f"method {kind.name}: examples is empty; name an option set to try, or {{}}")
    cases = [Case(kind, given) for given in (kind.examples if options is None else [options])]
    for case in cases:
        try:
            case.parsed()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "options"
            message = f"{case}: {place}: {first['msg']}"
            if options is not None:
                raise ConfigError(message) from error
            raise ContractError(f"{message}; its class attribute examples says what the suite tries") from error
    return cases
