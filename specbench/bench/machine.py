"""What a run ran on, by small functions that always answer: what cannot be found out is the word ``unknown``."""

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from specbench import __version__

UNKNOWN = "unknown"

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "pandas", "pydantic")

_SECRET = re.compile(r"token|key|secret|password", re.IGNORECASE)
# Words that look like secrets and are settings.
_HARMLESS = re.compile(r"tokenizer|tokens|keys|token_map|monkey|keyboard", re.IGNORECASE)
_REDACTED = "[redacted]"


def git_state(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code lies in, and whether it has changes; None for both outside of one."""
    folder = folder or Path(__file__).resolve().parent
    sha = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if sha is None:
        return None, None
    changes = _output(["git", "-C", str(folder), "status", "--porcelain"])
    return sha, None if changes is None else bool(changes)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"specbench": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = UNKNOWN
    found["cuda"] = torch.version.cuda or "none"
    return found


def cpu_model() -> str:
    """The CPU's own name, like ``Intel(R) Xeon(R) Platinum 8481C``."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor() or UNKNOWN


def cores() -> int | str:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or UNKNOWN


def memory_bytes() -> int | str:
    """Memory of the machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def free_bytes(device: torch.device) -> float:
    """Memory that a device has left, in bytes; infinite where a system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        whole = memory_bytes()
        return float(whole) if isinstance(whole, int) else math.inf


def gpus() -> list[dict[str, Any]]:
    """Name, UUID, driver, memory, power limit and clocks of every GPU that torch sees; empty where there is none."""
    if not torch.cuda.is_available():
        return []
    named = [{"name": torch.cuda.get_device_name(index)} for index in range(torch.cuda.device_count())]
    try:
        import pynvml
    except ImportError:
        return named
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # a container without the driver's library, say
        return named
    try:
        return [_gpu(pynvml, nvml_handle(pynvml, index)) for index in range(torch.cuda.device_count())]
    except pynvml.NVMLError:
        return named
    finally:
        pynvml.nvmlShutdown()


def nvml_handle(nvml: Any, device: torch.device | int) -> Any:
    """NVML's name for a GPU of torch's, or for a slice of one (MIG): by UUID, since torch may see only some of them.

    Raises:
        nvml.NVMLError: NVML does not know it.
    """
    # torch leaves the word in front away.
    bare = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-").removeprefix("MIG-")
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}".encode())
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{bare}".encode())


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            answer = question(*arguments)
        except nvml.NVMLError:
            return UNKNOWN
        return answer.decode() if isinstance(answer, bytes) else answer

    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    power = ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    return {
        "name": ask(nvml.nvmlDeviceGetName, handle),
        "uuid": ask(nvml.nvmlDeviceGetUUID, handle),
        "driver": ask(nvml.nvmlSystemGetDriverVersion),
        "memory_bytes": UNKNOWN if memory == UNKNOWN else int(memory.total),
        "power_limit_w": UNKNOWN if power == UNKNOWN else power / 1000,
        "sm_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "temperature_c": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
    }


def describe() -> dict[str, Any]:
    """The machine as one mapping."""
    return {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "gpus": gpus(),
        "environment": redacted(_relevant(os.environ)),
    }


def device_name(device: torch.device) -> str:
    """The model name of the GPU, or ``cpu`` and the CPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {cpu_model()}"


def machine_slug(device: torch.device) -> str:
    """The device's name as a folder's: ``nvidia-h200``, ``cpu-intel-xeon-platinum-8481c``."""
    words = re.sub(r"\((r|tm|c)\)|@.*| cpu\b|\bprocessor\b", " ", device_name(device).lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def redacted(settings: Mapping[str, str]) -> dict[str, str]:
    """The mapping without the values whose names sound like secrets."""
    return {name: _REDACTED if _is_secret(name) else value for name, value in settings.items()}


def redacted_argv(argv: Sequence[str]) -> list[str]:
    """A command line without secrets: ``--hub-token x``, ``--hub-token=x`` and ``api_key=x`` lose the x."""
    safe: list[str] = []
    hide_next = False
    for word in argv:
        name, equals, _ = word.rpartition("=") if "=" in word else (word, "", "")
        if hide_next and not word.startswith("-"):
            safe.append(_REDACTED)
        else:
            safe.append(f"{name}={_REDACTED}" if equals and _is_secret(name) else word)
        hide_next = word.startswith("-") and not equals and _is_secret(word)
    return safe


def _is_secret(name: str) -> bool:
    return _SECRET.search(_HARMLESS.sub("", name)) is not None


def _relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that change how fast torch is."""
    prefixes = ("CUDA_", "PYTORCH_", "TORCH_", "OMP_", "MKL_", "KMP_", "NVIDIA_TF32")
    return {name: value for name, value in sorted(environment.items()) if name.startswith(prefixes)}


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def as_json(value: object) -> str:
    """Compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
