"""specbench.decode.attention.kernel: the compiler takes it for Hopper, where no GPU is at hand to run it."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: in this one Triton interprets.
COMPILE = """
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specbench.decode.attention import kernel

FIXED = dict(KV_HEADS=8, GROUP=4, DIM=128, DIM_BLOCK=128)
POINTERS = {"query_ptr": 0, "key_ptr": 0, "value_ptr": 0, "base_ptr": "*i64", "words_ptr": "*i64", "depth_ptr": "*i64"}


def spilled_bytes(dtype, stages, **cut):
    names, constants = kernel._attend_part.arg_names, {**FIXED, **cut}
    out = "*fp32" if cut["PARTS"] > 1 else f"*{dtype}"
    types = {name: (kind or f"*{dtype}") for name, kind in POINTERS.items()}
    types |= {"out_ptr": out, "weight_ptr": out, "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in names}
    even = [name for name in names if name.endswith("_ptr") or name.startswith(("query_", "key_", "value_"))]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = ASTSource(kernel._attend_part, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": stages})
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        ptxas = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(ptxas, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\\d+) bytes spill", said)))


half = dict(ROWS=16, KEYS=64, PARTS=8)
assert spilled_bytes("bf16", 3, **half, WINDOW=0, IS_LINE=True) == 0
assert spilled_bytes("fp16", 3, **half, WINDOW=4096, IS_LINE=False) == 0
assert spilled_bytes("bf16", 3, ROWS=64, KEYS=64, PARTS=1, WINDOW=0, IS_LINE=False) == 0
assert spilled_bytes("fp32", 2, ROWS=16, KEYS=32, PARTS=4, WINDOW=0, IS_LINE=False) == 0
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_hopper_and_keeps_to_its_registers(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
