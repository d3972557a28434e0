"""An experiment file as strict, frozen settings. Reading one touches no GPU and no network.

Every fault is reported at once, each as ``file:line: key: problem, got value. Did you mean 'x'?``. The
options of a method are checked by the method's own class when the grid is expanded, everything else here.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from specbench.axes import located, settings, validate
from specbench.document import UNKNOWN_KEY, Document, Faults, Key, override, read
from specbench.errors import ConfigError

PROMPT_SOURCES: dict[str, str] = {
    "stdlib": "Python code: held-out modules of this Python's own standard library; no download",
    "mt_bench": "80 open questions of two turns in eight categories",
    "spec_bench": "480 questions in 13 categories; from a local copy of hemingkx/Spec-Bench",
    "alpaca": "52,000 instructions, with their inputs",
    "alpaca_eval": "805 instructions",
    "sharegpt": "conversations of people with a model",
    "humaneval": "164 Python functions to complete",
    "gsm8k": "1,319 questions of school mathematics",
    "hellaswag": "10,042 scenes to continue",
    "mmlu": "14,042 exam questions in 57 subjects, each after five worked examples",
}
"""The prompt sources that have a name; files and hub data sets (``owner/name``) work as well."""

PROMPT_FILES = (".jsonl", ".json", ".parquet", ".txt")
"""What a file of prompts is called."""

PROMPT_FORMATS: dict[str, str] = {
    "speed_bench": "SPEED-Bench, once it is prepared: turns, src_id",
    "spec_bench": "Spec-Bench, MT-bench as FastChat has it, the sets of EAGLE: turns",
    "sharegpt": "conversations of a person and a model: conversations",
    "messages": "chats: messages with role and content",
    "alpaca": "instructions in the frame of Stanford's Alpaca: instruction, input",
    "alpaca_eval": "instructions: instruction",
    "instruction": "instructions for a chat template, no frame: instruction, input",
    "humaneval": "heads of Python functions: prompt, entry_point",
    "mt_bench": "MT-bench as the hub has it: prompt (a list), prompt_id",
    "mmlu": "multiple choice after five worked examples: question, choices, subject, answer",
    "hellaswag": "scenes to continue: ctx, endings",
    "gsm8k": "questions and their answers: question, answer",
    "math": "problems of MATH: problem",
    "prompt": "rows of your own: prompt",
    "text": "rows of your own: text",
}
"""The formats that the rows of a file or data set can have, and the fields by which each is known."""

PUBLISHED: dict[str, str] = {
    "redrafter-table-1": "Medusa, EAGLE and ReDrafter on Vicuna 7B, 13B and 33B: speed-up and tokens per step",
    "redrafter-table-3": "ReDrafter on Vicuna 7B: tokens per second by batch size and beam width",
    "redrafter-table-4": "ReDrafter on Vicuna 7B, distilled and not: speed-up and tokens per step by beam width",
    "redrafter-figure-6": "ReDrafter on Vicuna 7B: the share of tokens that the prefix tree saves",
}
"""Published numbers that a report can draw beside its own; the numbers themselves stand in ``report/published.py``."""


class Settings(BaseModel):
    """Base of every section: unknown keys are faults, nothing is converted, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RandomModel(Settings):
    """A model of a known shape with random weights: true latencies without a download."""

    shape: str = Field(min_length=1, description="Name of a shape, like vicuna-7b-v1.3.")
    weights: Literal["random"] = Field(default="random", description="Where the weights come from.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the weights.")


def _kind_of_model(value: object) -> str:
    return "name" if isinstance(value, str) else "random"


ModelName = Annotated[str, Field(min_length=1)]
ModelSpec = Annotated[
    Annotated[ModelName, Tag("name")] | Annotated[RandomModel, Tag("random")], Discriminator(_kind_of_model)
]
"""A member of the embedded family, a hub id or a folder; or a shape with random weights."""

RANDOM_PREFIX = "random:"
"""``random:llama-68m``, or ``random:2x768x12x3072``: a shape with random weights where only a string can stand."""


def is_random(model: str | RandomModel) -> bool:
    """Whether a model has random weights."""
    return not isinstance(model, str) or model.startswith(RANDOM_PREFIX)


