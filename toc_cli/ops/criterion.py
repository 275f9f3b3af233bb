"""The scores of toc-math: which dimensions of a codebook to keep.

Legend: L levels, H heads, K codes, D dimensions, N features; p (K,) how often each code is chosen. All is float64.
Source: Huang et al., arXiv 2403.05168 (TOC); Zhu et al., arXiv 2304.01195 (APE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from toc_cli.errors import InputError
from toc_cli.ops.linear import Array, float64, unit_rows
from toc_cli.ops.moments import Moments, PairMoments, correlation, moments, variance
from toc_cli.ops.rotation import Rotation

Need: TypeAlias = Literal["codes", "usage", "features", "pairs"]

CRITERIA: dict[str, Need] = {
    "toc": "codes",
    "toc-live": "codes",
    "variance": "codes",
    "similarity": "codes",
    "random": "codes",
    "usage-toc": "usage",
    "features": "features",
    "xmodal": "pairs",
    "pca": "usage",
    "xcov": "pairs",
}
"""Every criterion and what it needs: codes alone, code usage, moments of the features, or paired modalities."""

ROTATIONS = ("pca", "xcov")
"""Criteria whose dimensions are the leading components of a rotation (`toc_cli.ops.rotation`)."""

TOC_WEIGHTS = (0.7, 0.3)
"""The paper's (w_sim, w_var)."""

DEAD = 1e-6
"""A dimension is dead where its variance is under this share of the largest."""


@dataclass(frozen=True)
class Scores:
    """One codebook's scores per dimension, (D,) float64 each."""

    score: np.ndarray
    similarity: np.ndarray
    variance: np.ndarray
    last: np.ndarray | None = None
    """(D,) bool: dimensions to rank after all others (`toc-live`); give it to `select`."""


def toc_score(similarity: np.ndarray, variance: np.ndarray, weights: tuple[float, float] = TOC_WEIGHTS) -> np.ndarray:
    """J_d = w_var V_d - w_sim S_d."""
    w_sim, w_var = weights
    return w_var * variance - w_sim * similarity


def similarity_and_variance(state: Moments) -> tuple[np.ndarray, np.ndarray]:
    """S_d = m_d^2 - V_d / K and V_d, each (D,), from the moments of K rows: exact for all K (K - 1) ordered pairs."""
    v = variance(state)
    return state.mean**2 - v / state.count, v


def usage_similarity_and_variance(codes: Array, usage: Array) -> tuple[np.ndarray, np.ndarray]:
    """The same with codes (K, D) weighted by how often they are chosen, usage (K,) >= 0 (counts or shares).

    m = sum p e, V = sum p (e - m)^2 / (1 - sum p^2), S = (m^2 - sum p^2 e^2) / (1 - sum p^2).
    InputError where fewer than two codes are chosen.
    """
    e, p = float64(codes), float64(usage)
    used = np.count_nonzero(p)
    if used < 2:
        raise InputError(
            f"The features choose {used} of {len(p)} codes: usage weights need two.", "Use --criterion toc."
        )
    p = p / p.sum()
    mean = np.einsum("k,kd->d", p, e)
    mean = mean + np.einsum("k,kd->d", p, e - mean)
    off = e - mean
    left = np.sum(p * (1 - p))  # 1 - sum p^2, without cancellation
    v = np.einsum("k,kd->d", p, off * off) / left
    # sum p^2 e^2 written around the mean, so that m^2 does not cancel where one code dominates
    s = mean**2 - np.einsum("k,kd->d", p * p, off * (off + 2 * mean)) / left
    return s, v


def dead_dimensions(variance: np.ndarray) -> np.ndarray:
    """(D,) bool: variance under 1e-6 of the largest."""
    return variance < DEAD * variance.max()


def check_codes(codes: Array) -> None:
    """InputError unless codes (K, D) can be scored: two codes or more, all finite, not all zero."""
    _checked_moments(codes)


