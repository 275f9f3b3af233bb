"""The shape of a codebook alone: angles, distances, rank. Bounded in memory and time for any size.

Legend: K codes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toc_cli.ops.assign import nearest
from toc_cli.ops.linear import Array, eigenvalues, float64, matmul, unit_rows
from toc_cli.ops.moments import moments

TILE_ROWS = 4096
PAIR_DIMENSIONS = 10_000_000_000
"""Work of the closest-pair search, pairs times dimensions: beyond it only evenly spaced codes look for a neighbour."""


@dataclass(frozen=True)
class Geometry:
    """Three figures of one table of codes (K, D)."""

    mean_cosine: float
    """Mean cosine over pairs of different codes; a zero code has cosine 0 to all."""
    min_distance: float
    """Smallest Euclidean distance between two codes."""
    effective_rank: float
    """exp(entropy of the normalised singular values) of the centred codes (Roy, Vetterli 2007); 0 if all are equal."""
    codes_searched: int
    """How many codes looked for their nearest other: K, or fewer where that is too much work; then `min_distance` is
    an upper bound."""


def geometry(codes: Array) -> Geometry:
    """All three of codes (K, D), K >= 2."""
    distance, searched = min_distance(codes)
    return Geometry(mean_cosine(codes), distance, effective_rank(codes), searched)


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


def min_distance(codes: Array, budget: int = PAIR_DIMENSIONS) -> tuple[float, int]:
    """Smallest distance between two of the codes (K, D), and how many codes were searched from."""
    table = codes if isinstance(codes, torch.Tensor) else torch.from_numpy(codes)
    searched = min(len(table), max(1, budget // table.numel()))
    spaced = torch.arange(searched) * len(table) // searched
    second = nearest(table[spaced], table, second=True).second_distance
    assert second is not None
    return float(second.min().sqrt()), searched


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
    eps = np.finfo(np.float64).eps
    # what rounding leaves: of the Gram matrix, and of the mean
    rounding = max(len(values) * eps * values[0], len(codes) * float(np.sum((64 * eps * mean) ** 2)))
    values = values[values > rounding]
    if not len(values):
        return 0.0
    p = np.sqrt(values)
    p /= p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
