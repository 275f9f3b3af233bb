"""Would another sample have kept the same dimensions? Scores on bootstrap resamples, and the overlap of their choices.

Legend: K codes, D dimensions, D' kept, R resamples, U units (segments of feature rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from toc_cli.ops.blocks import total
from toc_cli.ops.bootstrap import resample
from toc_cli.ops.linear import Array, float64, matmul
from toc_cli.ops.moments import (
    CrossMoments,
    Moments,
    PairMoments,
    correlation,
    merge,
    merge_cross,
    merge_pairs,
    moments,
)
from toc_cli.ops.rotation import Rotation, discriminant, pca, usage_covariance, xcov
from toc_cli.ops.scatter import Scatter, merge_scatter, within
from toc_cli.ops.scores import TOC_WEIGHTS, Combine, Scores, by_toc, plus, similarity_and_variance
from toc_cli.ops.selection import select

State = TypeVar("State", Moments, PairMoments, CrossMoments, Scatter)

RESAMPLES = 100
ROTATION_RESAMPLES = 20
STABLE = 0.8
"""Below this mean overlap the choice is a matter of the sample: worth a warning."""

TILE_ROWS = 4096


@dataclass(frozen=True)
class Stability:
    """Overlap of the kept set with those of the resamples: Jaccard, or the shared part of two rotations' subspaces."""

    mean: float
    least: float
    resamples: int


def stability(kept: torch.Tensor, draws: Sequence[Scores], ratio: tuple[int, int] | None = None) -> Stability:
    """Overlap of `kept` (D',) with what each resample's scores would keep."""
    chosen = [select(draw.score, len(kept), ratio, draw.last).kept for draw in draws]
    return _summary([jaccard(kept, other) for other in chosen])


def subspace_stability(leading: np.ndarray, draws: Sequence[Rotation]) -> Stability:
    """|R^T R'|^2 / D' of the kept components R (D, D') and each resample's: 1 for one subspace, 0 for orthogonal."""
    count = leading.shape[1]
    shared = [matmul(leading.T, draw.leading(count)) for draw in draws]
    return _summary([float(np.sum(part * part)) / count for part in shared])


def jaccard(a: torch.Tensor, b: torch.Tensor) -> float:
    """Overlap |A and B| / |A or B| of kept sets (..., D'), averaged over the leading axes."""
    pairs = zip(a.reshape(-1, a.shape[-1]).tolist(), b.reshape(-1, b.shape[-1]).tolist(), strict=True)
    return float(np.mean([len({*p} & {*q}) / len({*p} | {*q}) for p, q in pairs]))


def _summary(overlaps: Sequence[float]) -> Stability:
    return Stability(float(np.mean(overlaps)), float(np.min(overlaps)), len(overlaps))


