"""From scores to a pruned quantiser: which dimensions (or components) of one codebook stay, and what stands in for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.ops.blocks import total
from toc_cli.ops.criterion import CRITERIA, ROTATIONS, Scores, score, shared
from toc_cli.ops.linear import unit_rows
from toc_cli.ops.moments import merge, merge_cross, merge_pairs
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.rotation import Rotation, pca, xcov
from toc_cli.ops.selection import Selection, parse_ratio, select
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

    ranking: Ranking
    selections: list[list[Selection]]
    kept: torch.Tensor  # (L or 1, H, D') int64; of components, for a rotation
    rotation: torch.Tensor | None  # (L or 1, H, D, D') float64
    fill: np.ndarray  # (L, H, D)
    form: Quantiser
    """The pruned quantiser, with the projection in."""

    @property
    def count(self) -> int:
        """D'."""
        return self.kept.shape[-1]

    def table(self, field: str) -> np.ndarray:
        """`score`, `similarity` or `variance` as (L or 1, H, D) float64."""
        rows = [[getattr(scores, field) for scores in level] for level in self.ranking.scores]
        return np.array([level * (self.kept.shape[1] // len(level)) for level in rows])

    @property
    def order(self) -> torch.Tensor:
        """(L or 1, H, D) int64: every dimension by falling score."""
        rows = [[selection.order for selection in level] for level in self.selections]
        return torch.stack([torch.stack(level * (self.kept.shape[1] // len(level))) for level in rows])


def rank_dimensions(study: Study, criterion: str, seed: int) -> Ranking:
    """Score every set of dimensions that is chosen on its own: levels share one set unless they have their own projections,
    heads have their own unless they share one table."""
    source, census = study.source, study.census
    need = CRITERIA[criterion]
    if need == "pairs" and not (census.pairs or census.crosses):
        raise InputError(
            f"--criterion {criterion} needs two modalities of equal shape; {len(census.fits)} given.",
            "Give paired datasets, as --features audio=a.h5 --features video=v.h5.",
        )
    level_sets = _sets(len(source.full.levels), source.book.own_dims_per_level)
    head_sets = _sets(source.full.heads, source.book.own_dims_per_head)
    places = [[[(level, head) for level in levels for head in heads] for heads in head_sets] for levels in level_sets]
    if criterion not in ROTATIONS:
        scores = [[shared([_score(study, criterion, seed, *at) for at in group]) for group in row] for row in places]
        return Ranking(criterion, scores, None)
    turns = [[_rotate(study, criterion, group) for group in row] for row in places]
    scores = [
        [
            shared([_turned(study, criterion, turn, *at) for at in group])
            for group, turn in zip(row, turned, strict=True)
        ]
        for row, turned in zip(places, turns, strict=True)
    ]
    return Ranking(criterion, scores, turns)


def _sets(count: int, own: bool) -> list[list[int]]:
    return [[at] for at in range(count)] if own else [list(range(count))]


def _codes(source: Source, level: int, head: int) -> torch.Tensor:
    return source.full.levels[level].codes[head]


def _score(study: Study, criterion: str, seed: int, level: int, head: int) -> Scores:
    census, options = study.census, study.options
    return score(
        criterion,
        _codes(study.source, level, head),
        weights=options.weights,
        normalize=options.normalize,
        usage=census.pooled[level][head],
        features=total(census.features[level, head][0], merge) if census.features else None,
        pairs=[total(units, merge_pairs) for units in census.pairs[level, head]] if census.pairs else (),
        seed=seed + 1000 * level + head,
    )


def _turned(study: Study, criterion: str, turn: Rotation, level: int, head: int) -> Scores:
    codes, options = _codes(study.source, level, head), study.options
    return score(criterion, codes, weights=options.weights, normalize=options.normalize, rotation=turn)


def _rotate(study: Study, criterion: str, places: Sequence[tuple[int, int]]) -> Rotation:
    census = study.census
    if criterion == "xcov":
        assert census.crosses is not None
        return xcov([total(units, merge_cross) for at in places for units in census.crosses[at]])
    codes = [_codes(study.source, *at) for at in places]
    usage = [census.pooled[level][head] for level, head in places]
    return pca([unit_rows(e) for e in codes] if study.options.normalize == "l2" else codes, usage)


def choose(study: Study, ranking: Ranking, count: int) -> Choice:
    """Keep `count` dimensions of each set, with the constant that stands in for the dropped ones."""
    source, options = study.source, study.options
    ratio = parse_ratio(options.ratio) if options.ratio else None
    if ratio and ranking.criterion in ROTATIONS:
        raise UsageError(
            f"--ratio does not go with --criterion {ranking.criterion}.", "A rotation keeps its leading components."
        )
    selections = [[select(s.score, count, ratio, s.last) for s in level] for level in ranking.scores]
    heads = source.full.heads
    kept = torch.stack([torch.stack([s.kept for s in level] * (heads // len(level))) for level in selections])
    constant = constants(study)
    if ranking.rotations is None:
        return Choice(ranking, selections, kept, None, constant, source.full.pruned(kept, constant))
    turns = [[turn.leading(count) for turn in level] * (heads // len(level)) for level in ranking.rotations]
    rotation = torch.from_numpy(np.array(turns))
    return Choice(ranking, selections, kept, rotation, constant, source.full.rotated(rotation, constant))


def constants(study: Study) -> np.ndarray:
    """c (L, H, D): the usage-weighted mean where that is exact for the family, else zero; `--fill` decides."""
    source, options = study.source, study.options
    zero = np.zeros((len(source.full.levels), source.full.heads, source.full.dim))
    usage = study.census.pooled
    if not source.book.own_dims_per_head:  # one stored table holds one constant
        usage = [np.broadcast_to(counts.sum(0), counts.shape) for counts in usage]
    mean = zero if options.fill == "zero" or source.book.zero_fill else source.full.mean_fill(usage)
    if options.fill == "mean" and (source.book.zero_fill or not mean.any()):
        raise UsageError(
            f"--fill mean is not exact for {source.book.family} ({source.book.metric}): its constant must be 0.",
            "Use --fill zero.",
        )
    return mean
