"""How features scatter around the code that they choose: the streamed second moments of the quantisation error.

Legend: N rows, K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from toc_cli.ops.linear import unit_rows, upper_gram

TILE_ROWS = 1024
ROWS = 1 << 17
"""Errors that are multiplied out, whatever the stream's length: from there on W changes less than with the rows that were captured."""


@dataclass(frozen=True)
class Scatter:
    """Sums over rows and their codes."""

    usage: np.ndarray  # (K,) int64: rows per code
    rows: int
    """How many `outer` is of."""
    outer: np.ndarray  # (D, D) sum of (x - e)(x - e)^T, its upper triangle


def scatter(
    x: torch.Tensor, codes: torch.Tensor, tokens: torch.Tensor, usage: np.ndarray, unit: bool = False
) -> Scatter:
    """Of rows x (N, D) around the codes (K, D) that tokens (N,) name, both at unit length with `unit`; of a block whose codes are
    used `usage` (K,) times."""

    def errors() -> Iterator[torch.Tensor]:
        for start in range(0, len(x), TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            rows, chosen = x[tile], codes[tokens[tile].to(codes.device)].cpu()  # never the whole table
            if unit:
                yield torch.from_numpy(unit_rows(rows) - unit_rows(chosen))
            else:
                yield rows.double() - chosen.double()

    return Scatter(usage, len(x), upper_gram(errors(), x.shape[1]))


def stride(rows: int) -> int:
    """Every how manieth of so many rows is multiplied out: at most `ROWS` are."""
    return max(1, -(-rows // ROWS))


def merge_scatter(p: Scatter, q: Scatter) -> Scatter:
    """Of the rows of both."""
    return Scatter(p.usage + q.usage, p.rows + q.rows, p.outer + q.outer)


def within(state: Scatter) -> np.ndarray:
    """W (D, D), the mean over rows."""
    upper = state.outer / max(1, state.rows)
    return np.triu(upper) + np.triu(upper, 1).T
