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


def two_nearest(x: Tensor, codes: Tensor, metric: str, block: int = 1 << 21) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest index (N,) int64, its distance (N,) and the second best distance (N,) float64 (inf where K = 1)."""
    rows = max(1, block // len(codes))
    parts = []
    for tile in x.split(rows) if len(x) else ():
        distance = pair_distances(tile[:, None], codes[None], metric)  # (n, K)
        best, index = first_minimum(distance)
        second = distance.scatter_(1, index[:, None], torch.inf).amin(1)
        parts.append((index, best, second))
    if not parts:
        empty = torch.empty(0, dtype=torch.float64, device=x.device)
        return empty.long(), empty, empty.clone()
    index, best, second = (torch.cat(column) for column in zip(*parts, strict=True))
    return index, best, second


def first_minimum(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest value of each row (N, K) and the first index that holds it."""
    best = distance.amin(1)
    return best, (distance == best[:, None]).byte().argmax(1)
