"""Figures of a test set with intervals: sums per clip, resampled together so that differences are paired.

Legend: S seeds, N test clips, M sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from toc_cli.ops.bootstrap import interval, resample, totals


class Figure(Protocol):
    """A number per seed, on the clips themselves or on resamples of them."""

    def values(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(S, 1), or (S, R) under weights (R, N): how often each clip is drawn."""


@dataclass(frozen=True)
class Ratio:
    """A number computed from sums over clips."""

    sums: np.ndarray
    """(S, N, M)"""
    reduce: Callable[[np.ndarray], np.ndarray]
    """Totals (..., M) -> (...)."""

    def values(self, weights: np.ndarray | None = None) -> np.ndarray:
        return np.stack([self.reduce(totals(sums, weights)) for sums in self.sums])


@dataclass(frozen=True)
class Median:
    """The median of a number per clip."""

    per_clip: np.ndarray
    """(S, N)"""

    def values(self, weights: np.ndarray | None = None) -> np.ndarray:
        times = np.ones((1, self.per_clip.shape[1])) if weights is None else weights
        return np.stack([weighted_median(row, times) for row in self.per_clip])


@dataclass(frozen=True)
class Mean:
    """The mean of several figures of the same clips."""

    parts: Sequence[Figure]

    def values(self, weights: np.ndarray | None = None) -> np.ndarray:
        return np.mean([part.values(weights) for part in self.parts], axis=0)


def share(sums: np.ndarray) -> np.ndarray:
    """(..., 2): hits and cases -> their ratio; NaN without a case."""
    hits, cases = sums[..., 0], sums[..., 1]
    return np.divide(hits, cases, out=np.full(hits.shape, np.nan), where=cases > 0)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """(..., 3 C): per class hits, predicted, true -> 2 TP / (predicted + true), averaged over the classes that occur."""
    hits, predicted, true = np.split(sums, 3, axis=-1)
    seen = predicted + true
    f1 = np.divide(2 * hits, seen, out=np.zeros(hits.shape), where=seen > 0)
    return f1.sum(axis=-1) / np.maximum((seen > 0).sum(axis=-1), 1)


def weighted_median(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The median (R,) of values (N,), each counted times (R, N) whole times; the middle of the two at even counts."""
    order = np.argsort(values, kind="stable")
    reached = times[:, order].cumsum(axis=1)
    half = reached[:, -1:] / 2
    low, high = (reached >= half).argmax(axis=1), (reached > half).argmax(axis=1)
    return (values[order][low] + values[order][high]) / 2


def summary(figure: Figure, reference: Figure | None = None, seed: int = 0, clips: int = 0) -> dict[str, Any]:
    """Value (mean over seeds), each seed's value, 95 % interval over clips; and the paired difference to `reference`."""
    weights = _weights(clips, seed)
    own, own_resampled = figure.values(), figure.values(weights)
    found: dict[str, Any] = {
        "value": number(own.mean()),
        "seeds": [number(value) for value in own[:, 0]],
        "ci95": bounds(own_resampled.mean(axis=0)),
    }
    if reference is not None:
        difference = own - reference.values()
        resampled = (own_resampled - reference.values(weights)).mean(axis=0)
        found |= {"delta": number(difference.mean()), "delta_ci95": bounds(resampled)}
    return found


@lru_cache(maxsize=4)
def _weights(clips: int, seed: int) -> np.ndarray:
    return resample(clips, seed)


def bounds(values: np.ndarray) -> list[float] | None:
    """The 95 % interval of resampled values, as the record keeps it."""
    found = interval(values)
    return None if found is None else list(found)


def number(value: float) -> float | None:
    """A JSON number; None where it is undefined."""
    return float(value) if np.isfinite(value) else None
