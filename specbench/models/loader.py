"""Loads a model onto the machine, checks that the decode core may run it, and keeps one copy a process.

A target that is too large for one GPU is spread as ``transformers`` does it: its layers over the GPUs of the machine
(``device_map``), or every matrix over the processes that ``torchrun`` has started (``tensor``). Drafts stay whole.
"""

import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from specbench.config import MachineSettings, RandomModel
from specbench.decode.attention.choice import OWN
from specbench.decode.drafter import Drafter
from specbench.decode.method import D, LoadContext
from specbench.decode.target import CachedModel, SelfTest, expected_attention, local_part, self_test
from specbench.errors import ConfigError, ModelRefusedError, UnsupportedError, first_line
from specbench.models.drafters import locate_drafter
from specbench.models.ranks import join, local_rank, share, world
from specbench.models.shapes import build_random, numbers_of
from specbench.models.source import Source, check_same_token_map, locate
from specbench.models.zoo import ZOO

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where models go, with every ``auto`` resolved but the attention's, which the model decides.

    Attributes:
        device: Of the model, or of its first layers; under ``tensor`` this process's own.
        dtype: Of the weights.
        attention: The backend that was asked for.
        parallel: How targets are spread.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str | None
    parallel: Literal["none", "device_map", "tensor"] = "none"

    @property
    def whole(self) -> "Placement":
        """The same for a model that is not spread."""
        return replace(self, parallel="none")

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
        weight_bytes: What they occupy, on all devices and in all processes together.
        self_test: What the self-test measured.
    """

    model: CachedModel
    source: Source
    eos_ids: tuple[int, ...]
    parameters: int
    weight_bytes: int
    self_test: SelfTest

    @property
    def attention(self) -> str:
        """The backend that really runs."""
        return self.model.attention.name

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
    token for token and no near tie blurs a comparison; on a GPU bfloat16 where it is native, else float16. Under
    ``tensor`` the process meets the others here, and takes a GPU of its own.

    Raises:
        UnsupportedError: A GPU is asked for where there is none, or models cannot be spread here.
    """
    if machine.parallel != "none":
        _check_spreading(machine)
    available = torch.cuda.is_available()
    name = ("cuda" if available else "cpu") if machine.device == "auto" else machine.device
    device = torch.device(name)
    if machine.parallel == "tensor":
        device = torch.device("cuda", local_rank()) if device.type == "cuda" else device
        join(device.type)
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
    return Placement(device, dtype, None if machine.attention == "auto" else machine.attention, machine.parallel)


def _check_spreading(machine: MachineSettings) -> None:
    """Refuse what ``transformers`` would not do, or not say clearly."""
    asked = f"machine.parallel is {machine.parallel}"
    if find_spec("accelerate") is None:
        raise UnsupportedError(f"{asked}, and transformers spreads models with accelerate: pip install accelerate")
    if machine.attention not in {"auto", *OWN}:
        raise UnsupportedError(f"{asked}: its attention is auto, {' or '.join(OWN)}, not {machine.attention}")
    if machine.parallel == "device_map":
        return
    if world() == 1:
        raise UnsupportedError(
            f"{asked}, which takes several processes: torchrun --nproc-per-node 2 -m specbench run ..."
        )
    if machine.device not in {"auto", "cuda"} and torch.cuda.is_available():
        raise UnsupportedError(
            f"{asked}: every process takes the GPU of its own number, so machine.device is auto or cuda, "
            f"not {machine.device}"
        )


def attention_of(source: Source, where: Placement) -> str:
    """The backend that a model will run with, as far as that is known before its weights are there."""
    own, wanted = implementation_of(source, where.attention), _wanted_attention(source, where)
    if own != "sdpa" or wanted in OWN:
        return own
    return expected_attention(source.skeleton, wanted, where.device, where.dtype)


def _wanted_attention(source: Source, where: Placement) -> str:
    """What is asked of the core: a spread model attends as ``transformers`` spreads it, under a dense mask."""
    if where.attention is None and where.parallel != "none":
        return implementation_of(source, None)
    return where.attention or "auto"


def implementation_of(source: Source, attention: str | None) -> str:
    """What ``transformers`` runs the model with outside of the core, sdpa or eager: unless asked for, its choice."""
    chosen = attention if attention in OWN else getattr(source.skeleton.config, "_attn_implementation", None)
    return chosen if chosen in OWN else "eager"


def load(source: Source, where: Placement) -> LoadedModel:
    """Load a model and prove that the core may run it.

    Raises:
        ModelRefusedError: It failed its self-test, or is of a family that the core cannot run.
        UnsupportedError: The hub cannot be reached.
        ConfigError: The files do not hold a model.
    """
    module = load_module(source, where, implementation_of(source, where.attention))
    module.requires_grad_(requires_grad=False)
    model = CachedModel(module, source.name, source.vocab_size, _wanted_attention(source, where))
    return LoadedModel(
        model=model,
        source=source,
        eos_ids=source.eos_ids,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()),
        self_test=self_test(model),
    )


def load_module(source: Source, where: Placement, attention: str) -> nn.Module:
    """The plain model of ``transformers``, neither wrapped nor tested: for whoever only asks it for logits.

    Raises:
        ModelRefusedError: ``transformers`` cannot load it as a causal LM.
        UnsupportedError: The hub cannot be reached.
        ConfigError: The files do not hold a model.
        MemoryError: It is spread, and the GPUs together cannot hold it.
    """
    if source.shape is not None and where.parallel == "none":
        return build_random(source.shape, device=where.device, dtype=where.dtype, attention=attention, seed=source.seed)
    arguments = {"dtype": where.dtype, "attn_implementation": attention, **_spreading(source, where)}
    try:
        module = _random(source, arguments) if source.shape is not None else _stored(source, arguments)
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ModelRefusedError(f"{source.name}: transformers cannot load it as a causal LM: {reason}") from error
    if where.parallel == "none":
        return module.to(where.device)
    _refuse_offloading(module, source.name, where.device)
    return module


