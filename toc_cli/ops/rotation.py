"""Rotations of a codebook: orthonormal directions, best first, of which the leading ones are kept.

Legend: K codes, D dimensions, D' kept components. x R and E R hold the kept components, E R R^T has D dimensions again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toc_cli.errors import InputError
from toc_cli.ops.linear import TILE_NUMBERS, Array, eigh, float64, matmul, orthonormal, weighted_sum
from toc_cli.ops.moments import TILE_ROWS, CrossMoments, Moments, cross_covariance, moments

RIDGE = 0.3
"""Share of the mean variance that `discriminant` adds to every direction of the error: without it tiny errors decide."""


@dataclass(frozen=True)
class Rotation:
    """Orthonormal columns and the value that ranks them."""

    matrix: np.ndarray  # (D, D) float64, columns by falling eigenvalue
    eigenvalues: np.ndarray  # (D,)

    def leading(self, count: int) -> np.ndarray:
        """R (D, D'), the first `count` components."""
        return np.ascontiguousarray(self.matrix[:, :count])

    def apply(self, x: Array) -> np.ndarray:
        """x (N, D) in all components, float64."""
        return matmul(x, self.matrix)

    def moments(self, x: Array) -> Moments:
        """Moments of x (N, D) in all components, a tile of rows at a time."""
        step = max(TILE_ROWS, TILE_NUMBERS // x.shape[1] // TILE_ROWS * TILE_ROWS)
        state = moments(self.apply(x[:step]))
        for start in range(step, len(x), step):
            state = moments(self.apply(x[start : start + step]), state)
        return state


def rotation(symmetric: np.ndarray) -> Rotation:
    """Eigenvectors of a symmetric matrix (D, D), largest eigenvalue first, each with its largest loading positive."""
    values, vectors = eigh(symmetric)
    return Rotation(_signed(vectors), values)


def _signed(vectors: np.ndarray) -> np.ndarray:
    """Columns (D, D) with their largest loading positive."""
    peak = np.abs(vectors).argmax(axis=0)
    return np.ascontiguousarray(vectors * np.where(vectors[peak, np.arange(len(peak))] < 0, -1.0, 1.0))


def usage_covariance(codes: Array, usage: Array | None = None) -> np.ndarray:
    """sum_k p_k (e_k - m)(e_k - m)^T (D, D) of codes (K, D), p from usage (K,); uniform without it."""
    p = np.full(len(codes), 1.0) if usage is None else float64(usage)
    if p.sum() <= 0:
        raise InputError(
            f"No feature chooses any of the {len(codes)} codes: a covariance needs usage.", "Use --criterion toc."
        )
    p = p / p.sum()
    mean = weighted_sum(p, codes)
    total = np.zeros((codes.shape[1], codes.shape[1]))
    step = max(1, TILE_NUMBERS // codes.shape[1])
    for start in range(0, len(codes), step):
        off = (float64(codes[start : start + step]) - mean) * np.sqrt(p[start : start + step])[:, None]
        total += matmul(off.T, off)
    return total


def pca(codes: Sequence[Array], usage: Sequence[Array] | None = None) -> Rotation:
    """Principal components of the codes (K_l, D) of the levels that share one rotation, weighted by usage (K_l,)."""
    covariances = [usage_covariance(e, None if usage is None else usage[level]) for level, e in enumerate(codes)]
    return rotation(sum(covariances[1:], covariances[0]))


def xcov(pairs: Sequence[CrossMoments]) -> Rotation:
    """Leading directions that paired modalities share: eigenvectors of the sum over pairs of (C + C^T) / 2."""
    total = np.zeros_like(pairs[0].co)
    for pair in pairs:
        c = cross_covariance(pair)
        total += (c + c.T) / 2
    return rotation(total)


def discriminant(between: np.ndarray, within: np.ndarray, ridge: float = RIDGE) -> Rotation:
    """Directions in which the used codes differ most against the error of their features: codes as classes of a linear
    discriminant, made orthonormal in order, so that the first D' span the first D' discriminants.

    B v = l (W + ridge t I) v with B = `between` (D, D) the covariance of the used codes, W = `within` (D, D) the mean of
    (x - e)(x - e)^T, t = tr(B + W) / D. The ridge makes it PCA as it grows, free of scale at any size.
    """
    dim = len(between)
    mean = float(np.trace(between) + np.trace(within)) / dim
    if not mean > 0:
        raise InputError(
            "The codes that are chosen are all equal: no direction tells them apart.", "Use --criterion toc."
        )
    spread, axes = eigh(within + ridge * mean * np.eye(dim))
    whiten = matmul(axes / np.sqrt(spread), axes.T)
    values, vectors = eigh(matmul(matmul(whiten, between), whiten))
    return Rotation(_signed(orthonormal(matmul(whiten, vectors))), values)
