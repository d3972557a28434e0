"""What this machine can do, found out by small questions that never raise; `specbench doctor` prints the answers."""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from safetensors import SafetensorError, safe_open

from specbench import registry
from specbench.bench import machine
from specbench.bench.ceilings import Ceiling, bare_ceiling
from specbench.bench.telemetry import gpus_of
from specbench.bench.timing import monotonic_s
from specbench.errors import SpecbenchError, first_line
from specbench.models.corpus import HELD_OUT, held_out_modules
from specbench.models.zoo import ZOO, family

Level = Literal["ok", "note", "problem"]

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 14)
_HUB = "https://huggingface.co/api/models?limit=1"
_HUB_TIMEOUT_S = 3.0
_LITTLE_MEMORY_BYTES, _LITTLE_DISK_BYTES = 2 * 2**30, 2**30


@dataclass(frozen=True)
class Finding:
    """One answer: ``ok``, a ``note`` that is good to know, or a ``problem`` that prevents running."""

    level: Level
    subject: str
    words: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Every question in turn."""
    yield _python()
    yield from _packages()
    yield _methods()
    yield from _plug_ins()
    yield from _family()
    yield _prompts()
    yield from _gpus()
    yield _telemetry()
    yield _precision()
    yield _pace()
    yield _threads()
    yield _load()
    yield _memory()
    yield _disk()
    yield _hub()


def _python() -> Finding:
    words = f"{platform.python_version()} ({sys.executable})"
    if _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        return Finding("ok", "python", words)
    level: Level = "problem" if sys.version_info[:2] < _OLDEST_PYTHON else "note"
    return Finding(level, "python", words, "specbench is tested with Python 3.11 to 3.14")


def _packages() -> Iterator[Finding]:
    """What the package asks for, and what is installed."""
    try:
        asked = [Requirement(text) for text in requires("specbench") or ()]
    except PackageNotFoundError:
        yield Finding(
            "note",
            "packages",
            f"specbench is not installed; torch {torch.__version__}",
            "pip install -e . in the checkout",
        )
        return
    for requirement in asked:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("problem", requirement.name, "not installed", f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            asked_for = f"{found}, but {requirement.specifier} is needed"
            yield Finding("problem", requirement.name, asked_for, f"pip install '{requirement}'")
        elif requirement.name in {"torch", "transformers"}:
            yield Finding("ok", requirement.name, found)


def _methods() -> Finding:
    """Whether the methods are ours, and not another package of that name."""
    try:
        names = registry.names()
    except SpecbenchError as error:
        return Finding("problem", "methods", str(error), "remove or rename the other package")
    return Finding("ok", "methods", ", ".join(names))


def _plug_ins() -> Iterator[Finding]:
    """Methods of other packages: usable, or why not."""
    try:
        origins = registry.origins()
    except SpecbenchError:
        return  # said above
    for name, origin in origins.items():
        if not origin:
            continue
        try:
            registry.options_class(name)
        except SpecbenchError as error:
            yield Finding("note", f"plug-in {name}", str(error), f"uninstall or mend {origin}")
        else:
            yield Finding("ok", f"plug-in {name}", origin)


def _family(zoo: Path = ZOO) -> Iterator[Finding]:
    """Whether the embedded weights are there and are those that their cards describe."""
    names = family(zoo)
    if not names:
        words = f"no model in {zoo}"
        yield Finding("note", "embedded models", words, "get the weights with the checkout, or: make family")
        return
    remedy = "restore specbench/zoo from the checkout, or: make family"
    for name in names:
        fault = _weights_fault(zoo / name)
        if fault:
            yield Finding("problem", f"model {name}", fault, remedy)
        elif not _is_as_described(zoo / name):
            words = "its weights are not those of its card: results compare only with the same weights"
            yield Finding("note", f"model {name}", words, remedy)
        else:
            yield Finding("ok", f"model {name}", "weights as its card describes them")


def _weights_fault(folder: Path) -> str:
    """Why the weights cannot be read; empty where they can."""
    try:
        with safe_open(folder / "model.safetensors", framework="pt"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"its weights cannot be read: {first_line(error)}"


def _is_as_described(folder: Path) -> bool:
    try:
        expected = json.loads((folder / "card.json").read_text("utf-8"))["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    with (folder / "model.safetensors").open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)


def _prompts() -> Finding:
    """Whether the standard library's prompts are all here."""
    skipped = held_out_modules().skipped
    if not skipped:
        return Finding("ok", "prompts", f"all {len(HELD_OUT)} held-out modules of the standard library")
    names = ", ".join(f"{name} ({reason})" for name, reason in skipped.items())
    level: Level = "note" if len(skipped) < len(HELD_OUT) else "problem"
    remedy = "results compare only with machines that skip the same; CPython 3.11 to 3.14 has most of them"
    return Finding(level, "prompts", f"{len(skipped)} of {len(HELD_OUT)} skipped: {names}", remedy)


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        words = "none" if built is None else f"none found by torch, which is built for CUDA {built}"
        remedy = "" if built is None else "check the driver with nvidia-smi"
        yield Finding("note", "GPU", f"{words}: everything runs on the CPU", remedy)
        return
    for index, gpu in enumerate(machine.gpus()):
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        memory = gpu.get("memory_bytes", machine.UNKNOWN)
        size = f"{memory / 2**30:.0f} GiB" if isinstance(memory, int) else "memory unknown"
        driver, power = gpu.get("driver", machine.UNKNOWN), gpu.get("power_limit_w", machine.UNKNOWN)
        words = f"{gpu['name']}, {size}, compute {capability}, driver {driver}, {power} W, CUDA {torch.version.cuda}"
        if driver == machine.UNKNOWN:
            yield Finding("note", f"GPU {index}", words, "NVML does not answer: clocks and power will be unknown")
        else:
            yield Finding("ok", f"GPU {index}", words)


