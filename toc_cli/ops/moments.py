"""Streaming first and second moments in float64: update, merge, compute (Chan, Golub, LeVeque 1979).

Legend: N rows, D dimensions. Sums are shifted by the block's own mean, so |mean| >> std loses no variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

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
    """Moments of paired rows of M modalities, dimension by dimension; P = M (M - 1) / 2 pairs, (0, 1), (0, 2), …"""

    count: int
    mean: np.ndarray  # (M, D)
    m2: np.ndarray  # (M, D)
    co: np.ndarray  # (P, D) sum over rows of (a - mean a)(b - mean b)


@dataclass(frozen=True)
class CrossMoments:
    """Means and centred cross moments of paired rows of M modalities, every dimension with every other, summed over the pairs."""

    count: int
    means: np.ndarray  # (M, D)
    co: np.ndarray  # (D, D) sum over rows, and pairs a before b, of (a - mean a)(b - mean b)^T


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


def pair_moments(*sides: Array) -> PairMoments:
    """Moments of one block of paired rows, each side (N, D)."""
    own = [moments(x) for x in sides]
    mean = np.stack([side.mean for side in own])
    co = np.zeros((len(own) * (len(own) - 1) // 2, mean.shape[1]))
    for tile in _tiles(len(sides[0])):
        off = [float64(x[tile]) - m for x, m in zip(sides, mean, strict=True)]
        for total, (a, b) in zip(co, combinations(off, 2), strict=True):
            total += np.einsum("nd,nd->d", a, b)
    return PairMoments(own[0].count, mean, np.stack([side.m2 for side in own]), co)


def merge_pairs(p: PairMoments, q: PairMoments) -> PairMoments:
    """Moments of the rows of both."""
    count = p.count + q.count
    shift, weight = q.mean - p.mean, p.count * q.count / count
    both = [a * b for a, b in combinations(shift, 2)]
    return PairMoments(
        count,
        p.mean + shift * (q.count / count),
        p.m2 + q.m2 + shift * shift * weight,
        p.co + q.co + np.stack(both) * weight,
    )


def correlation(state: PairMoments) -> np.ndarray:
    """Pearson correlation per dimension (P, D) of each pair; 0 where either side is constant."""
    scale = np.stack([np.sqrt(a * b) for a, b in combinations(state.m2, 2)])
    return np.divide(state.co, scale, out=np.zeros_like(scale), where=scale > 0)


def cross_moments(*sides: Array) -> CrossMoments:
    """Cross moments of one block of paired rows, each side (N, D).

    One product per side: b meets the sum of all sides before it, sum over a < b of off_a^T off_b.
    """
    means = np.stack([moments(x).mean for x in sides])
    before = float64(sides[0]) - means[0]
    co = np.zeros((means.shape[1], means.shape[1]))
    for at in range(1, len(sides)):
        off = float64(sides[at]) - means[at]
        product = matmul(before.T, off)
        co = product if at == 1 else co + product
        before = before + off
    return CrossMoments(len(sides[0]), means, co)


def merge_cross(p: CrossMoments, q: CrossMoments) -> CrossMoments:
    """Cross moments of the rows of both."""
    count = p.count + q.count
    shift = q.means - p.means
    before, between = shift[0], np.zeros_like(p.co)
    for at in range(1, len(shift)):
        between = np.outer(before, shift[at]) if at == 1 else between + np.outer(before, shift[at])
        before = before + shift[at]
    co = p.co + q.co + between * (p.count * q.count / count)
    return CrossMoments(count, p.means + shift * (q.count / count), co)


def cross_covariance(state: CrossMoments) -> np.ndarray:
    """C = sum over pairs of the mean of (a - mean a)(b - mean b)^T, (D, D)."""
    return state.co / state.count