class TargetSpec(Settings):
    """A target: the model whose text must be kept."""

    model: ModelSpec = Field(description="Embedded family, hub id, folder, or {shape: NAME, weights: random}.")
    label: str | None = Field(default=None, min_length=1, description="What tables and figures call it.")

    @property
    def name(self) -> str:
        """The label, or the model's name, or its shape."""
        if self.label is not None:
            return self.label
        return brief(self.model) if isinstance(self.model, str) else self.model.shape


def brief(model: str) -> str:
    """What tables call a model: a folder by its last part, a name or hub id as it stands."""
    is_folder = model.startswith(("/", ".", "~")) or model.count("/") > 1
    return Path(model).name or model if is_folder else model


class PromptSettings(Settings):
    """Which prompts are used, and how each becomes tokens."""

    source: str = Field(
        min_length=1,
        description="A named source, a file (.jsonl, .json, .parquet, .txt), or a hub data set (owner/name).",
    )
    count: int = Field(default=16, ge=1, description="Prompts to take, the same number of every category.")
    ids: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Exactly these prompts, as the column prompt_id names them."
    )
    categories: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Only prompts of these categories."
    )
    seed: int = Field(default=0, ge=0, description="Decides which prompts of a category are taken.")
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longer prompts are cut to this; null keeps them whole (stdlib takes 256).",
    )
    truncate: Literal["left", "right", "skip"] = Field(
        default="left", description="The side on which a long prompt is cut; skip takes another prompt instead."
    )
    format: str | None = Field(
        default=None, description="The format of the rows; null recognises it from the fields that they have."
    )
    field: str | None = Field(
        default=None, min_length=1, description="The field that holds the prompt, where the rows have no known format."
    )
    subset: str | None = Field(default=None, min_length=1, description="The subset (configuration) of a hub data set.")
    split: str | None = Field(default=None, min_length=1, description="The split of a hub data set.")
    revision: str | None = Field(default=None, min_length=1, description="The commit of a hub data set.")
    examples: str | None = Field(
        default=None, min_length=1, description="Worked examples for a file of MMLU questions: a file of such rows."
    )
    chat_template: bool | None = Field(
        default=None,
        description="Wrap each prompt in the target's chat template; null does where there is one and no template is "
        "given, but for stdlib, whose code is to be gone on with.",
    )
    template: str | None = Field(
        default=None,
        description="Text around each prompt, with {prompt} where it goes, for targets without a chat template.",
    )
    next_template: str | None = Field(
        default=None,
        description="Text around each later turn, behind the answer before it; null is as template.",
    )

    @property
    def number(self) -> int:
        """How many prompts that is."""
        return self.count if self.ids is None else len(self.ids)

    @field_validator("template", "next_template")
    @classmethod
    def _has_a_place(cls, template: str | None) -> str | None:
        if template is not None and template.count("{prompt}") != 1:
            raise PydanticCustomError("no_place", "must hold {prompt} once")
        return template

    @field_validator("source")
    @classmethod
    def _is_known(cls, source: str) -> str:
        if source in PROMPT_SOURCES or source.endswith(PROMPT_FILES) or "/" in source:
            return source
        raise PydanticCustomError("unknown_name", "unknown prompt source", {"known": list(PROMPT_SOURCES)})

    @field_validator("format")
    @classmethod
    def _is_format(cls, name: str | None) -> str | None:
        if name is None or name in PROMPT_FORMATS:
            return name
        raise PydanticCustomError("unknown_name", "unknown format", {"known": list(PROMPT_FORMATS)})

    @field_validator("ids", "categories")
    @classmethod
    def _has_each_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = [name for name, times in Counter(names or ()).items() if times > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice")
        return names

    @model_validator(mode="after")
    def _say_one_thing(self) -> "PromptSettings":
        if self.chat_template and (self.template is not None or self.next_template is not None):
            raise ValueError("chat_template and template are two ways to say one thing; give one")
        if self.format is not None and self.field is not None:
            raise ValueError("format and field are two ways to say one thing; give one")
        if self.ids is not None and self.categories is not None:
            raise ValueError("ids and categories are two ways to choose prompts; give one")
        if self.ids is not None and "count" in self.model_fields_set and self.count != len(self.ids):
            raise ValueError(f"count is {self.count}, and ids names {len(self.ids)} prompts; leave count out")
        return self


class SyntheticAcceptance(Settings):
    """Acceptance that is dictated, not computed: for timing only, since the text is not the target's."""

    rates: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Chance that at least 1, 2, ... draft tokens are accepted: never rising, 0 beyond the last.",
    )
    mean_length: float | None = Field(default=None, ge=1, description="Mean tokens a step, the target's own included.")
    trace: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Accepted tokens step by step, repeated from the start when it ends.",
    )

    @model_validator(mode="after")
    def _has_one_form(self) -> "SyntheticAcceptance":
        if sum(form is not None for form in (self.rates, self.mean_length, self.trace)) != 1:
            raise ValueError("synthetic takes exactly one of rates, mean_length and trace")
        if self.rates is not None and any(a < b for a, b in pairwise(self.rates)):
            raise ValueError("the rates of synthetic never rise from one position to the next")
        return self


