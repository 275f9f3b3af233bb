"""How features scatter around the code that they choose: the streamed second moments of the quantisation error.

Legend: N rows, K codes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toc_cli.ops.linear import Array, float64, matmul


@dataclass(frozen=True)
class Scatter:
    """Sums over rows and their codes."""

    usage: np.ndarray  # (K,) int64: rows per code
    outer: np.ndarray  # (D, D) sum of (x - e)(x - e)^T


def scatter(x: Array, chosen: Array, tokens: Array, codes: int) -> Scatter:
    """Of rows x (N, D) around the code of each, `chosen` (N, D), one of `codes` that tokens (N,) name."""
    off = float64(x) - float64(chosen)
    return Scatter(np.bincount(np.asarray(tokens), minlength=codes), matmul(off.T, off))


def merge_scatter(p: Scatter, q: Scatter) -> Scatter:
    """Of the rows of both."""
    return Scatter(p.usage + q.usage, p.outer + q.outer)


def within(state: Scatter) -> np.ndarray:
    """W (D, D), the mean over rows."""
    return state.outer / max(1, int(state.usage.sum()))
