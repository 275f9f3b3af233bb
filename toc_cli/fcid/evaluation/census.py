"""What the scoring split says of each codebook: usage, moments, paired moments; never its labels.

Legend: N rows (seconds or clips that exist), K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from toc_cli.errors import InputError
from toc_cli.fcid.evaluation.sources import Reading, Source
from toc_cli.ops.moments import Moments, PairMoments, cross_moments, merge, moments, pair_moments
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.rotation import Rotation, pca, usage_covariance, xcov


@dataclass(frozen=True)
class Census:
    """One codebook (K, D) and the features that meet it on the scoring split."""

    full: Quantiser
    rows: Sequence[Tensor]
    """(N, D) per reading."""
    pairs: Sequence[tuple[Tensor, Tensor]]
    """(N, D) twice per pair of modalities: the same second (or clip) of both."""

    @cached_property
    def usage(self) -> np.ndarray:
        """(K,): how often each code is chosen."""
        tokens = torch.cat([self.full.tokens(rows)[:, 0, 0] for rows in self.rows])
        return np.bincount(tokens.numpy(), minlength=self.full.levels[0].codes.shape[1])

    @cached_property
    def spread(self) -> float:
        """Root mean square distance, per dimension, of the codes to their mean, counted by use."""
        covariance = usage_covariance(self.full.levels[0].codes[0], self.usage)
        return float(np.sqrt(np.trace(covariance) / len(covariance))) or 1.0

    @cached_property
    def fill(self) -> np.ndarray:
        """(1, 1, D): what stands for dropped dimensions."""
        return self.full.mean_fill([self.usage[None]])

    @cached_property
    def moments(self) -> Moments:
        return reduce(merge, map(moments, self.rows))

    @cached_property
    def pair_moments(self) -> list[PairMoments]:
        return [pair_moments(a, b) for a, b in self._pairs()]

    def rotation(self, criterion: str) -> Rotation:
        """`pca` of the codes, or `xcov` of the pairs."""
        if criterion == "pca":
            return pca([self.full.levels[0].codes[0]], [self.usage])
        return xcov([cross_moments(a, b) for a, b in self._pairs()])

    def _pairs(self) -> Sequence[tuple[Tensor, Tensor]]:
        if not self.pairs:
            raise InputError(
                "Criteria over pairs (xmodal, xcov) need two modalities that share seconds or clips.",
                "Use --criterion toc, or evaluate more modalities.",
            )
        return self.pairs


def take(source: Source, readings: Mapping[str, Mapping[str, Reading]]) -> dict[str, Census]:
    """A census per codebook from the readings (modality, level) of the scoring split."""
    found = {}
    for name, book in source.books.items():
        levels = {level for own in readings.values() for level, reading in own.items() if reading.book == name}
        rows, pairs = [], []
        for level in sorted(levels):
            own = {modality: by_level[level] for modality, by_level in readings.items() if level in by_level}
            rows += [reading.x[reading.mask] for reading in own.values()]
            for a, b in combinations(own.values(), 2):
                if a.mask.shape == b.mask.shape:
                    both = a.mask & b.mask
                    pairs.append((a.x[both], b.x[both]))
        found[name] = Census(book, rows, [pair for pair in pairs if len(pair[0])])
    return found