class SyntheticRule(Settings):
    """The rule ``{synthetic: {...}}``."""

    synthetic: SyntheticAcceptance


class TypicalAcceptance(Settings):
    """Medusa's lossy rule: a draft token is accepted iff p(x) > min(epsilon, delta exp(-H(p))). Greedy at T = 0."""

    epsilon: float = Field(default=0.09, gt=0, lt=1, description="A token more likely than this is always accepted.")
    delta: float = Field(default=0.3, gt=0, description="Scales the threshold where the target is unsure.")


class TypicalRule(Settings):
    """The rule ``{typical: {...}}``, which ``typical`` is short for."""

    typical: TypicalAcceptance


def _kind_of_rule(value: object) -> str:
    if isinstance(value, TypicalRule) or (isinstance(value, dict) and "typical" in value):
        return "typical"
    return "synthetic" if isinstance(value, dict | SyntheticRule) else "name"


RuleName = Literal["auto", "greedy", "match", "rejection", "typical", "redrafter_paper"]
Rule = Annotated[
    Annotated[RuleName, Tag("name")]
    | Annotated[SyntheticRule, Tag("synthetic")]
    | Annotated[TypicalRule, Tag("typical")],
    Discriminator(_kind_of_rule),
]


class DecodeSettings(Settings):
    """How tokens are chosen, and when a row ends."""

    max_new_tokens: int = Field(default=128, ge=1, description="Tokens after which a row ends.")
    min_new_tokens: int = Field(default=0, ge=0, description="Tokens before which no end-of-text token is taken.")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the most probable token.")
    top_k: int = Field(default=0, ge=0, description="Keep this many of the most probable tokens; 0 keeps all.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Keep the most probable tokens that together reach this; 1 keeps all.",
    )
    rule: Rule = Field(
        default="auto",
        description="auto is greedy at temperature 0 and rejection above; typical and redrafter_paper are lossy above.",
    )
    batch_size: int = Field(default=1, ge=1, description="Prompts decoded together.")
    turns: int = Field(
        default=1,
        ge=1,
        description="Turns of a conversation that are measured, each behind autoregressive's answers to those before.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the sampling noise.")
    ignore_eos: bool = Field(default=False, description="Decode to max_new_tokens whatever the text says.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Handed to the chat template, like {enable_thinking: false}."
    )

    @property
    def rule_name(self) -> str:
        """The rule that runs, by the name that tables give it."""
        if isinstance(self.rule, SyntheticRule):
            return "synthetic"
        if isinstance(self.rule, TypicalRule):
            return "typical"
        if self.rule == "auto":
            return "greedy" if self.temperature == 0 else "rejection"
        return self.rule

    @property
    def rule_words(self) -> str:
        """The same with its settings where it has any that are few, for names that must tell cells apart."""
        if isinstance(self.rule, TypicalRule):
            return f"typical epsilon={self.rule.typical.epsilon:g} delta={self.rule.typical.delta:g}"
        return self.rule_name

    @field_validator("rule")
    @classmethod
    def _spells_out_typical(cls, rule: Rule) -> Rule:
        """A trial is named after the thresholds that it ran with, given or not."""
        return TypicalRule(typical=TypicalAcceptance()) if rule == "typical" else rule

    @model_validator(mode="after")
    def _agree(self) -> "DecodeSettings":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        if self.rule == "greedy" and self.temperature > 0:
            raise ValueError(f"rule greedy needs temperature 0, got {self.temperature:g}; rule auto fits both")
        return self


class MeasureSettings(Settings):
    """How often and in how many ways each cell is measured."""

    repeats: int = Field(default=3, ge=1, description="Measured passes over all blocks.")
    warmup: int = Field(default=2, ge=0, description="Passes of every arm on other prompts that are thrown away.")
    processes: int = Field(default=1, ge=1, description="Fresh processes, a further level of repetition.")
    phase_blocks: int = Field(
        default=4, ge=0, description="Blocks of the first repeat in which a second pass asks where a step's time goes."
    )
    telemetry: bool = Field(
        default=True,
        description="Ask the GPU for energy, clocks, heat and throttling while batches run; has no part in timing.",
    )


