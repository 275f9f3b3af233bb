"""The shape of a codebook alone: angles, distances, rank. Bounded in memory and time for any size.

Legend: K codes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toc_cli.ops import work
from toc_cli.ops.assign import nearest
from toc_cli.ops.linear import Array, eigenvalues, float64, matmul, unit_rows
from toc_cli.ops.moments import moments

TILE_ROWS = 4096


@dataclass(frozen=True)
class Geometry:
    """Figures of one table of codes (K, D)."""

    mean_cosine: float
    """Mean cosine over pairs of different codes; a zero code has cosine 0 to all."""
    min_distance: float
    """Smallest Euclidean distance between two codes; NaN where looking for it would have cost too much."""
    effective_rank: float
    """exp(entropy of the normalised singular values) of the centred codes (Roy, Vetterli 2007); 0 if all are equal, NaN where
    it would have cost too much."""


def geometry(codes: Array, run: int = 0) -> Geometry:
    """All three of codes (K, D), K >= 2, those that a run of so much work affords (`toc_cli.ops.work`)."""
    shape = codes.shape
    near = min_distance(codes) if work.affordable(work.pairs(*shape), run) else float("nan")
    rank = effective_rank(codes) if work.affordable(work.spectrum(*shape), run) else float("nan")
    return Geometry(mean_cosine(codes), near, rank)


def _tiles(codes: Array) -> list[Array]:
    return [codes[start : start + TILE_ROWS] for start in range(0, len(codes), TILE_ROWS)]


def mean_cosine(codes: Array) -> float:
    """(|sum u|^2 - sum |u|^2) / (K (K - 1)) with u the unit codes (K, D): the mean over pairs in O(K D).

    NaN for a single code, which makes no pair.
    """
    if len(codes) < 2:
        return float("nan")
    total, squares = np.zeros(codes.shape[1]), 0.0
    for tile in _tiles(codes):
        unit = unit_rows(tile)
        total += unit.sum(axis=0)
        squares += float(np.einsum("kd,kd->", unit, unit))
    return float((np.sum(total * total) - squares) / (len(codes) * (len(codes) - 1)))


def min_distance(codes: Array) -> float:
    """Smallest distance between two of the codes (K, D): each looks for its second best. O(K^2 D)."""
    table = codes if isinstance(codes, torch.Tensor) else torch.from_numpy(codes)
    second = nearest(table, table, second=True).second_distance
    assert second is not None
    return float(second.min().sqrt())


def usage_rank(codes: Array, usage: Array) -> float:
    """exp(-sum q ln q), q the eigenvalues of the covariance of codes (K, D) counted by usage (K,), over their sum: how many
    directions the codes in use need. 0 where one code, or none, is chosen. Unlike `effective_rank` it is of variances."""
    p = float64(usage)
    used = np.flatnonzero(p)
    if not len(used):
        return 0.0
    p = p / p.sum()
    tiles = [used[start : start + TILE_ROWS] for start in range(0, len(used), TILE_ROWS)]
    mean = np.sum([np.einsum("k,kd->d", p[tile], float64(codes[tile])) for tile in tiles], axis=0)
    if len(used) < codes.shape[1]:
        off = (float64(codes[used]) - mean) * np.sqrt(p[used])[:, None]
        values = eigenvalues(matmul(off, off.T))
    else:
        gram = np.zeros((codes.shape[1], codes.shape[1]))
        for tile in tiles:
            off = (float64(codes[tile]) - mean) * np.sqrt(p[tile])[:, None]
            gram += matmul(off.T, off)
        values = eigenvalues(gram)
    values = values[values > _rounding(values, mean, len(used))]
    q = values / values.sum() if len(values) else values
    return float(np.exp(-np.sum(q * np.log(q)))) if len(q) else 0.0


def _rounding(values: np.ndarray, mean: np.ndarray, codes: int) -> float:
    """What rounding leaves in eigenvalues (D,) falling: of the Gram matrix, and of the mean (D,) of so many codes."""
    eps = np.finfo(np.float64).eps
    return float(max(len(values) * eps * values[0], codes * float(np.sum((64 * eps * mean) ** 2))))


def effective_rank(codes: Array) -> float:
    """exp(-sum p ln p), p the singular values of the centred codes (K, D) over their sum; 0 if all codes are equal."""
    # from the smaller Gram matrix: bounded in memory
    mean = moments(codes).mean
    if codes.shape[0] < codes.shape[1]:
        off = float64(codes) - mean
        gram = matmul(off, off.T)
    else:
        gram = np.zeros((codes.shape[1], codes.shape[1]))
        for tile in _tiles(codes):
            off = float64(tile) - mean
            gram += matmul(off.T, off)
    values = eigenvalues(gram)
    values = values[values > _rounding(values, mean, len(codes))]
    if not len(values):
        return 0.0
    p = np.sqrt(values)
    p /= p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