def code_draws(
    combine: Combine,
    codes: Array,
    *,
    weights: tuple[float, float] = TOC_WEIGHTS,
    usage: Array | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Scores]:
    """Scores on resamples of the codes (K, D), drawn with replacement, counted by usage (K,) where it is given.

    All resamples at once: how often each code is drawn times first and second moments about the mean. Resamples whose
    features choose fewer than two codes are left out.
    """
    times = resample(len(codes), seed, resamples)  # (R, K)
    u = np.ones(len(codes)) if usage is None else float64(usage)
    mean = moments(codes).mean
    mass, squares = np.array([[(drawn * u).sum(), (drawn * u * u).sum()] for drawn in times]).T
    valid = (mass > 0) & (squares < mass**2)  # two chosen codes or more
    times, mass, squares = times if valid.all() else times[valid], mass[valid, None], squares[valid, None]
    sums = np.zeros((4, len(times), len(mean)))
    for start in range(0, len(codes), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        off = float64(codes[tile]) - mean
        both = np.concatenate([off, off * off], axis=1)
        for order, p in enumerate((times[:, tile] * u[tile] / mass, times[:, tile] * (u[tile] / mass) ** 2)):
            sums[2 * order : 2 * order + 2] += matmul(p, both).reshape(len(p), 2, -1).transpose(1, 0, 2)
    first, second, first2, second2 = sums  # sum p o, sum p o^2, sum p^2 o, sum p^2 o^2 with o = e - mean
    square = squares / mass**2  # sum p^2
    variance = (second - first**2) / (1 - square)
    own = second2 + mean * (2 * first2 + mean * square)  # sum p^2 e^2
    similarity = ((mean + first) ** 2 - own) / (1 - square)
    return [combine(s, v, weights) for s, v in zip(similarity, variance, strict=True)]


def feature_draws(
    units: Sequence[Moments], weights: tuple[float, float] = TOC_WEIGHTS, resamples: int = RESAMPLES, seed: int = 0
) -> list[Scores]:
    """Scores of `features` on resamples of the units (segments of rows)."""
    states = _resampled(units, _repeat, merge, resamples, seed)
    return [by_toc(*similarity_and_variance(state), weights) for state in states]


def pair_draws(
    toc: Scores, units: Sequence[Sequence[PairMoments]], resamples: int = RESAMPLES, seed: int = 0
) -> list[Scores]:
    """Scores of `xmodal` on resamples of the units of each pair of modalities; the codes' own `toc` scores stay."""
    pairs = [_resampled(own, _repeat_pair, merge_pairs, resamples, seed + n) for n, own in enumerate(units)]
    shared = [
        np.concatenate([correlation(state) for state in states]).mean(axis=0) for states in zip(*pairs, strict=True)
    ]
    return [plus(toc, extra) for extra in shared]


def pca_draws(
    codes: Sequence[Array], usage: Sequence[Array], resamples: int = ROTATION_RESAMPLES, seed: int = 0
) -> list[Rotation]:
    """`pca` on resamples of the codes (K_l, D) of each level, usage (K_l,)."""
    times = [resample(len(book), seed + level, resamples) for level, book in enumerate(codes)]
    drawn = ([times[level][r] * float64(u) for level, u in enumerate(usage)] for r in range(resamples))
    return [pca(codes, counts) for counts in drawn if all(count.any() for count in counts)]


def xcov_draws(
    units: Sequence[Sequence[CrossMoments]], resamples: int = ROTATION_RESAMPLES, seed: int = 0
) -> list[Rotation]:
    """`xcov` on resamples of the units of each pair of modalities."""
    pairs = [_resampled(own, _repeat_cross, merge_cross, resamples, seed + n) for n, own in enumerate(units)]
    return [xcov(states) for states in zip(*pairs, strict=True)]


def discriminant_draws(
    codes: Sequence[Array],
    units: Sequence[Sequence[Scatter]],
    resamples: int = ROTATION_RESAMPLES,
    seed: int = 0,
) -> list[Rotation]:
    """`discriminant` on resamples of the units (segments of rows) around the codes (K, D) of each table."""
    drawn = [_resampled(own, _repeat_scatter, merge_scatter, resamples, seed + n) for n, own in enumerate(units)]
    found = []
    for states in zip(*drawn, strict=True):
        between = [usage_covariance(table, state.usage) for table, state in zip(codes, states, strict=True)]
        found.append(discriminant(np.sum(between, axis=0), np.sum([within(state) for state in states], axis=0)))
    return found


def _resampled(
    units: Sequence[State],
    repeat: Callable[[State, int], State],
    merge: Callable[[State, State], State],
    resamples: int,
    seed: int,
) -> list[State]:
    """The merged state of each resample of the units."""
    draws = resample(len(units), seed, resamples).astype(int)
    return [total([repeat(unit, n) for unit, n in zip(units, times, strict=True) if n], merge) for times in draws]


def _repeat(unit: Moments, times: int) -> Moments:
    return Moments(unit.count * times, unit.mean, unit.m2 * times)


def _repeat_pair(unit: PairMoments, times: int) -> PairMoments:
    return PairMoments(unit.count * times, unit.mean, unit.m2 * times, unit.co * times)


def _repeat_scatter(unit: Scatter, times: int) -> Scatter:
    return Scatter(unit.usage * times, unit.rows * times, unit.outer * times)


def _repeat_cross(unit: CrossMoments, times: int) -> CrossMoments:
    return replace(unit, count=unit.count * times, co=unit.co * times)
