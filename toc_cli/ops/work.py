"""What the costly figures of a run would cost, and whether a run of that size affords them. Sizes alone decide.

The unit is one multiply-add of the nearest-code search; those of float64 decompositions take about four times as long.
Legend: K codes, D dimensions, N rows.
"""

from __future__ import annotations

FREE = 10_000_000_000
"""Work that is done whatever the run costs: a second or so."""
WIDEST_ROTATION = 1024
"""Dimensions up to which a rotation that nobody asked for is computed: several D x D matrices in float64 are held for it."""


def search(codes: int, dim: int, rows: int) -> int:
    """Quantising N rows once."""
    return rows * codes * dim


def pairs(codes: int, dim: int) -> int:
    """Each code's nearest other."""
    return codes * codes * dim


def spectrum(codes: int, dim: int) -> int:
    """The eigenvalues of a covariance of codes, from the smaller Gram matrix."""
    least = min(codes, dim)
    return 4 * codes * dim * least + 16 * least**3


def rotation(codes: int, dim: int) -> int:
    """The eigenvectors of a covariance of codes (D, D)."""
    return 4 * codes * dim * dim + 40 * dim**3


def affordable(work: int, run: int) -> bool:
    """Whether `work` costs no more than the `run` does, or next to nothing."""
    return work <= max(FREE, run)
