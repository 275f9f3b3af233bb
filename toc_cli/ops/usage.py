"""How features use the codes: counts, entropy, and what two modalities share.

Legend: N rows, B blocks, R resamples, L levels, H heads, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse, special

RAREFIED = 10
"""Usage figures of fewer rows than this many per code say more about the sample than about the codes."""

DENSE_COUNTS = 100_000_000
"""Resampled counts of one interval: beyond it there are fewer resamples."""


def count_tokens(tokens: torch.Tensor, num_codes: Sequence[int]) -> list[np.ndarray]:
    """Per level how often each code is chosen, (H, K_l) int64, from tokens (N, L, H)."""
    columns = tokens.numpy()
    return [
        np.stack([np.bincount(columns[:, level, head], minlength=codes) for head in range(tokens.shape[2])])
        for level, codes in enumerate(num_codes)
    ]


def entropy(counts: np.ndarray) -> np.ndarray:
    """-sum p ln p in nats over the last axis of counts (..., K); 0 where nothing was counted."""
    total = counts.sum(axis=-1, keepdims=True)
    p = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    return special.entr(p).sum(axis=-1)


def usage(counts: Sequence[np.ndarray]) -> dict[str, float]:
    """Usage of tables (H, K_l) of counts, one per level.

    `used_codes` and `dead_codes` are sums over the tables, `perplexity` the geometric mean of exp(entropy), `entropy`
    the mean of entropy / ln K (0 for K = 1), `used_if_uniform` how many codes as many rows would be expected to use if
    all were equally likely.
    """
    tables = [row for level in counts for row in level]
    nats = np.array([entropy(row) for row in tables])
    used = sum(int(np.count_nonzero(row)) for row in tables)
    return {
        "used_codes": used,
        "dead_codes": sum(len(row) for row in tables) - used,
        "perplexity": float(np.exp(nats.mean())),
        "entropy": float(
            np.mean([h / np.log(len(row)) if len(row) > 1 else 0.0 for h, row in zip(nats, tables, strict=True)])
        ),
        "used_if_uniform": sum(used_if_uniform(len(row), int(row.sum())) for row in tables),
    }


def table_usage(counts: np.ndarray) -> dict[str, float]:
    """One table of counts (K,): codes, how many are used, perplexity, and the entropy in bits a token, of log2 K a code would take."""
    bits = float(entropy(counts)) / np.log(2)
    return {
        "codes": len(counts),
        "used_codes": int(np.count_nonzero(counts)),
        "perplexity": float(2**bits),
        "entropy_bits": bits,
        "bits_per_token": float(np.log2(len(counts))),
    }


def collisions(tokens: np.ndarray) -> list[dict[str, float]]:
    """Rows (N, M) of tokens read as ids, per length 1 … M of their prefix: how many are distinct, how many rows the fullest holds,
    the share of rows that are alone, and the collision rate 1 - distinct / N."""
    rows, columns = tokens.shape
    ordered = tokens[np.lexsort(tokens.T[::-1])]
    first = np.zeros(rows, dtype=bool)  # where another prefix begins
    first[:1] = True
    found = []
    for column in range(columns):
        first[1:] |= ordered[1:, column] != ordered[:-1, column]
        sizes = np.diff(np.append(np.flatnonzero(first), rows))
        found.append(
            {
                "length": column + 1,
                "distinct": len(sizes),
                "largest": int(sizes.max()),
                "alone": float((sizes == 1).sum() / rows),
                "collision_rate": 1 - len(sizes) / rows,
            }
        )
    return found


def used_if_uniform(codes: int, rows: int) -> float:
    """K (1 - (1 - 1/K)^n): the codes that n rows are expected to use if all K are equally likely."""
    return codes * -float(np.expm1(rows * np.log1p(-1 / codes))) if codes > 1 else float(rows > 0)


def is_rarefied(rows: int, num_codes: Sequence[int]) -> bool:
    """Whether the rows are too few (under 10 per code) for usage figures to describe the codes."""
    return rows < RAREFIED * max(num_codes)


def resampled_usage(
    tokens: torch.Tensor, block_of_row: np.ndarray, num_codes: Sequence[int], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """`perplexity` and `entropy` (R,) under the bootstrap weights (R, B), from tokens (N, L, H) and their blocks (N,).

    Centre their intervals on the estimate: resampling lowers both. At most `DENSE_COUNTS` counts are held against the
    codes, so a very large quantiser gets fewer resamples than rows of `weights`.
    """
    heads = tokens.shape[2]
    weights = weights[: max(1, DENSE_COUNTS // (heads * sum(num_codes)))]
    nats, shares = np.zeros(len(weights)), np.zeros(len(weights))
    tables = len(num_codes) * heads
    for level, codes in enumerate(num_codes):
        for head in range(heads):
            column = tokens[:, level, head].numpy()
            cells = sparse.coo_array((np.ones(len(column)), (block_of_row, column)), shape=(weights.shape[1], codes))
            found = _resampled_entropy(weights, cells.tocsr())
            nats += found / tables
            shares += found / np.log(codes) / tables if codes > 1 else 0
    return {"perplexity": np.exp(nats), "entropy": shares}


def _resampled_entropy(weights: np.ndarray, cells: sparse.csr_array) -> np.ndarray:
    """Entropy (R,) of weights (R, B) times counts (B, K), a few resamples at a time."""
    step = max(1, (1 << 20) // cells.shape[1])
    parts = [entropy((cells.T @ weights[start : start + step].T).T) for start in range(0, len(weights), step)]
    return np.concatenate(parts)


def matches(a: torch.Tensor, b: torch.Tensor) -> float:
    """How many paired rows take the same code, tokens a and b (N, L, H), averaged over levels and heads."""
    return float((a == b).double().mean(dim=(1, 2)).sum())


def js_bits(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Jensen-Shannon divergence in bits of code histograms, tables (H, K_l) per level, averaged over the tables."""
    values = [entropy(_shares(p) + _shares(q)) - (entropy(p) + entropy(q)) / 2 for p, q in zip(a, b, strict=True)]
    return float(max(0.0, np.mean(np.concatenate(values)) / np.log(2)))


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(axis=-1, keepdims=True)