def _checked_moments(codes: Array) -> Moments:
    shape = tuple(codes.shape)
    real = codes.is_floating_point() if isinstance(codes, torch.Tensor) else codes.dtype.kind == "f"
    if not real:
        raise InputError(
            f"The table {shape} is {str(codes.dtype).removeprefix('torch.')}: codes are floating-point numbers.",
            "Pick another with --codebook KEY.",
        )
    if shape[0] < 2:
        raise InputError(
            f"The codebook has {shape[0]} code of {shape[1]} dimensions: scores need two codes.",
            "Pick another with --codebook KEY.",
        )
    with np.errstate(invalid="ignore", over="ignore"):
        state = moments(codes)
    if not np.isfinite(state.mean + state.m2).all():
        row = int(np.argmin(np.isfinite(float64(codes)).all(axis=1)))
        raise InputError(f"Code {row} of the codebook {shape} holds NaN or Inf.", "Export the checkpoint again.")
    if not state.mean.any() and not state.m2.any():
        raise InputError(
            f"The codebook {shape} is all zero: it was never initialised.", "Export it after training has begun."
        )
    return state


def score(
    criterion: str,
    codes: Array,
    *,
    weights: tuple[float, float] = TOC_WEIGHTS,
    normalize: Literal["none", "l2"] = "none",
    usage: Array | None = None,
    features: Moments | None = None,
    pairs: Sequence[PairMoments] = (),
    rotation: Rotation | None = None,
    seed: int = 0,
) -> Scores:
    """Score the dimensions of codes (K, D) by one row of `CRITERIA`.

    Args:
        weights: (w_sim, w_var).
        normalize: "l2" scores unit-length codes.
        usage: (K,) how often the features choose each code, for "usage-toc".
        features: moments of the features in the codebook space, for "features".
        pairs: moments of the paired modalities, one per pair, for "xmodal".
        rotation: of `toc_cli.ops.rotation`, for "pca" and "xcov": the components' eigenvalues are the scores.
        seed: for "random".

    Raises:
        InputError: K < 2, NaN or Inf, all zero, or one code takes all the usage.
        ValueError: an unknown criterion, or what it needs is missing.
    """
    state, e = _checked_moments(codes), codes
    if normalize == "l2" or rotation is not None:
        e = unit_rows(codes) if normalize == "l2" else codes
        e = e if rotation is None else rotation.apply(e)
        state = moments(e)
    s, v = similarity_and_variance(state)
    need = CRITERIA.get(criterion)
    if criterion == "random":
        return Scores(np.random.default_rng(seed).random(len(v)), s, v)
    if need == "codes":
        return combine(criterion, s, v, weights)
    if criterion == "usage-toc" and usage is not None:
        return combine(criterion, *usage_similarity_and_variance(e, usage), weights)
    if criterion == "features" and features is not None:
        return combine(criterion, *similarity_and_variance(features), weights)
    if criterion == "xmodal" and pairs:
        return combine(criterion, s, v, weights, np.mean([correlation(pair) for pair in pairs], axis=0))
    if criterion in ROTATIONS and rotation is not None:
        return Scores(rotation.eigenvalues, s, v)
    raise ValueError(f"criterion {criterion!r}: unknown, or what it needs ({need}) is missing")


def combine(
    criterion: str,
    similarity: np.ndarray,
    variance: np.ndarray,
    weights: tuple[float, float] = TOC_WEIGHTS,
    correlation: np.ndarray | float = 0.0,
) -> Scores:
    """The score from its terms, each (D,): V alone, -S alone, or the TOC score plus the modalities' correlation."""
    if criterion == "variance":
        return Scores(variance, similarity, variance)
    if criterion == "similarity":
        return Scores(-similarity, similarity, variance)
    last = dead_dimensions(variance) if criterion == "toc-live" else None
    return Scores(toc_score(similarity, variance, weights) + correlation, similarity, variance, last)


def shared(scores: Sequence[Scores]) -> Scores:
    """One set of scores for levels that must keep the same dimensions (RVQ): the mean over levels of S, V and score.

    A dimension is dead where it is dead at every level.
    """
    last = [s.last for s in scores if s.last is not None]
    return Scores(
        score=np.mean([s.score for s in scores], axis=0),
        similarity=np.mean([s.similarity for s in scores], axis=0),
        variance=np.mean([s.variance for s in scores], axis=0),
        last=np.all(last, axis=0) if last else None,
    )
