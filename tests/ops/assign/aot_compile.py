"""Compiles the scan kernels for a GPU that need not be here and prints what came out; run by test_assign_triton.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from toc_cli.ops.assign import gpu_kernels
from toc_cli.ops.assign.gpu import CAPACITY, tile_for

POINTERS = {
    "half_ptr": "*fp16", "code_ptr": "*fp16", "bias_ptr": "*fp32", "scale_ptr": "*fp32", "index_ptr": "*i64",
    "best_ptr": "*fp32", "second_ptr": "*fp32", "open_ptr": "*i64", "floor_ptr": "*fp32", "found_ptr": "*i32", "count_ptr": "*i32",
}  # fmt: skip
SHARED = {80: 166912, 90: 232448, 100: 232448}


def compile_kernel(name: str, dimensions: int, capability: int) -> dict[str, object]:
    kernel, tile = getattr(gpu_kernels, name), tile_for(dimensions, SHARED[capability])
    tile = tile.smaller() if name == "collect_candidates" else tile
    constants = {key: value for key, value in tile.arguments().items() if key in kernel.arg_names}
    if "CAPACITY" in kernel.arg_names:
        constants["CAPACITY"] = CAPACITY
    signature = {key: POINTERS.get(key, "constexpr" if key in constants else "i32") for key in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if key in POINTERS or key == "k"
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    cubin = Path(sys.argv[1]) / f"{name}-{dimensions}-{capability}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([str(tool), "-res-usage", str(cubin)], capture_output=True, text=True, check=True)
    figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr))
    products = re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", compiled.asm["ptx"])
    return {
        "kernel": name, "dimensions": dimensions, "capability": capability, "products": sorted(set(products)),
        "shared": compiled.metadata.shared, "limit": SHARED[capability], **{key: int(value) for key, value in figures.items()},
    }  # fmt: skip


for line in json.loads(sys.argv[2]):
    print(json.dumps(compile_kernel(*line)))
