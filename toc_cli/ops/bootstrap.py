"""Intervals from resampled blocks: a seeded bootstrap over runs of contiguous rows, vectorised over the resamples.

Legend: B blocks, R resamples.
"""

from __future__ import annotations

import numpy as np

from toc_cli.ops.linear import Array, float64, matmul

RESAMPLES = 1000
LEVEL = 0.95


def resample(blocks: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each block is drawn, (R, B) float64: B draws with replacement per resample."""
    return (
        np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype(np.float64)
    )


def totals(sums: Array, weights: np.ndarray | None = None) -> np.ndarray:
    """Block sums (B, ...) to totals (R, ...), one per row of weights (R, B); without weights the plain one (1, ...)."""
    values = float64(sums)
    if weights is None:
        return values.sum(axis=0)[None]
    return matmul(weights, values.reshape(len(values), -1)).reshape(len(weights), *values.shape[1:])


def interval(values: np.ndarray, centre: float | None = None) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic over resamples (R,); None where it is undefined in one of them.

    `centre` moves the resamples so that their mean lies there: for plug-in estimates, which resampling biases.
    """
    if not np.isfinite(values).all():
        return None
    moved = values if centre is None else values + (centre - values.mean())
    low, high = np.quantile(moved, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
