"""Runs the Triton kernels in the interpreter against the plain loops and prints the number of re-checked rows.

Alone in its process: TRITON_INTERPRET must be set before the kernels are imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch

from reference import nearest_two
from toc_cli.bench.assign_cases import CASES
from toc_cli.errors import InputError
from toc_cli.ops.assign import NEAR, gpu
from toc_cli.ops.assign.gpu import CAPACITY


def check(x: torch.Tensor, codes: torch.Tensor, metric: str, kept: torch.Tensor | None = None) -> int:
    rows, table = (x, codes) if kept is None else (x[:, kept], codes[:, kept])
    index, best, second = map(torch.from_numpy, nearest_two(rows.double().numpy(), table.double().numpy(), metric))
    found = gpu.search(x, codes, metric, kept, 0.0)
    assert torch.equal(found.index, index)
    ties = gpu.search(x, codes, metric, kept, NEAR)
    assert torch.equal(ties.index, index)
    assert torch.equal(ties.best, best)
    assert torch.equal((ties.second - ties.best) <= NEAR * ties.best.abs(), (second - best) <= NEAR * best.abs())
    both = gpu.search(x[:3], codes, metric, kept, torch.inf)
    assert torch.equal(both.second, second[:3])
    return found.checked


generator = torch.Generator().manual_seed(0)
for name, case in CASES.items():
    print(name, check(*case(21, 37, 5, generator), "euclidean"))
for metric in ("cosine", "dot"):
    print(metric, check(*CASES["kmeans"](40, 140, 17, generator), metric))
print("D > 256", check(*CASES["gaussian"](6, 20, 260, generator), "euclidean"))
print("odd sizes", check(*CASES["clustered"](131, 129, 2, generator), "euclidean"))
for dtype in (torch.float64, torch.float16, torch.bfloat16):
    x, codes = CASES["gaussian"](12, 9, 4, generator)
    print(dtype, check(x.to(dtype), codes.to(dtype), "euclidean"))
x, codes = CASES["gaussian"](30, 9, 12, generator)
print("kept, strides", check(x.T.contiguous().T[::2], codes, "euclidean", torch.tensor([1, 4, 11])))
twins = torch.zeros(2 * CAPACITY, 3)
print("more candidates than a list holds", check(torch.ones(2, 3), twins, "euclidean"))
print("huge", check(x * 1e30, codes * 1e30, "euclidean"))
print("no rows", gpu.search(x[:0], codes, "euclidean", None, NEAR).checked)
x[7, 2] = torch.nan
with pytest.raises(InputError, match="Row 7 of the features"):
    gpu.search(x, codes, "euclidean", None, 0.0)
print("done")