def _stored(source: Source, arguments: dict[str, Any]) -> nn.Module:
    """The model with the weights of its files."""
    folder = source.weights_folder()
    if not any((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))):
        raise ConfigError(f"{source.name}: {folder} holds no weights (*.safetensors)")
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, weights_only=True, **arguments)


def _random(source: Source, arguments: dict[str, Any]) -> nn.Module:
    """A spread model with random weights: as one whose file lacks every weight, each drawn where it is to live."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(source.seed)
        kind: Any = type(source.skeleton)
        module = kind.from_pretrained(None, config=copy.deepcopy(source.config), state_dict={}, **arguments)
    share(parameter.data for parameter in module.parameters() if local_part(parameter) is parameter)
    return torch.nn.Module.eval(module)


def _spreading(source: Source, where: Placement) -> dict[str, Any]:
    """What ``from_pretrained`` is told of where the weights go."""
    if where.parallel == "none":
        return {"device_map": None}
    if where.parallel == "device_map":
        return {"device_map": "auto"}
    from transformers.distributed import DistributedConfig

    numbers = numbers_of(source.config)
    if numbers.heads % world() or numbers.kv_heads % world():
        raise UnsupportedError(
            f"{source.name}: {world()} processes cannot share {numbers.heads} heads and {numbers.kv_heads} heads of "
            "keys and values evenly"
        )
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


def _refuse_offloading(module: nn.Module, name: str, device: torch.device) -> None:
    """A layer that is fetched from the host for every forward would be measured as if the model were that slow."""
    places = [str(place) for place in getattr(module, "hf_device_map", {}).values()]
    left_out = sum(place in {"cpu", "disk"} for place in places)
    if device.type == "cuda" and left_out:
        raise MemoryError(
            f"{name}: the GPUs of this machine are out of memory: {left_out} of its {len(places)} parts would stay on "
            "the host"
        )


class ModelPool:
    """The models of one process at one placement: each is loaded once, whoever asks for it.

    Args:
        where: Where models go.
        zoo: Where the embedded family lies.
    """

    def __init__(self, where: Placement, zoo: Path = ZOO) -> None:
        self.where = where
        if where.device.type == "cuda":
            torch.cuda.set_device(where.device)  # libraries ask which one is current, not where the tensors are
        self._zoo = zoo
        self._loaded: dict[str, LoadedModel] = {}
        self._drafters: dict[tuple[str, str, type[Drafter]], Drafter] = {}

    def get(self, reference: str | RandomModel) -> LoadedModel:
        """The model, loaded now or earlier.

        Raises:
            SpecbenchError: As ``locate`` and ``load``.
        """
        return self._get(reference, self.where)

    def _get(self, reference: str | RandomModel, where: Placement) -> LoadedModel:
        key = repr(reference)
        if key not in self._loaded:
            self._loaded[key] = load(locate(reference, self._zoo), where)
        return self._loaded[key]

    def draft(self, reference: str, target: LoadedModel) -> CachedModel:
        """A draft model for ``target``, with a cache that belongs to the caller; whole, unless it is a target as well.

        Raises:
            ConfigError: Its token map is not the target's.
            SpecbenchError: As ``locate`` and ``load``.
        """
        source = locate(reference, self._zoo)
        check_same_token_map(target.source, source)
        return self._get(reference, self.where.whole).model.sharing_weights()

    def drafter(self, kind: type[D], reference: str, target: LoadedModel) -> D:
        """Weights of a method's own for ``target``, the same object for everyone.

        Raises:
            SpecbenchError: As ``locate_drafter`` and the kind's ``load``.
        """
        key = repr(reference), target.source.name, kind  # random ones are of any kind
        if key not in self._drafters:
            found = locate_drafter(reference, self._zoo).load(kind, target.model)
            self._drafters[key] = found.bind(target.model).eval()
        return cast("D", self._drafters[key])

    def has(self, reference: str | RandomModel) -> bool:
        """Whether the model, or the drafter, is loaded."""
        return repr(reference) in {*self._loaded, *(name for name, *_ in self._drafters)}

    def keep_only(self, references: set[str]) -> None:
        """Let go of every model and drafter but those whose ``repr`` is in ``references``."""
        self._loaded = {key: model for key, model in self._loaded.items() if key in references}
        self._drafters = {key: drafter for key, drafter in self._drafters.items() if key[0] in references}


class Supplier:
    """Gives a method what it loads, and keeps an account of it.

    Args:
        pool: Where models come from.
        target: What the method drafts for.

    Attributes:
        drafts: The draft models that it has been given, each with a cache of its own.
        drafters: The trained weights of its own.
    """

    def __init__(self, pool: ModelPool, target: LoadedModel) -> None:
        self._pool, self._target = pool, target
        self.drafts: list[CachedModel] = []
        self.drafters: list[Drafter] = []

    @property
    def context(self) -> LoadContext:
        """For ``Method.load``."""
        return LoadContext(self._target.model, self._draft_model, self._drafter)

    def _draft_model(self, reference: str) -> CachedModel:
        self.drafts.append(self._pool.draft(reference, self._target))
        return self.drafts[-1]

    def _drafter(self, kind: type[D], reference: str) -> D:
        found = self._pool.drafter(kind, reference, self._target)
        self.drafters.append(found)
        return found