ATTENTION_BACKENDS = ("split-kv", "flash-attn", "flash", "doubled", "grouped", "cudnn")
ATTENTION = ("auto", "sdpa", "eager", *ATTENTION_BACKENDS)


PIECES = "compiled pieces"
"""In ``execution``: norms and MLPs alone went through ``torch.compile``. No forward times are taken so."""


class MachineSettings(Settings):
    """What it runs on."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Precision of the weights."
    )
    threads: int = Field(default=1, ge=1, description="Threads of the CPU; fixed and recorded.")
    compile: bool | Literal["pieces"] = Field(
        default=False,
        description="torch.compile for every phase of a step; pieces: for norms and MLPs of target and drafts alone.",
    )
    graphs: bool = Field(default=True, description="CUDA graphs for every phase that can be captured; a CPU has none.")
    parallel: Literal["none", "device_map", "tensor"] = Field(
        default="none",
        description="How a target that one GPU cannot hold is spread: device_map, its layers over the GPUs of the "
        "machine; tensor, every matrix over the processes that torchrun starts.",
    )
    attention: str = Field(
        default="auto",
        description="Attention backend: auto, the fastest that passes its self-check; sdpa and eager, as transformers "
        "runs them; or one of ours, or two for lines and trees, joined by a plus.",
    )

    def execution(self, device_type: str) -> str:
        """How phases are to be run on such a device, in the words of the column ``execution``."""
        # A graph is of one device.
        is_captured = device_type == "cuda" and self.graphs and self.parallel == "none"
        compiled = PIECES if self.compile == "pieces" else "compiled"
        return ", ".join(["graphs"] * is_captured + [compiled] * bool(self.compile)) or "eager"

    @field_validator("compile", mode="before")
    @classmethod
    def _is_way_to_compile(cls, compiles: object) -> object:
        """One fault where a union of types would give two."""
        if isinstance(compiles, bool) or compiles == "pieces":
            return compiles
        raise PydanticCustomError(
            "unknown_name", "should be true, false or pieces", {"known": ["true", "false", "pieces"]}
        )

    @field_validator("attention")
    @classmethod
    def _is_attention(cls, attention: str) -> str:
        if attention in ATTENTION or set(attention.split("+", 1)) <= set(ATTENTION_BACKENDS):
            return attention
        raise PydanticCustomError("unknown_name", "unknown attention backend", {"known": list(ATTENTION)})

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        kind, colon, index = device.partition(":")
        if device in {"auto", "cpu", "cuda"} or (kind == "cuda" and colon and index.isdecimal()):
            return device
        raise PydanticCustomError(
            "unknown_name", "should be auto, cpu, cuda or cuda:N", {"known": ["auto", "cpu", "cuda"]}
        )


class ArmSettings(Settings):
    """What an entry of any method may carry beside the method's own options."""

    draft_latency_ms: float | None = Field(
        default=None, gt=0, description="Lower bound on the time of one draft forward; null is as measured."
    )
    latency_mode: Literal["measured", "composed"] = Field(
        default="measured",
        description="measured runs the arm (injected, where it has a draft_latency_ms); composed does not: its numbers "
        "come from traces and latencies.",
    )
    label: str | None = Field(default=None, min_length=1, description="What tables and figures call the arm.")


def _one_or_some(names: object) -> object:
    """A list of names, of which one may stand alone; as a tuple, since no validation after this one makes it one."""
    return (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list) else names


Positive = Annotated[int, Field(ge=1)]


class TraceSection(Settings):
    """What the draft models of the methods would propose at every place of the target's own texts."""

    gamma: int = Field(
        default=8, ge=1, le=64, description="Tokens of every draft; more where an arm of the draft has more."
    )
    group: int = Field(
        default=8, ge=1, description="Prompts that are recorded together, the unit of resume; no trace depends on it."
    )


