"""Rotations of a codebook: orthonormal directions, best first, of which the leading ones are kept.

Legend: K codes, D dimensions, D' kept components. x R and E R hold the kept components, E R R^T has D dimensions again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toc_cli.errors import InputError
from toc_cli.ops.linear import Array, eigh, float64, matmul
from toc_cli.ops.moments import CrossMoments, cross_covariance


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


def rotation(symmetric: np.ndarray) -> Rotation:
    """Eigenvectors of a symmetric matrix (D, D), largest eigenvalue first, each with its largest loading positive."""
    values, vectors = eigh(symmetric)
    peak = np.abs(vectors).argmax(axis=0)
    sign = np.where(vectors[peak, np.arange(len(peak))] < 0, -1.0, 1.0)
    return Rotation(np.ascontiguousarray(vectors * sign), values)


def usage_covariance(codes: Array, usage: Array | None = None) -> np.ndarray:
    """sum_k p_k (e_k - m)(e_k - m)^T (D, D) of codes (K, D), p from usage (K,); uniform without it."""
    e = float64(codes)
    p = np.full(len(e), 1.0) if usage is None else float64(usage)
    if p.sum() <= 0:
        raise InputError(
            f"No feature chooses any of the {len(e)} codes: a covariance needs usage.", "Use --criterion toc."
        )
    p = p / p.sum()
    mean = np.einsum("k,kd->d", p, e)
    off = (e - mean) * np.sqrt(p)[:, None]
    return matmul(off.T, off)


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
