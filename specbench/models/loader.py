"""Loads a model onto the machine, checks that the decode core may run it, and keeps one copy a process."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from specbench.config import MachineSettings, RandomModel
from specbench.decode.drafter import Drafter
from specbench.decode.target import CachedModel, SelfTest, self_test
from specbench.errors import ConfigError, ModelRefusedError, UnsupportedError, first_line
from specbench.models.drafters import locate_drafter
from specbench.models.shapes import build_random
from specbench.models.source import Source, check_same_token_map, locate
from specbench.models.zoo import ZOO

D = TypeVar("D", bound=Drafter)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where models go, with every ``auto`` resolved but the attention's, which the model decides."""

    device: torch.device
    dtype: torch.dtype
    attention: str | None

    @property
    def dtype_name(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class LoadedModel:
    """A model that has passed its self-test, and what a record must say about it.

    Attributes:
        model: The model with a cache; every further user takes ``model.sharing_weights()``.
        source: Where it comes from, with its tokenizer.
        eos_ids: Tokens that end a text.
        parameters: Tied ones counted once.
        weight_bytes: What they occupy.
        attention: The backend that really runs.
        self_test: What the self-test measured.
    """

    model: CachedModel
    source: Source
    eos_ids: tuple[int, ...]
    parameters: int
    weight_bytes: int
    attention: str
    self_test: SelfTest

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What turns prompts into ids."""
        return self.source.tokenizer

    @property
    def weights_sha(self) -> str:
        """Sixteen hex digits of the weights."""
        return self.source.weights_sha

    @property
    def tokenizer_sha(self) -> str:
        """Sixteen hex digits of the tokenizer."""
        return self.source.tokenizer_sha

    @property
    def template_sha(self) -> str | None:
        """Sixteen hex digits of the chat template; None where there is none."""
        return self.source.template_sha

    @property
    def revision(self) -> str | None:
        """The hub's commit; None elsewhere."""
        return self.source.revision


def placement(machine: MachineSettings) -> Placement:
    """Resolve device and precision.

    ``auto`` is the first GPU where there is one. Its precision is float32 on a CPU, where greedy text is then equal
    token for token and no near tie blurs a comparison; on a GPU bfloat16 where it is native, else float16.

    Raises:
        UnsupportedError: A GPU is asked for where there is none.
    """
    available = torch.cuda.is_available()
    name = ("cuda" if available else "cpu") if machine.device == "auto" else machine.device
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if available else 0
        if (device.index or 0) >= count:
            found = f"{count} GPUs" if count else "no GPU"
            raise UnsupportedError(f"machine.device is {name}, but torch finds {found}; use cpu or auto")
        device = torch.device("cuda", device.index or 0)
    if machine.dtype != "auto":
        dtype = _DTYPES[machine.dtype]
    elif device.type == "cpu":
        dtype = torch.float32
    else:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return Placement(device, dtype, None if machine.attention == "auto" else machine.attention)


def attention_of(source: Source, attention: str | None) -> str:
    """The backend that will run: the one asked for, else what ``transformers`` itself would take, sdpa or eager."""
    chosen = attention or getattr(source.skeleton.config, "_attn_implementation", None)
    return chosen if chosen in {"sdpa", "eager"} else "eager"


def load(source: Source, where: Placement) -> LoadedModel:
    """Load a model and prove that the core may run it.

    Raises:
        ModelRefusedError: It failed its self-test, or is of a family that the core cannot run.
        UnsupportedError: The hub cannot be reached.
        ConfigError: The files do not hold a model.
    """
    attention = attention_of(source, where.attention)
    module = load_module(source, where, attention)
    module.requires_grad_(requires_grad=False)
    model = CachedModel(module, source.name, source.vocab_size)
    return LoadedModel(
        model=model,
        source=source,
        eos_ids=source.eos_ids,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()),
        attention=str(getattr(module.config, "_attn_implementation", attention)),
        self_test=self_test(model),
    )


def load_module(source: Source, where: Placement, attention: str) -> nn.Module:
    """The plain model of ``transformers``, neither wrapped nor tested: for whoever only asks it for logits.

    Raises:
        ModelRefusedError: ``transformers`` cannot load it as a causal LM.
        UnsupportedError: The hub cannot be reached.
        ConfigError: The files do not hold a model.
    """
    if source.shape is not None:
        return build_random(source.shape, device=where.device, dtype=where.dtype, attention=attention, seed=source.seed)
    folder = source.weights_folder()
    if not any((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))):
        raise ConfigError(f"{source.name}: {folder} holds no weights (*.safetensors)")
    try:
        module = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=where.dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            weights_only=True,
            device_map=None,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ModelRefusedError(f"{source.name}: transformers cannot load it as a causal LM: {reason}") from error
    return module.to(where.device)


class ModelPool:
    """The models of one process at one placement: each is loaded once, whoever asks for it.

    Args:
        where: Where models go.
        zoo: Where the embedded family lies.
    """

    def __init__(self, where: Placement, zoo: Path = ZOO) -> None:
        self.where = where
        self._zoo = zoo
        self._loaded: dict[str, LoadedModel] = {}
        self._drafters: dict[tuple[str, str], Drafter] = {}

    def get(self, reference: str | RandomModel) -> LoadedModel:
        """The model, loaded now or earlier.

        Raises:
            SpecbenchError: As ``locate`` and ``load``.
        """
        key = repr(reference)
        if key not in self._loaded:
            self._loaded[key] = load(locate(reference, self._zoo), self.where)
        return self._loaded[key]

    def draft(self, reference: str, target: LoadedModel) -> CachedModel:
        """A draft model for ``target``, with a cache that belongs to the caller.

        Raises:
            ConfigError: Its token map is not the target's.
            SpecbenchError: As ``locate`` and ``load``.
        """
        source = locate(reference, self._zoo)
        check_same_token_map(target.source, source)
        return self.get(reference).model.sharing_weights()

    def drafter(self, kind: type[D], reference: str, target: LoadedModel) -> D:
        """Trained weights of a method's own for ``target``, the same object for everyone.

        Raises:
            SpecbenchError: As ``locate_drafter`` and the kind's ``load``.
        """
        key = repr(reference), target.source.name
        if key not in self._drafters:
            files = locate_drafter(reference, self._zoo)
            self._drafters[key] = kind.load(files.folder, target.model).bind(target.model).eval()
        found = self._drafters[key]
        if not isinstance(found, kind):
            raise ConfigError(f"{reference}: holds {type(found).__name__}, and {kind.__name__} are wanted")
        return found

    def has(self, reference: str | RandomModel) -> bool:
        """Whether the model, or the drafter, is loaded."""
        return repr(reference) in {*self._loaded, *(name for name, _ in self._drafters)}

    def keep_only(self, references: set[str]) -> None:
        """Let go of every model and drafter but those whose ``repr`` is in ``references``."""
        self._loaded = {key: model for key, model in self._loaded.items() if key in references}
        self._drafters = {key: drafter for key, drafter in self._drafters.items() if key[0] in references}
