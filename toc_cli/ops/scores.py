"""The scores of toc-math: what each dimension of a codebook is worth.

Legend: L levels, H heads, K codes, D dimensions, N features; p (K,) how often each code is chosen. All is float64.
Source: Huang et al., arXiv 2403.05168 (TOC); Zhu et al., arXiv 2304.01195 (APE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from toc_cli.errors import InputError
from toc_cli.ops.linear import Array, float64, weighted_sum
from toc_cli.ops.moments import Moments, moments, variance

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
    p = float64(usage)
    used = np.count_nonzero(p)
    if used < 2:
        raise InputError(
            f"The features choose {used} of {len(p)} codes: usage weights need two.", "Use --criterion toc."
        )
    p = p / p.sum()
    near = weighted_sum(p, codes)
    mean = near + weighted_sum(p, codes, lambda e: e - near)
    left = np.sum(p * (1 - p))  # 1 - sum p^2, without cancellation
    v = weighted_sum(p, codes, lambda e: (e - mean) * (e - mean)) / left
    # sum p^2 e^2 written around the mean, so that m^2 does not cancel where one code dominates
    s = mean**2 - weighted_sum(p * p, codes, lambda e: (e - mean) * ((e - mean) + 2 * mean)) / left
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


def drowned(scores: Scores, weights: tuple[float, float] = TOC_WEIGHTS) -> float | None:
    """How many times more the similarity term differs over dimensions than the variance term, where it does: codes far from
    0 then lose the dimensions along which they lie there, however much these vary. None elsewhere, and for other scores."""
    w_sim, w_var = weights
    toc = toc_score(scores.similarity, scores.variance, weights)
    terms = np.std(w_sim * scores.similarity), np.std(w_var * scores.variance)
    if not np.array_equal(scores.score, toc) or terms[0] <= terms[1]:
        return None
    return float(terms[0] / terms[1]) if terms[1] else float("inf")


Combine: TypeAlias = Callable[[np.ndarray, np.ndarray, tuple[float, float]], Scores]
"""Scores from similarity and variance, (D,) each, and the weights (w_sim, w_var)."""


def by_toc(similarity: np.ndarray, variance: np.ndarray, weights: tuple[float, float] = TOC_WEIGHTS) -> Scores:
    """The TOC score."""
    return Scores(toc_score(similarity, variance, weights), similarity, variance)


def by_live(similarity: np.ndarray, variance: np.ndarray, weights: tuple[float, float] = TOC_WEIGHTS) -> Scores:
    """The TOC score with dead dimensions last."""
    return replace(by_toc(similarity, variance, weights), last=dead_dimensions(variance))


def by_variance(similarity: np.ndarray, variance: np.ndarray, weights: tuple[float, float] = TOC_WEIGHTS) -> Scores:
    """V alone."""
    return Scores(variance, similarity, variance)


def by_similarity(similarity: np.ndarray, variance: np.ndarray, weights: tuple[float, float] = TOC_WEIGHTS) -> Scores:
    """-S alone."""
    return Scores(-similarity, similarity, variance)


def plus(scores: Scores, extra: np.ndarray) -> Scores:
    """The same with `extra` (D,) on top."""
    return replace(scores, score=scores.score + extra)


def falling(order: np.ndarray) -> np.ndarray:
    """A score (D,) that says no more than an order (D,) of the dimensions: D for the first, 1 for the last."""
    return len(order) - np.argsort(order).astype(np.float64)


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
