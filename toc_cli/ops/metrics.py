"""What pruning changes, measured on features: block sums first, statistics of their totals second.

Legend: N rows, B blocks, R resamples, L levels, H heads, V width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch

from toc_cli.ops.bootstrap import totals
from toc_cli.ops.linear import float64
from toc_cli.ops.quantiser import Lookup, Quantiser

Stackable = TypeVar("Stackable", "Sums", "Spread")

FIRST = np.zeros(1, dtype=np.int64)
"""All rows as one block."""
TILE_NUMBERS = 1 << 16
"""Numbers of a tile of rows: half a MiB in float64, so that what is computed of them stays in cache."""
TOTALS_NUMBERS = 1 << 21
"""Numbers of totals over resamples that are held at a time: 16 MiB."""


@dataclass(frozen=True)
class Spread:
    """Block sums of the features themselves, about a fixed shift."""

    first: np.ndarray  # (B, V) sum of (x - shift)
    second: np.ndarray  # (B,) sum of |x - shift|^2


@dataclass(frozen=True)
class Sums:
    """Block sums of one quantiser against the unpruned one."""

    rows: np.ndarray  # (B,) int64
    agree: np.ndarray  # (B, L) tokens equal to the unpruned ones, over rows and heads, divided by H
    near: np.ndarray  # (B, L) near ties, over rows and heads, divided by H; NaN where they were not asked for
    error: np.ndarray  # (B, L) sum of |target - approximation|^2 through level l; NaN where undefined (logits)


def stack(parts: Sequence[Stackable]) -> Stackable:
    """Blocks one after the other, in order."""
    first = parts[0]
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(first)}
    return type(first)(**columns)


def merged(parts: Stackable, starts: np.ndarray) -> Stackable:
    """The sums of runs of blocks as one block each: the runs begin at the blocks `starts`."""
    return type(parts)(**{f.name: np.add.reduceat(getattr(parts, f.name), starts, axis=0) for f in fields(parts)})


def block_spread(target: torch.Tensor, shift: np.ndarray, starts: np.ndarray = FIRST) -> Spread:
    """Sums of the blocks of targets (N, V) that begin at rows `starts`, about `shift` (V,), a point near their mean."""
    first, squares = [], []
    for start, stop in zip(starts, [*starts[1:], len(target)], strict=True):
        off = float64(target[start:stop]) - shift
        first.append(np.add.reduceat(off, FIRST, axis=0))
        squares.append(np.einsum("nv,nv->n", off, off))
    return Spread(np.concatenate(first), np.add.reduceat(np.concatenate(squares), starts))


def block_sums(
    quantiser: Quantiser,
    found: Lookup,
    full_tokens: torch.Tensor,
    target: torch.Tensor | None,
    starts: np.ndarray = FIRST,
) -> Sums:
    """Sums of the blocks that begin at rows `starts`.

    Args:
        found: what `quantiser` chose for the rows.
        full_tokens: (N, L, H), the unpruned quantiser's choice.
        target: (N, V), `quantiser.target` of the rows; None where nothing is approximated (logits).
    """
    rows = np.diff([*starts, len(full_tokens)])
    agree = np.add.reduceat((found.tokens == full_tokens).numpy().mean(axis=2), starts)
    asked = len(found.near_tie) == len(found.tokens)
    near = np.add.reduceat(found.near_tie.numpy().mean(axis=2), starts) if asked else np.full(agree.shape, np.nan)
    if target is None:
        error = np.full(agree.shape, np.nan)
    else:
        error = np.add.reduceat(squared_errors(quantiser, found.tokens, target, starts), starts)
    return Sums(rows, agree, near, error)


def squared_errors(quantiser: Quantiser, tokens: torch.Tensor, target: torch.Tensor, starts: np.ndarray) -> np.ndarray:
    """|target - approximation|^2 (N, L) of each row through each level, for tokens (N, L, H) and targets (N, V).

    Tile by tile; where the vectors are products, whose rounding may follow the rows multiplied together, block by block.
    """
    error = np.empty((len(tokens), len(quantiser.levels)))
    step = max(1, TILE_NUMBERS // target.shape[1])
    edges = starts if quantiser.vectors_are_products else np.arange(0, len(tokens), step)
    for start, stop in zip(edges, [*edges[1:], len(tokens)], strict=True):
        goal = float64(target[start:stop])
        for level, part in enumerate(quantiser.approximations(tokens[start:stop])):
            off = goal - part.numpy()
            error[start:stop, level] = np.einsum("nv,nv->n", off, off)
    return error


def measure(
    sums: Sums,
    *,
    full: Sums | None = None,
    spread: Spread | None = None,
    weights: np.ndarray | None = None,
    level: int | None = None,
) -> dict[str, np.ndarray]:
    """Statistics (R,) of the totals: the sample itself (R = 1), or one per row of the bootstrap `weights` (R, B).

    `distortion` is the mean |x - vector|^2 per row (of unit vectors where `Quantiser.between_unit`) and `near_tie_rate` a share
    of lookups; with `full`, the unpruned quantiser's sums, `token_agreement` and `excess_distortion` join; with `spread`,
    `snr_db`, which is 10 log10(mean |x - mean x|^2 / distortion). `level` looks at one level (agreement, near ties) or through
    it (distortion). NaN where undefined: logits, or a division by a distortion of 0.
    """
    at = slice(None) if level is None else slice(level, level + 1)
    through = -1 if level is None else level
    rows = totals(sums.rows, weights)
    error = totals(sums.error, weights)[:, through]
    result = {
        "near_tie_rate": totals(sums.near, weights)[:, at].mean(axis=1) / rows,
        "distortion": error / rows,
    }
    if full is not None:
        result["token_agreement"] = totals(sums.agree, weights)[:, at].mean(axis=1) / rows
        result["excess_distortion"] = _ratio(error, totals(full.error, weights)[:, through]) - 1
    if spread is not None:
        power = totals(spread.second, weights) / rows - _squared_means(spread.first, weights, rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            result["snr_db"] = 10 * np.log10(_ratio(power, result["distortion"]))
    return result


def _squared_means(first: np.ndarray, weights: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """|mean|^2 (R,) of block sums (B, V) over so many rows (R,), a few resamples at a time where V is large."""
    step = max(1, TOTALS_NUMBERS // first.shape[1])
    found = []
    for start in range(0, len(rows), step):
        some = None if weights is None else weights[start : start + step]
        mean = totals(first, some) / rows[start : start + step, None]
        found.append(np.einsum("rv,rv->r", mean, mean))
    return np.concatenate(found)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0)
