"""The truth: nearest codes in float64 by the direct form, one dimension after the other.

Every other backend must return these indices bit for bit, so the order of the sum is part of the definition:

    euclidean   d_k = sum_d (x_d - e_kd)^2                    (squared distance)
    dot         d_k = -sum_d x_d e_kd
    cosine      d_k = -(sum_d x_d e_kd) / |e_k|               (0 for a zero code; reported divided by |x|)

Shapes: x (N, D), codes (K, D). Ties go to the smaller index.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from toc_cli.ops.assign.found import Found
from toc_cli.ops.assign.inputs import check_finite

BLOCK = 1 << 21  # distances held at a time


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norms of the rows (N, D) -> (N,) float64, summed in the order of the dimensions."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for column in x.unbind(1):
        total += column.double() * column.double()
    # torch.sqrt is not correctly rounded on the CPU, numpy's is
    return torch.from_numpy(np.sqrt(total.numpy())) if total.device.type == "cpu" else total.sqrt()


def pair_distances(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Distances of row i of x (P, D) to row i of codes (P, D) or, broadcast, x (N, 1, D) to codes (1, K, D); float64."""
    total = torch.zeros(torch.broadcast_shapes(x.shape[:-1], codes.shape[:-1]), dtype=torch.float64, device=x.device)
    for a, b in zip(x.unbind(-1), codes.unbind(-1), strict=True):
        if metric == "euclidean":
            difference = a.double() - b.double()
            total += difference * difference
        else:
            total -= a.double() * b.double()
    if metric == "cosine":
        norms = row_norms(codes.reshape(-1, codes.shape[-1])).reshape(codes.shape[:-1])
        total = torch.where(norms == 0, 0.0, total / norms)
    return total


def search(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, reach: float) -> Found:
    """The two nearest codes of every row, all distances computed; see Found."""
    check_finite("features", x, kept)
    codes = codes if kept is None or codes.shape[1] != x.shape[1] else codes.index_select(1, kept)
    rows = max(1, BLOCK // len(codes))
    index = torch.empty(len(x), dtype=torch.int64, device=x.device)
    best, second = (torch.empty(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    for start in range(0, len(x), rows):
        tile, at = x[start : start + rows], slice(start, start + rows)
        tile = tile if kept is None else tile.index_select(1, kept)
        distance = pair_distances(tile[:, None], codes[None], metric)  # (n, K)
        best[at], index[at] = first_minimum(distance)
        second[at] = distance.scatter_(1, index[at, None], torch.inf).amin(1)
    return Found(index, best, second, len(x))


def first_minimum(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest value of each row (N, K) and the first index that holds it."""
    best = distance.amin(1)
    return best, (distance == best[:, None]).byte().argmax(1)
