"""Intervals from resampled blocks: a seeded bootstrap over runs of rows, vectorised over the resamples.

A block holds whole units (clips, files), or rows that stand next to each other: what is resampled is what was sampled.
Legend: B blocks, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

from toc_cli.ops.linear import Array, float64, matmul

RESAMPLES = 1000
LEVEL = 0.95
FEW = 20
"""Units below which an interval says more about them than about where they come from."""
FEWEST = 10
"""Units below which a resample repeats so many that its own spread says nothing."""
STEADY = 0.1
"""Share of the sample's standard error below which that of a resample says that it missed the units which make the spread: a
distance divided by it would have no bound."""


def resample(blocks: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each block is drawn, (R, B) float64: B draws with replacement per resample."""
    return (
        np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype(np.float64)
    )


def resample_together(strata: Sequence[tuple[Hashable, int]], seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """`resample` of samples that stand one after the other, (R, sum of their blocks): each is drawn by itself, and those of
    one name (modalities that are paired: the pair is the unit) are drawn alike."""
    generator = np.random.default_rng(seed)
    drawn: dict[Hashable, np.ndarray] = {}
    for name, blocks in strata:
        if name not in drawn:
            drawn[name] = generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype(np.float64)
    return np.concatenate([drawn[name] for name, _ in strata], axis=1)


def totals(sums: Array, weights: np.ndarray | None = None) -> np.ndarray:
    """Block sums (B, ...) to totals (R, ...), one per row of weights (R, B); without weights the plain one (1, ...)."""
    values = float64(sums)
    if weights is None:
        return values.sum(axis=0)[None]
    return matmul(weights, values.reshape(len(values), -1)).reshape(len(weights), *values.shape[1:])


def interval(
    values: np.ndarray, *, blocks: int | None = None, centre: float | None = None
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic over resamples (R,); None where it is undefined in one of them.

    With the number of `blocks` that were resampled, None for one, and wider: percentiles are too narrow by
    sqrt((B - 1) / B), and by the normal quantile in Student's place (the expanded percentile interval of Hesterberg, What
    Teachers Should Know About the Bootstrap, 2015, section 5.3).
    `centre` moves the resamples so that their mean lies there: for plug-in estimates, which resampling biases.
    """
    if blocks == 1 or not np.isfinite(values).all():
        return None
    moved = values if centre is None else values + (centre - values.mean())
    tail = (1 - LEVEL) / 2
    if blocks is not None:
        tail = float(special.ndtr(np.sqrt(blocks / (blocks - 1)) * special.stdtrit(blocks - 1, tail)))
    low, high = np.quantile(moved, [tail, 1 - tail])
    return float(low), float(high)


def studentised(
    numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray, strata: Sequence[tuple[Hashable, int]]
) -> tuple[float, float] | None:
    """The 95 % bootstrap-t interval of the ratio of two totals, from sums of blocks (B,) and `resample_together`'s weights (R, B).

    Each resample's distance from the sample's ratio is divided by its own standard error, that of the linearised ratio, so that
    a skewed figure reaches further on its long side, where percentiles of few units fall short (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, section 12.5). None with fewer than `FEWEST` units of a kind, or where the spread is that
    of a unit or two (`STEADY`): percentiles serve there.
    """
    edges = np.cumsum([0, *(blocks for _, blocks in strata)])
    places: dict[Hashable, list[slice]] = {}
    for (name, _), start, stop in zip(strata, edges, edges[1:], strict=False):
        places.setdefault(name, []).append(slice(start, stop))
    kinds = []
    for same in places.values():
        above, below = (sum(values[place] for place in same) for values in (numerator, denominator))
        columns = np.stack([above, below, above * above, above * below, below * below], axis=1)
        drawn = totals(columns, weights[:, same[0]])
        kinds.append((len(columns), np.concatenate([totals(columns), drawn]).T))  # the sample itself first
    under = sum(sums[1] for _, sums in kinds)
    if min(blocks for blocks, _ in kinds) < FEWEST or not (np.isfinite(numerator).all() and (under > 0).all()):
        return None
    ratio = sum(sums[0] for _, sums in kinds) / under
    squares = np.zeros(len(ratio))
    for blocks, (n, d, nn, nd, dd) in kinds:
        power = nn - 2 * ratio * nd + ratio**2 * dd - (n - ratio * d) ** 2 / blocks
        squares += blocks / (blocks - 1) * np.maximum(power, 0)
    errors = np.sqrt(squares) / under
    if not (errors > STEADY * errors[0]).all():
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile((ratio[1:] - ratio[0]) / errors[1:], [tail, 1 - tail])
    return float(ratio[0] - high * errors[0]), float(ratio[0] - low * errors[0])


def beyond_chance(chosen: np.ndarray, random: np.ndarray, seed: int = 0) -> np.ndarray:
    """By how much random selections exceed the chosen one, as resamples (R,) that carry two doubts: that of the rows, which
    `chosen` (R,) and `random` (S, R) hold, and that of the S random sets, a sample of all.

    A random choice is itself one more draw: its distance from the others' mean is t-distributed with their spread, times
    sqrt(1 + 1/S). Without that, every second random choice would beat chance.
    """
    seeds = len(random)
    spread = random.std(axis=0, ddof=1) * np.sqrt(1 + 1 / seeds)
    doubt = np.random.default_rng(seed).standard_t(seeds - 1, size=random.shape[1])
    return random.mean(axis=0) - chosen + doubt * spread
