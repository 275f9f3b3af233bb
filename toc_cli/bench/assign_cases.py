"""Features and codebooks that try a nearest-code search: plain ones, and those on which a float32 search goes wrong.

Every maker takes N, K, D and a generator and gives x (N, D) and codes (K, D), float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from toc_cli.ops.assign import assign

Case = Callable[[int, int, int, Generator], tuple[Tensor, Tensor]]


def gaussian(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Independent features and codes."""
    return torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)


def clustered(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Features around the codes."""
    codes = torch.randn(k, d, generator=g)
    return codes[torch.randint(k, (n,), generator=g)] + 0.5 * torch.randn(n, d, generator=g), codes


def kmeans(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Gaussian features and codes trained on such: many rows lie near a boundary."""
    x = torch.randn(n, d, generator=g)
    train = torch.randn(min(8 * k, 1 << 14), d, generator=g)
    codes = torch.randn(k, d, generator=g) * 0.5
    for _ in range(4):
        index = assign(train, codes)
        count = torch.bincount(index, minlength=k).clamp(min=1)
        codes = torch.zeros(k, d).index_add_(0, index, train) / count[:, None]
    return x, codes


def duplicates(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """A quarter of the codes distinct, each several times; a part of them dead (zero)."""
    x, codes = gaussian(n, max(1, k // 4), d, g)
    codes = codes[torch.randint(len(codes), (k,), generator=g)]
    codes[torch.rand(k, generator=g) < 0.2] = 0
    return x, codes


def offset(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Everything far from the origin: the expanded form loses seven digits."""
    x, codes = clustered(n, k, d, g)
    return x + 1e4, codes + 1e4


def decades(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Norms over six decades."""
    x, codes = gaussian(n, k, d, g)
    return x * 10 ** (6 * torch.rand(n, 1, generator=g) - 3), codes * 10 ** (6 * torch.rand(k, 1, generator=g) - 3)


def ties(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Small integers and half-integers: exact ties between different codes."""
    return torch.randint(-4, 5, (n, d), generator=g) / 2, torch.randint(-1, 2, (k, d), generator=g).float()


def near_ties(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Codes in pairs that differ in the last bits."""
    x, codes = gaussian(n, k, d, g)
    half = k // 2
    codes[half : 2 * half] = codes[:half] * (1 + 2e-7 * torch.randint(-1, 2, (half, d), generator=g))
    return x, codes


def denormals(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Values below the smallest normal float32."""
    x, codes = gaussian(n, k, d, g)
    return x * 1e-40, codes * 1e-40


def rectified(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Non-negative, sparse, some rows all zero."""
    x, codes = gaussian(n, k, d, g)
    return (x - 0.7).relu(), (codes - 0.7).relu()


def far_rows(n: int, k: int, d: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Features a million times farther out than the codes."""
    x, codes = gaussian(n, k, d, g)
    return x * 1e6, codes


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        gaussian, clustered, kmeans, duplicates, offset, decades, ties, near_ties, denormals, rectified, far_rows,
    )
}  # fmt: skip