class LatencySection(Settings):
    """How long one forward takes: of the targets, of the draft models of the methods, and of models named here."""

    query_tokens: tuple[Positive, ...] | None = Field(
        default=None,
        min_length=1,
        description="Tokens of one forward; null is 1, and where draft models draft 2 and every gamma + 1 as well.",
    )
    batch_sizes: tuple[Positive, ...] | None = Field(
        default=None, min_length=1, description="Rows; null is every batch size of decode."
    )
    context_tokens: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Tokens in the cache before them; null is 128, and where texts are decoded their shortest and "
        "longest context.",
    )
    models: tuple[ModelSpec, ...] = Field(default=(), description="More models: names, or shapes with random weights.")
    modes: tuple[Literal["eager", "compiled", "graphs", "graphs, compiled"], ...] | None = Field(
        default=None,
        min_length=1,
        description="How forwards run: eager, compiled by torch.compile, graphs on a GPU, or 'graphs, compiled'; null "
        "is eager, and the way in which the arms run.",
    )
    rounds: int = Field(default=20, ge=1, description="Visits of every point; an interval takes six.")
    burst: int = Field(default=4, ge=1, description="Forwards of a visit, one after the other.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Decides the order and the tokens.")

    @property
    def points(self) -> int:
        """Forwards of each model; of the axes that are left open, one value."""
        return self._product(self.query_tokens, self.batch_sizes, self.context_tokens, self.modes)

    @property
    def choices(self) -> int:
        """Times of each way of choosing tokens: a draw, and accepting behind every query and behind one token."""
        kinds = (0, 1, *(self.query_tokens or ()))
        return self._product(kinds, self.batch_sizes, self.modes)

    @staticmethod
    def _product(*axes: tuple[object, ...] | None) -> int:
        return math.prod(len(set(axis)) if axis is not None else 1 for axis in axes)


class ScoreSection(Settings):
    """How skilled models are: the targets, the draft models of the methods, and models named here."""

    data: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_one_or_some)] = Field(
        default=("stdlib",),
        min_length=1,
        description="stdlib, hellaswag, mmlu, a text file, a folder of them, a file of rows or a hub data set.",
    )
    count: int | None = Field(default=None, ge=1, description="Texts or questions of each to take; null takes all.")
    length: int = Field(default=512, ge=1, description="Texts are read in windows of so many tokens.")
    field: str | None = Field(
        default=None, min_length=1, description="The field that holds a text, where rows have no known format."
    )
    examples: str | None = Field(
        default=None, min_length=1, description="Worked examples for a file of MMLU questions: a file of such rows."
    )
    batch_size: int = Field(default=16, ge=1, description="Texts of one forward.")
    models: tuple[ModelName, ...] = Field(default=(), description="More models.")


class ClaimSettings(Settings):
    """What an experiment is to hold against its results; a report answers it, and no result depends on it."""

    says: str = Field(min_length=1, description="The claim in one sentence.")
    source: str | None = Field(default=None, min_length=1, description="Where it is made: a paper and its figure.")
    faster: dict[str, Any] = Field(default={}, description="Options of the arms that it calls faster.")
    than: dict[str, Any] = Field(default={}, description="Options of the arms that these are faster than.")
    published: dict[str, float] = Field(default={}, description="Published speed-ups by the name of the arm.")

    @model_validator(mode="after")
    def _compares_two_kinds_of_arms(self) -> "ClaimSettings":
        if bool(self.faster) != bool(self.than) or (self.faster and self.faster == self.than):
            raise ValueError("faster and than name different arms, both or neither")
        return self


def _is_published(name: str) -> str:
    if name in PUBLISHED:
        return name
    raise PydanticCustomError("unknown_name", "unknown published numbers", {"known": list(PUBLISHED)})


class _Header(Settings):
    name: str = Field(description="Names the results folder.")
    measure: MeasureSettings = Field(default=MeasureSettings())
    claim: ClaimSettings | None = None
    beside: Annotated[tuple[Annotated[str, AfterValidator(_is_published)], ...], BeforeValidator(_one_or_some)] = Field(
        default=(), description="Published numbers that the report draws beside these: a name, or a list of some."
    )

    @field_validator("name")
    @classmethod
    def _fits_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("a name is made of letters, digits and . _ - only")
        return name


@dataclass(frozen=True)
class MethodEntry:
    """One entry of a list of methods: its options are raw, and stand at ``key`` in the file."""

    method: str
    options: dict[str, Any]
    key: Key


@dataclass(frozen=True)
class TargetEntry:
    """One target, and the methods that only it has."""

    spec: TargetSpec
    methods: tuple[MethodEntry, ...]
    key: Key


