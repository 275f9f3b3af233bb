"""Float64 arrays and linear algebra whose bits do not depend on the number of threads.

NumPy reductions are single-threaded; matrix products and decompositions run in torch on one thread, on aligned copies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch

Array: TypeAlias = np.ndarray | torch.Tensor

TILE_NUMBERS = 1 << 21
"""Numbers of a tile in float64: 16 MiB."""

GRAM_COLUMNS = 64
"""Columns of a panel of `upper_gram`."""

_lock = threading.Lock()
_inside = 0
_threads_outside = 1
_thread = threading.local()


def float64(x: Array) -> np.ndarray:
    """The values as a C-contiguous float64 array on the CPU, from any real dtype; may share memory with `x`."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        # NumPy converts without waking torch's threads: faster on the small tiles of streamed sums
        x = (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
    return np.ascontiguousarray(x, dtype=np.float64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside: a product's summation order would otherwise follow the thread count.

    Torch counts per calling thread, and a new thread begins with what the last call anywhere set. So each caller gets its own
    number back, and one that first met torch while another was inside gets the number from before.
    """
    global _inside, _threads_outside
    with _lock:
        if _inside == 0:
            _threads_outside = torch.get_num_threads()
        own = torch.get_num_threads() if _inside == 0 or hasattr(_thread, "known") else _threads_outside
        _thread.known = True
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            torch.set_num_threads(own)


def aligned(x: Array) -> torch.Tensor:
    """A float64 CPU copy at torch's own alignment: BLAS may pick other kernels for unaligned memory."""
    return torch.from_numpy(float64(x)).clone(memory_format=torch.contiguous_format)


def matmul(a: Array, b: Array) -> np.ndarray:
    """`a (M, P) @ b (P, N) -> (M, N)` in float64, the same bits whatever the thread count."""
    with one_thread():
        return (aligned(a) @ aligned(b)).numpy()


def upper_gram(tiles: Iterable[torch.Tensor], dim: int) -> np.ndarray:
    """sum of x x^T (D, D) over the rows of tiles (n, D) float64, the same bits whatever the thread count; only its upper triangle is
    right. Tiles of 1,024 rows stay in cache."""
    found = torch.zeros(dim, dim, dtype=torch.float64)
    with one_thread():
        for x in tiles:
            for start in range(0, dim, GRAM_COLUMNS):
                end = start + GRAM_COLUMNS
                found[start:end, start:].addmm_(x[:, start:end].T, x[:, start:])
    return found.numpy()


def eigh(symmetric: Array) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (D,) descending and eigenvectors (D, D) in columns of a symmetric matrix (D, D)."""
    with one_thread():
        values, vectors = torch.linalg.eigh(aligned(symmetric))
    return values.flip(0).numpy(), vectors.flip(1).numpy()


def eigenvalues(symmetric: Array) -> np.ndarray:
    """Eigenvalues (D,) descending of a symmetric matrix (D, D)."""
    with one_thread():
        return torch.linalg.eigvalsh(aligned(symmetric)).flip(0).numpy()


def orthonormal(columns: Array) -> np.ndarray:
    """Gram-Schmidt in order: (D, D) whose first d columns span those of `columns` (D, D), for every d."""
    with one_thread():
        return torch.linalg.qr(aligned(columns)).Q.numpy()


def weighted_sum(weights: Array, rows: Array, of: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """sum_k weights[k] of(rows[k]) (D,) of rows (K, D), `of` the rows themselves if None; float64, in bounded memory.

    The running sum is the first term of each tile: the bits are those of one sum over all rows.
    """
    p = float64(weights)
    step = max(1, TILE_NUMBERS // max(1, rows.shape[1]))
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        tile = float64(rows[start : start + step])
        tile = tile if of is None else of(tile)
        if start:
            total = np.einsum("k,kd->d", np.append(1.0, p[start : start + step]), np.concatenate([total[None], tile]))
        else:
            total = np.einsum("k,kd->d", p[:step], tile)
    return total


def unit_rows(x: Array) -> np.ndarray:
    """Rows (..., D) divided by their length, float64; a zero row stays zero."""
    x = float64(x)
    length = np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
