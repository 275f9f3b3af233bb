"""Nearest-code search: the one door.

    assign(x, codes)            (N, D), (K, D)    -> (N,) int64
    nearest(x, codes)           the same with distances and near ties
    Searcher(codes)             the same for many blocks of rows: the codes are made ready once
    assign_heads(x, codes)      (N, H, D), (H, K, D) -> (N, H): one codebook per head
    assign_residual(x, codes)   (N, D), (L, K, D) -> (N, L): one codebook per level of a residual quantiser

The result is the float64 argmin of naive.py, ties to the smaller index, on every backend, device and number of threads;
an N x K matrix is never held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toc_cli.errors import InputError
from toc_cli.ops.assign import native
from toc_cli.ops.assign.found import Found
from toc_cli.ops.assign.inputs import fit
from toc_cli.ops.assign.search import BACKENDS, METRICS, NEAR, choose, distances, find, nearest_op

__all__ = [
    "BACKENDS",
    "METRICS",
    "NEAR",
    "Assignment",
    "Searcher",
    "assign",
    "assign_heads",
    "assign_residual",
    "choose",
    "nearest",
]


@dataclass(frozen=True)
class Assignment:
    """The nearest codes of N rows. Distances are squared for euclidean, the negative similarity for cosine and dot; in float64."""

    indices: Tensor
    """(N,) int64."""
    distance: Tensor
    """(N,) float64, of the nearest code."""
    second_distance: Tensor | None
    """(N,) float64, of the second nearest (inf where K = 1); only where asked for."""
    near_tie: Tensor
    """(N,) bool: the second nearest is within 1e-6 (relative) of the nearest."""


def assign(
    x: Tensor, codes: Tensor, *, metric: str = "euclidean", kept: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Index (N,) int64 of the nearest code (K, D) to each row of x (N, D).

    `kept` (D',) int64 compares only those columns of x; codes may have all D columns or just the D' kept ones.
    Raises InputError for shapes that do not fit and for NaN or Inf, naming the first row; UsageError for an unknown metric or backend.
    """
    if torch.compiler.is_compiling():
        return nearest_op(x, codes, metric, kept, backend, 0.0)[0]
    return find(x, codes, metric, kept, backend, 0.0).index


def nearest(
    x: Tensor,
    codes: Tensor,
    *,
    metric: str = "euclidean",
    kept: Tensor | None = None,
    backend: str = "auto",
    second: bool = False,
) -> Assignment:
    """`assign` with exact distances and near ties; with `second=True` also the second best distance (about twice the time)."""
    reach = torch.inf if second else NEAR
    if torch.compiler.is_compiling():
        index, best, runner_up, near = nearest_op(x, codes, metric, kept, backend, reach)
    else:
        found = find(x, codes, metric, kept, backend, reach)
        index, best, runner_up, near = distances(x, codes, metric, kept, found, reach)
    return Assignment(index, best, runner_up if second else None, near)


class Searcher:
    """A codebook (K, D) made ready once, for many blocks of rows: the same answers as `assign` and `nearest`.

    The codes must not change while it lives. `kept` (D',) int64 as in `assign`, with codes of the D' kept columns. Without
    `keep`, a large codebook is packed again for each block, slice by slice, so that it does not drive the memory.
    """

    def __init__(
        self, codes: Tensor, metric: str = "euclidean", kept: Tensor | None = None, *, keep: bool = True
    ) -> None:
        self.codes, self.metric, self.kept = codes, metric, kept
        self._packed = native.Packed(codes, metric, keep=keep) if choose(codes.device) == "native" else None

    def assign(self, x: Tensor) -> Tensor:
        """Index (N,) int64 of the nearest code to each row of x."""
        return self._find(x, 0.0).index

    def nearest(self, x: Tensor) -> Assignment:
        """Index, exact distance and near tie of each row of x."""
        found = distances(x, self.codes, self.metric, self.kept, self._find(x, NEAR), NEAR)
        return Assignment(found[0], found[1], None, found[3])

    def _find(self, x: Tensor, reach: float) -> Found:
        if self._packed is None:
            return find(x, self.codes, self.metric, self.kept, "auto", reach)
        kept = fit(x, self.codes, self.kept)
        return native.search_packed(x, self._packed, kept, reach)


def assign_heads(
    x: Tensor,
    codes: Tensor | Sequence[Tensor],
    *,
    metric: str = "euclidean",
    kept: Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Index (N, H) of the nearest code of each head: x (N, H, D), codes (H, K, D) or H codebooks of their own K.

    `kept` holds one set of columns per head.
    """
    if x.ndim != 3 or x.shape[1] != len(codes):
        raise InputError(f"{len(codes)} heads need features of shape (N, {len(codes)}, D), not {tuple(x.shape)}.")
    columns = [
        assign(x[:, h], head, metric=metric, kept=None if kept is None else kept[h], backend=backend)
        for h, head in enumerate(codes)
    ]
    return torch.stack(columns, 1)


def assign_residual(
    x: Tensor,
    codes: Tensor | Sequence[Tensor],
    *,
    metric: str = "euclidean",
    kept: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Index (N, L) of each level of a residual quantiser: codes (L, K, D) or L codebooks of their own K.

    Level l sees x minus the codes chosen before it, subtracted level by level in float32 (float64 where x is).
    """
    out = torch.empty(len(x), len(codes), dtype=torch.int64, device=x.device)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = max(1, (1 << 24) // max(1, x.shape[-1]))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        residual = rows if kept is None else rows.index_select(1, kept)
        residual = residual.to(wide, copy=True)
        for level, book in enumerate(codes):
            book = book if kept is None or book.shape[1] == len(kept) else book.index_select(1, kept)
            found = assign(residual, book, metric=metric, backend=backend)
            out[start : start + step, level] = found
            residual -= book[found].to(wide)
    return out
