"""What pruning changes, measured on features: block sums first, statistics of their totals second.

Legend: N rows, B blocks, R resamples, L levels, H heads, V width of the vectors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch

from toc_cli.ops.bootstrap import studentised, totals
from toc_cli.ops.linear import float64
from toc_cli.ops.quantiser import Lookup, Quantiser

Stackable = TypeVar("Stackable", "Sums", "Spread")

FIRST = np.zeros(1, dtype=np.int64)
"""All rows as one block."""
TILE_NUMBERS = 1 << 16
"""Numbers of a tile of rows: half a MiB in float64, so that what is computed of them stays in cache."""
TOTALS_NUMBERS = 1 << 21
"""Numbers of totals over resamples that are held at a time: 16 MiB."""
RANGES = {
    "near_tie_rate": (0.0, 1.0), "distortion": (0.0, np.inf), "token_agreement": (0.0, 1.0), "excess_distortion": (-1.0, np.inf),
}  # fmt: skip
"""What a ratio can be at all."""


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
    result = {
        name: _ratio(totals(above, weights), totals(below, weights)) - less
        for name, (above, below, less) in _ratios(sums, full, level).items()
    }
    if spread is not None:
        rows = totals(sums.rows, weights)
        power = totals(spread.second, weights) / rows - _squared_means(spread.first, weights, rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            result["snr_db"] = 10 * np.log10(_ratio(power, result["distortion"]))
    return result


def ratio_intervals(
    sums: Sums, weights: np.ndarray, strata: Sequence[tuple[Hashable, int]], *, full: Sums | None, level: int | None
) -> dict[str, tuple[float, float]]:
    """Bootstrap-t intervals of the figures of `measure` that are ratios of totals, within what each can be; those that have none
    are left out."""
    found = {}
    for name, (above, below, less) in _ratios(sums, full, level).items():
        if bounds := studentised(above, below, weights, strata):
            least, most = RANGES[name]
            found[name] = (max(bounds[0] - less, least), min(bounds[1] - less, most))
    return found


def _ratios(sums: Sums, full: Sums | None, level: int | None) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Per figure the block sums (B,) above and below the line, and what is taken off their ratio."""
    at = slice(None) if level is None else slice(level, level + 1)
    through = -1 if level is None else level
    rows, error = sums.rows.astype(np.float64), sums.error[:, through]
    found = {"near_tie_rate": (sums.near[:, at].mean(axis=1), rows, 0.0), "distortion": (error, rows, 0.0)}
    if full is not None:
        found["token_agreement"] = (sums.agree[:, at].mean(axis=1), rows, 0.0)
        found["excess_distortion"] = (error, full.error[:, through], 1.0)
    return found


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
