"""What the features say of one codebook: how often each code is chosen, and the sums that criteria ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from toc_cli.pipeline.source import Fit

Units: TypeAlias = dict[tuple[int, int], list[list[Any]]]
"""Per (level, head), per stream of rows: the states of its segments, in order. Segments are what stability resamples."""


@dataclass
class Census:
    """What the features say of one codebook. Arrays per level; H heads, K codes, D dimensions."""

    fits: list[Fit]
    usage: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Per modality and level (H, K_l): how often all dimensions choose each code."""
    sums: dict[str, Units] = field(default_factory=dict)
    """Per criterion what it sums over the features beside usage (`toc_cli.ops.criteria.base.Reduction`)."""

    @property
    def rows(self) -> int:
        """Rows over all modalities."""
        return sum(fit.dataset.rows for fit in self.fits)

    @property
    def pooled(self) -> list[np.ndarray]:
        """Usage (H, K_l) per level over all modalities."""
        return [np.sum(levels, axis=0) for levels in zip(*self.usage.values(), strict=True)]


def paired(fits: Sequence[Fit]) -> list[list[Fit]]:
    """The modalities that are paired row by row, group by group, each of two or more; `pairs_of` are the pairs in them."""
    groups: list[list[Fit]] = []
    for fit in fits:
        own = next((g for g in groups if all(fit.dataset.pairs_with(other.dataset) for other in g)), None)
        if own is None:
            groups.append([fit])
        else:
            own.append(fit)
    return [group for group in groups if len(group) > 1]


def pairs_of(fits: Sequence[Fit]) -> list[tuple[Fit, Fit]]:
    """Modalities that are paired row by row: those of equal length and equal units, each with each."""
    return [(a, b) for at, a in enumerate(fits) for b in fits[at + 1 :] if a.dataset.pairs_with(b.dataset)]
