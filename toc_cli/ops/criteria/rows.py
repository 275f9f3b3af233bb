"""A seeded sample of the features, for criteria that look at rows: the same rows whatever the chunks and ranks.

Legend: n sampled rows, K codes, D dimensions, C candidate codes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from toc_cli.ops.blocks import total
from toc_cli.ops.bootstrap import resample
from toc_cli.ops.criteria.base import Known, Reduction, Side, compared, segments
from toc_cli.ops.linear import float64, matmul, unit_rows

ROWS = 2000
"""Rows of all modalities together."""

TILE_ROWS = 128


@dataclass(frozen=True)
class Rows:
    """Sampled rows and the codes that all dimensions choose for them."""

    x: np.ndarray  # (n, D) float64
    tokens: np.ndarray  # (n,) int64


@lru_cache(maxsize=4)
def drawn(rows: int, seed: int) -> np.ndarray:
    """Places of the sample among `rows`, ascending: at most ROWS."""
    if rows <= ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, ROWS, replace=False))


def _single(known: Known, side: Side) -> Rows:
    places = drawn(side.rows, known.seed)
    first, end = np.searchsorted(places, (side.start, side.start + len(side.x)))
    own = places[first:end] - side.start
    x = side.x[own]
    return Rows(unit_rows(x) if known.unit else float64(x), np.asarray(side.tokens)[own])


def merge_rows(p: Rows, q: Rows) -> Rows:
    """The rows of both, in order."""
    return Rows(np.concatenate([p.x, q.x]), np.concatenate([p.tokens, q.tokens]))


SAMPLE = Reduction("modalities", _single, merge_rows)


def redrawn(known: Known, resamples: int, seed: int) -> list[Known]:
    """The same on resamples of the segments."""
    own = segments(known)
    draws = resample(len(own), seed, resamples).astype(int)
    return [
        replace(known, streams=[[unit for unit, n in zip(own, times, strict=True) for _ in range(n)]])
        for times in draws
    ]


@dataclass(frozen=True)
class Contest:
    """Rows with the codes that compete for them, the chosen one among these."""

    x: torch.Tensor  # (n, D) float32
    codes: torch.Tensor  # (K, D) float32
    candidates: torch.Tensor | None  # (n, C) int64; None: all codes
    chosen: torch.Tensor  # (n, 1) int64, which candidate is the chosen code
    dot: bool
    """Codes win by the largest product, not the least distance."""

    def cost(self, d: int) -> torch.Tensor:
        """(n, C) float32: what dimension d adds to the distance of each candidate."""
        x, e = self.x[:, d, None], self.codes[:, d]
        e = e[None] if self.candidates is None else e[self.candidates]
        return -x * e if self.dot else (x - e).square_()


def contest(known: Known, rows: int, most: int) -> Contest:
    """`rows` of the sampled rows, evenly spaced, against the `most` codes nearest to each by all dimensions."""
    sample, codes = total(segments(known), merge_rows), compared(known)
    at = np.arange(min(rows, len(sample.x))) * len(sample.x) // max(1, min(rows, len(sample.x)))
    x, tokens, dot = sample.x[at], sample.tokens[at], known.metric == "dot"
    candidates, chosen = None, tokens[:, None]
    if most < len(codes):
        tiles = [slice(start, start + TILE_ROWS) for start in range(0, len(x), TILE_ROWS)]
        found = np.concatenate([_nearest(x[tile], codes, tokens[tile], most, dot) for tile in tiles])
        candidates, chosen = torch.from_numpy(found), (found == tokens[:, None]).argmax(axis=1)[:, None]
    rows32, codes32 = (torch.from_numpy(values.astype(np.float32)) for values in (x, codes))
    return Contest(rows32, codes32, candidates, torch.from_numpy(chosen), dot)


def _nearest(x: np.ndarray, codes: np.ndarray, tokens: np.ndarray, most: int, dot: bool) -> np.ndarray:
    """(n, C): the codes nearest to each row, its own always among them."""
    distance = -matmul(x, codes.T) if dot else np.einsum("kd,kd->k", codes, codes) - 2 * matmul(x, codes.T)
    distance[np.arange(len(x)), tokens] = -np.inf
    return np.argpartition(distance, most - 1, axis=1)[:, :most]
