"""One Lloyd step: each code becomes the mean of the rows that choose it (Lloyd 1982; Linde, Buzo and Gray 1980).

Legend: N rows, K codes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toc_cli.ops.linear import Array, float64


@dataclass(frozen=True)
class Gathered:
    """Rows by the code that they choose."""

    counts: np.ndarray  # (K,) int64
    sums: np.ndarray  # (K, D) float64

    def __add__(self, other: Gathered) -> Gathered:
        return Gathered(self.counts + other.counts, self.sums + other.sums)


def gathered(z: Array, tokens: np.ndarray, codes: int) -> Gathered:
    """Counts and sums of rows z (N, D) by their tokens (N,) among so many codes; each sum in the order of the rows."""
    rows = float64(z)
    counts = np.bincount(tokens, minlength=codes)
    sums = np.zeros((codes, rows.shape[1]))
    order = np.argsort(tokens, kind="stable")
    used = np.flatnonzero(counts)
    if len(used):
        sums[used] = np.add.reduceat(rows[order], np.concatenate([[0], np.cumsum(counts[used])[:-1]]), axis=0)
    return Gathered(counts, sums)


def stepped(codes: Array, found: Gathered) -> np.ndarray:
    """The codes (K, D) after a step, float64: the mean of the rows of each; a code that no row chooses stays."""
    before = float64(codes)
    chosen = found.counts > 0
    after = before.copy()
    after[chosen] = found.sums[chosen] / found.counts[chosen, None]
    return after