def _telemetry() -> Finding:
    """Whether a run will know what its GPU did."""
    if not torch.cuda.is_available():
        return Finding("note", "telemetry", "none without a GPU: no energy, clocks or throttling in the tables")
    gpus, reason = gpus_of([torch.device("cuda", index) for index in range(torch.cuda.device_count())])
    if reason:
        return Finding("note", "telemetry", f"none: {reason}", "runs work without; throttling will not be noticed")
    if silent := sorted({name for gpu in gpus for name in gpu.silent_on()}):
        return Finding("note", "telemetry", f"NVML answers, but not on {', '.join(silent)}: null in the tables")
    return Finding("ok", "telemetry", "energy, power, utilisation, clocks, temperature, throttling, memory, programs")


def _precision() -> Finding:
    """bfloat16: native, emulated, or slower than float32, by a short try."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        words = "bfloat16 is native: the default" if native else "no native bfloat16: the default is float16"
        return Finding("ok" if native else "note", "precision", words)
    ratio = _matmul_s(torch.float32) / _matmul_s(torch.bfloat16)
    words = f"float32 is the default on a CPU; bfloat16 multiplies {ratio:.1f} times as fast here (a rough try)"
    return Finding("ok", "precision", words)


def _pace(measure: Callable[[torch.device, torch.dtype], Ceiling] = bare_ceiling) -> Finding:
    """What the limits of a run are made of, by a rough try."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = measure(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    except RuntimeError as error:  # a torch built for other GPUs, a GPU that others fill or keep for themselves
        remedy = "take a torch that is built for this GPU; nvidia-smi shows who else uses it"
        return Finding("problem", "pace", f"torch cannot compute here: {first_line(error)}", remedy)
    where = "GPU 0, bfloat16" if device.type == "cuda" else f"float32, {torch.get_num_threads()} threads"
    reads, copies, multiplies = (
        f"{rate / 1e9:,.0f}" for rate in (found.read_bytes_per_s, found.copy_bytes_per_s, found.operations_per_s)
    )
    words = (
        f"weights are read at {reads} GB/s, a copy moves {copies} GB/s, products do {multiplies} GFLOP/s, and Python "
        f"asks for an operation in {1e6 * found.launch_s:.1f} us ({where}; a rough try)"
    )
    return Finding("ok", "pace", words)


def _matmul_s(dtype: torch.dtype, size: int = 512, tries: int = 5) -> float:
    """The fastest of a few products, in seconds."""
    matrix = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(tries):
        start = monotonic_s()
        matrix @ matrix
        seconds.append(monotonic_s() - start)
    return max(min(seconds), 1e-9)


def _threads() -> Finding:
    cores = machine.cores()
    words = (
        f"{machine.cpu_model()}, {cores} cores for this process; machine.threads is 1 unless an experiment says more"
    )
    return Finding("ok", "CPU", words)


def _load() -> Finding:
    """Whether somebody else computes: a busy machine times nothing well."""
    cores = machine.cores()
    if not hasattr(os, "getloadavg") or not isinstance(cores, int):
        return Finding("note", "load", machine.UNKNOWN)
    load = os.getloadavg()[0]
    words = f"{load:.1f} runnable programs over the last minute, {cores} cores"
    if load > max(0.5, cores / 2):
        return Finding(
            "note", "load", words, "other work makes timings noisy; wait for it, or give it cores of its own"
        )
    return Finding("ok", "load", words)


def _memory() -> Finding:
    free = _free_memory_bytes()
    if free is None:
        return Finding("note", "memory", machine.UNKNOWN)
    words = f"{free / 2**30:.1f} GiB free"
    if free < _LITTLE_MEMORY_BYTES:
        return Finding("note", "memory", words, "the embedded family needs 2 GiB; larger models twice their weights")
    return Finding("ok", "memory", words)


def _free_memory_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _disk() -> Finding:
    try:
        free = shutil.disk_usage(Path.cwd()).free
    except OSError as error:
        return Finding("problem", "disk", f"this folder cannot be read: {error.strerror}", "change to another folder")
    words = f"{free / 2**30:.1f} GiB free here"
    if not os.access(Path.cwd(), os.W_OK):
        return Finding("note", "disk", f"{words}, but this folder is read-only", "use run --results FOLDER")
    if free < _LITTLE_DISK_BYTES:
        return Finding("note", "disk", words, "a grid's tables can take a gigabyte")
    return Finding("ok", "disk", words)


def _hub(answers: Callable[[], str] | None = None) -> Finding:
    """Whether the hub answers at all; a folder or the embedded family never needs it."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return Finding("note", "hub", "not asked: HF_HUB_OFFLINE is set; local copies are used")
    problem = (answers or _asked_hub)()
    if not problem:
        return Finding("ok", "hub", "huggingface.co answers")
    remedy = "hub models need a local copy: give a folder, or fetch them where there is a network"
    return Finding("note", "hub", f"no answer within {_HUB_TIMEOUT_S:g} s ({problem})", remedy)


def _asked_hub() -> str:
    """What went wrong; empty where the hub answered."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(_HUB, timeout=_HUB_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError:
        return ""  # an answer, if not a welcome
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
