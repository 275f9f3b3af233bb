"""What every backend answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """The nearest codes of N rows.

    `reach` in a search asks for distances: 0 for none (they may be empty), a number r for those of the nearest code and
    of a second one within r (relative) of it (else inf), inf for both, always.
    """

    index: Tensor
    """(N,) int64."""
    best: Tensor
    """(N,) float64 distance of the nearest code, in the terms of naive.py."""
    second: Tensor
    """(N,) float64 distance of the second nearest."""
    checked: int
    """Rows that were compared in float64."""
    recheck_seconds: float = 0.0
    """Wall time of those comparisons; 0 where the backend does not measure them apart."""
    doubtful: int = 0
    """Rows that the coarse pass of the compiled search left to its fine one."""


def merge(index: Tensor, best: Tensor, second: Tensor, new_index: Tensor, new_best: Tensor, new_second: Tensor) -> None:
    """The two nearest of an earlier slice of the codebook and a later one, in place; on a tie the earlier stays."""
    torch.minimum(torch.minimum(second, new_second), torch.maximum(best, new_best), out=second)
    index.copy_(torch.where(new_best < best, new_index, index))
    torch.minimum(best, new_best, out=best)
