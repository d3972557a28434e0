"""Outside baselines: what ``transformers`` itself makes of the same prompts with the same weights.

They run on the very module that the core runs: the core gives every forward its own cache and masks and changes nothing
in the module, so ``generate`` finds it as ``from_pretrained`` left it, attention backend included. For the length of a
call the module carries the generation settings of the cell and no others: what a model brings along from the hub
(a repetition penalty, top-k 50, a draft length that adapts itself) cannot reach a measurement.
"""

import random
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import CompileConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from specbench.decode.acceptance import Rule
from specbench.decode.attention.hook import unhooked
from specbench.decode.loop import Requests
from specbench.decode.method import LoadContext, Options
from specbench.decode.outside import Baseline, row_trace
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, Watch
from specbench.errors import UnsupportedError

_PAD = 0  # any token does: what is padded is masked, and what follows EOS is cut


class _Transformers(Baseline):
    """``target.generate(...)``, stamped at every step from within by a stopping criterion.

    A step is one forward of the target. The first call of the criterion ends the prefill: the first token is there.
    """

    def load(self, context: LoadContext) -> None:
        """Take the target's own module."""
        self._target = context.target
        if not context.target.module.can_generate():
            raise UnsupportedError(f"{context.target.name}: transformers has no generate() for it")
        self._left_behind: dict[nn.Module, dict[str, Any]] = {context.target.module: {}}

    def settings(self) -> dict[str, Any]:
        """What this baseline adds to the generation settings of the cell."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """What this baseline adds to the arguments of ``generate``."""
        return {}

    def generate(self, requests: Requests, decoding: Decoding, watch: Watch) -> BatchTrace:
        """Decode one batch; text at T > 0 depends on the seed and on the batch's prompts, and on nothing else."""
        module: Any = self._target.module
        ids, mask = _padded_left(requests.prompts, self._target.device)
        config = generation_config(decoding, **self.settings())
        stamp = _Stamp(watch, ids.shape[1], self._target.device)
        with self._borrowed(config), _seeded(decoding.seed, requests.keys, self._target.device), self._seen_by(stamp):
            watch.start()
            sequences = module.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stamp]),
                **self.arguments(),
            )
        texts = sequences[:, ids.shape[1] :].tolist()
        trace = BatchTrace([row_trace(text, stamp.lengths, stamp.drafted, decoding) for text in texts])
        watch.finish(trace.steps)
        return trace

    @contextmanager
    def _borrowed(self, config: GenerationConfig) -> Iterator[None]:
        """Every model with the cell's settings as its own; ``generate`` fills what is unset from there."""
        with ExitStack() as loans:
            for module, left_behind in self._left_behind.items():
                loans.enter_context(_on_loan(module, left_behind))
                loans.enter_context(unhooked(module))
                module.generation_config = config
            yield

    @contextmanager
    def _seen_by(self, stamp: "_Stamp") -> Iterator[None]:
        """Let the stamp learn how much is drafted; where nothing is, the module stays free of hooks."""
        if self.is_autoregressive:
            yield
            return
        handle = self._target.module.register_forward_pre_hook(stamp.see, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class GenerateOptions(Options):
    """Which cache ``generate`` decodes with."""

    cache: Literal["dynamic", "static", "compiled"] = Field(
        "dynamic", description="one that grows, one of fixed size, or that with a compiled forward"
    )


class TransformersGenerate(_Transformers):
    """Plain decoding: the other autoregressive path, and often the faster one."""

    name = "transformers-generate"
    Options = GenerateOptions
    is_autoregressive = True

    options: GenerateOptions

    def load(self, context: LoadContext) -> None:
        """Take the target; forwards that were compiled for other cells do not count against this one's."""
        super().load(context)
        self._longest = 0
        if self.options.cache == "compiled":
            torch.compiler.reset()

    def compiled_for(self, requests: Requests) -> Hashable:
        """Rows, whether any is padded, and the size of the cache.

        A batch without padding is decoded without a mask. The cache is as large as the largest one so far.
        """
        if self.options.cache != "compiled":
            return None
        lengths = {len(prompt) for prompt in requests.prompts}
        self._longest = max(self._longest, *lengths)
        return len(requests.prompts), len(lengths) > 1, self._longest

    def settings(self) -> dict[str, Any]:
        """The cache; ``generate`` compiles on its own where that is fixed in size and nobody forbids it."""
        if self.options.cache == "dynamic":
            return {}
        if self.options.cache == "static":
            return {"cache_implementation": "static", "disable_compile": True}
        compile_config = CompileConfig()
        compile_config._compile_all_devices = True  # its own tests' way to compile on a CPU as well
        return {"cache_implementation": "static", "compile_config": compile_config}


class _Assisted(_Transformers):
    """Speculative decoding as ``transformers`` does it: chains, one prompt at a time.

    It drafts along with its prefill, so the first stamp may find several tokens (``prefill_tokens``). What it cuts of
    a last step by itself, at EOS or length, is not seen: such a step counts as much as it emitted.
    """

    def unsupported(self, batch_size: int, rule: Rule, device: torch.device) -> str | None:
        """One row only, and an acceptance that nobody can dictate."""
        if batch_size > 1:
            return f"assisted generation of transformers takes one prompt at a time, not {batch_size}"
        if rule.simulated:
            return "the acceptance of transformers cannot be simulated"
        return None


class AssistedOptions(Options):
    """Which model drafts, and how far."""

    draft: str = Field(description="embedded model, folder or hub id", json_schema_extra={"model": True})
    gamma: int = Field(4, ge=1, le=64, description="draft tokens of a step, always as many")


class TransformersAssisted(_Assisted):
    """A draft model of constant draft length: no schedule, and no threshold that learns from call to call."""

    name = "transformers-assisted"
    Options = AssistedOptions

    options: AssistedOptions

    def load(self, context: LoadContext) -> None:
        """Take the target and the draft model.

        Raises:
            UnsupportedError: The two have vocabularies of unequal size.
        """
        super().load(context)
        self._draft: CachedModel = context.draft_model(self.options.draft)
        rows, target_rows = self._draft.config.vocab_size, context.target.config.vocab_size
        if rows != target_rows:
            raise UnsupportedError(
                f"draft {self._draft.name} has {rows} rows of vocabulary and the target {target_rows}: transformers "
                "takes that for another tokenizer"
            )
        self._left_behind[self._draft.module] = {}

    def generate(self, requests: Requests, decoding: Decoding, watch: Watch) -> BatchTrace:
        """Decode one prompt.

        Raises:
            UnsupportedError: The draft model has too few positions.
        """
        positions, last = self._draft.max_positions, max(map(len, requests.prompts)) + decoding.max_new_tokens
        if positions is not None and last > positions:
            raise UnsupportedError(
                f"the draft {self._draft.name} has {positions} positions, and prompts with new tokens take {last}"
            )
        return super().generate(requests, decoding, watch)

    def settings(self) -> dict[str, Any]:
        """These are read from the draft model's own settings, which are the target's for the length of a call."""
        return {
            "num_assistant_tokens": self.options.gamma,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.0,
        }

    def arguments(self) -> dict[str, Any]:
        """The draft model."""
        return {"assistant_model": self._draft.module}


class PromptLookupOptions(Options):
    """How much must match, and how much is proposed."""

    max_ngram: int = Field(3, ge=1, le=16, description="longest n-gram that is looked for, in tokens")
    gamma: int = Field(8, ge=1, le=64, description="most tokens that are proposed")


class TransformersPromptLookup(_Assisted):
    """Its own prompt lookup: the longest n-gram wins, and of its occurrences the first."""

    name = "transformers-prompt-lookup"
    Options = PromptLookupOptions

    options: PromptLookupOptions

    def settings(self) -> dict[str, Any]:
        """Length of what is proposed, and of what must match."""
        return {
            "prompt_lookup_num_tokens": self.options.gamma,
            "max_matching_ngram_size": self.options.max_ngram,
        }


class _Stamp(StoppingCriteria):
    """Called once after every forward of the target; it never stops anything.

    Attributes:
        lengths: New tokens that were there at every call.
        drafted: Draft tokens that the forward before every call verified.
    """

    def __init__(self, watch: Watch, prompt_columns: int, device: torch.device) -> None:
        self._watch, self._prompt_columns = watch, prompt_columns
        self._read = 0
        self._never = torch.zeros((), dtype=torch.bool, device=device)
        self.lengths: list[int] = []
        self.drafted: list[int] = []

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward: how many tokens it reads. The last one before a call is the target's."""
        self._read = kwargs["input_ids"].shape[1]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """After a step: (B, T) ids of prompts and texts so far."""
        if self.lengths:
            self._watch.step()
        else:
            self._watch.first_token()
            self._watch.prefilled()
        fresh = 1 if self.lengths else self._prompt_columns
        self.drafted.append(max(0, self._read - fresh))
        self.lengths.append(input_ids.shape[1] - self._prompt_columns)
        return self._never


def generation_config(decoding: Decoding, **own: Any) -> GenerationConfig:
    """The cell's decoding in the words of ``transformers``, with everything else at the library's defaults.

    Args:
        decoding: Of the cell.
        own: Further settings of one baseline.
    """
    sampling = (
        {"temperature": decoding.temperature, "top_k": decoding.top_k or 0, "top_p": decoding.top_p or 1.0}
        if decoding.temperature
        else {}
    )
    return GenerationConfig(
        do_sample=decoding.temperature > 0,
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,
        eos_token_id=list(decoding.eos_ids) or None,
        pad_token_id=_PAD,
        **sampling,
        **own,
    )


def _padded_left(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts that end in one column, and the mask of what is theirs, both (B, P)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[_PAD] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


@contextmanager
def _on_loan(module: nn.Module, left_behind: dict[str, Any]) -> Iterator[None]:
    """A module whose attributes may be set: afterwards it is as before, and what was set waits for the next time.

    ``generate`` keeps a compiled forward and the size of its last cache there.
    """
    attributes = vars(module)
    before = dict(attributes)
    attributes.update(left_behind)
    try:
        yield
    finally:
        changed = {name for name, value in attributes.items() if name not in before or value is not before[name]}
        left_behind.update({name: attributes[name] for name in changed})
        for name in left_behind:
            if name in before:
                attributes[name] = before[name]
            else:
                attributes.pop(name, None)


@contextmanager
def _seeded(seed: int, keys: list[int], device: torch.device) -> Iterator[None]:
    """The generators of torch at a seed that belongs to this batch; afterwards they go on where they were."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(random.Random(f"{seed} {keys}").getrandbits(63))
        yield
