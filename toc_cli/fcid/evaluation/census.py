"""What the scoring split says of each codebook: usage, moments, paired moments; never its labels.

Legend: N rows (seconds or clips that exist), K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from toc_cli.errors import InputError
from toc_cli.fcid.evaluation.sources import CodeSource, LevelInput
from toc_cli.ops.criteria.base import Known, Side
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.rotation import Rotation, usage_covariance
from toc_cli.ops.scores import TOC_WEIGHTS, Scores


@dataclass(frozen=True)
class Scored:
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

    def rank(self, criterion: str, weights: tuple[float, float] = TOC_WEIGHTS, seed: int = 0) -> Scores | Rotation:
        """What a row of `CRITERIA` says of the codebook."""
        row = CRITERIA[criterion]
        known = Known(self.full.levels[0].codes[0], self.usage, (), weights, metric=self.full.metric, seed=seed)
        reads = row.maths.reads
        if reads is not None and reads.over == "pairs":
            sides = [[self._side(x) for x in pair] for pair in self._pairs()]
            known = replace(known, streams=[[reads.single(known, *pair)] for pair in sides])
        elif reads is not None:
            starts = np.cumsum([0, *map(len, self.rows)])
            sides = [[self._side(x, start, starts[-1])] for x, start in zip(self.rows, starts, strict=False)]
            known = replace(known, streams=[[reads.single(known, *side) for side in sides]])
        return row.rank([known])

    def _side(self, x: Tensor, start: int = 0, rows: int = 0) -> Side:
        return Side(x, self.full.tokens(x)[:, 0, 0].numpy(), int(start), int(rows))

    def _pairs(self) -> Sequence[tuple[Tensor, Tensor]]:
        if not self.pairs:
            raise InputError(
                "Criteria over pairs need two modalities that share seconds or clips.",
                "Use --criterion toc, or evaluate more modalities.",
            )
        return self.pairs


def take(source: CodeSource, readings: Mapping[str, Mapping[str, LevelInput]]) -> dict[str, Scored]:
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
        found[name] = Scored(book, rows, [pair for pair in pairs if len(pair[0])])
    return found
