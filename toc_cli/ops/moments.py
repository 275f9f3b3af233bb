"""Streaming first and second moments in float64: update, merge, compute (Chan, Golub, LeVeque 1979).

Legend: N rows, D dimensions. Sums are shifted by the block's own mean, so |mean| >> std loses no variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toc_cli.ops.linear import Array, float64, matmul

TILE_ROWS = 256


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred second moment per dimension."""

    count: int
    mean: np.ndarray  # (D,)
    m2: np.ndarray  # (D,) sum over rows of (x - mean)^2


@dataclass(frozen=True)
class PairMoments:
    """Moments of paired rows (a, b), dimension by dimension."""

    a: Moments
    b: Moments
    co: np.ndarray  # (D,) sum over pairs of (a - mean a)(b - mean b)


@dataclass(frozen=True)
class CrossMoments:
    """Means and centred cross moments of paired rows (a, b), every dimension with every other."""

    count: int
    mean_a: np.ndarray  # (D,)
    mean_b: np.ndarray  # (D,)
    co: np.ndarray  # (D, D) sum over pairs of (a - mean a)(b - mean b)^T


def _tiles(rows: int) -> list[slice]:
    return [slice(start, min(rows, start + TILE_ROWS)) for start in range(0, rows, TILE_ROWS)]


def moments(x: Array, state: Moments | None = None) -> Moments:
    """Moments of one block (N, D), N >= 1: two passes over each tile while it is in the cache. After those of a `state`, if given."""
    for tile in _tiles(len(x)):
        rows = float64(x[tile])
        mean = rows.sum(axis=0) / len(rows)
        off = rows - mean
        part = Moments(len(rows), mean, np.einsum("nd,nd->d", off, off))
        state = part if state is None else merge(state, part)
    assert state is not None
    return state


def merge(p: Moments, q: Moments) -> Moments:
    """Moments of the rows of both."""
    count = p.count + q.count
    shift = q.mean - p.mean
    return Moments(count, p.mean + shift * (q.count / count), p.m2 + q.m2 + shift * shift * (p.count * q.count / count))


def variance(state: Moments) -> np.ndarray:
    """Unbiased variance per dimension (D,); zero for a single row."""
    return state.m2 / max(1, state.count - 1)


def pair_moments(a: Array, b: Array) -> PairMoments:
    """Moments of one block of pairs, a and b (N, D)."""
    p, q = moments(a), moments(b)
    co = np.zeros_like(p.mean)
    for tile in _tiles(len(a)):
        co += np.einsum("nd,nd->d", float64(a[tile]) - p.mean, float64(b[tile]) - q.mean)
    return PairMoments(p, q, co)


def merge_pairs(p: PairMoments, q: PairMoments) -> PairMoments:
    """Moments of the pairs of both."""
    weight = p.a.count * q.a.count / (p.a.count + q.a.count)
    co = p.co + q.co + (q.a.mean - p.a.mean) * (q.b.mean - p.b.mean) * weight
    return PairMoments(merge(p.a, q.a), merge(p.b, q.b), co)


def correlation(state: PairMoments) -> np.ndarray:
    """Pearson correlation per dimension (D,) over the pairs; 0 where either side is constant."""
    scale = np.sqrt(state.a.m2 * state.b.m2)
    return np.divide(state.co, scale, out=np.zeros_like(scale), where=scale > 0)


def cross_moments(a: Array, b: Array) -> CrossMoments:
    """Cross moments of one block of pairs, a and b (N, D)."""
    mean_a, mean_b = moments(a).mean, moments(b).mean
    return CrossMoments(len(a), mean_a, mean_b, matmul((float64(a) - mean_a).T, float64(b) - mean_b))


def merge_cross(p: CrossMoments, q: CrossMoments) -> CrossMoments:
    """Cross moments of the pairs of both."""
    count = p.count + q.count
    shift_a, shift_b = q.mean_a - p.mean_a, q.mean_b - p.mean_b
    co = p.co + q.co + np.outer(shift_a, shift_b) * (p.count * q.count / count)
    part = q.count / count
    return CrossMoments(count, p.mean_a + shift_a * part, p.mean_b + shift_b * part, co)


def cross_covariance(state: CrossMoments) -> np.ndarray:
    """C = mean (a - mean a)(b - mean b)^T, (D, D)."""
    return state.co / state.count
