"""Nearest-code search: the one door.

    assign(x, codes)            (N, D), (K, D)    -> (N,) int64
    nearest(x, codes)           the same with distances and near ties
    assign_heads(x, codes)      (N, H, D), (H, K, D) -> (N, H): one codebook per head
    assign_residual(x, codes)   (N, D), (L, K, D) -> (N, L): one codebook per level of a residual quantiser

The result is the float64 argmin of naive.py, ties to the smaller index, on every backend, device and number of threads; an N x K matrix is never held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError, UsageError
from . import blas, naive, native
from .inputs import check_finite, fit

Metric = Literal["euclidean", "cosine", "dot"]
METRICS = ("euclidean", "cosine", "dot")
BACKENDS = ("auto", "naive", "torch", "native")
NEAR = 1e-6  # a near tie: second best within this of the best, relative


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


def assign(x: Tensor, codes: Tensor, *, metric: str = "euclidean", kept: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Index (N,) int64 of the nearest code (K, D) to each row of x (N, D).

    `kept` (D',) int64 compares only those columns of x; codes may have all D columns or just the D' kept ones.
    Raises InputError for shapes that do not fit and for NaN or Inf, naming the first row; UsageError for an unknown metric or backend.
    """
    return _search(x, codes, metric, kept, backend, reach=0.0)[0]


def nearest(
    x: Tensor, codes: Tensor, *, metric: str = "euclidean", kept: Tensor | None = None, backend: str = "auto", second: bool = False
) -> Assignment:
    """`assign` with exact distances and near ties; with `second=True` also the second best distance (about twice the time)."""
    index, best, runner_up = _search(x, codes, metric, kept, backend, reach=torch.inf if second else NEAR)
    near = (runner_up - best) <= NEAR * best.abs()
    if metric == "cosine":
        norms = naive.row_norms(x if kept is None else x.index_select(1, kept.to(x.device)))
        best, runner_up = (torch.where(norms == 0, value.clamp(min=0), value / norms) for value in (best, runner_up))
    return Assignment(index, best, runner_up if second else None, near)


def assign_heads(
    x: Tensor, codes: Tensor | Sequence[Tensor], *, metric: str = "euclidean", kept: Sequence[Tensor] | None = None, backend: str = "auto"
) -> Tensor:
    """Index (N, H) of the nearest code of each head: x (N, H, D), codes (H, K, D) or H codebooks of their own K; kept: one set per head."""
    if x.ndim != 3 or x.shape[1] != len(codes):
        raise InputError(f"{len(codes)} heads need features of shape (N, {len(codes)}, D), not {tuple(x.shape)}.")
    columns = [
        assign(x[:, h], head, metric=metric, kept=None if kept is None else kept[h], backend=backend)
        for h, head in enumerate(codes)
    ]
    return torch.stack(columns, 1)


def assign_residual(
    x: Tensor, codes: Tensor | Sequence[Tensor], *, metric: str = "euclidean", kept: Tensor | None = None, backend: str = "auto"
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


def _search(
    x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, backend: str, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked arguments to the backend: index, distance and second distance (N,)."""
    if metric not in METRICS:
        raise UsageError(f"Metric {metric!r} is not one of {', '.join(METRICS)}.")
    if backend not in BACKENDS:
        raise UsageError(f"Backend {backend!r} is not one of {', '.join(BACKENDS)}.")
    kept = fit(x, codes, kept)
    check_finite("codebook", codes, None if kept is None or codes.shape[1] != x.shape[1] else kept)
    backend = choose(x) if backend == "auto" else backend
    if backend == "native":
        return native.search(x, codes, metric, kept, reach)[:3]
    check_finite("features", x, kept)
    if kept is not None and codes.shape[1] == x.shape[1]:
        codes = codes.index_select(1, kept)
    if backend == "naive":
        return naive.two_nearest(x if kept is None else x.index_select(1, kept), codes, metric)
    return blas.search(x, codes, metric, kept, reach)[:3]


def choose(x: Tensor) -> str:
    """The backend that `auto` takes for features like x: the compiled search on the CPU where it was built, else torch."""
    return "native" if x.device.type == "cpu" and native.instruction_set() else "torch"