@dataclass(frozen=True)
class Experiment:
    """A whole file. Sections with axes are held expanded, one element for each point of their grid."""

    name: str
    targets: tuple[TargetEntry, ...]
    prompts: tuple[PromptSettings, ...]
    decode: tuple[DecodeSettings, ...]
    machine: tuple[MachineSettings, ...]
    measure: MeasureSettings
    methods: tuple[MethodEntry, ...]
    document: Document
    traces: TraceSection | None = None
    latencies: LatencySection | None = None
    scores: ScoreSection | None = None

    @property
    def yaml(self) -> str:
        """The file as it was understood, with the overrides of the command line."""
        return self.document.text()


S = TypeVar("S", bound=Settings)

SECTIONS = (
    "name", "claim", "beside", "targets", "prompts", "decode", "methods", "traces", "latencies", "scores", "measure",
    "machine",
)  # fmt: skip
LIST = "experiments"
"""The key of a file that only names the files of experiments."""


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and check everything but the options of its methods.

    Args:
        path: The YAML file.
        overrides: ``section.key=value`` for each ``--set`` of the command line.

    Raises:
        ConfigError: One line for each fault.
    """
    document = open_document(path, overrides)
    faults = Faults(document)
    experiment = interpret(document, faults)
    faults.raise_any()
    return experiment


def open_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """The file of one experiment with its overrides applied, not checked yet.

    Raises:
        ConfigError: The file is no mapping in YAML, or lists experiments, or an override leads nowhere.
    """
    document = read(path)
    if LIST in document.values:
        raise ConfigError(f"{document.where((LIST,))}: this file lists experiments; give one of them")
    for assignment in overrides:
        override(document, assignment)
    return document


def open_documents(path: Path, overrides: Sequence[str] = ()) -> list[Document]:
    """The experiments of a file, which may be one itself or list the files of some, not checked yet.

    Args:
        path: The YAML file; the files that it lists lie beside it.
        overrides: Of a list, each is applied to all experiments that have its key.

    Raises:
        ConfigError: One line for each file that cannot be read, or an override leads nowhere.
    """
    listing = read(path)
    if LIST not in listing.values:
        return [open_document(path, overrides)]
    faults = Faults(listing)
    documents = _listed(listing, path.parent, faults)
    faults.raise_any()
    for assignment in overrides:
        having = [document for document in documents if _has_place_for(document, assignment)]
        if not having:
            raise ConfigError(f"--set {assignment}: none of the experiments has that key")
        for document in having:
            override(document, assignment)
    return documents


def _listed(listing: Document, folder: Path, faults: Faults) -> list[Document]:
    for name, value in listing.values.items():
        if name not in {"name", LIST}:
            faults.add((name,), UNKNOWN_KEY, got=value, known=("name", LIST))
    names = listing.values[LIST]
    if not isinstance(names, list) or not names:
        faults.add((LIST,), "should be a list of at least one file", got=names)
        return []
    documents: dict[object, Document] = {}
    for index, name in enumerate(names):
        key: Key = (LIST, index)
        if not isinstance(name, str):
            faults.add(key, "should be the name of a file", got=name)
            continue
        try:
            document = open_document(folder / name)
        except ConfigError as error:
            for line in str(error).splitlines():
                faults.add(key, line)
            continue
        own = document.values.get("name", name)
        if repr(own) in documents:
            faults.add(key, "another experiment of the list has the same name, and so the same folder", got=own)
        documents[repr(own)] = document
    return list(documents.values())


def _has_place_for(document: Document, assignment: str) -> bool:
    """Whether the file holds what the key stands in; three sections are there in every experiment."""
    *path, last = assignment.partition("=")[0].strip().split(".")
    if path in (["decode"], ["measure"], ["machine"]):
        return True
    values: Any = document.values
    for part in path:
        values = _below(values, part)
    return isinstance(values, dict) if path else last in document.values


def _below(values: object, part: str) -> object:
    if isinstance(values, list) and part.isdecimal() and int(part) < len(values):
        return values[int(part)]
    return values.get(part) if isinstance(values, dict) else None


def interpret(document: Document, faults: Faults) -> Experiment:
    """The experiment in a document; a faulty section comes out empty, and the others are still checked."""
    values = document.values
    for name, value in values.items():
        if name not in SECTIONS:
            faults.add((name,), UNKNOWN_KEY, got=value, known=SECTIONS)
    for name in _required(values):
        if name not in values:
            faults.add((name,), "required, but missing")
    header = _header(values, faults)
    return Experiment(
        name=header.name,
        targets=_targets(values["targets"], faults) if "targets" in values else (),
        prompts=_section(values, "prompts", PromptSettings, faults) if "prompts" in values else (),
        decode=_section(values, "decode", DecodeSettings, faults),
        machine=_section(values, "machine", MachineSettings, faults),
        measure=header.measure,
        methods=_methods(values.get("methods"), ("methods",), faults),
        document=document,
        traces=_study(values, "traces", TraceSection, faults),
        latencies=_study(values, "latencies", LatencySection, faults),
        scores=_study(values, "scores", ScoreSection, faults),
    )


def _required(values: dict[str, Any]) -> list[str]:
    """The sections that the others need: without trials and traces no prompts, with models of its own no target."""
    decodes = "prompts" in values or "traces" in values or _names_methods(values)
    studies = [values[name] for name in ("latencies", "scores") if name in values]
    if decodes or not studies:
        return ["name", "targets", "prompts"]
    all_have_models = all(isinstance(study, dict) and study.get("models") for study in studies)
    return ["name"] if all_have_models else ["name", "targets"]


def _names_methods(values: dict[str, Any]) -> bool:
    targets = values.get("targets")
    own = targets if isinstance(targets, list) else []
    return "methods" in values or any(isinstance(target, dict) and "methods" in target for target in own)


def _study(values: dict[str, Any], name: str, model: type[S], faults: Faults) -> S | None:
    """A section without axes: its lists are all measured in one go."""
    if name not in values:
        return None
    raw = values[name] or {}
    if not isinstance(raw, dict):
        faults.add((name,), "should be a mapping of options", got=raw)
        return None
    return validate(located(raw, (name,)), model, faults)


def _header(values: dict[str, Any], faults: Faults) -> _Header:
    raw = {name: values[name] for name in _Header.model_fields if name in values}
    if raw.get("measure", 0) is None:
        del raw["measure"]  # `measure:` with nothing below it
    header = validate(located(raw, ()), _Header, faults) if "name" in raw else None
    if "name" not in raw and "measure" in raw:
        validate(located({"name": "unnamed", **raw}, ()), _Header, faults)
    return header or _Header(name="unnamed")


def _section(values: dict[str, Any], name: str, model: type[S], faults: Faults) -> tuple[S, ...]:
    raw = values.get(name)
    if raw is not None and not isinstance(raw, dict):
        faults.add((name,), "should be a mapping of options", got=raw)
        return ()
    return settings(raw or {}, model, (name,), faults)


def _targets(raw: object, faults: Faults) -> tuple[TargetEntry, ...]:
    if not isinstance(raw, list) or not raw:
        faults.add(("targets",), "should be a list of at least one model", got=raw)
        return ()
    entries: list[TargetEntry] = []
    for index, item in enumerate(raw):
        key: Key = ("targets", index)
        values = {"model": item} if isinstance(item, str) else item
        if not isinstance(values, dict):
            faults.add(key, "a target is a name or a mapping with the key model", got=item)
            continue
        methods = _methods(values.get("methods"), (*key, "methods"), faults)
        point = located({name: value for name, value in values.items() if name != "methods"}, key)
        spec = validate(point, TargetSpec, faults)
        if spec is not None and any(spec == entry.spec for entry in entries):
            faults.add(key, "the target is given twice", got=spec.name)
        elif spec is not None:
            entries.append(TargetEntry(spec, methods, key))
    return tuple(entries)


def _methods(raw: object, key: Key, faults: Faults) -> tuple[MethodEntry, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        faults.add(key, "should be a list of methods, each a name or {name: {options}}", got=raw)
        return ()
    entries = (_method(item, (*key, index), faults) for index, item in enumerate(raw))
    return tuple(entry for entry in entries if entry is not None)


def _method(item: object, key: Key, faults: Faults) -> MethodEntry | None:
    if isinstance(item, str):
        return MethodEntry(item, {}, key)
    if not isinstance(item, dict):
        faults.add(key, "a method is a name or {name: {options}}", got=item)
        return None
    if len(item) != 1:
        faults.add(key, "an entry names one method, and its options stand indented below it", got=item)
        return None
    [(name, options)] = item.items()
    if not isinstance(options, dict | None):
        faults.add((*key, name), "the options of a method are a mapping", got=options)
        return None
    return MethodEntry(name, options or {}, (*key, name))
