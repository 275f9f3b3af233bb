"""From scores to a pruned quantiser: which dimensions (or components) of one codebook stay, and what stands in for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from toc_cli.errors import UsageError
from toc_cli.ops.criteria.base import Known
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.level import components
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.rotation import Rotation
from toc_cli.ops.scores import Scores, shared, similarity_and_variance
from toc_cli.ops.selection import Selection, Size, one_size, padded, parse_ratio, select, trimmed
from toc_cli.pipeline.knowledge import groups, known
from toc_cli.pipeline.source import Source
from toc_cli.pipeline.study import Study


@dataclass(frozen=True)
class Ranking:
    """The scores of every set of dimensions that is chosen on its own: (levels that choose) x (heads that choose)."""

    criterion: str
    scores: list[list[Scores]]
    rotations: list[list[Rotation]] | None


@dataclass(frozen=True)
class Choice:
    """The kept dimensions of one codebook at one D'."""

    full: Quantiser
    ranking: Ranking
    selections: list[list[Selection]]
    kept: (
        torch.Tensor
    )  # (L or 1, H, D') int64, -1 at the end of a level that keeps fewer; of components, for a rotation
    rotation: torch.Tensor | None  # (L or 1, H, D, D') float64, zero at the end of a level that keeps fewer
    fill: np.ndarray  # (L, H, D)
    codes: bytes = b""
    """What tells choices apart whose codes are not the study's own."""

    @cached_property
    def form(self) -> Quantiser:
        """The pruned quantiser, with the projection in."""
        return self.build()

    def build(self) -> Quantiser:
        """`form`, made anew: for one that is not to stay in memory."""
        if self.rotation is None:
            return self.full.pruned(self.kept, self.fill)
        return self.full.rotated(self.rotation, self.fill)

    @property
    def identity(self) -> bytes:
        """Equal for choices of one codebook whose forms are equal."""
        return (self.kept if self.rotation is None else self.rotation).numpy().tobytes() + self.codes

    @property
    def count(self) -> int:
        """D', the largest over the levels."""
        return self.kept.shape[-1]

    @property
    def sizes(self) -> list[int]:
        """D' of each level."""
        own = [level.shape[-1] for level in self.kept_by_level]
        return own * (len(self.full.levels) // len(own))

    @property
    def size(self) -> Size:
        """D', or that of each level where they differ."""
        return one_size(self.sizes)

    @property
    def keeps_all(self) -> bool:
        """Whether every dimension of every level stays as it came."""
        return min(self.sizes) == self.full.dim and self.rotation is None

    @property
    def kept_by_level(self) -> list[torch.Tensor]:
        """(H, D'_l) int64 for each level, or once for all."""
        return trimmed(self.kept)

    @property
    def rotation_by_level(self) -> list[torch.Tensor]:
        """(H, D, D'_l) float64 for each level, or once for all; empty for a selection."""
        return [] if self.rotation is None else components(self.rotation)

    def table(self, field: str) -> np.ndarray:
        """`score`, `similarity` or `variance` as (L or 1, H, D) float64."""
        rows = [[getattr(scores, field) for scores in level] for level in self.ranking.scores]
        return np.array([level * (self.kept.shape[1] // len(level)) for level in rows])

    @property
    def order(self) -> torch.Tensor:
        """(L or 1, H, D) int64: every dimension by falling score."""
        rows = [[selection.order for selection in level] for level in self.selections[: len(self.ranking.scores)]]
        return torch.stack([torch.stack(level * (self.kept.shape[1] // len(level))) for level in rows])


def rank_dimensions(study: Study, criterion: str, seed: int) -> Ranking:
    """Score every set of dimensions that is chosen on its own (`knowledge.groups`), once for a study."""
    key = (criterion, seed, study.options.weights, study.options.normalize)
    if key not in study.rankings:
        study.rankings[key] = _ranking(study, criterion, seed)
    found: Ranking = study.rankings[key]
    return found


def _ranking(study: Study, criterion: str, seed: int) -> Ranking:
    tables = [
        [[known(study, criterion, place, seed) for place in group] for group in row] for row in groups(study.source)
    ]
    found = [[CRITERIA[criterion].rank(group) for group in row] for row in tables]
    turns = [[ranked for ranked in row if isinstance(ranked, Rotation)] for row in found]
    scores = [
        [
            shared([turned(each, ranked) for each in group]) if isinstance(ranked, Rotation) else ranked
            for group, ranked in zip(groups_, row, strict=True)
        ]
        for groups_, row in zip(tables, found, strict=True)
    ]
    return Ranking(criterion, scores, turns if turns[0] else None)


def turned(about: Known, rotation: Rotation) -> Scores:
    """The scores of a rotation's components: their eigenvalues, beside similarity and variance of the rotated codes."""
    return Scores(rotation.eigenvalues, *similarity_and_variance(rotation.moments(about.scored)))


def choose(study: Study, ranking: Ranking, size: Size, fill: np.ndarray | None = None) -> Choice:
    """Keep `size` dimensions of each set, with the constant that stands in for the dropped ones: `constants` unless given.

    Levels that share one set and keep unlike many take the first of one ranking each.
    """
    source, options = study.source, study.options
    ratio = parse_ratio(options.ratio) if options.ratio else None
    heads = source.full.heads
    counts = [size] * len(ranking.scores) if isinstance(size, int) else list(size)
    own = ranking.scores * (len(counts) // len(ranking.scores))
    selections = [
        [select(s.score, count, ratio, s.last) for s in level] for level, count in zip(own, counts, strict=True)
    ]
    kept = padded([torch.stack([s.kept for s in level] * (heads // len(level))) for level in selections])
    constant = constants(study) if fill is None else fill
    if ranking.rotations is None:
        return Choice(source.full, ranking, selections, kept, None, constant)
    turned = ranking.rotations * (len(counts) // len(ranking.rotations))
    rotation = torch.zeros(len(counts), heads, source.full.dim, max(counts), dtype=torch.float64)
    for at, (level, count) in enumerate(zip(turned, counts, strict=True)):
        leading = np.array([turn.leading(count) for turn in level] * (heads // len(level)))
        rotation[at, ..., :count] = torch.from_numpy(leading)
    return Choice(source.full, ranking, selections, kept, rotation, constant)


def constants(study: Study) -> np.ndarray:
    """c (L, H, D): the usage-weighted mean where that is exact for the family, else zero; `--fill` decides."""
    source, options = study.source, study.options
    zero = np.zeros((len(source.full.levels), source.full.heads, source.full.dim))
    usage = study.census.pooled
    if not source.book.own_dims_per_head:  # one stored table holds one constant
        usage = [np.broadcast_to(counts.sum(0), counts.shape) for counts in usage]
    mean = zero if options.fill == "zero" or source.book.zero_fill else source.full.mean_fill(usage)
    if options.fill == "mean" and (source.book.zero_fill or not mean.any()):
        raise inexact_mean(source)
    return mean


def inexact_mean(source: Source) -> UsageError:
    """The refusal of `--fill mean` where only 0 is exact."""
    return UsageError(
        f"--fill mean is not exact for {source.book.family} ({source.book.metric}): its constant must be 0.",
        "Use --fill zero.",
    )
